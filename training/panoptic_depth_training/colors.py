# SPDX-License-Identifier: Apache-2.0
"""Labels in colors, and sparse depth made wide enough to be seen. H, W: image."""

from __future__ import annotations

import cv2
import numpy as np

from panoptic_depth_ros.taxonomy import LABEL_DIVISOR, VOID_PANOPTIC_ID, Taxonomy
from panoptic_depth_training.datasets.labeled import is_sparse


def label_colors(panoptic_ids: np.ndarray, taxonomy: Taxonomy) -> np.ndarray:
    """RGB [H, W, 3] of panoptic ids: the category's color, another shade for each instance, white between segments."""
    ids = np.arange(VOID_PANOPTIC_ID + 1)
    category, instance = ids // LABEL_DIVISOR, ids % LABEL_DIVISOR
    palette = np.array([entry.color for entry in taxonomy] + [(0, 0, 0)])
    base = palette[np.minimum(category, len(taxonomy))]
    has_shade = (instance > 0) & (category < len(taxonomy))  # void's id looks like an instance
    shade = np.where(has_shade, (instance * 0.618) % 1 * 120 - 30, 0)[:, None]
    colors = np.clip(base + shade, 0, 255).astype(np.uint8)[panoptic_ids]
    across = np.pad(panoptic_ids[:, 1:] != panoptic_ids[:, :-1], ((0, 0), (0, 1)))
    down = np.pad(panoptic_ids[1:] != panoptic_ids[:-1], ((0, 1), (0, 0)))
    colors[across | down] = 255
    return colors


def widened(depth: np.ndarray) -> np.ndarray:
    """Sparse depth with every point three pixels wide, since single ones are too small to be seen; dense as it is."""
    if not is_sparse(depth):
        return depth
    beyond = np.finfo(np.float32).max  # what OpenCV takes the surroundings of the image for
    nearest = cv2.erode(np.where(depth > 0, depth, beyond).astype(np.float32), np.ones((3, 3), np.uint8))
    return np.where(nearest < beyond, nearest, 0)
