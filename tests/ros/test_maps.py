# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from panoptic_depth_ros.maps import OutputMaps, bands, outlined
from panoptic_depth_ros.prediction import Prediction
from panoptic_depth_ros.visualize import blend_halved, halved

ROAD, SKY, CAR, PERSON = range(4)
CATEGORIES = [ROAD, SKY, CAR, CAR]
SMALL = np.array(
    [
        [2, 2, 2, 2, 2],
        [1, 3, 3, 4, 0],
        [1, 3, 3, 4, 0],
        [1, 1, 1, 1, 1],
    ],
    np.uint8,
)
SIZES = [(4, 5), (12, 15), (9, 11), (8, 23), (3, 3), (2, 10)]  # the same, whole and odd factors, smaller


@pytest.fixture(autouse=True, params=[1 << 16, 40])
def _whole_and_in_bands(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything holds for pictures that are one band and for such of many bands."""
    monkeypatch.setattr("panoptic_depth_ros.maps._BAND_PIXELS", request.param)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 3), (40, 41), (1200, 1920)])
def test_bands_hold_every_row_once_and_in_order(height: int, width: int) -> None:
    rows = [np.arange(height)[band] for band in bands(height, width)]
    np.testing.assert_array_equal(np.concatenate(rows), np.arange(height))
    assert all(len(band) for band in rows)


def nearest(small: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixel of ``small`` under the center of each pixel of the larger image, one by one."""
    h, w = small.shape[:2]
    out = np.empty((height, width, *small.shape[2:]), small.dtype)
    for i in range(height):
        for j in range(width):
            out[i, j] = small[int((i + 0.5) * h / height), int((j + 0.5) * w / width)]
    return out


@pytest.fixture
def maps_at(predict_segments: Callable[..., Prediction]) -> Callable[..., OutputMaps]:
    def make(height: int, width: int, depth: np.ndarray | None = None) -> OutputMaps:
        prediction = predict_segments(SMALL, depth, CATEGORIES, [0.5, 0.5, 0.4, 0.9])
        rgb = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        return OutputMaps(prediction, rgb, height, width)

    return make


@pytest.mark.parametrize("size", SIZES)
def test_every_published_pixel_carries_the_label_beneath_its_center(
    maps_at: Callable[..., OutputMaps], size: tuple[int, int]
) -> None:
    maps = maps_at(*size)
    category, panoptic = np.full(size, 77, np.uint8), np.full(size, 77, np.uint16)
    maps.category_ids(category)
    maps.panoptic_ids(panoptic)
    # Void, road, sky, then two cars, of which the second is the surer one.
    np.testing.assert_array_equal(category, nearest(np.array([255, 0, 1, 2, 2], np.uint8)[SMALL], *size))
    expected = np.array([65535, 0, 1000, 2002, 2001], np.uint16)[SMALL]
    np.testing.assert_array_equal(panoptic, nearest(expected, *size))


@pytest.mark.parametrize("size", SIZES)
def test_colors_are_those_of_the_segments_and_two_cars_differ(
    maps_at: Callable[..., OutputMaps], size: tuple[int, int]
) -> None:
    maps = maps_at(*size)
    color = np.full((*size, 3), 77, np.uint8)
    maps.panoptic_color(color)
    ids = nearest(SMALL, *size)
    for segment_id, expected in [(0, (0, 0, 0)), (1, (128, 64, 128)), (2, (70, 130, 180)), (4, (0, 0, 142))]:
        assert (color[ids == segment_id] == expected).all()
    shaded = np.unique(color[ids == 3], axis=0)
    assert len(shaded) == 1
    assert tuple(shaded[0]) != (0, 0, 142)


def test_the_overlay_is_half_image_and_half_color_with_white_between_segments(
    maps_at: Callable[..., OutputMaps],
) -> None:
    maps = maps_at(40, 50)
    color, overlay = np.empty((40, 50, 3), np.uint8), np.empty((40, 50, 3), np.uint8)
    maps.panoptic_color(color)
    maps.overlay(overlay)
    for i, j in np.ndindex(SMALL.shape):
        above, left = SMALL[max(i - 1, 0), j], SMALL[i, max(j - 1, 0)]
        if above != SMALL[i, j] or left != SMALL[i, j]:
            color[10 * i : 10 * i + 10, 10 * j : 10 * j + 10] = 255
    np.testing.assert_allclose(overlay, (maps.rgb.astype(float) + color) / 2, atol=0.51)


def test_the_camera_image_is_shrunk_to_the_published_size(predict_segments: Callable[..., Prediction]) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)
    maps = OutputMaps(predict_segments(SMALL, None, CATEGORIES), rgb, 4, 5)
    np.testing.assert_allclose(maps.rgb, rgb.reshape(4, 2, 5, 2, 3).mean((1, 3)), atol=0.51)


