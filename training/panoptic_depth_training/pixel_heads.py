# SPDX-License-Identifier: Apache-2.0
"""Heads for the training alone: what each pixel is and how far, straight from the embeddings."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from panoptic_depth_model.config import PanopticDepthConfig
from panoptic_depth_model.panoptic_depth import Maps
from panoptic_depth_training.targets import Targets

FIRST_DEPTH_M = 12.0  # said of every pixel before training


class PixelErrors(NamedTuple):
    """Sums over the pixels of a batch, with what to divide them by."""

    category: Tensor  # cross entropy
    labeled: Tensor  # pixels with a category
    depth: Tensor  # |ln(truth / prediction)|
    measured: Tensor  # pixels with a depth


class PixelHeads(nn.Module):
    """A category and a depth for each pixel of the stride-4 maps, from one linear map of each embedding.

    Kernels and embeddings learn through their product, each as fast as the other is good, which from random weights is
    slow. These heads tell the embeddings, and all that they grow from, at once what lies where; the network's answer
    does not need them. YOLACT (Bolya et al., ICCV 2019) has such a head for categories.
    """

    def __init__(self, config: PanopticDepthConfig) -> None:
        super().__init__()
        self.category = nn.Conv2d(config.embedding.width, config.num_categories, 1)
        self.log_depth = nn.Conv2d(config.depth_embedding_size, 1, 1) if config.depth_embedding_size else None
        if self.log_depth is not None:
            nn.init.constant_(self.log_depth.bias, math.log(FIRST_DEPTH_M))  # type: ignore[arg-type]

    def forward(self, maps: Maps, targets: Targets, max_depth_m: float) -> PixelErrors:
        """Errors where the labels tell; depth beyond the network's largest is left out, as in its own losses."""
        log_probability = self.category(maps.mask_embedding).log_softmax(dim=1)
        labeled = targets.regions.sum()
        category = -(targets.regions * log_probability).sum()
        if self.log_depth is None:
            return PixelErrors(category, labeled, torch.zeros_like(category), torch.zeros_like(labeled))
        known = (targets.depth > 0) & (targets.depth <= max_depth_m)
        truth = torch.where(known, targets.depth, 1.0).log()
        error = (self.log_depth(maps.depth_embedding)[:, 0] - truth).abs()
        return PixelErrors(category, labeled, torch.where(known, error, 0.0).sum(), known.sum())
