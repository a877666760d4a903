# SPDX-License-Identifier: Apache-2.0
"""Cityscapes-DVPS: sequences of six Cityscapes frames with panoptic ids and depth (Qiao et al., CVPR 2021).

All of it comes from Cityscapes' validation split: a network trained on it must not be scored on that split.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.taxonomy import LABEL_DIVISOR, VOID_PANOPTIC_ID
from panoptic_depth_training.datasets.cityscapes import CITYSCAPES
from panoptic_depth_training.datasets.files import (
    UNKNOWN,
    list_names,
    make_camera,
    panoptic_from,
    read_cameras,
    read_depth,
    read_map,
    read_rgb,
)
from panoptic_depth_training.datasets.labeled import EXACT, LabeledImage

VOID = 32000
SPLITS = ("train", "val")
# The data set has no calibration. Cityscapes gives these numbers for the cities that it was taken from.
NOMINAL_CAMERA = PinholeCamera(1024, 2048, 2262.52, 2265.3017905988554, 1096.98, 513.137)

_SUFFIXES = ("_leftImg8bit.png", "_gtFine_instanceTrainIds.png", "_depth.png")
_REMEDY = "prepare Cityscapes-DVPS again"


def instance_train_id_table() -> np.ndarray:
    """Panoptic ids [65536] uint16 of training id * 1000 + instance; a thing may have instance 0, and 32000 is void."""
    table = np.full(VOID_PANOPTIC_ID + 1, UNKNOWN, np.uint16)
    table[VOID] = VOID_PANOPTIC_ID
    for category, entry in enumerate(CITYSCAPES):
        first = category * LABEL_DIVISOR
        table[first] = first
        if entry.is_thing:  # groups became void when the data set was made, so 0 is a thing as good as 1
            counts = np.arange(LABEL_DIVISOR - 1)
            table[first + counts] = first + 1 + counts
    return table


class CityscapesDvps:
    """video_sequence/SPLIT/SSSSSS_FFFFFF_CITY_NNNNNN_NNNNNN_{leftImg8bit,gtFine_instanceTrainIds,depth}.png.

    A cameras.json beside the frames, as panoptic_depth_training.render writes it, replaces the nominal camera.
    """

    taxonomy = CITYSCAPES
    supervision = EXACT

    def __init__(self, root: Path, split: str) -> None:
        self.folder = root / "video_sequence" / split
        self.names = list_names(self.folder, _SUFFIXES, _REMEDY)
        self._table = instance_train_id_table()
        cameras = self.folder / "cameras.json"
        self._cameras_file = cameras if cameras.exists() else None
        self._cameras = read_cameras(cameras, _REMEDY) if self._cameras_file else {}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> LabeledImage:
        image, labels, depth = self.files_of(index)
        rgb = read_rgb(image, _REMEDY)
        ids = read_map(labels, np.uint16, rgb.shape, _REMEDY)
        return LabeledImage(
            rgb=rgb,
            panoptic_ids=panoptic_from(ids, self._table, labels, _REMEDY),
            depth=read_depth(depth, rgb.shape, _REMEDY),
            camera=self._camera(index, *rgb.shape[:2]),
            name=self.name_of(index),
        )

    def _camera(self, index: int, height: int, width: int) -> PinholeCamera:
        if self._cameras_file is None:
            return NOMINAL_CAMERA.resized(height, width)
        return make_camera(self._cameras_file, height, width, self._cameras.get(self.names[index], {}), _REMEDY)

    def name_of(self, index: int) -> str:
        return self.names[index]

    def sequence_of(self, index: int) -> str:
        return self.names[index].split("_")[0]

    def files_of(self, index: int) -> tuple[Path, ...]:
        """Image, panoptic ids, depth."""
        return tuple(self.folder / f"{self.names[index]}{suffix}" for suffix in _SUFFIXES)
