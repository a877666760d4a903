# SPDX-License-Identifier: Apache-2.0
"""Finds the files that travel with the program: config/, launch/, model/, msg/, rviz/ and samples/."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "panoptic_depth"


def share_path(*parts: str) -> Path:
    """The path of a shared file or folder, such as ``share_path("model", "compact.onnx")``.

    A source tree comes first, then a colcon workspace, then what pip installed.

    Raises:
        FileNotFoundError: none of them has it.
    """
    candidates = [root.joinpath(*parts) for root in _roots()]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    looked = "\n".join(f"  {candidate}" for candidate in candidates)
    raise FileNotFoundError(
        f"{Path(*parts)} was not found; looked for\n{looked}\n"
        "Run from a complete checkout, source the colcon workspace, or install the package with pip"
    )


def _roots() -> Iterator[Path]:
    source_tree = Path(__file__).resolve().parent.parent
    if (source_tree / "package.xml").is_file():
        yield source_tree
    for prefix in filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)):
        share = Path(prefix, "share", PACKAGE)
        if share.is_dir():
            yield share
    yield Path(sys.prefix, "share", PACKAGE)
