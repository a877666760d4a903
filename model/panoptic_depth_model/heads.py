# SPDX-License-Identifier: Apache-2.0
"""Heads: where segments are, which kernels they have, and the embeddings that the kernels act on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from panoptic_depth_model.pyramid import conv_block

# A probability of 0.1 everywhere before training, so that background does not swamp the loss.
LOCATION_PRIOR_LOGIT = -2.19


def with_coordinates(features: Tensor) -> Tensor:
    """Append two channels, row then column, each from -1 to 1: kernels depend on where a segment is."""
    batch, _, height, width = features.shape
    rows = torch.linspace(-1, 1, height, dtype=features.dtype, device=features.device)
    columns = torch.linspace(-1, 1, width, dtype=features.dtype, device=features.device)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))  # [2, h, w]
    return torch.cat([features, grid.expand(batch, -1, -1, -1)], dim=1)


class ConvTower(nn.Sequential):
    """A stack of 3x3 convolutions at one width."""

    def __init__(self, in_channels: int, width: int, num_convs: int) -> None:
        super().__init__(*(conv_block(in_channels if i == 0 else width, width) for i in range(num_convs)))


class LocationHead(nn.Module):
    """Centers of things and regions of every category, as logits."""

    def __init__(self, width: int, num_convs: int, num_things: int, num_categories: int) -> None:
        super().__init__()
        self.tower = ConvTower(width, width, num_convs)
        self.centers = output_conv(width, num_things, 3, bias=LOCATION_PRIOR_LOGIT)
        self.regions = output_conv(width, num_categories, 3, bias=LOCATION_PRIOR_LOGIT)

    def forward(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Center logits [B, T, h, w] and region logits [B, K, h, w]."""
        features = self.tower(level)
        return self.centers(features), self.regions(features)


class KernelHead(nn.Module):
    """A kernel [kernel_dim] for the segment at each position."""

    def __init__(self, width: int, num_convs: int, kernel_dim: int) -> None:
        super().__init__()
        self.tower = ConvTower(width + 2, width, num_convs)
        self.kernels = output_conv(width, kernel_dim, 3)

    def start_at(self, values: Sequence[float]) -> None:
        """Give the kernel's first entries these values everywhere, until training moves them."""
        with torch.no_grad():
            self.kernels.bias[: len(values)] = torch.tensor(values)  # type: ignore[index]

    def forward(self, level: Tensor) -> Tensor:
        """[B, kernel_dim, h, w]."""
        return self.kernels(self.tower(with_coordinates(level)))


class EmbeddingHead(nn.Module):
    """What mask kernels and depth kernels are multiplied with.

    One tower serves both: at stride 4 it is the most expensive part after the backbone.
    """

    def __init__(self, width: int, num_convs: int, depth_dim: int) -> None:
        super().__init__()
        self.tower = ConvTower(width + 2, width, num_convs)
        self.depth = output_conv(width, depth_dim, 1)

    def forward(self, semantic: Tensor) -> tuple[Tensor, Tensor]:
        """Mask embedding [B, width, h, w] and depth embedding [B, depth_dim, h, w]."""
        mask_embedding = self.tower(with_coordinates(semantic))
        return mask_embedding, self.depth(mask_embedding)


def output_conv(in_channels: int, out_channels: int, size: int, bias: float = 0.0) -> nn.Conv2d:
    """A last convolution that starts near its bias."""
    conv = nn.Conv2d(in_channels, out_channels, size, padding=size // 2)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.constant_(conv.bias, bias)  # type: ignore[arg-type]
    return conv
