# SPDX-License-Identifier: Apache-2.0
"""A small network that finds segments untrained. Without PyTorch these tests are left out."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from panoptic_depth_model.panoptic_depth import PanopticDepth, PanopticDepthConfig

collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]


@pytest.fixture(scope="session")
def config() -> PanopticDepthConfig:
    """The compact preset at a quarter of its width."""
    from panoptic_depth_model.panoptic_depth import PRESETS

    return replace(PRESETS["compact"], width=16)


@pytest.fixture(scope="session")
def network(config: PanopticDepthConfig) -> PanopticDepth:
    """Random weights whose last layers are loud enough to cross the thresholds on any image."""
    import torch

    from panoptic_depth_model.panoptic_depth import PanopticDepth

    torch.manual_seed(0)
    network = PanopticDepth(config)
    location = network.location_head
    with torch.no_grad():
        for layer in (location.centers, location.regions):
            layer.weight.mul_(20.0)
            layer.bias.fill_(-0.25)
        network.mask_kernel_head.kernels.weight.mul_(60.0)
        network.depth_kernel_head.kernels.weight.mul_(10.0)
        network.embedding_head.depth.weight.mul_(10.0)
    return network.eval()


@pytest.fixture(scope="session")
def images():
    """Two different soft-edged RGB patterns [2, 64, 128, 3] uint8."""
    import torch

    coarse = torch.rand(2, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    fine = torch.nn.functional.interpolate(coarse, scale_factor=16, mode="bicubic")
    return (255 * fine.clamp(0, 1)).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
