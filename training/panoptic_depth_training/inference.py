# SPDX-License-Identifier: Apache-2.0
"""A network for inference alone: in evaluation mode for a while, with its norms folded, or as a faster copy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from panoptic_depth_model.backbones import ResNetFeatures
from panoptic_depth_model.config import Decisions
from panoptic_depth_model.panoptic_depth import Maps, PanopticDepth

HALF = {"cuda": torch.float16, "cpu": torch.bfloat16}  # CPUs that are fast in half precision have bfloat16


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A module in evaluation mode inside the block. Behind it every part is in its own mode again: parts of a network
    that is in training may be frozen.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def with_decisions(network: PanopticDepth, decisions: Decisions) -> PanopticDepth:
    """The same network, sharing its weights, that decides otherwise."""
    other = copy(network)
    other.config = replace(network.config, decisions=decisions)
    return other


def fold_norms(network: PanopticDepth) -> None:
    """Make the batch norms of a ResNet part of its convolutions, in place. For inference alone."""
    if isinstance(network.backbone, ResNetFeatures):
        network.backbone = fuse(network.backbone)  # type: ignore[assignment]


def prepared(network: PanopticDepth, half: bool) -> PanopticDepth:
    """A copy of a network that is for inference alone, on the same device.

    Batch norms of a ResNet are part of its convolutions. Weights lie channels last, as the maps do that begin as
    image bytes. With `half`, convolutions hold their weights in half precision; see `HalfPanopticDepth`.
    """
    device = next(network.parameters()).device
    ready = (HalfPanopticDepth if half else PanopticDepth)(network.config).to(device)
    ready.load_state_dict(network.state_dict())
    ready.eval().requires_grad_(False)
    fold_norms(ready)
    if half:
        for module in ready.modules():
            if isinstance(module, nn.Conv2d):
                module.to(HALF[device.type])
    return ready.to(memory_format=torch.channels_last)


class HalfPanopticDepth(PanopticDepth):
    """The same network with maps computed in half precision.

    All that follows stays in float32: scores that are compared with each other, sums over a map, which outgrow
    float16 (65504), masks, and depth in meters.
    """

    def forward(self, image: Tensor) -> Maps:
        kind = image.device.type
        # What takes half precision is autocast's choice: convolutions, on a CPU norms too, on a GPU not. A file has no
        # autocast, so that export/half_precision.py keeps a list of its own, of modules whose casts become nodes.
        # A cache of cast weights would be lost to a CUDA graph.
        with torch.autocast(kind, HALF[kind], cache_enabled=False):
            maps = super().forward(image)
        return maps.in_float32()
