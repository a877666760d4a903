# SPDX-License-Identifier: Apache-2.0
"""Panoptic quality (Kirillov et al., CVPR 2019), with the counts of the COCO panoptic API.

H, W: image; K: categories. Segments are matched in ``matching.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from panoptic_depth_ros.taxonomy import Taxonomy
from panoptic_depth_training.metrics.matching import Matching, check_categories, match_segments, pair_runs, summed

SIZE_EDGES = (0.00025, 0.001, 0.004, 0.016)  # of an image's area, from speck to close by

# What a mean does with a category that was never matched: "left_out" takes the mean over the categories that occur
# (truth or prediction), "zero" counts every other one as 0, "nan" lets 0/0 stand, which makes the mean NaN too.
Absent = Literal["left_out", "zero", "nan"]


@dataclass(frozen=True)
class SegmentCounts:
    """What became of the segments, per category; row K is 'no label', which no mean counts."""

    iou: np.ndarray  # [K + 1] float64, sum over the matched pairs
    tp: np.ndarray  # [K + 1] int64, matched pairs
    fp: np.ndarray  # [K + 1] int64, predictions without a match
    fn: np.ndarray  # [K + 1] int64, true segments without a match

    @classmethod
    def zeros(cls, num_categories: int) -> SegmentCounts:
        none = np.zeros(num_categories + 1, np.int64)
        return cls(none.astype(np.float64), none, none, none)

    @classmethod
    def of(cls, matching: Matching, num_categories: int) -> SegmentCounts:
        def per_category(category: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
            return np.bincount(category, weights, minlength=num_categories + 1)

        return cls(
            iou=per_category(matching.matched_category, matching.iou),
            tp=per_category(matching.matched_category),
            fp=per_category(matching.predicted_category[~matching.right]),
            fn=per_category(matching.true_category[~matching.found]),
        )

    def __add__(self, other: SegmentCounts) -> SegmentCounts:
        return SegmentCounts(self.iou + other.iou, self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)


@dataclass(frozen=True)
class ThingSizes:
    """Things by their share of the image: the N = len(SIZE_EDGES) + 1 ranges from small to large."""

    true: np.ndarray  # [N] int64, true things of that size
    found: np.ndarray  # [N] int64, of these
    predicted: np.ndarray  # [N] int64, predicted things of that size
    right: np.ndarray  # [N] int64, of these

    @classmethod
    def zeros(cls) -> ThingSizes:
        none = np.zeros(len(SIZE_EDGES) + 1, np.int64)
        return cls(none, none, none, none)

    @classmethod
    def of(cls, matching: Matching, thing_ids: tuple[int, ...], image_area: int) -> ThingSizes:
        def per_size(category: np.ndarray, area: np.ndarray, chosen: np.ndarray | bool = True) -> np.ndarray:
            area = area[np.isin(category, thing_ids) & chosen]
            return np.bincount(np.searchsorted(SIZE_EDGES, area / image_area, "right"), minlength=len(SIZE_EDGES) + 1)

        true = matching.true_category, matching.true_area
        predicted = matching.predicted_category, matching.predicted_area
        return cls(
            per_size(*true), per_size(*true, matching.found), per_size(*predicted), per_size(*predicted, matching.right)
        )

    def __add__(self, other: ThingSizes) -> ThingSizes:
        return ThingSizes(
            self.true + other.true,
            self.found + other.found,
            self.predicted + other.predicted,
            self.right + other.right,
        )

    def to_dict(self) -> list[dict[str, Any]]:
        """One range after the other."""
        return [
            {"from": near, "to": far, "true": int(t), "found": int(f), "predicted": int(p), "right": int(r)}
            for near, far, t, f, p, r in zip(
                (0, *SIZE_EDGES), (*SIZE_EDGES, 1), self.true, self.found, self.predicted, self.right, strict=True
            )
        ]


@dataclass(frozen=True)
class Quality:
    """Means over categories; NaN where there is none."""

    pq: float
    sq: float
    rq: float
    num_categories: int  # that the means run over

    def to_dict(self) -> dict[str, float | int | None]:
        """Plain values; None for NaN, which JSON does not know."""
        return {
            "pq": known(self.pq),
            "sq": known(self.sq),
            "rq": known(self.rq),
            "num_categories": self.num_categories,
        }


@dataclass(frozen=True)
class PanopticResult:
    """Panoptic quality = segmentation quality x recognition quality, all 0..1; per category in arrays [K]."""

    names: tuple[str, ...]
    pq: np.ndarray
    sq: np.ndarray
    rq: np.ndarray
    iou: np.ndarray  # sum over the matched pairs
    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    all: Quality
    things: Quality
    stuff: Quality

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; None for NaN."""
        counts = {"tp": self.tp, "fp": self.fp, "fn": self.fn}
        ratios = {"pq": self.pq, "sq": self.sq, "rq": self.rq, "iou": self.iou}
        categories = {
            name: {key: known(float(values[k])) for key, values in ratios.items()}
            | {key: int(values[k]) for key, values in counts.items()}
            for k, name in enumerate(self.names)
        }
        groups = {"all": self.all, "things": self.things, "stuff": self.stuff}
        return {name: quality.to_dict() for name, quality in groups.items()} | {"categories": categories}


