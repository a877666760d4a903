# SPDX-License-Identifier: Apache-2.0
"""The convolutions that all heads are made of, plain and deformable."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import deform_conv2d

TAPS = 9  # of a 3x3 convolution

# x, offsets, tap weights, weight, bias -> output, of the shapes that `convolve_at` tells.
Convolve = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]

# `convolve_on_grid` goes strip by strip: the samples of 1024 positions stay in a processor's cache, where nine whole
# maps would go through memory (1.2 GB for each convolution of `paper` at 1024x2048).
STRIP = 1024  # positions
MAX_STRIPS = 16  # an engine's graph grows with them


class DeformableConv(nn.Module):
    """3x3 convolution whose taps move: at each position an offset and a weight in 0..1 for every tap.

    Deformable ConvNets v2 (Zhu et al., CVPR 2019), stride 1.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool) -> None:
        super().__init__()
        self.offsets = nn.Conv2d(in_channels, 3 * TAPS, 3, padding=1)  # (dy, dx) of each tap, then its weight
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        # Taps start where a plain convolution has them. Random offsets grow with the features, which of a random
        # backbone are so large that all taps would fall outside the map.
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.offsets.bias)  # type: ignore[arg-type]
        self.convolve: Convolve | None = None  # None: what is fastest where x is

    def forward(self, x: Tensor) -> Tensor:
        """[B, out_channels, h, w] from [B, in_channels, h, w]."""
        offsets, tap_weights = self.offsets(x).split([2 * TAPS, TAPS], dim=1)
        runs_on_cpu = x.device.type == "cpu" and not torch.compiler.is_exporting()
        convolve = self.convolve or (convolve_at if runs_on_cpu else convolve_by_torchvision)
        return convolve(x, offsets, tap_weights.sigmoid(), self.weight, self.bias)


def use_convolution(network: nn.Module, convolve: Convolve) -> None:
    """From here on a network's deformable convolutions are computed by one of the functions below.

    The numbers stay the same.
    """
    for module in network.modules():
        if isinstance(module, DeformableConv):
            module.convolve = convolve


