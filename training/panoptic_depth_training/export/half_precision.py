# SPDX-License-Identifier: Apache-2.0
"""Half precision in an exported graph: dense maps are computed in float16, decisions in float32.

What a network's `forward` computes (backbone, pyramids, heads) is nearly all of the arithmetic and of the memory
traffic, and goes to float16. In float32 stay

- the image's bytes and their normalization;
- group and layer norms: they sum squares over a map, which soon pass 65504, the largest float16;
- all that follows the maps. Scores and probabilities are compared with thresholds and with each other, and float16
  knows none between 0.9995 and 1. Kernels are the same thing where their cosine is 0.97 or more, and their fusion and
  the merge count pixels, of which an image has up to two million. At 80 m float16 has steps of 6 cm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from panoptic_depth_model.panoptic_depth import Maps, PanopticDepth

NORMS = (nn.GroupNorm, nn.LayerNorm)
_KERNELS_IN_FLOAT32 = ("embed_things", "embed_stuff")  # they act on the chosen kernels, behind the maps


def halve(network: PanopticDepth) -> None:
    """Let a network compute its maps in float16 from here on, in place."""
    for name, part in network.named_children():
        if name not in _KERNELS_IN_FLOAT32:
            part.half()
    network.register_forward_pre_hook(_cast_inputs(torch.float16))
    network.register_forward_hook(_maps_to_float32)
    for module in network.modules():
        if isinstance(module, NORMS):
            module.float()
            module.register_forward_pre_hook(_cast_inputs(torch.float32))
            module.register_forward_hook(_cast_output(torch.float16))


def _cast_inputs(dtype: torch.dtype) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    return lambda module, inputs: tuple(x.to(dtype) for x in inputs)


def _cast_output(dtype: torch.dtype) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    return lambda module, inputs, output: output.to(dtype)


def _maps_to_float32(module: nn.Module, inputs: tuple[Any, ...], maps: Maps) -> Maps:
    return maps.in_float32()
