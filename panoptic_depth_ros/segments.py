# SPDX-License-Identifier: Apache-2.0
"""One line per segment: where it is in the image and in space."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.maps import OutputMaps
from panoptic_depth_ros.prediction import VOID


@dataclass(frozen=True)
class SegmentSummary:
    """The segments that a published label image holds, in the order of their segment ids; S of them."""

    panoptic_id: np.ndarray  # [S] uint16
    category_id: np.ndarray  # [S] uint8
    is_thing: np.ndarray  # [S] bool
    score: np.ndarray  # [S] float32
    area: np.ndarray  # [S] int, px of the published image
    box: np.ndarray  # [S, 4] int, px of the published image: x, y of the top-left pixel, width, height
    mean_depth: np.ndarray  # [S] float32, m; NaN where unknown
    centroid: np.ndarray  # [S, 3] float32, m in the optical frame; NaN where unknown


def summarize(maps: OutputMaps, camera: PinholeCamera | None) -> SegmentSummary:
    """What the segments of a prediction look like on the published grid; camera is that of the published grid."""
    prediction = maps.prediction
    runs = _find_runs(prediction.segment_ids)
    present, area, box = _outlines(runs, maps)
    category_id = prediction.category_of_segment[present]
    return SegmentSummary(
        panoptic_id=prediction.panoptic_id_of_segment[present],
        category_id=category_id,
        is_thing=np.isin(category_id, prediction.taxonomy.thing_ids),
        score=prediction.segments.score[present - 1],
        area=area,
        box=box,
        mean_depth=prediction.segments.mean_depth[present - 1],
        centroid=_centroids(runs, prediction.depth, camera)[present],
    )


@dataclass(frozen=True)
class _Runs:
    """Stretches of one segment within a row of the prediction, from left to right and from top to bottom; R of them.

    A label image is some thousand runs: sums over them cost a tenth of sums over its pixels.
    """

    start: np.ndarray  # [R] int, index of the first pixel in the flattened image
    segment_id: np.ndarray  # [R] int
    row: np.ndarray  # [R] int
    first: np.ndarray  # [R] int, column of the first pixel
    end: np.ndarray  # [R] int, column after the last pixel


def _find_runs(segment_ids: np.ndarray) -> _Runs:
    height, width = segment_ids.shape
    begins = np.ones((height, width), bool)
    np.not_equal(segment_ids[:, 1:], segment_ids[:, :-1], out=begins[:, 1:])
    start = np.flatnonzero(begins)
    row, first = np.divmod(start, width)
    length = np.diff(start, append=height * width)
    return _Runs(start, segment_ids[row, first].astype(np.intp), row, first, first + length)


def _outlines(runs: _Runs, maps: OutputMaps) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Segment ids [S] that the published label image holds, their areas [S] and boxes [S, 4] there."""
    height, width = maps.prediction.segment_ids.shape
    # A run of small pixels is a rectangle of published ones, an empty one where a smaller image leaves it out.
    x_edges = np.searchsorted(maps.enlarge.source_columns, np.arange(width + 1))
    y_edges = np.searchsorted(maps.enlarge.source_rows, np.arange(height + 1))
    x, x_end = x_edges[runs.first], x_edges[runs.end]
    y, y_end = y_edges[runs.row], y_edges[runs.row + 1]
    area = (x_end - x) * (y_end - y)
    shown = np.flatnonzero((area > 0) & (runs.segment_id != VOID))
    by_segment = shown[np.argsort(runs.segment_id[shown].astype(np.uint8), kind="stable")]
    segment_id = runs.segment_id[by_segment]
    group = np.flatnonzero(np.diff(segment_id, prepend=VOID))
    left, top = (np.minimum.reduceat(edge[by_segment], group) for edge in (x, y))
    right, bottom = (np.maximum.reduceat(edge[by_segment], group) for edge in (x_end, y_end))
    box = np.stack([left, top, right - left, bottom - top], axis=-1)
    return segment_id[group], np.add.reduceat(area[by_segment], group), box


def _centroids(runs: _Runs, depth: np.ndarray | None, camera: PinholeCamera | None) -> np.ndarray:
    """[256, 3] float32 mean of each segment's surface points, at the prediction's own resolution."""
    if depth is None or camera is None:
        return np.full((256, 3), np.nan, np.float32)
    known = np.isfinite(depth)
    summands = np.empty((4, *depth.shape), np.float32)  # x, y, z of each pixel's point, and 1 where it is known
    summands[2] = np.where(known, depth, 0)
    summands[3] = known
    np.multiply(_rays(camera.resized(*depth.shape)), summands[2], out=summands[:2])
    of_runs = np.add.reduceat(summands.reshape(4, -1), runs.start, axis=1)
    *point, count = (np.bincount(runs.segment_id, weights, minlength=256) for weights in of_runs)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (np.stack(point, axis=-1) / count[:, None]).astype(np.float32)


@lru_cache(maxsize=2)
def _rays(camera: PinholeCamera) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(camera.rays(), -1, 0))  # [2, h, w]
