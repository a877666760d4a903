# SPDX-License-Identifier: Apache-2.0
"""From one grid to a finer one: whole maps, and only as much of them as an answer needs; and to coarser ones.

Letters: B images, N segments, C channels, h w coarse grid, H W fine grid. Bilinear sampling is that of images: pixel i
of a grid that is `factor` times finer lies at (i + 0.5) / factor - 0.5 of the coarse one; borders go on as they end.
"""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor
from torch.nn import functional as F


def upsampled(maps: Tensor, factor: int) -> Tensor:
    """Bilinear, [B, C, h, w] to [B, C, h * factor, w * factor]."""
    if factor == 1:
        return maps
    return F.interpolate(maps, scale_factor=float(factor), mode="bilinear", align_corners=False)


def upsampled_rows(maps: Tensor, rows: Tensor, factor: int, stride: int) -> Tensor:
    """`upsampled` maps where a pixel wants one of them only: [B, H * stride, W * stride] of [B, N, h, w].

    Four samples of the coarse map are gathered for each block of pixels that lies between the same four.

    Args:
        rows: [B, H, W] int64 in 0..N-1, one for each stride x stride block of the upsampled maps. The stride
            is a divisor of half the factor, or the factor itself.
    """
    if stride == factor:
        rows, stride = rows.repeat_interleave(2, 1).repeat_interleave(2, 2), stride // 2
    height, width = maps.shape[2:]
    (top, bottom), (left, right) = (
        _samples(count, factor / stride, length, maps.device)
        for count, length in zip(rows.shape[1:], (height, width), strict=True)
    )
    corners = torch.stack([y[:, None] * width + x for y in (top, bottom) for x in (left, right)])  # [4, H, W]
    index = rows[:, None] * (height * width) + corners
    values = repeated(maps.flatten(1).gather(1, index.flatten(1)).view_as(index), stride)  # [B, 4, ...]
    down, across = (_places(count, factor, maps.device) % 1 for count in values.shape[2:])
    upper, lower = (_mixed(values[:, i], values[:, i + 1], across) for i in (0, 2))
    return _mixed(upper, lower, down[:, None])


def between(maps: Tensor, factor: int, dim: int) -> list[Tensor]:
    """2 * factor times the maps that upsampling along one dimension interleaves, for a factor of 2 or 4.

    Number k lies (k + 0.5) / factor - 0.5 further on. Weights are then whole numbers, which spares whom but compares
    the maps a pass over them where one is 1; and scaling by a power of two rounds nothing.
    """
    count = maps.shape[dim]
    padded = torch.cat([maps.narrow(dim, 0, 1), maps, maps.narrow(dim, count - 1, 1)], dim)
    sides = [padded.narrow(dim, first, count) for first in (0, 2)]
    weights = [abs(2 * k + 1 - factor) for k in range(factor)]  # of the neighbor, which half of them have before them
    return [
        (2 * factor - w) * maps + (sides[2 * k // factor] if w == 1 else w * sides[2 * k // factor])
        for k, w in enumerate(weights)
    ]


def interleaved(parts: list[list[Tensor]]) -> Tensor:
    """A map [B, h * factor, w * factor] from maps [B, h, w], of which number [i][j] has pixel i, j of every block."""
    return torch.stack([torch.stack(row, dim=-1).flatten(2) for row in parts], dim=2).flatten(1, 2)


def box_mean(maps: Tensor, window: int) -> Tensor:
    """Mean over the `window` x `window` neighborhood of each pixel of [B, C, h, w]; beyond the borders are zeros.

    As products with two band matrices, for ONNX Runtime's average pooling is slow on small maps.
    """
    down, across = (torch.arange(length, device=maps.device, dtype=maps.dtype) for length in maps.shape[2:])
    band_down, band_across = (((at[:, None] - at).abs() <= window // 2).to(at.dtype) / window for at in (down, across))
    return band_down @ maps @ band_across


def block_sums(maps: Tensor, size: int) -> Tensor:
    """Sum over each `size` x `size` block of [B, h, w]: [B, h / size, w / size]. Rows first, which is fastest."""
    if size == 1:
        return maps
    return maps.unflatten(1, (-1, size)).sum(dim=2).unflatten(2, (-1, size)).sum(dim=3)


def repeated(maps: Tensor, factor: int) -> Tensor:
    """Every value of [B, C, h, w] as a factor x factor block. Floats: TensorRT resizes no integers."""
    return maps if factor == 1 else F.interpolate(maps, scale_factor=float(factor), mode="nearest")


def cropped(maps: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """The part of maps [..., h, w] at `stride` that shows an image of this size."""
    return maps[..., : ceil(size[0] / stride), : ceil(size[1] / stride)]


def _places(count: int, factor: float, device: torch.device) -> Tensor:
    """Where the first `count` pixels of a grid lie on one that is `factor` times coarser."""
    return (torch.arange(count, device=device) + 0.5) / factor - 0.5


def _samples(count: int, factor: float, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The samples 0..length-1 before and behind those pixels."""
    before = _places(count, factor, device).floor().to(torch.int64)
    return before.clamp(min=0), (before + 1).clamp(max=length - 1)


def _mixed(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """Linear between two values."""
    return first + share * (second - first)
