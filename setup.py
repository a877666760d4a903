# SPDX-License-Identifier: Apache-2.0
"""What pip needs beyond pyproject.toml: version, source roots, data files. colcon reads CMakeLists.txt instead."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
SHARE = "share/panoptic_depth"
SHARED_FILES = (
    "package.xml",
    "config/*",
    "launch/*",
    "model/compact.onnx",
    "msg/*.msg",
    "rviz/*",
    "samples/**/*",
)


def version() -> str:
    """The version, which stands in package.xml only."""
    found = ElementTree.parse(ROOT / "package.xml").findtext("version")
    if not found:
        raise ValueError(f"{ROOT / 'package.xml'} has no <version>; it is the one place that holds it")
    return found


def data_files() -> list[tuple[str, list[str]]]:
    """(folder below the prefix, files) pairs that put the shared files where share_path() finds them."""
    paths = [path for pattern in SHARED_FILES for path in sorted(ROOT.glob(pattern)) if path.is_file()]
    relative = [path.relative_to(ROOT) for path in paths]
    folders = sorted({path.parent for path in relative})
    return [
        ((Path(SHARE) / folder).as_posix(), [path.as_posix() for path in relative if path.parent == folder])
        for folder in folders
    ]


setup(
    version=version(),
    packages=[
        *find_packages(include=["panoptic_depth_ros*"]),
        *find_packages("model"),
        *find_packages("training"),
    ],
    package_dir={
        "panoptic_depth_ros": "panoptic_depth_ros",
        "panoptic_depth_model": "model/panoptic_depth_model",
        "panoptic_depth_training": "training/panoptic_depth_training",
    },
    data_files=data_files(),
)
