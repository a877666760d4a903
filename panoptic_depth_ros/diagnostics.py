# SPDX-License-Identifier: Apache-2.0
"""What the node says about its own health on /diagnostics, and log lines that do not flood."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from typing import Any

from panoptic_depth_ros.messages import MakeMessage
from panoptic_depth_ros.timing import Percentiles

OK, WARN = b"\x00", b"\x01"  # diagnostic_msgs/DiagnosticStatus levels

LATENCY = "latency"  # from the image's arrival at the node to its last output's publication


class Health:
    """Counts frames and times; read by the diagnostics timer, written by the worker."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self.processed = 0
        self.idle = 0  # frames that nobody wanted anything of
        self.failed = 0
        self.published: Counter[str] = Counter()
        self.times = Percentiles()
        self.problem = ""  # what stands in the way of a part of the outputs; empty when nothing does

    def frame_done(self, laps_ms: dict[str, float], latency_ms: float, outputs: list[str]) -> None:
        with self._lock:
            self.processed += 1
            self.published.update(outputs)
            self.times.add({**laps_ms, LATENCY: latency_ms})

    def values(self, received: int, dropped: int) -> dict[str, str]:
        """Everything known, as the key-value pairs of a DiagnosticStatus."""
        with self._lock:
            seconds = time.monotonic() - self._started
            values = {
                "frames received": str(received),
                "frames processed": str(self.processed),
                "frames dropped (newer one came)": str(dropped),
                "frames skipped (nobody listens)": str(self.idle),
                "frames failed": str(self.failed),
                "seconds since start": f"{seconds:.1f}",
            }
            for name in self.times.names:
                p50, p95 = self.times.of(name, 50, 95)
                values[f"{name} p50 [ms]"], values[f"{name} p95 [ms]"] = f"{p50:.2f}", f"{p95:.2f}"
            values |= {f"published {name}": str(count) for name, count in sorted(self.published.items())}
        return values


def diagnostic_array(
    make: MakeMessage,
    stamp: Any,
    name: str,
    hardware_id: str,
    level: bytes,
    text: str,
    values: dict[str, str],
) -> Any:
    """A diagnostic_msgs/DiagnosticArray with one status."""
    pairs = [make("diagnostic_msgs/msg/KeyValue", key=key, value=value) for key, value in values.items()]
    status = make(
        "diagnostic_msgs/msg/DiagnosticStatus",
        name=name,
        hardware_id=hardware_id,
        level=level,
        message=text,
        values=pairs,
    )
    header = make("std_msgs/msg/Header", stamp=stamp)
    return make("diagnostic_msgs/msg/DiagnosticArray", header=header, status=[status])


class LogThrottle:
    """Lets a kind of text through once per period; texts that differ only in numbers are of one kind."""

    def __init__(self, period_s: float = 5.0) -> None:
        self._period_s = period_s
        self._last: dict[str, float] = {}

    def allows(self, text: str) -> bool:
        kind, now = re.sub(r"\d+", "#", text), time.monotonic()
        if now - self._last.get(kind, float("-inf")) < self._period_s:
            return False
        self._last[kind] = now
        return True