class PanopticQuality:
    """Counts matched, missed and invented segments over images.

    A prediction and a true segment of one category match where they share more than half of their union, void pixels
    of the truth not counted. An unmatched prediction with more than half of its area on void, or on a crowd of its
    category, is no error. Means run over the categories that occur.
    """

    def __init__(self, taxonomy: Taxonomy, instance_zero_is_crowd: bool = False) -> None:
        """``instance_zero_is_crowd``: true things with instance 0 are uncounted groups, neither hit nor miss.

        Cityscapes-DVPS has real things with instance 0; COCO and the Cityscapes panoptic images have groups.
        """
        self.taxonomy = taxonomy
        self.instance_zero_is_crowd = instance_zero_is_crowd
        self.counts = SegmentCounts.zeros(len(taxonomy))
        self.thing_sizes = ThingSizes.zeros()

    def add(self, prediction_ids: np.ndarray, truth_ids: np.ndarray) -> None:
        """Count an image; panoptic ids [H, W] of any integer type.

        Raises ValueError where the shapes differ or an id's category is not in the taxonomy.
        """
        pairs, starts = pair_runs(prediction_ids, truth_ids)
        pairs, pixels = summed(pairs, np.diff(starts, append=truth_ids.size)[:, None])
        check_categories(pairs, len(self.taxonomy))
        crowds = self.taxonomy.thing_ids if self.instance_zero_is_crowd else ()
        matching = match_segments(pairs, pixels[:, 0], len(self.taxonomy), crowds)
        self.counts += SegmentCounts.of(matching, len(self.taxonomy))
        self.thing_sizes += ThingSizes.of(matching, self.taxonomy.thing_ids, truth_ids.size)

    def merge(self, other: PanopticQuality) -> None:
        """Add what another accumulator has counted; raises ValueError where it counts differently."""
        check_same("taxonomy", self.taxonomy, other.taxonomy)
        check_same("instance_zero_is_crowd", self.instance_zero_is_crowd, other.instance_zero_is_crowd)
        self.counts += other.counts
        self.thing_sizes += other.thing_sizes

    def result(self) -> PanopticResult:
        return panoptic_result(self.counts, self.taxonomy, "left_out")


def panoptic_result(
    counts: SegmentCounts, taxonomy: Taxonomy, absent: Absent, epsilon: float = 0.0
) -> PanopticResult:
    """SQ = iou / tp, RQ = tp / (tp + fp/2 + fn/2), PQ = SQ RQ; epsilon is added to both denominators."""
    k = len(taxonomy)
    iou, tp, fp, fn = counts.iou[:k], counts.tp[:k], counts.fp[:k], counts.fn[:k]
    segments = tp + 0.5 * fp + 0.5 * fn
    with np.errstate(invalid="ignore"):
        sq, rq = iou / (tp + epsilon), tp / (segments + epsilon)
    if absent == "zero":
        sq, rq = np.where(tp > 0, sq, 0), np.where(tp > 0, rq, 0)
    elif absent == "left_out":
        sq = np.where(tp > 0, sq, np.where(segments > 0, 0, np.nan))
        rq = np.where(segments > 0, rq, np.nan)
    pq = sq * rq

    def mean(category_ids: tuple[int, ...]) -> Quality:
        chosen = np.array([i for i in category_ids if absent != "left_out" or segments[i] > 0], np.int64)
        if not len(chosen):
            return Quality(math.nan, math.nan, math.nan, 0)
        mean_pq, mean_sq, mean_rq = (float(values[chosen].mean()) for values in (pq, sq, rq))
        return Quality(mean_pq, mean_sq, mean_rq, len(chosen))

    whole = tuple(range(k))
    groups = mean(whole), mean(taxonomy.thing_ids), mean(taxonomy.stuff_ids)
    return PanopticResult(taxonomy.names, pq, sq, rq, iou, tp, fp, fn, *groups)


def check_same(what: str, mine: object, others: object) -> None:
    """Raise ValueError where two accumulators that are to be merged differ in a setting."""
    if mine != others:
        raise ValueError(f"cannot merge scores that differ in {what}: {mine} and {others}; use the same for all parts")


def known(value: float) -> float | None:
    """None for NaN, which JSON does not know."""
    return None if math.isnan(value) else value
