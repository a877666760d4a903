# SPDX-License-Identifier: Apache-2.0
"""Images a second in training: loading alone, the step alone, both together; and what precision and memory order do.

    python benchmarks/training.py                        # frames are rendered first; needs the train extra
    python benchmarks/training.py --data synthetic:FRAMES --presets compact

Where both together are as fast as the step alone, loading keeps up with it.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from panoptic_depth_ros.arguments import count, natural
from panoptic_depth_training.config import TrainingConfig
from panoptic_depth_training.data import open_mixture
from panoptic_depth_training.distributed import Processes, join
from panoptic_depth_training.targets import Targets
from panoptic_depth_training.train import Run, batches, start

FRAMES = 24
WARM_UP, MEASURED = 2, 8  # steps
Batch = tuple[Tensor, Targets]


def render(folder: str, height: int, width: int) -> None:
    size = ["--height", str(height), "--width", str(width)]
    command = [sys.executable, "-m", "panoptic_depth_training.render", "frames", folder, "--count", str(FRAMES), *size]
    subprocess.run(command, check=True)


def loader(config: TrainingConfig, workers: int, processes: Processes) -> Iterator[Batch]:
    return batches(config, open_mixture(config.data), 0, workers, processes)


def images_per_second(step: Callable[[], object], batch: int, device: torch.device) -> float:
    """Throughput of a step, after a few that do not count."""
    for _ in range(WARM_UP):
        step()
    synchronize(device)
    started_s = time.perf_counter()
    for _ in range(MEASURED):
        step()
    synchronize(device)
    return MEASURED * batch / (time.perf_counter() - started_s)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def stepper(run: Run, source: Iterator[Batch]) -> Callable[[], object]:
    """A step of a training without its report."""

    def step() -> None:
        image, targets = next(source)
        device = run.processes.device
        run.optimizer.zero_grad()
        total, _ = run.module(image.to(device, non_blocking=True), targets.to(device))
        total.backward()
        run.optimizer.step()

    return step


def new_run(config: TrainingConfig, processes: Processes) -> Run:
    return start(config, open_mixture(config.data).taxonomy, Path(tempfile.gettempdir()) / "none", processes)


def throughput(config: TrainingConfig, workers: int, processes: Processes) -> tuple[float, float, float]:
    """Images a second of loading, of the step, and of both."""
    source = loader(config, workers, processes)
    loading = images_per_second(lambda: next(source), config.batch, torch.device("cpu"))
    run = new_run(config, processes)
    same = itertools.repeat(next(source))
    alone = images_per_second(stepper(run, same), config.batch, processes.device)
    both = images_per_second(stepper(run, source), config.batch, processes.device)
    return loading, alone, both


def step_speed(config: TrainingConfig, processes: Processes, precision: str, channels_last: bool) -> float:
    config = replace(config, precision=precision, channels_last=channels_last)
    same = itertools.repeat(next(loader(config, 0, processes)))
    return images_per_second(stepper(new_run(config, processes), same), config.batch, processes.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", help="as for train (default: frames rendered now)")
    parser.add_argument("--presets", nargs="+", default=["compact", "vehicle"])
    parser.add_argument("--height", type=count, default=256)
    parser.add_argument("--width", type=count, default=512)
    parser.add_argument("--batch", type=count, default=4)
    parser.add_argument("--workers", type=natural, default=1)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args()
    processes = join(options.device)
    with tempfile.TemporaryDirectory() as folder:
        data = tuple(options.data or [f"synthetic:{folder}"])
        if not options.data:
            render(folder, options.height, options.width)
        base = TrainingConfig(
            data=data, height=options.height, width=options.width, steps=10_000, batch=options.batch
        )
        where = torch.cuda.get_device_name() if processes.device.type == "cuda" else f"{os.cpu_count()} cores"
        table = Table(
            "preset", "loading", "step", "both", "float32 NCHW", "float32 channels last", "bfloat16 channels last",
            title=f"images/s at {options.height}x{options.width}, batch {options.batch}, "
            f"{options.workers} loader processes; {where}",
        )
        for preset in track(options.presets, "training steps"):
            config = replace(base, preset=preset)
            speeds = throughput(config, options.workers, processes)
            forms = [
                step_speed(config, processes, precision, channels_last)
                for precision, channels_last in (("float32", False), ("float32", True), ("bfloat16", True))
            ]
            first, *others = forms
            table.add_row(
                preset,
                *(f"{speed:.2f}" for speed in (*speeds, first)),
                *(f"{speed:.2f} ({speed / first:.2f}x)" for speed in others),
            )
    Console().print(table)


if __name__ == "__main__":
    main()
