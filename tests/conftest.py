# SPDX-License-Identifier: Apache-2.0
"""In CI (CI=true) a skipped test fails, unless it needs something that no package registry can supply."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

MODULES = ("cv_bridge", "launch", "launch_ros", "sensor_msgs_py", "tensorrt", "vision_msgs")

# How the reason of an accepted skip begins; pytest.importorskip words it itself.
ACCEPTED_REASONS = ("needs a GPU", *(f"could not import '{module}{end}" for module in MODULES for end in "'."))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    fail_unexpected_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    fail_unexpected_skip(report)
    return report


def fail_unexpected_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip in CI whose reason is not accepted into a failure."""
    if os.environ.get("CI") != "true" or not report.skipped or hasattr(report, "wasxfail"):
        return
    assert isinstance(report.longrepr, tuple)  # (path, line, "Skipped: reason")
    reason = report.longrepr[2].removeprefix("Skipped: ")
    if not reason.startswith(ACCEPTED_REASONS):
        report.outcome = "failed"
        report.longrepr = (
            f"skipped in CI: {reason}\n"
            f"Install what is missing in scripts/setup.sh, or add the reason to {__file__} if no registry has it"
        )
