# SPDX-License-Identifier: Apache-2.0
"""Without PyTorch the tests of what needs it are left out; a folder of painted frames serves the others."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest

NEED_TORCH = ("ablation", "data", "evaluate", "losses", "targets", "train")
collect_ignore = [] if find_spec("torch") else [f"test_{name}.py" for name in NEED_TORCH]

ROAD, SKY, PERSON, CAR = 0, 10, 11, 13


@pytest.fixture(scope="session")
def frames(tmp_path_factory) -> Path:
    """Six frames 64x96: a gray road, a blue sky, and a red car and a green person that change places."""
    folder = tmp_path_factory.mktemp("frames")
    cameras = {}
    for index in range(6):
        name = f"{index:06d}"
        rgb, ids, depth = painted_street(left=8 * index)
        cv2.imwrite(str(folder / f"{name}_image.jpg"), rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])
        cv2.imwrite(str(folder / f"{name}_panoptic.png"), ids)
        cv2.imwrite(str(folder / f"{name}_depth.png"), np.round(depth * 256).astype(np.uint16))
        cameras[name] = {
            "seed": index,
            "height": 64,
            "width": 96,
            "fx": 80.0,
            "fy": 80.0,
            "cx": 47.5,
            "cy": 31.5,
        }
    (folder / "cameras.json").write_text(json.dumps(cameras))
    return folder


def painted_street(left: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, panoptic ids and depth of a scene whose car starts at column `left`."""
    rgb = np.full((64, 96, 3), (90, 140, 220), np.uint8)
    ids = np.full((64, 96), SKY * 1000, np.uint16)
    depth = np.zeros((64, 96), np.float32)
    rgb[24:] = 110
    ids[24:] = ROAD * 1000
    depth[24:] = (80 * 1.5 / np.arange(1, 41))[:, None]  # a flat road 1.5 m below the camera
    for category, color, rows, columns, distance in (
        (CAR, (200, 30, 30), slice(20, 44), slice(left, left + 40), 6.0),
        (PERSON, (30, 180, 40), slice(16, 48), slice(82 - left, 92 - left), 5.0),
    ):
        rgb[rows, columns], ids[rows, columns], depth[rows, columns] = color, category * 1000 + 1, distance
    return rgb, ids, depth


@pytest.fixture
def broken_frames(frames, tmp_path) -> Path:
    """The frames, of which number 2 is cut short."""
    folder = Path(shutil.copytree(frames, tmp_path / "broken"))
    panoptic = folder / "000002_panoptic.png"
    panoptic.write_bytes(panoptic.read_bytes()[:-20])
    return folder
