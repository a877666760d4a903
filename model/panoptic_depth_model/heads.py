# SPDX-License-Identifier: Apache-2.0
"""Heads: where segments are, which kernels they have, and the embeddings that the kernels act on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from panoptic_depth_model.convolutions import ConvTower, output_conv, with_coordinates

# A probability of 0.1 everywhere before training, so that background does not swamp the loss.
LOCATION_PRIOR_LOGIT = -2.19


class LocationHead(nn.Module):
    """Centers of things and regions of categories, as logits."""

    def __init__(
        self, width: int, num_convs: int, num_things: int, num_regions: int, *, deformable: bool
    ) -> None:
        super().__init__()
        self.tower = ConvTower(width, width, num_convs, deformable=deformable)
        self.centers = output_conv(width, num_things, 3, bias=LOCATION_PRIOR_LOGIT)
        self.regions = output_conv(width, num_regions, 3, bias=LOCATION_PRIOR_LOGIT)

    def forward(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Center logits [B, T, h, w] and region logits [B, R, h, w]."""
        features = self.tower(level)
        return self.centers(features), self.regions(features)


class KernelHead(nn.Module):
    """A kernel [kernel_dim] for the segment at each position."""

    def __init__(self, width: int, num_convs: int, kernel_dim: int, *, deformable: bool) -> None:
        super().__init__()
        self.tower = ConvTower(width + 2, width, num_convs, deformable=deformable)
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

    With a shared tower one computation serves both: at stride 4 it is the most expensive part of the network.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        num_convs: int,
        depth_dim: int,
        *,
        deformable: bool,
        norm: bool,
        shared: bool,
    ) -> None:
        """`width` is the mask embedding's; a `depth_dim` of 0 makes no depth embedding."""
        super().__init__()
        self.mask = ConvTower(in_channels + 2, width, num_convs, deformable=deformable, norm=norm)
        separate = depth_dim > 0 and not shared
        self.depth_tower = (
            ConvTower(in_channels + 2, width, num_convs, deformable=deformable, norm=norm) if separate else None
        )
        self.depth = output_conv(width, depth_dim, 1) if depth_dim > 0 else None

    def forward(self, semantic: Tensor) -> tuple[Tensor, Tensor]:
        """Mask embedding [B, width, h, w] and depth embedding [B, depth_dim, h, w]."""
        semantic = with_coordinates(semantic)
        mask_embedding = self.mask(semantic)
        if self.depth is None:
            return mask_embedding, mask_embedding[:, :0]
        features = mask_embedding if self.depth_tower is None else self.depth_tower(semantic)
        return mask_embedding, self.depth(features)
