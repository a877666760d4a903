# SPDX-License-Identifier: Apache-2.0
"""Labeled images, and the folder of them that `panoptic_depth_training.render frames` writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from panoptic_depth_ros.camera import PinholeCamera

DEPTH_STEPS = 256  # of a meter, in depth PNGs


@dataclass(frozen=True)
class LabeledImage:
    """An image with its truth."""

    rgb: np.ndarray  # [H, W, 3] uint8
    panoptic_ids: np.ndarray  # [H, W] uint16: category * 1000 + instance, 65535 void
    depth: np.ndarray  # [H, W] float32, m along the optical axis; 0 = unknown
    camera: PinholeCamera


class FrameFolder:
    """Images NNNNNN_image.jpg with NNNNNN_panoptic.png and NNNNNN_depth.png, and cameras.json beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        cameras = folder / "cameras.json"
        if not cameras.exists():
            raise ValueError(
                f"{folder}: no cameras.json; "
                f"render frames with python -m panoptic_depth_training.render frames {folder}"
            )
        self._cameras = json.loads(cameras.read_text())
        self.names = sorted(
            name for name in self._cameras if all(path.exists() for path in self._paths(name))
        )
        if not self.names:
            raise ValueError(f"{folder}: no frame with image, panoptic ids and depth; render some first")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> LabeledImage:
        name = self.names[index]
        image_path, panoptic_path, depth_path = self._paths(name)
        return LabeledImage(
            rgb=cv2.cvtColor(read_image(image_path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB),
            panoptic_ids=read_image(panoptic_path, cv2.IMREAD_UNCHANGED),
            depth=read_image(depth_path, cv2.IMREAD_UNCHANGED).astype(np.float32) / DEPTH_STEPS,
            camera=self.camera(index),
        )

    def camera(self, index: int) -> PinholeCamera:
        values = self._cameras[self.names[index]]
        size = {key: values[key] for key in ("height", "width")}
        return PinholeCamera(**size, **{key: values[key] for key in ("fx", "fy", "cx", "cy")})

    def _paths(self, name: str) -> tuple[Path, Path, Path]:
        """Image, panoptic ids, depth."""
        return (
            self.folder / f"{name}_image.jpg",
            self.folder / f"{name}_panoptic.png",
            self.folder / f"{name}_depth.png",
        )


def read_image(path: Path, flags: int) -> np.ndarray:
    """An image file as OpenCV decodes it."""
    image = cv2.imread(str(path), flags)
    if image is None:
        raise ValueError(f"{path}: not a readable image; delete it and render it again")
    return image
