# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from panoptic_depth_ros.preprocess import PADDING_COLOR, Placement, fit, place


@pytest.mark.parametrize(
    ("image", "network", "expected"),
    [
        ((1024, 2048), (256, 512), Placement(1024, 2048, 0, 0, 256, 512)),  # the same shape: no padding
        ((1080, 1920), (256, 512), Placement(1080, 1920, 0, 28, 256, 455)),  # 256/1080 * 1920 = 455.1
        ((600, 1920), (256, 512), Placement(600, 1920, 48, 0, 160, 512)),
        ((480, 640), (960, 1280), Placement(480, 640, 0, 0, 960, 1280)),
        ((2, 4000), (256, 512), Placement(2, 4000, 127, 0, 1, 512)),  # a sliver keeps one row
        ((7, 5), (10, 10), Placement(7, 5, 0, 1, 10, 7)),  # 10/7 * 5 = 7.1; the odd column of padding goes right
    ],
)
def test_an_image_is_centered_at_the_largest_size_that_fits(
    image: tuple[int, int], network: tuple[int, int], expected: Placement
) -> None:
    assert place(*image, *network) == expected


def test_scale_is_network_pixels_per_camera_pixel() -> None:
    assert place(1024, 2048, 256, 512).scale == 0.25
    assert place(600, 1920, 256, 512).scale == pytest.approx(512 / 1920)


def test_the_image_lies_inside_its_placement_and_padding_around_it() -> None:
    rgb = np.full((30, 90, 3), (10, 200, 60), np.uint8)
    image, placement = fit(rgb, 40, 45)
    assert image.shape == (40, 45, 3)
    inside = placement.crop(np.ones((40, 45), bool))
    assert inside.shape == (15, 45)
    mask = np.zeros((40, 45), bool)
    placement.crop(mask)[:] = True
    assert (image[mask] == (10, 200, 60)).all()
    assert (image[~mask] == PADDING_COLOR).all()


def test_shrinking_averages_all_pixels_of_a_block() -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (48, 72, 3), np.uint8)
    image, _ = fit(rgb, 12, 18)
    blocks = rgb.reshape(12, 4, 18, 4, 3).mean((1, 3))
    np.testing.assert_allclose(image, blocks, atol=1.01)  # it averages twice and rounds twice


def test_a_thin_pole_does_not_vanish() -> None:
    rgb = np.zeros((90, 90, 3), np.uint8)
    rgb[:, 31] = 240  # one column in nine
    image, _ = fit(rgb, 10, 10)
    np.testing.assert_allclose(image[:, 3], 240 / 9, atol=1.01)
    assert image.sum(dtype=int) == image[:, 3].sum(dtype=int)


def test_enlarging_keeps_edges_where_they_are() -> None:
    rgb = np.repeat(np.array([0, 200], np.uint8), [4, 4])[None, :, None].repeat(8, 0).repeat(3, 2)
    image, _ = fit(rgb, 32, 32)
    assert (image[:, :14] == 0).all()
    assert (image[:, 18:] == 200).all()
    assert (np.diff(image[..., 0].astype(int), axis=1) >= 0).all()


def test_an_image_of_network_size_is_left_alone() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    image, placement = fit(rgb, 12, 16)
    np.testing.assert_array_equal(image, rgb)
    assert placement == Placement(12, 16, 0, 0, 12, 16)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.uint16),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_what_is_no_rgb_image_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \[height, width, 3\], not empty"):
        fit(bad, 8, 8)
