# SPDX-License-Identifier: Apache-2.0
"""Scores of panoptic maps and depth: accumulators with ``add``, ``merge`` and ``result``.

>>> quality = PanopticQuality(taxonomy)
>>> quality.add(prediction_ids, truth_ids)  # once per image
>>> quality.result().all.pq

Counts are plain numbers, so an accumulator travels between processes: give each its share of the images and
``merge`` what comes back.
"""

from panoptic_depth_training.metrics.depth import Crop, DepthErrors, DepthSettings
from panoptic_depth_training.metrics.depth_panoptic import (
    DepthFrame,
    DepthPanopticQuality,
    DepthPanopticSettings,
)
from panoptic_depth_training.metrics.panoptic import PanopticQuality
from panoptic_depth_training.metrics.semantic import MeanIou, category_ids

__all__ = [
    "Crop",
    "DepthErrors",
    "DepthFrame",
    "DepthPanopticQuality",
    "DepthPanopticSettings",
    "DepthSettings",
    "MeanIou",
    "PanopticQuality",
    "category_ids",
]
