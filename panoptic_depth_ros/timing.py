# SPDX-License-Identifier: Apache-2.0
"""Where a frame's time goes: laps of one frame, and percentiles over the last frames."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


class Stopwatch:
    """Milliseconds per stage of one frame, from a clock that never jumps."""

    def __init__(self) -> None:
        self.laps_ms: dict[str, float] = {}

    @contextmanager
    def lap(self, stage: str) -> Iterator[None]:
        """Add the time spent inside the block to the stage."""
        start = time.perf_counter_ns()
        try:
            yield
        finally:
            self.laps_ms[stage] = self.laps_ms.get(stage, 0.0) + (time.perf_counter_ns() - start) / 1e6


class Percentiles:
    """Running percentiles of named values over the last ``window`` frames."""

    def __init__(self, window: int = 256) -> None:
        self._window = window
        self._values: dict[str, deque[float]] = {}

    def add(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._values.setdefault(name, deque(maxlen=self._window)).append(value)

    def of(self, name: str, *percents: float) -> list[float]:
        """The asked percentiles of one value; NaN where nothing was added yet."""
        values = self._values.get(name)
        if not values:
            return [float("nan")] * len(percents)
        return [float(value) for value in np.percentile(list(values), percents)]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._values)
