# SPDX-License-Identifier: Apache-2.0
"""From one grid to a finer one: whole maps, and only as much of them as an answer needs; and to coarser ones.

Letters: B images, N segments, C channels, h w coarse grid, H W fine grid. Bilinear sampling is that of images: pixel i
of a grid that is `factor` times finer lies at (i + 0.5) / factor - 0.5 of the coarse one; borders go on as they end.

A pixel of the coarse grid is a cell of f x f finer ones. A fine map in cells is [B, f**2, h, w], where number y * f + x
is pixel (y, x) of every cell: what pixels of one number have in common is then done with whole maps. `in_image` puts
them where they belong.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import ceil, isqrt

import torch
from torch import Tensor
from torch.nn import functional as F


def upsampled(maps: Tensor, factor: int) -> Tensor:
    """Bilinear, [B, C, h, w] to [B, C, h * factor, w * factor]."""
    if factor == 1:
        return maps
    return F.interpolate(maps, scale_factor=float(factor), mode="bilinear", align_corners=False)


def upsampled_rows(maps: Tensor, rows: Tensor, factor: int) -> Tensor:
    """`upsampled` maps where a pixel wants one of them only: of [B, N, h, w], in cells [B, factor**2, h, w].

    Four samples of the coarse map are gathered for each block of pixels that lies between the same four.

    Args:
        rows: [B, b**2, h, w] int64 in 0..N-1, one for each of the b x b blocks of a cell. b is 1, or even and a divisor
            of the factor.
    """
    blocks = isqrt(rows.shape[1])
    if blocks == 1:
        rows, blocks = rows.expand(-1, 4, -1, -1), 2
    height, width = maps.shape[2:]
    down, across = (_around(blocks, length, maps.device) for length in (height, width))  # [2, b, h] and [2, b, w]
    corners = width * down[:, :, None, None, :, None] + across[:, :, None]  # [2, b, 2, b, h, w]
    index = height * width * rows.unflatten(1, (1, blocks, 1, blocks)) + corners
    samples = maps.flatten(1).gather(1, index.flatten(1)).view(len(maps), 4 * blocks**2, height * width)
    share = _shares(factor, blocks, maps)
    return (torch.kron(share, share) @ samples).unflatten(2, (height, width))


def _around(blocks: int, length: int, device: torch.device) -> Tensor:
    """The samples [2, b, length] before and behind each block of every cell, along one dimension."""
    before = _before(blocks, device)[:, None] + torch.arange(length, device=device)
    return torch.stack([before, before + 1]).clamp(0, length - 1)


def _before(blocks: int, device: torch.device) -> Tensor:
    """Which sample a block of a cell has before it [b] int64: 0 is the cell's own, in its middle."""
    return (2 * torch.arange(blocks, device=device) >= blocks).to(torch.int64) - 1


def _shares(factor: int, blocks: int, like: Tensor) -> Tensor:
    """Weights [factor, 2 * b] of the samples of `_around` in each pixel of a cell, along one dimension."""
    place = (torch.arange(factor, device=like.device, dtype=like.dtype) + 0.5) / factor - 0.5
    behind = place[:, None] - _before(blocks, like.device)
    block = torch.eye(blocks, device=like.device, dtype=like.dtype).repeat_interleave(factor // blocks, dim=0)
    return torch.cat([block * (1 - behind), block * behind], dim=1)


def between(maps: Tensor, factor: int, scale: float = 1.0) -> Iterator[Tensor]:
    """What `upsampled` interleaves: factor**2 maps [B, C, h, w], row after row of a cell, times `scale`.

    For a factor above 1 they are 4 * factor**2 times as large besides, so that weights are whole numbers. Beyond
    the borders are zeros: there all channels of a pixel are scaled down alike, and the largest of them stays so.
    """
    if factor == 1:
        yield maps * scale
        return
    channels = maps.shape[1]
    taps = [_taps(place, factor, maps) for place in range(factor)]
    for down, across in product(taps, taps):
        weight = scale * down[:, None] * across
        yield F.conv2d(maps, weight.expand(channels, 1, 3, 3), padding=1, groups=channels)


def _taps(place: int, factor: int, like: Tensor) -> Tensor:
    """Weights [3] of the sample before, the cell's own and that behind, for one of the pixels of a cell in a row."""
    offset = 2 * place + 1 - factor  # of the pixel from the middle, in 1 / (2 * factor) of a cell
    sample = 2 * factor * torch.arange(-1, 2, device=like.device, dtype=like.dtype)
    return (2 * factor - (sample - offset).abs()).clamp(min=0)


def in_blocks(cells: Tensor, blocks: int) -> Tensor:
    """Cells [B, f**2, h, w] as b x b blocks of s x s pixels: [B, b, s, b, s, h, w] with s = f / b."""
    size = isqrt(cells.shape[1]) // blocks
    return cells.unflatten(1, (blocks, size, blocks, size))


def in_cells(image: Tensor, factor: int) -> Tensor:
    """A map [B, H, W] in cells [B, factor**2, H / factor, W / factor], as floats."""
    return F.pixel_unshuffle(image[:, None].to(torch.float32), factor)


def in_image(cells: Tensor) -> Tensor:
    """The map [B, h * f, w * f] of cells [B, f**2, h, w]. Floats: engines shuffle no integers."""
    return F.pixel_shuffle(cells, isqrt(cells.shape[1])).squeeze(1)


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
