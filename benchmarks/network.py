# SPDX-License-Identifier: Apache-2.0
"""What the networks cost: parameters, multiply-accumulates by part, and time on this machine's processor.

    python benchmarks/network.py                          # all presets; a few minutes on two cores
    python benchmarks/network.py --presets vehicle compact

What counts as a multiply-accumulate stands in arithmetic.py. Parameters are without the scales and shifts of batch
norms, as where these are frozen into the convolutions. Times are for one image, bytes in, segments and depth out, in
float32 with random weights: all shapes are static, so that what is in the image costs nothing. Elapsed time says little
on a machine that has other work, whose load is printed with it; processor time, the sum over all cores, says more.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import dataclass

import torch
from arithmetic import multiply_accumulates
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

from panoptic_depth_model.config import PRESETS
from panoptic_depth_model.deployable import Deployable
from panoptic_depth_model.panoptic_depth import PanopticDepth

SIZES = ((512, 1024), (1024, 2048))
BY_PART_SIZE = SIZES[1]
PARTS = {
    "backbone": ("backbone",),
    "pyramid": ("pyramid",),
    "semantic pyramid": ("semantic_pyramid",),
    "location head": ("location_head",),
    "mask kernel head": ("mask_kernel_head",),
    "depth kernel head": ("depth_kernel_head",),
    "mask embedding": ("embedding_head.mask",),  # where the tower is shared, the depth embedding's as well
    "depth embedding": ("embedding_head.depth_tower", "embedding_head.depth"),
}
REST = "kernels, masks, merge, depth"
TIMED_PASSES, TIMED_SECONDS = 5, 15.0  # at most so many passes, or none after so long


@dataclass(frozen=True)
class Cost:
    """What one preset needs; multiply-accumulates in G."""

    parameters_m: float
    macs_by_part: dict[str, float]  # at BY_PART_SIZE
    macs: dict[tuple[int, int], float]
    elapsed_s: dict[tuple[int, int], float]
    processor_s: dict[tuple[int, int], float]


def parameters_m(network: nn.Module) -> float:
    """Millions of parameters, without batch norm's."""
    norms = sum(p.numel() for m in network.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    return (sum(p.numel() for p in network.parameters()) - norms) / 1e6


def by_part(macs: dict[str, float]) -> dict[str, float]:
    parts = {part: sum(macs.get(name, 0.0) for name in names) for part, names in PARTS.items()}
    return {**parts, REST: macs["Global"] - sum(parts.values())}


def median_seconds(network: nn.Module, height: int, width: int) -> tuple[float, float]:
    """Elapsed and processor time of a pass over one random image, after one pass that does not count."""
    image = torch.randint(0, 256, (1, height, width, 3), dtype=torch.uint8)
    elapsed: list[float] = []
    processor: list[float] = []
    with torch.inference_mode():
        network(image)
        while len(elapsed) < TIMED_PASSES and sum(elapsed) < TIMED_SECONDS:
            start, start_processor = time.perf_counter(), time.process_time()
            network(image)
            elapsed.append(time.perf_counter() - start)
            processor.append(time.process_time() - start_processor)
    return statistics.median(elapsed), statistics.median(processor)


def cost(preset: str, progress: Progress) -> Cost:
    config = PRESETS[preset]
    with torch.device("meta"):
        shapes = PanopticDepth(config).eval()
    macs = {size: multiply_accumulates(shapes, *size) for size in SIZES}
    network = Deployable(PanopticDepth(config)).eval()
    elapsed, processor = {}, {}
    for size in SIZES:
        task = progress.add_task(f"{preset} {size[0]}x{size[1]}", total=None)
        elapsed[size], processor[size] = median_seconds(network, *size)
        progress.remove_task(task)
    totals = {size: counts["Global"] for size, counts in macs.items()}
    return Cost(parameters_m(shapes), by_part(macs[BY_PART_SIZE]), totals, elapsed, processor)


def table_of(costs: dict[str, Cost], load: float) -> Table:
    """`load`: how many processes were waiting for the processor before the first measurement."""
    table = Table("", title=f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads; {load:.1f} busy before")
    for preset in costs:
        table.add_column(preset, justify="right")

    def row(name: str, *values: str) -> None:
        table.add_row(name, *values)

    row("parameters, M", *(f"{c.parameters_m:.2f}" for c in costs.values()))
    table.add_section()
    table.add_row(f"GMAC at {BY_PART_SIZE[0]}x{BY_PART_SIZE[1]}")
    for part in (*PARTS, REST):
        row(f"  {part}", *(f"{c.macs_by_part[part]:.1f}" for c in costs.values()))
    table.add_section()
    for height, width in SIZES:
        row(f"GMAC at {height}x{width}", *(f"{c.macs[height, width]:.1f}" for c in costs.values()))
    table.add_section()
    for height, width in SIZES:
        row(f"seconds at {height}x{width}", *(f"{c.elapsed_s[height, width]:.2f}" for c in costs.values()))
        row("  of all cores", *(f"{c.processor_s[height, width]:.2f}" for c in costs.values()))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=tuple(PRESETS), default=tuple(PRESETS), metavar="PRESET")
    options = parser.parse_args()
    console = Console()
    load = os.getloadavg()[0]
    with Progress(console=console, transient=True) as progress:
        costs = {preset: cost(preset, progress) for preset in options.presets}
    console.print(table_of(costs, load))


if __name__ == "__main__":
    main()
