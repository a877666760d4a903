# SPDX-License-Identifier: Apache-2.0
"""What a network has to compute and to move at the least, and how fast this machine could do either.

Multiply-accumulates are those of convolutions and matrix products; a deformable convolution counts as a dense 3x3 one
plus the plain one that gives its offsets. Traffic is what these operators read (maps and weights) and write, once each,
as if everything between two of them were done on the way. Resizing, norms and activations count for neither.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from panoptic_depth_model.config import PRESETS
from panoptic_depth_model.convolutions import TAPS
from panoptic_depth_model.panoptic_depth import PanopticDepth

aten = torch.ops.aten
PRODUCTS = (aten.convolution, aten.mm, aten.addmm, aten.bmm, aten.baddbmm, torch.ops.torchvision.deform_conv2d)
TRIALS = 10


@dataclass(frozen=True)
class Floor:
    """What a network takes at a device's peak, if only arithmetic or only memory counted.

    Engines come near the larger one from above. Below it they get where 3x3 convolutions save products (Winograd).
    """

    gmac: float
    gbytes: float
    arithmetic_ms: float
    memory_ms: float


@dataclass(frozen=True)
class Peak:
    """What a device reached here on large matrix products, and on copies within its memory."""

    tflops: float
    gbytes_per_s: float


def deformable_flops(x: torch.Size, weight: torch.Size, *_: object, out_shape: torch.Size, **__: object) -> int:
    """Two a multiply-accumulate, as PyTorch counts."""
    return 2 * math.prod(out_shape) * weight[1] * TAPS


def multiply_accumulates(network: PanopticDepth, height: int, width: int) -> dict[str, float]:
    """G by module name for one image; "Global" is all of them. Nothing is computed: the network lies on "meta"."""
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.torchvision.deform_conv2d: deformable_flops})
    with counter, torch.no_grad():
        network.infer(torch.empty(1, 3, height, width, device="meta"))
    prefix = f"{type(network).__name__}."
    return {
        name.removeprefix(prefix): sum(by_operator.values()) / 2e9
        for name, by_operator in counter.get_flop_counts().items()
    }


class _Traffic(TorchDispatchMode):
    """Counts the numbers that convolutions and matrix products read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        output = function(*arguments, **(named or {}))
        if function.overloadpacket in PRODUCTS:
            self.values += sum(value.numel() for value in (*arguments, output) if isinstance(value, torch.Tensor))
        return output


def traffic(network: PanopticDepth, height: int, width: int) -> int:
    """How many numbers move to and from memory for one image. The network lies on "meta"."""
    with _Traffic() as counter, torch.no_grad():  # in inference mode compound operators arrive whole
        network.infer(torch.empty(1, 3, height, width, device="meta"))
    return counter.values


def floor_of(preset: str, height: int, width: int, dtype: torch.dtype, peak: Peak) -> Floor:
    with torch.device("meta"):
        network = PanopticDepth(PRESETS[preset]).eval()
    gmac = multiply_accumulates(network, height, width)["Global"]
    gbytes = traffic(network, height, width) * dtype.itemsize / 1e9
    return Floor(gmac, gbytes, 2 * gmac / peak.tflops, 1e3 * gbytes / peak.gbytes_per_s)


def measured_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """The best of a few trials on this device."""
    side, copied = (8192, 1 << 30) if device.type == "cuda" else (1536, 1 << 28)
    matrix = torch.randn((side, side), device=device).to(dtype)  # of equal numbers a GPU draws less power
    source = torch.ones(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product_s = best_seconds(lambda: matrix @ matrix, device)
    copy_s = best_seconds(lambda: target.copy_(source), device)
    return Peak(2 * side**3 / product_s / 1e12, 2 * copied / copy_s / 1e9)


def best_seconds(work: Callable[[], object], device: torch.device) -> float:
    """The shortest time of a call, after one that does not count."""
    times = []
    for _ in range(TRIALS + 1):
        wait_for(device)
        start = time.perf_counter()
        work()
        wait_for(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