@pytest.mark.parametrize("size", SIZES)
def test_depth_never_mixes_two_segments(maps_at: Callable[..., OutputMaps], size: tuple[int, int]) -> None:
    metres = np.array([1.0, 5.0, np.nan, 20.0, 70.0], np.float32)  # one per segment id, sky without
    depth = maps_at(*size, metres[SMALL]).depth
    np.testing.assert_array_equal(depth, nearest(metres[SMALL], *size))


def test_depth_is_smooth_inside_a_segment(predict_segments: Callable[..., Prediction]) -> None:
    ramp = np.tile(np.arange(8, dtype=np.float32), (6, 1))
    prediction = predict_segments(np.ones((6, 8)), ramp, [ROAD])
    depth = OutputMaps(prediction, np.zeros((18, 24, 3), np.uint8), 18, 24).depth
    expected = np.clip((np.arange(24) + 0.5) / 3 - 0.5, 0, 7)  # the ramp at the pixel centers
    assert depth is not None
    np.testing.assert_allclose(depth, np.tile(expected, (18, 1)), atol=1e-5)


def test_depth_beside_a_border_is_the_nearest_pixels(predict_segments: Callable[..., Prediction]) -> None:
    rng = np.random.default_rng(1)
    ids = np.indices((7, 9)).sum(0) % 3 + 1  # no two neighbors alike
    small = rng.uniform(1, 80, (7, 9)).astype(np.float32)
    depth = OutputMaps(predict_segments(ids, small, [ROAD, CAR, PERSON]), np.zeros((20, 31, 3), np.uint8), 20, 31).depth
    np.testing.assert_array_equal(depth, nearest(small, 20, 31))


@pytest.mark.parametrize("asked_before", [False, True])
def test_depth_is_written_into_the_memory_given(maps_at: Callable[..., OutputMaps], asked_before: bool) -> None:
    maps = maps_at(8, 10, np.full(SMALL.shape, 3.0, np.float32))
    if asked_before:
        assert maps.depth is not None
    out = np.zeros((8, 10), np.float32)
    maps.depth_into(out)
    assert (out == 3).all()
    np.testing.assert_array_equal(maps.depth, out)


def test_without_a_camera_there_is_no_depth(maps_at: Callable[..., OutputMaps]) -> None:
    maps = maps_at(8, 10)
    assert maps.depth is None
    with pytest.raises(ValueError, match="no depth"):
        maps.depth_into(np.zeros((8, 10), np.float32))


def test_threads_that_ask_for_depth_at_once_share_one(
    maps_at: Callable[..., OutputMaps], monkeypatch: pytest.MonkeyPatch
) -> None:
    maps, started = maps_at(8, 10, np.full(SMALL.shape, 3.0, np.float32)), threading.Barrier(3)
    enlarged, calls = maps._enlarged_depth, []

    def slowly(depth: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        calls.append(threading.get_ident())
        time.sleep(0.05)
        return enlarged(depth, out)

    def ask(into: np.ndarray | None) -> np.ndarray | None:
        started.wait()
        return maps.depth if into is None else maps.depth_into(into)

    monkeypatch.setattr(maps, "_enlarged_depth", slowly)
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(ask, [None, np.zeros((8, 10), np.float32), None]))
    assert len(calls) == 1
    for answer in answers:
        np.testing.assert_array_equal(answer, np.full((8, 10), 3))


def test_an_overlay_is_the_mean_of_image_and_color_within_half_a_level() -> None:
    image, color = (plane.astype(np.uint8) for plane in np.mgrid[:256, :256])
    out = np.empty((256, 256), np.uint8)
    blend_halved(image, halved(color), out)
    assert np.abs(out - (image.astype(float) + color) / 2).max() == 0.5
    assert out[255, 255] == 255


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1)])
def test_a_picture_of_one_row_or_column_is_outlined_too(shape: tuple[int, int]) -> None:
    ids = np.arange(5, dtype=np.uint8)[: shape[0] * shape[1]].reshape(shape)
    lines = outlined(np.zeros((*shape, 3), np.uint8), ids)
    assert (lines[..., 0].ravel() == [0, 255, 255, 255, 255][: ids.size]).all()
