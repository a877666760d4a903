# SPDX-License-Identifier: Apache-2.0
"""Mean intersection over union of categories. H, W: image; K: predicted categories; G: scored categories."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from panoptic_depth_ros.taxonomy import LABEL_DIVISOR, VOID_CATEGORY, VOID_PANOPTIC_ID
from panoptic_depth_training.metrics.matching import pair_runs, split, summed
from panoptic_depth_training.metrics.panoptic import check_same, known


@dataclass(frozen=True)
class SemanticResult:
    """Intersection over union of the categories' pixels, 0..1; NaN where a category never occurs."""

    names: tuple[str, ...]
    iou: np.ndarray  # [G]
    miou: float  # mean over the categories that occur, in truth or prediction
    pixel_accuracy: float  # share of the labeled pixels whose category is right

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; None for NaN."""
        return {
            "miou": known(self.miou),
            "pixel_accuracy": known(self.pixel_accuracy),
            "iou": {name: known(float(value)) for name, value in zip(self.names, self.iou, strict=True)},
        }


class MeanIou:
    """Counts pixels by true and predicted category."""

    def __init__(self, names: Sequence[str], groups: Sequence[int | None] | None = None) -> None:
        """``names`` are those of the truth's categories.

        ``groups`` says, per category that the network predicts, which of them it is scored as (None: none, so it is
        always wrong), for a truth that is coarser than the prediction: with car, truck and road against vehicle and
        road, ``MeanIou(("vehicle", "road"), groups=(0, 0, 1))``. Without it both have the same categories.
        """
        self.names = tuple(names)
        self.groups = tuple(range(len(self.names))) if groups is None else tuple(groups)
        strange = [group for group in self.groups if group is not None and not 0 <= group < len(self.names)]
        if strange:
            raise ValueError(f"groups hold {strange[0]}; expected None or a position in the {len(self.names)} names")
        self.confusion = np.zeros((len(self.names), len(self.names) + 1), np.int64)  # true, predicted; last is void

    def add(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Count an image; category ids [H, W] of any integer type. True pixels of 255 are left out; a prediction of
        255 is wrong.

        Raises ValueError where the shapes differ or a category is unknown.
        """
        pairs, starts = pair_runs(prediction, truth)
        pairs, pixels = summed(pairs, np.diff(starts, append=truth.size)[:, None])
        true, predicted = split(pairs)
        _check("truth", true, len(self.names))
        _check("prediction", predicted, len(self.groups))
        void = len(self.names)
        scored_as = np.full(VOID_CATEGORY + 1, void)
        scored_as[: len(self.groups)] = [void if group is None else group for group in self.groups]
        labeled = true != VOID_CATEGORY
        np.add.at(self.confusion, (true[labeled], scored_as[predicted[labeled]]), pixels[labeled, 0])

    def merge(self, other: MeanIou) -> None:
        """Add what another accumulator has counted; raises ValueError where it counts differently."""
        check_same("names", self.names, other.names)
        check_same("groups", self.groups, other.groups)
        self.confusion += other.confusion

    def result(self) -> SemanticResult:
        right = np.diag(self.confusion)
        labeled = self.confusion.sum()
        union = self.confusion.sum(axis=1) + self.confusion[:, :-1].sum(axis=0) - right
        with np.errstate(invalid="ignore"):
            iou = right / union
        return SemanticResult(
            names=self.names,
            iou=iou,
            miou=float(np.nanmean(iou)) if union.any() else math.nan,
            pixel_accuracy=float(right.sum() / labeled) if labeled else math.nan,
        )


def category_ids(panoptic_ids: np.ndarray) -> np.ndarray:
    """Category ids [H, W] uint8 of panoptic ids [H, W] uint16; 255 for void."""
    return _CATEGORY_OF_ID[panoptic_ids]


_CATEGORY_OF_ID = (np.arange(VOID_PANOPTIC_ID + 1) // LABEL_DIVISOR).astype(np.uint8)
_CATEGORY_OF_ID[VOID_PANOPTIC_ID] = VOID_CATEGORY


def _check(name: str, category_ids: np.ndarray, count: int) -> None:
    strange = category_ids[(category_ids >= count) & (category_ids != VOID_CATEGORY)]
    if len(strange):
        raise ValueError(
            f"{name} holds category {strange[0]}; expected categories below {count} or {VOID_CATEGORY} for void; "
            "map the data set's labels first"
        )
