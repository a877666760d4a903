# SPDX-License-Identifier: Apache-2.0
"""The folder of frames that `panoptic_depth_training.render frames` writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_training.datasets.cityscapes import CITYSCAPES
from panoptic_depth_training.datasets.files import (
    list_names,
    make_camera,
    own_ids_table,
    panoptic_from,
    read_cameras,
    read_depth,
    read_map,
    read_rgb,
)
from panoptic_depth_training.datasets.labeled import EXACT, DataError, LabeledImage

_SUFFIXES = ("_image.jpg", "_panoptic.png", "_depth.png")
_CAMERAS_REMEDY = "remove the folder and render its frames again"
_REMEDY = "delete what is left of the frame and run the same panoptic_depth_training.render command again"


class FrameFolder:
    """Images NNNNNN_image.jpg with NNNNNN_panoptic.png and NNNNNN_depth.png, and cameras.json beside them."""

    taxonomy = CITYSCAPES
    supervision = EXACT

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._cameras_file = folder / "cameras.json"
        if not self._cameras_file.exists():
            raise DataError(
                f"{folder}: no cameras.json; "
                f"render frames with python -m panoptic_depth_training.render frames {folder}"
            )
        self._cameras = read_cameras(self._cameras_file, _CAMERAS_REMEDY)
        self._table = own_ids_table(self.taxonomy)
        self.names = list_names(folder, _SUFFIXES, "render some first")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> LabeledImage:
        image, panoptic, depth = self.files_of(index)
        rgb = read_rgb(image, _REMEDY)
        camera = self.camera(index)
        if (camera.height, camera.width) != rgb.shape[:2]:
            raise DataError(
                f"{image}: {rgb.shape[1]}x{rgb.shape[0]} px; expected {camera.width}x{camera.height} as "
                f"{self._cameras_file.name} says; {_REMEDY}"
            )
        ids = read_map(panoptic, np.uint16, rgb.shape, _REMEDY)
        return LabeledImage(
            rgb=rgb,
            panoptic_ids=panoptic_from(ids, self._table, panoptic, _REMEDY),
            depth=read_depth(depth, rgb.shape, _REMEDY),
            camera=camera,
            name=self.name_of(index),
        )

    def camera(self, index: int) -> PinholeCamera:
        name = self.names[index]
        if name not in self._cameras:
            raise DataError(f"{self._cameras_file}: no camera for frame {name}; {_REMEDY}")
        values = self._cameras[name]
        return make_camera(self._cameras_file, values.get("height", 0), values.get("width", 0), values, _REMEDY)

    def name_of(self, index: int) -> str:
        return self.names[index]

    def sequence_of(self, index: int) -> str:
        """Views of a street do not follow each other in time: each is a sequence of its own."""
        return self.names[index]

    def files_of(self, index: int) -> tuple[Path, ...]:
        """Image, panoptic ids, depth."""
        return tuple(self.folder / f"{self.names[index]}{suffix}" for suffix in _SUFFIXES)
