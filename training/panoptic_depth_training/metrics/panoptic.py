# SPDX-License-Identifier: Apache-2.0
"""Panoptic quality (Kirillov et al., CVPR 2019), with the counts of the COCO panoptic API.

Maps hold panoptic ids, ``category * 1000 + instance`` and 65535 for void. An image is read once, into a table of
how many pixels each pair of a true and a predicted segment shares; everything else follows from that table.
H, W: image; P: pairs; K: categories.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from panoptic_depth_ros.taxonomy import LABEL_DIVISOR, VOID_PANOPTIC_ID, Taxonomy

MATCH_IOU = 0.5  # above one half, a segment can match one other at most
IGNORED_SHARE = 0.5  # a prediction with more than this on unlabeled ground is not held against the network
_ID_BITS = 16

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

    def __add__(self, other: SegmentCounts) -> SegmentCounts:
        return SegmentCounts(self.iou + other.iou, self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)


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

    def add(self, prediction_ids: np.ndarray, truth_ids: np.ndarray) -> None:
        """Count an image; panoptic ids [H, W] of any integer type.

        Raises ValueError where the shapes differ or an id's category is not in the taxonomy.
        """
        pairs, starts = pair_runs(prediction_ids, truth_ids)
        pairs, pixels = summed(pairs, np.diff(starts, append=truth_ids.size)[:, None])
        check_categories(pairs, len(self.taxonomy))
        crowds = self.taxonomy.thing_ids if self.instance_zero_is_crowd else ()
        self.counts += count_segments(pairs, pixels[:, 0], len(self.taxonomy), crowds)

    def merge(self, other: PanopticQuality) -> None:
        """Add what another accumulator has counted; raises ValueError where it counts differently."""
        check_same("taxonomy", self.taxonomy, other.taxonomy)
        check_same("instance_zero_is_crowd", self.instance_zero_is_crowd, other.instance_zero_is_crowd)
        self.counts += other.counts

    def result(self) -> PanopticResult:
        return panoptic_result(self.counts, self.taxonomy, "left_out")


def pair_runs(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs of pixels with the same pair of ids, in reading order: the pairs [R] int64 and where they start [R].

    Labels change a few ten thousand times in an image of two million pixels; to look for the changes is ten times
    faster than to sort or to count pixels.
    """
    if prediction.shape != truth.shape or truth.size == 0:
        raise ValueError(
            f"prediction {prediction.shape} and truth {truth.shape}: expected maps of one size; resize the prediction"
        )
    flat_prediction = _as_uint16("prediction", prediction).ravel()
    flat_truth = _as_uint16("truth", truth).ravel()
    changes = flat_prediction[1:] != flat_prediction[:-1]
    changes |= flat_truth[1:] != flat_truth[:-1]
    starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
    pairs = flat_truth[starts].astype(np.int64) << _ID_BITS | flat_prediction[starts]
    return pairs, starts


def _as_uint16(name: str, ids: np.ndarray) -> np.ndarray:
    if ids.dtype in (np.uint8, np.uint16):
        return ids.astype(np.uint16, copy=False)
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{name} has type {ids.dtype}; expected integer ids")
    if ids.min() < 0 or ids.max() > VOID_PANOPTIC_ID:
        raise ValueError(
            f"{name} holds ids {ids.min()} to {ids.max()}; expected category * {LABEL_DIVISOR} + instance "
            f"with {VOID_PANOPTIC_ID} for void"
        )
    return ids.astype(np.uint16)


def summed(pairs: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each pair once, ascending [P], and the sums of its rows in values [R, C]: [P, C] int64."""
    order = np.argsort(pairs, kind="stable")
    pairs = pairs[order]
    starts = np.concatenate([[0], np.flatnonzero(pairs[1:] != pairs[:-1]) + 1])
    return pairs[starts], np.add.reduceat(values[order], starts, axis=0, dtype=np.int64)


def split(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True and predicted ids [P] of pairs."""
    return pairs >> _ID_BITS, pairs & VOID_PANOPTIC_ID


def check_categories(pairs: np.ndarray, num_categories: int) -> None:
    """Raise ValueError unless all ids of the pairs belong to a category or are void."""
    for name, ids in zip(("truth", "prediction"), split(pairs), strict=True):
        strange = ids[(ids >= num_categories * LABEL_DIVISOR) & (ids != VOID_PANOPTIC_ID)]
        if len(strange):
            raise ValueError(
                f"{name} holds id {strange[0]}, category {strange[0] // LABEL_DIVISOR}; expected categories below "
                f"{num_categories} or {VOID_PANOPTIC_ID} for void; map the data set's labels to the taxonomy first"
            )


def count_segments(
    pairs: np.ndarray, pixels: np.ndarray, num_categories: int, crowd_categories: tuple[int, ...] = ()
) -> SegmentCounts:
    """Match the segments of one image (or of a window of frames that share their ids).

    ``pairs`` [P], each once, with their ``pixels`` [P] > 0; in ``crowd_categories`` a true instance 0 is a crowd.
    """
    truth_ids, prediction_ids = split(pairs)
    truth_ids, truth = np.unique(truth_ids, return_inverse=True)  # from here on, truth and prediction are positions
    prediction_ids, prediction = np.unique(prediction_ids, return_inverse=True)
    truth_category = np.minimum(truth_ids // LABEL_DIVISOR, num_categories)  # void's 65 becomes K, 'no label'
    prediction_category = np.minimum(prediction_ids // LABEL_DIVISOR, num_categories)
    is_void = truth_ids == VOID_PANOPTIC_ID
    is_crowd = (truth_ids % LABEL_DIVISOR == 0) & np.isin(truth_category, crowd_categories)
    is_counted = ~is_void & ~is_crowd
    same_category = truth_category[truth] == prediction_category[prediction]

    truth_area = np.bincount(truth, pixels)
    prediction_area = np.bincount(prediction, pixels)
    on_void = np.bincount(prediction, pixels * is_void[truth])
    on_crowd = np.bincount(prediction, pixels * (is_crowd[truth] & same_category))

    candidate = np.flatnonzero(same_category & is_counted[truth])
    truth, prediction, shared = truth[candidate], prediction[candidate], pixels[candidate]
    iou = shared / (truth_area[truth] + prediction_area[prediction] - shared - on_void[prediction])
    matched = iou > MATCH_IOU
    missed, invented = is_counted, (on_void + on_crowd) / prediction_area <= IGNORED_SHARE
    missed[truth[matched]] = False
    invented[prediction[matched]] = False

    def per_category(category: np.ndarray) -> np.ndarray:
        return np.bincount(category, minlength=num_categories + 1)

    match_category = truth_category[truth[matched]]
    return SegmentCounts(
        iou=np.bincount(match_category, iou[matched], minlength=num_categories + 1),
        tp=per_category(match_category),
        fp=per_category(prediction_category[invented]),
        fn=per_category(truth_category[missed]),
    )


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
