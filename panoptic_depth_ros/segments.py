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
    ids = prediction.segment_ids.astype(np.intp)
    row_repeats = np.bincount(maps.enlarge.source_rows, minlength=ids.shape[0])
    column_repeats = np.bincount(maps.enlarge.source_columns, minlength=ids.shape[1])
    # Each small pixel counts as often as it is repeated; a smaller published image leaves some out.
    repeats = np.outer(row_repeats, column_repeats)
    areas = np.bincount(ids.ravel(), repeats.ravel(), minlength=256).astype(np.int64)
    areas[VOID] = 0
    present = np.flatnonzero(areas)
    category_id = prediction.category_of_segment[present]
    return SegmentSummary(
        panoptic_id=prediction.panoptic_id_of_segment[present],
        category_id=category_id,
        is_thing=np.isin(category_id, prediction.taxonomy.thing_ids),
        score=prediction.segments.score[present - 1],
        area=areas[present],
        box=_boxes(ids if repeats.all() else np.where(repeats, ids, VOID), maps, present),
        mean_depth=prediction.segments.mean_depth[present - 1],
        centroid=_centroids(ids, prediction.depth, camera)[present],
    )


def _boxes(ids: np.ndarray, maps: OutputMaps, present: np.ndarray) -> np.ndarray:
    """[S, 4] x, y, width, height, from the small label image: its rows and columns map to runs of published ones."""
    height, width = ids.shape
    in_row = np.bincount((ids * height + np.arange(height)[:, None]).ravel(), minlength=256 * height)
    in_column = np.bincount((ids * width + np.arange(width)).ravel(), minlength=256 * width)
    y, y_end = _extent(in_row.reshape(256, height)[present], maps.enlarge.source_rows)
    x, x_end = _extent(in_column.reshape(256, width)[present], maps.enlarge.source_columns)
    return np.stack([x, y, x_end - x, y_end - y], axis=-1)


def _extent(counts: np.ndarray, source: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and one past the last published position whose source among [S, small size] has a count."""
    held = counts[:, source] > 0
    return held.argmax(1), len(source) - held[:, ::-1].argmax(1)


def _centroids(ids: np.ndarray, depth: np.ndarray | None, camera: PinholeCamera | None) -> np.ndarray:
    """[256, 3] float32 mean of each segment's surface points, at the prediction's own resolution."""
    if depth is None or camera is None:
        return np.full((256, 3), np.nan, np.float32)
    rays = _rays(camera.resized(*depth.shape))
    known = np.isfinite(depth)
    z = np.where(known, depth, 0)
    sums = [np.bincount(ids.ravel(), weights.ravel(), minlength=256) for weights in (rays[0] * z, rays[1] * z, z)]
    counts = np.bincount(ids.ravel(), known.ravel(), minlength=256)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (np.stack(sums, axis=-1) / counts[:, None]).astype(np.float32)


@lru_cache(maxsize=2)
def _rays(camera: PinholeCamera) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(camera.rays(), -1, 0))  # [2, h, w]
