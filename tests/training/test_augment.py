# SPDX-License-Identifier: Apache-2.0
"""An augmented image is still a true one: its camera explains it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.taxonomy import VOID_PANOPTIC_ID
from panoptic_depth_training.augment import (
    Augmentation,
    augmented,
    depth_at_focal_length,
    fitted,
    mirrored,
    recolored,
    scaled,
)
from panoptic_depth_training.datasets.frames import FrameFolder, LabeledImage

POINT = np.array([[1.0, -0.5, 10.0]])  # m, optical frame


def dotted_image(point: np.ndarray = POINT) -> LabeledImage:
    """A black image 64x96 with a white 3x3 dot where a point is seen."""
    camera = PinholeCamera(64, 96, 80.0, 80.0, 45.0, 33.0)
    u, v = camera.project(point)[0].round().astype(int)
    rgb, ids = np.zeros((64, 96, 3), np.uint8), np.zeros((64, 96), np.uint16)
    depth = np.zeros((64, 96), np.float32)
    at = slice(v - 1, v + 2), slice(u - 1, u + 2)
    rgb[at], ids[at], depth[at] = 255, 13001, point[0, 2]
    return LabeledImage(rgb, ids, depth, camera)


def dot_center(image: LabeledImage) -> np.ndarray:
    rows, columns = np.nonzero(image.panoptic_ids == 13001)
    return np.array([columns.mean(), rows.mean()])


@pytest.mark.parametrize("view", ["mirrored", "enlarged", "shrunk"])
def test_the_camera_follows_the_pixels(view):
    match view:
        case "mirrored":
            image, point = mirrored(dotted_image()), POINT * (-1, 1, 1)
        case "enlarged":
            image, point = scaled(dotted_image(), 1.3, -12.0, -9.0), POINT
        case _:
            image, point = scaled(dotted_image(), 0.8, 5.0, 3.0), POINT
    np.testing.assert_allclose(dot_center(image), image.camera.project(point)[0], atol=0.8)


def test_a_mirrored_image_keeps_its_labels_in_place():
    image = dotted_image()
    np.testing.assert_array_equal(mirrored(image).panoptic_ids, image.panoptic_ids[:, ::-1])
    np.testing.assert_array_equal(mirrored(image).depth > 0, mirrored(image).panoptic_ids == 13001)


def test_what_lies_beyond_the_image_is_void_without_depth():
    small = scaled(dotted_image(), 0.5, 20.0, 10.0)
    assert small.panoptic_ids[0, 0] == VOID_PANOPTIC_ID
    assert small.depth[0, 0] == 0


def test_fitting_letterboxes_labels_like_the_image():
    image = fitted(dotted_image(), 64, 128)
    assert image.rgb.shape == (64, 128, 3)
    assert (image.panoptic_ids[:, :16] == VOID_PANOPTIC_ID).all()
    np.testing.assert_allclose(dot_center(image), image.camera.project(POINT)[0], atol=0.8)


def test_a_longer_lens_sees_the_same_image_from_farther_away():
    image = dotted_image()
    assert depth_at_focal_length(image, 160.0).max() == pytest.approx(20.0)


def test_augmentation_depends_on_the_generator_alone(frames):
    image = FrameFolder(frames)[0]
    one, same, other = (augmented(image, 64, 96, Augmentation(), np.random.default_rng(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.rgb, same.rgb)
    np.testing.assert_array_equal(one.panoptic_ids, same.panoptic_ids)
    assert (one.rgb != other.rgb).any()


def test_recoloring_leaves_the_image_recognizable(frames):
    rgb = FrameFolder(frames)[0].rgb
    other = recolored(rgb, Augmentation(), np.random.default_rng(0))
    assert other.dtype == np.uint8
    assert np.corrcoef(rgb.ravel(), other.ravel())[0, 1] > 0.8


def test_a_folder_gives_back_what_was_written(frames):
    images = FrameFolder(frames)
    assert len(images) == 6
    image = images[2]
    assert image.camera == PinholeCamera(64, 96, 80.0, 80.0, 47.5, 31.5)
    assert image.rgb[30, 30, 0] > 150  # the red car, in RGB order
    assert image.panoptic_ids[30, 30] == 13001
    assert image.depth[30, 30] == 6.0
    assert image.depth[0, 0] == 0


def test_a_frame_without_its_depth_is_not_listed(tmp_path, frames):
    for path in frames.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "000003_depth.png").unlink()
    assert len(FrameFolder(tmp_path)) == 5


def test_a_broken_file_is_named(tmp_path, frames):
    for path in frames.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "000000_panoptic.png").write_bytes(cv2.imencode(".png", np.zeros((2, 2)))[1].tobytes()[:20])
    with pytest.raises(ValueError, match=r"000000_panoptic.png: not a readable image"):
        FrameFolder(tmp_path)[0]
