# SPDX-License-Identifier: Apache-2.0
"""What a training says while it runs: a bar or lines in the terminal, curves and pictures for TensorBoard."""

from __future__ import annotations

import math
import resource
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

REPORT_EVERY_S = 10.0
LINE_EVERY_S = 60.0  # where output is not a terminal


class NotFinite(ValueError):
    """The loss is no number any more."""


class Report:
    """Sums losses on the device and looks at them every few seconds only, so that a GPU is not waited for."""

    def __init__(
        self, folder: Path | None, names: tuple[str, ...], first_step: int, steps: int, device: torch.device
    ) -> None:
        """`folder`: where the curves go; None for a process that says nothing, because another one does."""
        self.names = names
        self.device = device
        self.steps = steps
        self.sums = torch.zeros(len(names), device=device)
        self.reported_step = first_step
        self.reported_s = self.printed_s = time.monotonic()
        self.writer = _tensorboard(folder) if folder else None
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=self.console,
            disable=not (folder and self.console.is_terminal),
        )
        self.task = self.bar.add_task("", total=steps, completed=first_step, text="")

    def __enter__(self) -> Report:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        if self.writer:
            self.writer.close()

    def add(self, losses: Tensor) -> None:
        """Take the terms of a step's loss [len(names)]."""
        self.sums += losses.detach()

    def tell(self, step: int, learning_rate: float) -> bool:
        """Report now and then, and after the last step; returns whether it did.

        Raises:
            NotFinite: a loss since the last report was not finite.
        """
        now = time.monotonic()
        if now - self.reported_s < REPORT_EVERY_S and step < self.steps:
            return False
        count = max(step - self.reported_step, 1)
        means = dict(zip(self.names, (self.sums / count).tolist(), strict=True))
        self.check(step)
        speed = count / (now - self.reported_s)
        self._show(step, means, speed, now)
        if self.writer:
            scalars = {f"loss/{name}": value for name, value in means.items()}
            scalars |= {"loss": sum(means.values()), "learning_rate": learning_rate, "steps_per_s": speed}
            for name, value in scalars.items():
                self.writer.add_scalar(name, value, step)
        self.reported_step, self.reported_s = step, now
        self.sums.zero_()
        return True

    def check(self, step: int) -> None:
        """Raise NotFinite if a loss since the last report was no number."""
        sums = dict(zip(self.names, self.sums.tolist(), strict=True))
        if not all(map(math.isfinite, sums.values())):
            raise NotFinite(f"step {step}: the loss is not finite ({sums}); lower the learning rate, in another folder")

    def picture(self, name: str, rgb: np.ndarray, step: int) -> None:
        """A picture [H, W, 3] uint8 for TensorBoard."""
        if self.writer:
            self.writer.add_image(name, rgb, step, dataformats="HWC")

    def _show(self, step: int, means: dict[str, float], speed: float, now: float) -> None:
        terms = " ".join(f"{name} {value:.3f}" for name, value in means.items())
        text = f"loss {sum(means.values()):.3f}  {speed:.2f} steps/s  {memory_gib(self.device):.1f} GiB"
        self.bar.update(self.task, completed=step, text=text)
        if not self.console.is_terminal and (now - self.printed_s >= LINE_EVERY_S or step == self.steps):
            left = time.strftime("%H:%M:%S", time.gmtime((self.steps - step) / speed))
            print(f"step {step}/{self.steps}  {text}  {left} left  ({terms})", file=sys.stderr, flush=True)
            self.printed_s = now


def memory_gib(device: torch.device) -> float:
    """The most memory this process has had: of the GPU it trains on, otherwise of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("train: no curves, for TensorBoard is not installed: pip install tensorboard", file=sys.stderr)
        return None
    return SummaryWriter(folder / "tensorboard")
