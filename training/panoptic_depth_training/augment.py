# SPDX-License-Identifier: Apache-2.0
"""From labeled images of any camera to training samples of one size and one focal length."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from panoptic_depth_ros.preprocess import PADDING_COLOR, fit
from panoptic_depth_ros.taxonomy import VOID_PANOPTIC_ID
from panoptic_depth_training.datasets.frames import LabeledImage


@dataclass(frozen=True)
class Augmentation:
    """How much a training image may differ from the recorded one."""

    scale: tuple[float, float] = (0.9, 1.3)  # of the image against the network input
    brightness: float = 32.0  # of 255, added
    contrast: float = 0.3  # relative, as are the next two
    saturation: float = 0.4
    white_balance: float = 0.1


def fitted(example: LabeledImage, height: int, width: int) -> LabeledImage:
    """The example as the vehicle would feed it: letterboxed, with void and unknown depth in the padding."""
    rgb, placement = fit(example.rgb, height, width)
    size = (placement.width, placement.height)
    ids = np.full((height, width), VOID_PANOPTIC_ID, np.uint16)
    depth = np.zeros((height, width), np.float32)
    placement.crop(ids)[:] = cv2.resize(example.panoptic_ids, size, interpolation=cv2.INTER_NEAREST)
    placement.crop(depth)[:] = cv2.resize(example.depth, size, interpolation=cv2.INTER_NEAREST)
    camera = example.camera.resized(placement.height, placement.width)
    camera = replace(
        camera, height=height, width=width, cx=camera.cx + placement.left, cy=camera.cy + placement.top
    )
    return LabeledImage(rgb, ids, depth, camera)


def augmented(
    example: LabeledImage, height: int, width: int, settings: Augmentation, rng: np.random.Generator
) -> LabeledImage:
    """A random view of the example at network size: scaled, shifted, mirrored, recolored."""
    example = fitted(example, height, width)
    scale = np.exp(rng.uniform(*np.log(settings.scale)))
    # Content moves at most as far as the scaled image is larger (or smaller) than the frame.
    shift = (1 - scale) * rng.uniform(0.3, 0.7, 2) * (width, height)
    example = scaled(example, float(scale), float(shift[0]), float(shift[1]))
    if rng.random() < 0.5:
        example = mirrored(example)
    return replace(example, rgb=recolored(example.rgb, settings, rng))


def scaled(example: LabeledImage, scale: float, left: float, top: float) -> LabeledImage:
    """The image enlarged by `scale` with its corner at (left, top) px, in a frame of the old size.

    Depth stays as it is: the camera's focal length grows instead.
    """
    camera = example.camera
    size = (camera.width, camera.height)
    # In pixel centers: u' + 0.5 = scale * (u + 0.5) + left.
    matrix = np.array([[scale, 0, 0.5 * scale - 0.5 + left], [0, scale, 0.5 * scale - 0.5 + top]])
    return LabeledImage(
        rgb=cv2.warpAffine(example.rgb, matrix, size, flags=cv2.INTER_LINEAR, borderValue=PADDING_COLOR),
        panoptic_ids=cv2.warpAffine(
            example.panoptic_ids, matrix, size, flags=cv2.INTER_NEAREST, borderValue=VOID_PANOPTIC_ID
        ),
        depth=cv2.warpAffine(example.depth, matrix, size, flags=cv2.INTER_NEAREST, borderValue=0),
        camera=replace(
            camera,
            fx=camera.fx * scale,
            fy=camera.fy * scale,
            cx=scale * (camera.cx + 0.5) - 0.5 + left,
            cy=scale * (camera.cy + 0.5) - 0.5 + top,
        ),
    )


def mirrored(example: LabeledImage) -> LabeledImage:
    """The image seen in a mirror."""
    return LabeledImage(
        rgb=np.ascontiguousarray(example.rgb[:, ::-1]),
        panoptic_ids=np.ascontiguousarray(example.panoptic_ids[:, ::-1]),
        depth=np.ascontiguousarray(example.depth[:, ::-1]),
        camera=replace(example.camera, cx=example.camera.width - 1 - example.camera.cx),
    )


def recolored(rgb: np.ndarray, settings: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """Another exposure and another white balance of the same image."""
    pixels = rgb.astype(np.float32)
    gray = pixels.mean(axis=2, keepdims=True)
    pixels = gray + (pixels - gray) * (1 + rng.uniform(-1, 1) * settings.saturation)
    pixels *= 1 + rng.uniform(-1, 1) * settings.contrast + rng.uniform(-1, 1, 3) * settings.white_balance
    return np.clip(pixels + rng.uniform(-1, 1) * settings.brightness, 0, 255).astype(np.uint8)


def depth_at_focal_length(example: LabeledImage, focal_length_px: float) -> np.ndarray:
    """The depth [H, W] that would make the same image with another focal length: what a network can learn."""
    return example.depth * np.float32(focal_length_px / example.camera.fx)
