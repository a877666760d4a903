# SPDX-License-Identifier: Apache-2.0
"""What the network says about one image: a segment id and a depth per pixel, and a table of the segments.

Shapes: h, w the image's part of the network's output; N rows of the segment table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.manifest import Manifest
from panoptic_depth_ros.preprocess import Placement
from panoptic_depth_ros.taxonomy import LABEL_DIVISOR, VOID_CATEGORY, VOID_PANOPTIC_ID, Taxonomy

VOID = 0  # the segment id of pixels that belong to no segment


@dataclass(frozen=True)
class SegmentTable:
    """The segments of one image in the order of their ids; row k-1 belongs to segment id k."""

    category_id: np.ndarray  # [N] int32; VOID_CATEGORY in rows that no segment uses
    instance: np.ndarray  # [N] int32, 1, 2, ... within a thing category by falling score, 0 for stuff
    score: np.ndarray  # [N] float32 in 0..1; 0 marks an unused row
    area: np.ndarray  # [N] int32 network pixels
    mean_depth: np.ndarray  # [N] float32 meters, NaN where unknown


@dataclass(frozen=True)
class Prediction:
    """Panoptic segmentation and depth of one image, at the resolution the network worked in."""

    taxonomy: Taxonomy
    placement: Placement
    segment_ids: np.ndarray  # [h, w] uint8; VOID or k for row k-1 of the table
    depth: np.ndarray | None  # [h, w] float32 meters along the optical axis, NaN where unknown; None: no camera known
    segments: SegmentTable

    @cached_property
    def category_of_segment(self) -> np.ndarray:
        """Lookup table [256] uint8: segment id -> category id, VOID_CATEGORY for void."""
        table = np.full(256, VOID_CATEGORY, np.uint8)
        table[1 : 1 + len(self.segments.category_id)] = self.segments.category_id
        return table

    @cached_property
    def panoptic_id_of_segment(self) -> np.ndarray:
        """Lookup table [256] uint16: segment id -> category * LABEL_DIVISOR + instance, VOID_PANOPTIC_ID for void."""
        table = np.full(256, VOID_PANOPTIC_ID, np.uint16)
        used = self.segments.category_id != VOID_CATEGORY
        ids = self.segments.category_id * LABEL_DIVISOR + self.segments.instance
        table[1 : 1 + len(ids)] = np.where(used, ids, VOID_PANOPTIC_ID)
        return table

    @cached_property
    def instance_of_segment(self) -> np.ndarray:
        """Lookup table [256] uint8: segment id -> instance number, 0 for stuff and void."""
        table = np.zeros(256, np.uint8)
        table[1 : 1 + len(self.segments.instance)] = self.segments.instance
        return table


def predict(
    outputs: dict[str, np.ndarray], manifest: Manifest, placement: Placement, camera: PinholeCamera | None
) -> Prediction:
    """The prediction in an engine's outputs for one image (no batch axis; names of the manifest's contract).

    The network learned depth for the manifest's focal length. For a camera that is ``f`` times as long at network
    size everything looks ``f`` times as near as it is, so depth is multiplied by f.
    """
    taxonomy = manifest.taxonomy
    category_id = np.where(outputs["segment_score"] > 0, outputs["segment_category"], VOID_CATEGORY).astype(np.int32)
    segment_ids = placement.crop(outputs["segment_ids"])
    depth, mean_depth = None, np.full(len(category_id), np.nan, np.float32)
    if camera is not None:
        focal_ratio = camera.fx * placement.scale / manifest.focal_length_px
        has_depth = _has_depth(category_id, taxonomy)
        depth = np.multiply(placement.crop(outputs["depth"]), focal_ratio, dtype=np.float32)
        _blank_endless(depth, segment_ids, has_depth)
        known = has_depth & (category_id != VOID_CATEGORY)
        mean_depth[known] = outputs["segment_depth"][known] * focal_ratio
    table = SegmentTable(
        category_id=category_id,
        instance=number_instances(category_id, outputs["segment_score"], taxonomy),
        score=outputs["segment_score"],
        area=outputs["segment_area"],
        mean_depth=mean_depth,
    )
    return Prediction(taxonomy, placement, segment_ids, depth, table)


def number_instances(category_id: np.ndarray, score: np.ndarray, taxonomy: Taxonomy) -> np.ndarray:
    """Instance numbers [N] int32: 1, 2, ... by falling score within each thing category, 0 for stuff and void."""
    instance = np.zeros(len(category_id), np.int32)
    for thing in taxonomy.thing_ids:
        rows = np.flatnonzero(category_id == thing)
        instance[rows[np.argsort(-score[rows], kind="stable")]] = np.arange(1, len(rows) + 1)
    return instance


def _has_depth(category_id: np.ndarray, taxonomy: Taxonomy) -> np.ndarray:
    endless = [i for i, category in enumerate(taxonomy) if not category.has_depth]
    return ~np.isin(category_id, endless)


def _blank_endless(depth: np.ndarray, segment_ids: np.ndarray, has_depth: np.ndarray) -> None:
    """Sky is at no distance: NaN, which viewers skip, not a wall at the end of the range."""
    for row in np.flatnonzero(~has_depth):
        depth[segment_ids == row + 1] = np.nan
