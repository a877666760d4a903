# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a model says, beside the truth. H, W: image; h, w: a tile."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from panoptic_depth_ros.taxonomy import VOID_CATEGORY, VOID_PANOPTIC_ID
from panoptic_depth_ros.visualize import depth_color
from panoptic_depth_training.colors import label_colors, widened
from panoptic_depth_training.datasets.labeled import LabeledImage, is_sparse
from panoptic_depth_training.evaluate.scoring import Answer, Rules
from panoptic_depth_training.metrics import category_ids

TILE_WIDTH_PX = 480
WORST_SHOWN = 0.5  # relative error of depth where the colors end
_TITLE_PX = 20
_WRONG, _RIGHT = (220, 40, 40), (60, 60, 60)  # RGB


def compared(image: LabeledImage, given: Answer, rules: Rules) -> np.ndarray:
    """An answer beside the truth, with titles: segments in one row, depth in another, as far as there is truth."""
    rows = []
    if rules.has_categories:
        wrong = _wrong_pixels(image, given, rules)
        rows.append([
            ("image", image.rgb),
            ("prediction", _tinted(image.rgb, given.panoptic_ids, rules)),
            ("truth", _tinted(image.rgb, image.panoptic_ids, rules)),
            ("wrong category (red)", wrong),
        ])
    if given.depth is not None and rules.blank_depth_m is not None and image.depth.any():
        farthest_m = rules.settings.depth.max_depth_m
        rows.append([
            ("image", image.rgb),
            (f"depth, 2 to {farthest_m:g} m", depth_color(given.depth, farthest_m)),
            ("true depth", depth_color(_known(widened(image.depth)), farthest_m)),
            (f"depth error, 0 to {100 * WORST_SHOWN:g} %", _error_color(given.depth, image.depth, rules.blank_depth_m)),
        ])
    return np.vstack([np.hstack([_tile(*panel) for panel in row]) for row in rows or [[("image", image.rgb)]]])


def _tinted(rgb: np.ndarray, panoptic_ids: np.ndarray, rules: Rules) -> np.ndarray:
    """The image in the colors of its segments; as it is where void."""
    tinted = cv2.addWeighted(rgb, 0.4, label_colors(panoptic_ids, rules.taxonomy), 0.6, 0)
    return np.where((panoptic_ids == VOID_PANOPTIC_ID)[..., None], rgb, tinted)


def _wrong_pixels(image: LabeledImage, given: Answer, rules: Rules) -> np.ndarray:
    """RGB [H, W, 3]: red where the label denies the predicted category, black where there is no label."""
    true, predicted = category_ids(image.panoptic_ids), category_ids(given.panoptic_ids)
    right = true == predicted
    for label, possible in enumerate(rules.supervision.confusable):
        right |= (true == label) & np.isin(predicted, possible)
    color = np.where(right[..., None], _RIGHT, _WRONG)
    return np.where((true == VOID_CATEGORY)[..., None], 0, color).astype(np.uint8)


def _error_color(depth: np.ndarray, truth: np.ndarray, blank_depth_m: float) -> np.ndarray:
    """|predicted - true| / true as RGB [H, W, 3]: blue is right, red is off by half or more, black unknown."""
    depth = np.where(np.isnan(depth), np.float32(blank_depth_m), depth)
    has_truth = truth > 0
    error = np.zeros_like(depth)
    np.divide(np.abs(depth - truth), truth, out=error, where=has_truth)
    # One step up keeps an error of 0 apart from the unknown while points are widened.
    level = np.where(has_truth, 1 + np.minimum(error / WORST_SHOWN, 1) * 254, 0).astype(np.uint8)
    if is_sparse(truth):  # single points are too small to be seen
        level = np.asarray(cv2.dilate(level, np.ones((3, 3), np.uint8)), np.uint8)
    color = cv2.cvtColor(cv2.applyColorMap(level, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    return np.where((level > 0)[..., None], color, 0).astype(np.uint8)


def _known(depth: np.ndarray) -> np.ndarray:
    return np.where(depth > 0, depth, np.nan)


def _tile(title: str, picture: np.ndarray) -> np.ndarray:
    height = round(picture.shape[0] * TILE_WIDTH_PX / picture.shape[1])
    tile = cv2.resize(picture, (TILE_WIDTH_PX, height), interpolation=cv2.INTER_AREA)
    bar = np.full((_TITLE_PX, TILE_WIDTH_PX, 3), 24, np.uint8)
    cv2.putText(bar, title, (6, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (235, 235, 235), 1, cv2.LINE_AA)
    return np.vstack([bar, tile])


def write_jpeg(path: Path, rgb: np.ndarray) -> None:
    """Write a picture [h, w, 3] uint8. Raises OSError where that fails."""
    if not cv2.imwrite(str(path), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88]):
        raise OSError(f"{path}: cannot be written; is the folder writable, the disk full?")
