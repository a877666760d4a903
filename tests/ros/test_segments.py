# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.maps import OutputMaps
from panoptic_depth_ros.prediction import Prediction
from panoptic_depth_ros.segments import SegmentSummary, summarize

ROAD, SKY, CAR, PERSON = range(4)
CATEGORIES = [ROAD, SKY, CAR, PERSON, CAR, CAR]
SCORES = [0.9, 0.8, 0.6, 0.5, 0.7, 0.3]


@pytest.fixture
def scene(predict_segments: Callable[..., Prediction]) -> Callable[..., OutputMaps]:
    """Random blobs of segments 0 to 5 (6 is in the table, but nowhere in the image), published at a size."""

    def make(seed: int, small: tuple[int, int], size: tuple[int, int], with_depth: bool = True) -> OutputMaps:
        rng = np.random.default_rng(seed)
        ids = rng.integers(0, 6, (small[0] // 3 + 1, small[1] // 3 + 1)).repeat(3, 0).repeat(3, 1)
        ids = ids[: small[0], : small[1]]
        ids[rng.integers(small[0]), rng.integers(small[1])] = 5  # a segment may be one pixel
        depth = rng.uniform(2, 60, small).astype(np.float32)
        depth[ids == 2] = np.nan
        prediction = predict_segments(ids, depth if with_depth else None, CATEGORIES, SCORES)
        return OutputMaps(prediction, np.zeros((*size, 3), np.uint8), *size)

    return make


def camera(height: int, width: int) -> PinholeCamera:
    return PinholeCamera(height, width, 40.0, 44.0, width / 2 - 0.3, height / 2 + 1.1)


def published_panoptic_ids(maps: OutputMaps) -> np.ndarray:
    return maps.panoptic_ids(np.zeros((maps.height, maps.width), np.uint16))


# Enlarged by odd factors, unchanged, and shrunk, where rows and columns of the network's output fall out.
@pytest.mark.parametrize(
    ("small", "size"),
    [
        ((12, 16), (37, 53)),
        ((11, 17), (24, 50)),
        ((12, 16), (12, 16)),
        ((13, 15), (7, 5)),
        ((30, 40), (7, 11)),
        ((12, 16), (30, 9)),
    ],
)
@pytest.mark.parametrize("seed", range(8))
def test_areas_and_boxes_are_those_of_the_published_label_image(
    scene: Callable[..., OutputMaps], seed: int, small: tuple[int, int], size: tuple[int, int]
) -> None:
    maps = scene(seed, small, size)
    summary, published = summarize(maps, camera(*size)), published_panoptic_ids(maps)
    assert set(summary.panoptic_id.tolist()) == set(np.unique(published).tolist()) - {65535}
    for panoptic_id, area, box in zip(summary.panoptic_id, summary.area, summary.box, strict=True):
        rows, columns = np.nonzero(published == panoptic_id)
        assert area == len(rows)
        expected = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        np.testing.assert_array_equal(box, expected, err_msg=f"box of {panoptic_id}")


def test_a_segment_is_described_by_its_row_of_the_table(scene: Callable[..., OutputMaps]) -> None:
    maps = scene(1, (24, 32), (48, 64))
    summary: SegmentSummary = summarize(maps, camera(48, 64))
    np.testing.assert_array_equal(summary.panoptic_id, [0, 1000, 2002, 3001, 2001])
    np.testing.assert_array_equal(summary.category_id, CATEGORIES[:5])
    np.testing.assert_array_equal(summary.is_thing, [False, False, True, True, True])
    np.testing.assert_allclose(summary.score, SCORES[:5])
    np.testing.assert_array_equal(summary.mean_depth, maps.prediction.segments.mean_depth[:5])


@pytest.mark.parametrize("size", [(24, 32), (48, 64), (61, 95)])
def test_a_centroid_is_the_mean_of_the_points_seen(scene: Callable[..., OutputMaps], size: tuple[int, int]) -> None:
    maps = scene(2, (24, 32), size)
    summary = summarize(maps, camera(*size))
    depth, ids = maps.prediction.depth, maps.prediction.segment_ids
    assert depth is not None
    small, full = camera(24, 32), camera(*size)
    for row, segment_id in enumerate(range(1, 6)):
        points = []
        for v, u in zip(*np.nonzero(ids == segment_id), strict=True):
            column = (u + 0.5) * size[1] / small.width - 0.5  # this pixel's center in the published image
            line = (v + 0.5) * size[0] / small.height - 0.5
            z = float(depth[v, u])
            points.append([(column - full.cx) / full.fx * z, (line - full.cy) / full.fy * z, z])
        np.testing.assert_allclose(summary.centroid[row], np.mean(points, 0), rtol=1e-4, atol=1e-5)
    assert np.isnan(summary.centroid[1]).all()  # the sky
    assert np.isfinite(summary.centroid[[0, 2, 3, 4]]).all()


def test_a_centroid_leaves_out_pixels_of_unknown_depth(predict_segments: Callable[..., Prediction]) -> None:
    ids = np.ones((2, 4))
    depth = np.array([[2.0, np.nan, 4.0, np.inf], [np.nan, np.nan, np.nan, np.nan]], np.float32)
    prediction = predict_segments(ids, depth, [ROAD])
    pinhole = PinholeCamera(2, 4, 2.0, 2.0, 0.0, 0.0)  # pixels (0, 0) and (2, 0) see along x/z = 0 and 1, y/z = 0
    summary = summarize(OutputMaps(prediction, np.zeros((2, 4, 3), np.uint8), 2, 4), pinhole)
    np.testing.assert_allclose(summary.centroid, [[(0 * 2 + 1 * 4) / 2, 0, 3]])


def test_a_segment_that_ends_a_row_and_begins_the_next_is_as_wide_as_the_image(
    predict_segments: Callable[..., Prediction],
) -> None:
    ids = np.array([[1, 1, 2], [2, 1, 1]])
    summary = summarize(OutputMaps(predict_segments(ids, None, [CAR, CAR]), np.zeros((4, 6, 3), np.uint8), 4, 6), None)
    np.testing.assert_array_equal(summary.area, [16, 8])
    np.testing.assert_array_equal(summary.box, [[0, 0, 6, 4], [0, 0, 6, 4]])


def test_without_a_camera_positions_are_unknown(scene: Callable[..., OutputMaps]) -> None:
    summary = summarize(scene(3, (12, 16), (24, 32), with_depth=False), None)
    assert len(summary.area) == 5
    assert np.isnan(summary.centroid).all()
    assert np.isnan(summary.mean_depth).all()


def test_an_image_without_segments_has_an_empty_summary(predict_segments: Callable[..., Prediction]) -> None:
    prediction = predict_segments(np.zeros((4, 6)), np.ones((4, 6)), CATEGORIES)
    summary = summarize(OutputMaps(prediction, np.zeros((9, 13, 3), np.uint8), 9, 13), camera(9, 13))
    assert summary.panoptic_id.shape == (0,)
    assert summary.box.shape == (0, 4)
    assert summary.centroid.shape == (0, 3)
