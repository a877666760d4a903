# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.cloud import POINT, CloudGrid, compact
from panoptic_depth_ros.maps import OutputMaps
from panoptic_depth_ros.prediction import Prediction

ROAD, SKY, CAR, PERSON = range(4)
CATEGORIES = [ROAD, SKY, CAR, CAR, PERSON]
LABELS = np.array([255, 0, 1, 2, 2, 3])  # by segment id
INSTANCES = np.array([0, 0, 0, 1, 2, 1])


def plain(height: int, width: int) -> PinholeCamera:
    return PinholeCamera(height, width, 60.0, 55.0, width / 2 + 1.3, height / 2 - 2.1)


def distorted(height: int, width: int) -> PinholeCamera:
    return PinholeCamera(height, width, 60.0, 55.0, width / 2, height / 2, "plumb_bob", (-0.2, 0.05, 1e-3, -1e-3, 0.0))


@pytest.fixture
def scene(predict_segments: Callable[..., Prediction]) -> Callable[..., OutputMaps]:
    """Maps of a random scene at the network's own resolution; every pixel has its own color."""

    def make(height: int, width: int) -> OutputMaps:
        rng = np.random.default_rng(height * width)
        ids = rng.integers(0, 6, (height, width))
        depth = rng.uniform(1, 100, (height, width)).astype(np.float32)
        depth[ids == 2] = np.nan
        number = np.arange(height * width).reshape(height, width)
        rgb = np.stack([number % 251, number // 251 % 251, 255 - number % 13], -1).astype(np.uint8)
        return OutputMaps(predict_segments(ids, depth, CATEGORIES), rgb, height, width)

    return make


@pytest.fixture(autouse=True, params=[1 << 16, 20])
def _whole_and_in_bands(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything holds for clouds that are one band and for such of many bands."""
    monkeypatch.setattr("panoptic_depth_ros.maps._BAND_PIXELS", request.param)


def fill(maps: OutputMaps, camera: PinholeCamera, stride: int, max_depth: float = 1e9) -> np.ndarray:
    grid = CloudGrid(camera, stride, max_depth)
    return grid.fill(maps, np.full((grid.height, grid.width), 7, POINT))


@pytest.mark.parametrize("make_camera", [plain, distorted])
@pytest.mark.parametrize(("size", "stride"), [((40, 56), 1), ((41, 57), 2), ((43, 59), 3), ((64, 48), 16)])
def test_points_project_back_onto_their_pixels(
    scene: Callable[..., OutputMaps],
    make_camera: Callable[..., PinholeCamera],
    size: tuple[int, int],
    stride: int,
) -> None:
    maps, camera = scene(*size), make_camera(*size)
    cloud = fill(maps, camera, stride)
    rows, columns = np.mgrid[: cloud.shape[0], : cloud.shape[1]]
    known = np.isfinite(cloud["z"])
    points = np.stack([cloud["x"], cloud["y"], cloud["z"]], -1)[known].astype(np.float64)
    expected = np.stack([columns[known] * stride, rows[known] * stride], -1)
    assert known.any()
    assert np.abs(camera.project(points) - expected).max() < 1e-3


# Every stride that the node takes: an inexact division would pick a neighbor's color at some of them.
@pytest.mark.parametrize("stride", range(1, 65))
def test_a_point_has_the_depth_color_and_label_of_its_own_pixel(scene: Callable[..., OutputMaps], stride: int) -> None:
    height, width = 4 * stride + stride // 2, 5 * stride + stride // 3  # leaves a rest that no whole stride holds
    maps = scene(height, width)
    cloud = fill(maps, plain(height, width), stride)
    assert cloud.shape == (4, 5)
    picked = np.s_[: 4 * stride : stride, : 5 * stride : stride]
    ids, rgb = maps.prediction.segment_ids[picked], maps.rgb[picked].astype(np.uint32)
    np.testing.assert_array_equal(cloud["z"], maps.prediction.depth[picked])  # type: ignore[index]
    np.testing.assert_array_equal(cloud["rgb"], rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2])
    np.testing.assert_array_equal(cloud["label"], LABELS[ids])
    np.testing.assert_array_equal(cloud["instance"], maps.prediction.instance_of_segment[ids])


def test_labels_follow_their_pixels_when_the_published_image_is_larger(
    predict_segments: Callable[..., Prediction],
) -> None:
    small = np.random.default_rng(3).integers(0, 6, (6, 7))
    prediction = predict_segments(small, np.full((6, 7), 4.0), CATEGORIES, [0.5, 0.5, 0.9, 0.4, 0.5])
    maps = OutputMaps(prediction, np.zeros((25, 33, 3), np.uint8), 25, 33)
    cloud = fill(maps, plain(25, 33), 3)
    for i in range(8):
        for j in range(11):
            segment_id = small[int((3 * i + 0.5) * 6 / 25), int((3 * j + 0.5) * 7 / 33)]
            assert cloud["label"][i, j] == LABELS[segment_id]
            assert cloud["instance"][i, j] == INSTANCES[segment_id]


def test_what_is_too_far_or_has_no_depth_is_nan_in_all_three_coordinates(
    scene: Callable[..., OutputMaps],
) -> None:
    maps = scene(30, 40)
    cloud = fill(maps, plain(30, 40), 1, max_depth=50.0)
    depth = maps.prediction.depth
    assert depth is not None
    kept = depth <= 50
    assert 0 < kept.sum() < np.isfinite(depth).sum()
    for axis in "xyz":
        np.testing.assert_array_equal(np.isfinite(cloud[axis]), kept)


def test_rows_may_be_filled_in_any_order_and_leave_the_others_alone(scene: Callable[..., OutputMaps]) -> None:
    maps, grid = scene(31, 41), CloudGrid(plain(31, 41), 2, 50.0)
    whole = grid.fill(maps, np.zeros((15, 20), POINT))
    cloud = np.full((15, 20), 7, POINT)
    filled: set[int] = set()
    for rows in (slice(9, 15), slice(0, 4), slice(4, 9)):
        grid.fill_rows(maps, cloud, rows)
        filled |= set(range(15)[rows])
        untouched = [row for row in range(15) if row not in filled]
        assert (cloud[untouched] == np.full((), 7, POINT)).all()
        assert cloud[sorted(filled)].tobytes() == whole[sorted(filled)].tobytes()
    assert len(filled) == 15


def test_compact_keeps_the_finite_points_in_their_order(scene: Callable[..., OutputMaps]) -> None:
    cloud = fill(scene(31, 41), plain(31, 41), 2, max_depth=50.0)
    points = compact(cloud)
    expected = [record for record in cloud.ravel() if np.isfinite(record["z"])]
    assert points.shape == (len(expected),)
    assert points.tobytes() == np.array(expected, POINT).tobytes()


def test_colors_are_no_nan_for_tools_that_read_them_as_floats(scene: Callable[..., OutputMaps]) -> None:
    assert np.isfinite(fill(scene(30, 40), plain(30, 40), 1)["rgb"].view(np.float32)).all()


def test_a_grid_is_used_again_for_the_next_frame(scene: Callable[..., OutputMaps]) -> None:
    camera = plain(30, 40)
    grid, out = CloudGrid(camera, 2, 50.0), np.zeros((15, 20), POINT)
    first, second = scene(30, 40), scene(30, 40)
    assert second.prediction.depth is not None
    second.prediction.depth[:] = 3.0
    grid.fill(first, out)
    assert not (out["z"] == 3.0).any()
    grid.fill(second, out)
    assert (out["z"] == 3.0).all()


def test_a_cloud_without_depth_is_refused(predict_segments: Callable[..., Prediction]) -> None:
    maps = OutputMaps(predict_segments(np.ones((4, 6)), None, [ROAD]), np.zeros((4, 6, 3), np.uint8), 4, 6)
    with pytest.raises(ValueError, match="needs depth"):
        fill(maps, plain(4, 6), 1)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (3, 40), (40, 3)])
def test_an_image_smaller_than_the_stride_still_has_its_first_point(
    scene: Callable[..., OutputMaps], size: tuple[int, int]
) -> None:
    maps = scene(*size)
    maps.prediction.depth[0, 0] = 12.5  # type: ignore[index]
    cloud = fill(maps, plain(*size), 16)
    assert cloud.shape == (max(1, size[0] // 16), max(1, size[1] // 16))
    first, (r, g, b) = cloud[0, 0], maps.rgb[0, 0].astype(int)
    assert first["z"] == 12.5
    assert first["label"] == LABELS[maps.prediction.segment_ids[0, 0]]
    assert first["rgb"] == r << 16 | g << 8 | b
