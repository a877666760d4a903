# SPDX-License-Identifier: Apache-2.0
"""The rule of conftest.py: what may be skipped where."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")


def summary(folder: Path, test: str, ci: str) -> str:
    """pytest's last line for a test module that stands beside our conftest.py."""
    shutil.copy(CONFTEST, folder)
    (folder / "test_sample.py").write_text(f"import pytest\n{test}\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)]
    environment = os.environ | {"CI": ci}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    return result.stdout.strip().splitlines()[-1]


SKIPS_ONE_TEST = "def test_sample():\n    pytest.skip({reason!r})"
SKIPS_THE_MODULE = "pytest.importorskip({module!r})\ndef test_sample(): pass"


def test_in_ci_a_skip_without_an_accepted_reason_fails(tmp_path: Path) -> None:
    assert "1 failed" in summary(tmp_path, SKIPS_ONE_TEST.format(reason="too slow"), ci="true")


def test_in_ci_a_module_skipped_for_a_package_that_could_be_installed_fails(tmp_path: Path) -> None:
    assert "1 error" in summary(tmp_path, SKIPS_THE_MODULE.format(module="rosbags_of_another_kind"), ci="true")


@pytest.mark.parametrize(
    "test",
    [
        SKIPS_ONE_TEST.format(reason="needs a GPU"),
        SKIPS_THE_MODULE.format(module="cv_bridge.no_such_module"),
        "@pytest.mark.xfail\ndef test_sample(): assert False",
    ],
)
def test_in_ci_what_no_registry_supplies_may_be_skipped(tmp_path: Path, test: str) -> None:
    line = summary(tmp_path, test, ci="true")
    assert "1 skipped" in line or "1 xfailed" in line


def test_elsewhere_a_skip_stays_a_skip(tmp_path: Path) -> None:
    assert "1 skipped" in summary(tmp_path, SKIPS_ONE_TEST.format(reason="too slow"), ci="")
