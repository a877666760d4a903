# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from panoptic_depth_ros import diagnostics
from panoptic_depth_ros.diagnostics import OK, WARN, Health, LogThrottle, diagnostic_array
from panoptic_depth_ros.messages import MakeMessage


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the monotonic clock, which otherwise stands still at 100 s."""
    now = [100.0]
    monkeypatch.setattr(diagnostics.time, "monotonic", lambda: now[0])

    def set_to(seconds: float) -> None:
        now[0] = seconds

    return set_to


def test_health_counts_frames_and_outputs(clock: Callable[[float], None]) -> None:
    health = Health()
    for latency in (10.0, 20.0, 60.0):
        health.frame_done({"engine": latency / 2}, latency, ["semantic", "points"])
    health.frame_done({"engine": 5.0}, 30.0, ["semantic"])
    health.failed += 1
    health.idle += 2
    clock(112.34)
    values = health.values(received=12, dropped=5)
    assert values["frames received"] == "12"
    assert values["frames processed"] == "4"
    assert values["frames dropped (newer one came)"] == "5"
    assert values["frames skipped (nobody listens)"] == "2"
    assert values["frames failed"] == "1"
    assert values["seconds since start"] == "12.3"
    assert (values["published points"], values["published semantic"]) == ("3", "4")
    assert values["latency p50 [ms]"] == "25.00"  # of 10, 20, 30, 60
    assert values["latency p95 [ms]"] == "55.50"  # 30 + 0.85 * 30
    assert values["engine p50 [ms]"] == "7.50"


def test_health_before_the_first_frame_has_no_times() -> None:
    assert not [key for key in Health().values(0, 0) if "[ms]" in key]


@pytest.mark.parametrize(("level", "number"), [(OK, 0), (WARN, 1)])
def test_a_status_survives_the_wire(
    make: MakeMessage, over_the_wire: Callable[..., Any], level: bytes, number: int
) -> None:
    stamp = make("builtin_interfaces/msg/Time", sec=5, nanosec=6)
    message = diagnostic_array(make, stamp, "node", "gpu 0", level, "all is well", {"a": "1", "b": ""})
    received = over_the_wire(message, "diagnostic_msgs/msg/DiagnosticArray")
    assert (received.header.stamp.sec, received.header.stamp.nanosec, received.header.frame_id) == (5, 6, "")
    [status] = received.status
    assert (status.name, status.hardware_id, status.message) == ("node", "gpu 0", "all is well")
    assert status.level in (number, bytes([number]))
    assert [(pair.key, pair.value) for pair in status.values] == [("a", "1"), ("b", "")]


def test_a_kind_of_line_is_logged_once_per_period(clock: Callable[[float], None]) -> None:
    throttle = LogThrottle(period_s=5.0)
    assert throttle.allows("frame 17 has 3 bytes")
    assert not throttle.allows("frame 18 has 4 bytes")
    assert throttle.allows("no camera_info")
    clock(104.9)
    assert not throttle.allows("frame 99 has 0 bytes")
    clock(105.0)
    assert throttle.allows("frame 100 has 0 bytes")
    assert not throttle.allows("frame 101 has 0 bytes")
