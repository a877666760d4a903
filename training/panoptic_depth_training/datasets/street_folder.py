# SPDX-License-Identifier: Apache-2.0
"""Rendered frames in a folder: NNNNNN_image.jpg, NNNNNN_panoptic.png, NNNNNN_depth.png, and cameras.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_training.datasets.files import DEPTH_STEPS, read_cameras
from panoptic_depth_training.datasets.synthetic import VIEWS_A_STREET, Frame, SyntheticStreets, random_camera
from panoptic_depth_training.output_files import is_written, sweep_partials, write_whole

JPEG_QUALITY = 95
CAMERAS_FILE = "cameras.json"
SMALLEST = 2  # [px] each way: borders are found between neighbors


@dataclass(frozen=True)
class StreetFrames:
    """The frames of one street to be written."""

    folder: Path
    numbers: tuple[int, ...]  # of frames of one street
    first: int  # the frame that is number 0 in the folder
    height: int
    width: int

    def paths(self, number: int) -> tuple[Path, Path, Path]:
        """Image, panoptic ids, depth."""
        stem = self.folder / f"{number - self.first:06d}"
        return Path(f"{stem}_image.jpg"), Path(f"{stem}_panoptic.png"), Path(f"{stem}_depth.png")

    @property
    def missing(self) -> list[int]:
        """Numbers of the frames that are not there yet."""
        return [number for number in self.numbers if not all(map(is_written, self.paths(number)))]

    def write(self) -> Iterator[int]:
        """Write what is missing, a frame at a time; yields 1 for each."""
        streets = SyntheticStreets(self.numbers[0], len(self.numbers), self.height, self.width)
        for number in self.missing:
            frame = streets.frame(number - self.numbers[0])
            for path, data in zip(self.paths(number), encode(frame), strict=True):
                write_whole(path, data)
            yield 1


def plan(folder: Path, count: int, seed: int, height: int, width: int) -> list[StreetFrames]:
    """Frames 0 .. count-1 of a folder from the frames seed .. seed+count-1 of `random_frame`; writes the cameras.

    Raises:
        ValueError: the size is too small, or the folder holds frames of another seed or size.
        OSError: the folder cannot be written.
    """
    require_size(height, width)
    folder.mkdir(parents=True, exist_ok=True)
    sweep_partials(folder)
    numbers = range(seed, seed + count)
    cameras = {f"{n - seed:06d}": camera_entry(n, random_camera(n, height, width)) for n in numbers}
    write_cameras(folder / CAMERAS_FILE, cameras)
    streets = groupby(numbers, key=lambda number: number // VIEWS_A_STREET)
    return [StreetFrames(folder, tuple(group), seed, height, width) for _, group in streets]


def require_size(height: int, width: int) -> None:
    """Raises ValueError for a size [px] that cannot be rendered."""
    if min(height, width) < SMALLEST:
        raise ValueError(f"{height} px high and {width} px wide: expected {SMALLEST} px or more each way")


def encode(frame: Frame) -> tuple[bytes, bytes, bytes]:
    """Image as JPEG; panoptic ids as 16-bit PNG; depth as 16-bit PNG, 1/256 m, 0 where there is none or it is
    farther than 16 bits reach."""
    bgr = cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2BGR)
    image = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return image.tobytes(), png(frame.panoptic_ids), depth_png(frame.depth)


def depth_png(depth: np.ndarray) -> bytes:
    """Depth [H, W] in meters as 16-bit PNG."""
    steps = np.round(depth * np.float32(DEPTH_STEPS))
    steps[steps > np.iinfo(np.uint16).max] = 0
    return png(steps.astype(np.uint16))


def png(image: np.ndarray) -> bytes:
    """A map of numbers [H, W], or a picture [H, W, 3] in OpenCV's order of colors."""
    return cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 2])[1].tobytes()


def camera_entry(seed: int, camera: PinholeCamera) -> dict[str, Any]:
    """What cameras.json says of a frame."""
    size = {"seed": seed, "height": camera.height, "width": camera.width}
    return {**size, "fx": camera.fx, "fy": camera.fy, "cx": camera.cx, "cy": camera.cy}


def write_cameras(path: Path, cameras: dict[str, Any]) -> None:
    """Cameras by frame. Those that are there already stay, and must agree.

    Raises:
        ValueError: the file's frames have other seeds or sizes, or nobody can say which, because the file is
            missing or broken.
    """
    if path.exists():
        there = read_cameras(path, "remove it and what pictures are beside it; the same command writes them again")
        if any(cameras.get(name, camera) != camera for name, camera in there.items()):
            raise ValueError(f"{path}: holds frames of another seed or size; give the same ones or another folder")
        cameras = there | cameras
    elif any(picture.suffix in (".png", ".jpg") for picture in path.parent.iterdir()):
        raise ValueError(
            f"{path}: missing, so nobody can say of which seed and size the pictures beside it are; "
            f"remove those or give another folder"
        )
    write_whole(path, json.dumps(cameras, indent=1).encode())