def convolve_by_torchvision(
    x: Tensor, offsets: Tensor, tap_weights: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """As `convolve_at`, by the operator that published code calls; an export keeps it as DeformConv."""
    return deform_conv2d(x, offsets, weight, bias, padding=1, mask=tap_weights)


def convolve_on_grid(x: Tensor, offsets: Tensor, tap_weights: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As `convolve_at`, by operators that every engine has; in PyTorch it is slower.

    A strip's taps are sampled at once, one below the other, then mixed by a matrix product. A convolution would mix as
    well, but engines would turn the samples into its memory layout before.
    """
    batch, _, height, width = x.shape
    ys, xs = _tap_positions(offsets, height, width)  # [B, 9, h, w]
    # grid_sample counts from -1 to 1 between the outer edges of the outer pixels.
    grid = torch.stack([(2 * xs + 1) / width - 1, (2 * ys + 1) / height - 1], dim=-1)  # [B, 9, h, w, 2]
    strips = max(1, min(MAX_STRIPS, height * width // STRIP))
    cut = zip(grid.chunk(strips, dim=2), tap_weights.chunk(strips, dim=2), strict=True)
    x = x.float()  # in half precision the grid's steps would be a tenth of a pixel and more
    mixed = [weight.flatten(1) @ _weighted_samples(x, *strip) for strip in cut]
    out = torch.cat(mixed, dim=2).view(batch, -1, height, width)
    return out if bias is None else out + bias[:, None, None]


def _weighted_samples(x: Tensor, grid: Tensor, tap_weights: Tensor) -> Tensor:
    """[B, C * 9, n] from a map [B, C, h, w], where some rows' taps lie, [B, 9, r, w, 2], and weigh, [B, 9, r, w]."""
    samples = functional.grid_sample(
        x, grid.flatten(1, 2), mode="bilinear", padding_mode="zeros", align_corners=False
    )  # [B, C, 9 * r, w]
    return (samples.to(tap_weights.dtype).unflatten(2, (TAPS, -1)) * tap_weights[:, None]).flatten(3).flatten(1, 2)


def convolve_at(x: Tensor, offsets: Tensor, tap_weights: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """torchvision's `deform_conv2d` for 3x3 taps, about four times as fast forward and eight backward on a CPU.

    A sample is a weighted sum of four rows of a table that holds one row of channels per position: an embedding
    bag, which is vectorized over channels where torchvision's kernel goes one number at a time.

    Args:
        x: [B, C, h, w].
        offsets: [B, 2 * 9, h, w], (dy, dx) of each tap [px].
        tap_weights: [B, 9, h, w].
        weight: [O, C, 3, 3].
        bias: [O] or None.
    """
    batch, channels, height, width = x.shape
    ys, xs = _tap_positions(offsets, height, width)  # [B, 9, h, w]
    corners, shares = _corners(ys, xs, height, width)  # [B, 9, h, w, 4]
    first = height * width * torch.arange(batch, device=x.device)[:, None, None, None, None]
    rows = functional.embedding_bag(
        (first + corners).permute(0, 2, 3, 1, 4).reshape(-1, 4),
        x.float().permute(0, 2, 3, 1).reshape(-1, channels),
        per_sample_weights=(shares * tap_weights.float()[..., None]).permute(0, 2, 3, 1, 4).reshape(-1, 4),
        mode="sum",
    )  # [B * h * w * 9, C]
    kernel = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)  # [O, 9 * C]
    out = functional.linear(rows.view(-1, TAPS * channels), kernel, bias)
    return out.view(batch, height, width, -1).permute(0, 3, 1, 2)


def _tap_positions(offsets: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Row and column [px] of every tap at every position, each [B, 9, h, w] float32, from offsets [B, 2 * 9, h, w]."""
    dy, dx = offsets.float().unflatten(1, (TAPS, 2)).unbind(dim=2)
    tap = torch.arange(TAPS, device=offsets.device)[:, None, None]
    ys = torch.arange(height, device=offsets.device)[:, None] + torch.div(tap, 3, rounding_mode="floor") - 1 + dy
    xs = torch.arange(width, device=offsets.device) + tap % 3 - 1 + dx
    return ys, xs


def _corners(y: Tensor, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The four positions around each point (row-major index) and their shares; outside the map a share is 0."""
    top, left = y.detach().floor(), x.detach().floor()
    indices, shares = [], []
    for row, share_y in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, share_x in ((left, 1 - (x - left)), (left + 1, x - left)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
            indices.append(index.clamp(min=0))  # NaN becomes a negative number; the share stays NaN
            shares.append(share_y * share_x * inside)
    return torch.stack(indices, dim=-1), torch.stack(shares, dim=-1)


def group_norm(channels: int) -> nn.GroupNorm:
    """Groups of eight channels, as in the paper's GroupNorm(32) on 256; independent of the batch."""
    return nn.GroupNorm(channels // 8, channels)


def conv_block(
    in_channels: int, out_channels: int, *, deformable: bool = False, norm: bool = True
) -> nn.Sequential:
    """3x3 convolution, GroupNorm (without: a bias instead), ReLU."""
    conv = (
        DeformableConv(in_channels, out_channels, bias=not norm)
        if deformable
        else nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=not norm)
    )
    return nn.Sequential(conv, *([group_norm(out_channels)] if norm else []), nn.ReLU())


class ConvTower(nn.Sequential):
    """A stack of 3x3 convolutions at one width."""

    def __init__(
        self, in_channels: int, width: int, num_convs: int, *, deformable: bool = False, norm: bool = True
    ) -> None:
        super().__init__(
            *(
                conv_block(in_channels if i == 0 else width, width, deformable=deformable, norm=norm)
                for i in range(num_convs)
            )
        )


def output_conv(in_channels: int, out_channels: int, size: int, bias: float = 0.0) -> nn.Conv2d:
    """A last convolution that starts near its bias."""
    conv = nn.Conv2d(in_channels, out_channels, size, padding=size // 2)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.constant_(conv.bias, bias)  # type: ignore[arg-type]
    return conv


def with_coordinates(features: Tensor) -> Tensor:
    """Append two channels, row then column, each from -1 to 1: kernels depend on where a segment is."""
    batch, _, height, width = features.shape
    rows = torch.linspace(-1, 1, height, dtype=features.dtype, device=features.device)
    columns = torch.linspace(-1, 1, width, dtype=features.dtype, device=features.device)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))  # [2, h, w]
    return torch.cat([features, grid.expand(batch, -1, -1, -1)], dim=1)
