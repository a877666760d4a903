# SPDX-License-Identifier: Apache-2.0
"""From a camera image of any size to the network's fixed input, and the way back.

The image keeps its shape: it is scaled by one factor until it fits and centered, the rest is padding. Centering
keeps the horizon near the row where the network learned it, which its depth relies on.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

PADDING_COLOR = (124, 116, 104)  # RGB; ImageNet's mean, so padding is about zero after normalization


@dataclass(frozen=True)
class Placement:
    """Where a camera image lies in the network's input, both in pixels."""

    image_height: int
    image_width: int
    top: int
    left: int
    height: int
    width: int

    @property
    def scale(self) -> float:
        """Network pixels per camera pixel; what the focal length is multiplied by."""
        return self.width / self.image_width

    def crop(self, array: np.ndarray) -> np.ndarray:
        """The image's part (a view) of a network-size map [h, w, ...]."""
        return array[self.top : self.top + self.height, self.left : self.left + self.width]


def place(image_height: int, image_width: int, height: int, width: int) -> Placement:
    """The largest centered place with the image's own aspect ratio in a network input of height x width."""
    scale = min(height / image_height, width / image_width)
    placed_height = max(1, min(height, round(image_height * scale)))
    placed_width = max(1, min(width, round(image_width * scale)))
    top, left = (height - placed_height) // 2, (width - placed_width) // 2
    return Placement(image_height, image_width, top, left, placed_height, placed_width)


def fit(rgb: np.ndarray, height: int, width: int) -> tuple[np.ndarray, Placement]:
    """The network input [height, width, 3] uint8 for an image [H, W, 3] uint8, and where the image lies in it."""
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
        raise ValueError(f"image is {rgb.dtype} {rgb.shape}; expected uint8 [height, width, 3], not empty")
    placement = place(rgb.shape[0], rgb.shape[1], height, width)
    scaled = resized(rgb, placement.height, placement.width)
    bottom, right = height - placement.top - placement.height, width - placement.left - placement.width
    image = cv2.copyMakeBorder(
        scaled, placement.top, bottom, placement.left, right, cv2.BORDER_CONSTANT, value=PADDING_COLOR
    )
    return image, placement


def resized(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    """The image [height, width, 3] of [H, W, 3]: means of areas, which keep thin poles, or bilinear when enlarging."""
    if height > rgb.shape[0]:
        return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_LINEAR)
    # Exact halves are the same averages, and OpenCV has them vectorized: twice as fast on a large camera.
    while rgb.shape[0] >= 2 * height and rgb.shape[1] >= 2 * width and rgb.shape[0] % 2 == rgb.shape[1] % 2 == 0:
        rgb = cv2.resize(rgb, (rgb.shape[1] // 2, rgb.shape[0] // 2), interpolation=cv2.INTER_AREA)
    return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
