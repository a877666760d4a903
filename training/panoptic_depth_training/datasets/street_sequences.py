# SPDX-License-Identifier: Apache-2.0
"""Short drives through rendered streets in the layout of Cityscapes-DVPS: six frames, ids that last, depth.

video_sequence/SPLIT/SSSSSS_FFFFFF_rendered_NNNNNN_NNNNNN_{leftImg8bit,gtFine_instanceTrainIds,depth}.png
with cameras.json beside them, and video_sequence/dvps_cityscapes_SPLIT.json. On request also a lidar scan
(_lidar.npy, float32 [N, 4]: x, y, z, intensity in the lidar's frame) and the poses of camera and lidar (_pose.json).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.taxonomy import LABEL_DIVISOR
from panoptic_depth_training.datasets.cityscapes import CITYSCAPES
from panoptic_depth_training.datasets.street_folder import (
    CAMERAS_FILE,
    camera_entry,
    depth_png,
    png,
    require_size,
    write_cameras,
)
from panoptic_depth_training.datasets.street_layout import Layout
from panoptic_depth_training.datasets.street_shading import Light, Sensor
from panoptic_depth_training.datasets.synthetic import BASE_FROM_LIDAR, Frame, Mount, Shot, Street, random_camera
from panoptic_depth_training.output_files import is_written, sweep_partials, write_whole

FRAMES = 6  # of a sequence; the data set's own scorer counts on it
INTERVAL_S = 0.3  # five frames of a camera of 17 Hz
CITY = "rendered"
SUFFIXES = ("_leftImg8bit.png", "_gtFine_instanceTrainIds.png", "_depth.png")
LIDAR_SUFFIXES = ("_lidar.npy", "_pose.json")
SPARE = 1 << 32  # between the street of a sequence and the next one to try
KEPT_CLEAR = (4.0, 1.6)  # [m] along and across the ego-vehicle's way


@dataclass(frozen=True)
class StreetSequence:
    """One drive of FRAMES frames to be written."""

    root: Path
    split: str
    index: int  # of the sequence in the folder
    number: int  # of the street
    height: int
    width: int
    has_lidar: bool = False

    @property
    def folder(self) -> Path:
        return self.root / "video_sequence" / self.split

    @property
    def names(self) -> list[str]:
        return [f"{self.index:06d}_{k:06d}_{CITY}_{self.index:06d}_{5 * k + 4:06d}" for k in range(FRAMES)]

    @property
    def camera(self) -> PinholeCamera:
        return random_camera(self.number, self.height, self.width)

    @property
    def suffixes(self) -> tuple[str, ...]:
        return (*SUFFIXES, *LIDAR_SUFFIXES) if self.has_lidar else SUFFIXES

    @property
    def missing(self) -> list[int]:
        """Frames that are not there yet."""
        names = enumerate(self.names)
        return [k for k, name in names if not all(is_written(self.folder / (name + end)) for end in self.suffixes)]

    def write(self) -> Iterator[int]:
        """Write what is missing, a frame at a time; yields 1 for each."""
        street, mount, light, sensor = drawn(self.number)
        for k in self.missing:
            time_s = k * INTERVAL_S
            pose = street.world_from_base(time_s) @ mount.base_from_camera
            rng = np.random.default_rng([self.number, 12, k])
            frame = street.take(Shot(self.camera, time_s, pose, light, sensor), rng)
            files = [png(frame.rgb[..., ::-1]), png(instance_train_ids(frame)), depth_png(frame.depth)]
            if self.has_lidar:
                files += [npy(street.lidar(time_s)), pose_json(street, frame)]
            for suffix, data in zip(self.suffixes, files, strict=True):
                write_whole(self.folder / (self.names[k] + suffix), data)
            yield 1


def drawn(number: int) -> tuple[Street, Mount, Light, Sensor]:
    """The street of a sequence, and the camera's place, light and sensor for all of it."""
    rng = np.random.default_rng([number, 11])
    mount, light, sensor = Mount.random(rng), Light.random(rng), Sensor.random(rng)
    for attempt in range(50):
        street = Street(number + attempt * SPARE, is_crowded=True)
        if is_clear(street.layout, FRAMES * INTERVAL_S):
            return street, mount, light, sensor
    raise RuntimeError(f"no street for sequence {number}: something stands in the way in fifty of them")


def is_clear(layout: Layout, seconds: float) -> bool:
    """Whether nothing comes into the ego-vehicle's way; what drives in its lane drives at its speed."""
    along, across = KEPT_CLEAR
    for time_s in np.arange(0, seconds, 0.1):
        s, left = layout.ego.at(float(time_s))
        for thing in layout.things:
            there, beside = thing.track.at(float(time_s))
            if abs(there - s - 1.0) < along and abs(beside - left) < across:
                return False
    return True


def instance_train_ids(frame: Frame) -> np.ndarray:
    """[H, W] uint16 as the data set counts: category * 1000 + instance, the first instance of a category being 0."""
    is_thing = np.array([category.is_thing for category in CITYSCAPES], np.uint16)
    return frame.panoptic_ids - is_thing[frame.panoptic_ids // LABEL_DIVISOR]


def npy(array: np.ndarray) -> bytes:
    """A file that numpy.load reads."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def pose_json(street: Street, frame: Frame) -> bytes:
    """Seconds since the sequence began, and where camera and lidar were: matrices [4, 4] row by row."""
    poses = {
        "stamp_s": frame.stamp_s,
        "world_from_camera": frame.world_from_camera.tolist(),
        "world_from_lidar": (street.world_from_base(frame.stamp_s) @ BASE_FROM_LIDAR).tolist(),
    }
    return json.dumps(poses, indent=1).encode()


def plan(
    root: Path, split: str, count: int, seed: int, height: int, width: int, has_lidar: bool = False
) -> list[StreetSequence]:
    """Sequences 0 .. count-1 from the streets seed .. seed+count-1; writes the lists that name their frames.

    Raises:
        ValueError: the size is too small, or the folder holds frames of another seed or size.
        OSError: the folder cannot be written.
    """
    require_size(height, width)
    sequences = [StreetSequence(root, split, index, seed + index, height, width, has_lidar) for index in range(count)]
    folder = root / "video_sequence" / split
    folder.mkdir(parents=True, exist_ok=True)
    for place in (folder.parent, folder):
        sweep_partials(place)
    cameras = {name: camera_entry(s.number, s.camera) for s in sequences for name in s.names}
    write_cameras(folder / CAMERAS_FILE, cameras)
    keys = ("image", "seg", "depth")
    listed = [
        {"height": height, "width": width, **{key: name + end for key, end in zip(keys, SUFFIXES, strict=True)}}
        for sequence in sequences
        for name in sequence.names
    ]
    write_whole(root / "video_sequence" / f"dvps_cityscapes_{split}.json", json.dumps(listed, indent=1).encode())
    return sequences
