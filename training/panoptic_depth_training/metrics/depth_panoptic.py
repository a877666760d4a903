# SPDX-License-Identifier: Apache-2.0
"""Depth-aware panoptic quality of images (DPQ) and of videos (DVPQ), after ViP-DeepLab (Qiao et al., CVPR 2021).

A predicted pixel whose depth is off by more than a share of the true depth loses its label; the panoptic quality of
what is left is averaged over several such shares. For videos, k consecutive frames count as one wide image in which
an object must keep its id.

A frame is read once: into a table of the pixels that each pair of a true and a predicted segment shares, and how many
of them each threshold takes away. Windows and thresholds are then sums over small tables.
H, W: image; P: pairs; T: thresholds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from panoptic_depth_ros.taxonomy import LABEL_DIVISOR, VOID_PANOPTIC_ID, Taxonomy
from panoptic_depth_training.metrics.matching import check_categories, match_segments, pair_runs, summed
from panoptic_depth_training.metrics.panoptic import (
    Absent,
    PanopticResult,
    SegmentCounts,
    check_same,
    known,
    panoptic_result,
)

DEPTH_IGNORED = 0.0  # the "threshold" at which no pixel is taken away: plain (video) panoptic quality


@dataclass(frozen=True)
class DepthPanopticSettings:
    """What is averaged over what. The protocols of published numbers stand below the class."""

    thresholds: tuple[float, ...] = (0.5, 0.25, 0.1)  # largest |predicted - true| / true of a pixel that counts
    windows: tuple[int, ...] = (1,)  # frames that count as one image
    absent: Absent = "left_out"
    epsilon: float = 0.0  # added to the denominators of SQ and RQ
    instance_zero: Literal["segment", "void"] = "segment"  # what true things with instance 0 are
    name: str = ""  # of the protocol, if it is one

    def __post_init__(self) -> None:
        if not self.thresholds or not all(0 < threshold < 1 for threshold in self.thresholds):
            raise ValueError(f"thresholds {self.thresholds}: expected shares of the true depth between 0 and 1")
        if 1 not in self.windows or min(self.windows) < 1:
            raise ValueError(f"windows {self.windows}: expected numbers of frames, one of them 1 (single images)")
        if len({*self.thresholds}) < len(self.thresholds) or len({*self.windows}) < len(self.windows):
            raise ValueError(f"thresholds {self.thresholds}, windows {self.windows}: expected each value once")


# Not a published one: a category that occurs nowhere says nothing about a model, nor do things that are not told apart.
# For data sets of videos the windows are to be set.
OCCURRING = DepthPanopticSettings(absent="left_out", instance_zero="void", name="occurring")

# ViP-DeepLab's script for Cityscapes-DVPS, made for sequences of 6 frames. It divides 0 by 0 for a category without
# a match, and its means are NaN then.
VIP_DEEPLAB_CITYSCAPES = DepthPanopticSettings(
    windows=(1, 2, 3, 4), absent="nan", name="vip_deeplab_cityscapes"
)

# PanopticDepth's and DeepDPS's copies of it hold the denominators at 1 or more: such a category counts 0.
PANOPTIC_DEPTH_CITYSCAPES = DepthPanopticSettings(
    windows=(1, 2, 3, 4), absent="zero", name="panoptic_depth_cityscapes"
)

# ViP-DeepLab's script for SemKITTI-DVPS: longer windows over the frames of the one validation sequence, and 1e-10 in
# the denominators, so that such a category counts 0. Things with instance 0 are a segment. Instances may exceed 999 in
# its files; number them anew per sequence, as only their being equal matters. Unlabeled (255) is void in the truth and
# 'no label' in the prediction.
VIP_DEEPLAB_SEMKITTI = DepthPanopticSettings(
    windows=(1, 5, 10, 20), absent="nan", epsilon=1e-10, name="vip_deeplab_semkitti"
)

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (OCCURRING, VIP_DEEPLAB_CITYSCAPES, PANOPTIC_DEPTH_CITYSCAPES, VIP_DEEPLAB_SEMKITTI)
}


@dataclass(frozen=True)
class DepthFrame:
    """A frame's prediction and truth. Depth in meters, or any other unit that both share."""

    prediction_ids: np.ndarray  # [H, W] panoptic ids; 65535 where there is no label
    truth_ids: np.ndarray  # [H, W] panoptic ids; 65535 where unlabeled
    prediction_depth: np.ndarray  # [H, W]; what is not finite counts as 0, as unknown depth does in a depth PNG
    truth_depth: np.ndarray  # [H, W]; 0 or NaN = unknown: the pixel keeps its label whatever is predicted


@dataclass(frozen=True)
class MeanQuality:
    """A panoptic quality averaged over thresholds or windows; 0..1."""

    all: float
    things: float
    stuff: float

    def to_dict(self) -> dict[str, float | None]:
        return {"all": known(self.all), "things": known(self.things), "stuff": known(self.stuff)}


@dataclass(frozen=True)
class DepthPanopticResult:
    """The qualities at each threshold and window, and the means that papers report."""

    settings: DepthPanopticSettings
    at: dict[tuple[float, int], PanopticResult]  # by threshold (0.0: depth ignored) and window
    sequences: int
    abs_rel: float  # |predicted - true| / true: mean over each sequence's pixels, then over sequences

    @property
    def dpq(self) -> MeanQuality:
        """Of single images: mean over the thresholds."""
        return self._mean(self.settings.thresholds, (1,))

    @property
    def dvpq(self) -> MeanQuality:
        """Of videos: mean over thresholds and windows."""
        return self._mean(self.settings.thresholds, self.settings.windows)

    @property
    def vpq(self) -> MeanQuality:
        """Of videos without regard to depth: mean over the windows."""
        return self._mean((DEPTH_IGNORED,), self.settings.windows)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; None for NaN."""
        settings = self.settings
        return {
            "protocol": settings.name,
            "thresholds": list(settings.thresholds),
            "windows": list(settings.windows),
            "absent_categories": settings.absent,
            "epsilon": settings.epsilon,
            "things_with_instance_0": settings.instance_zero,
            "sequences": self.sequences,
            "dpq": self.dpq.to_dict(),
            "dvpq": self.dvpq.to_dict(),
            "vpq": self.vpq.to_dict(),
            "abs_rel": known(self.abs_rel),
            "at": [
                {"threshold": threshold, "window": window, **result.to_dict()}
                for (threshold, window), result in self.at.items()
            ],
        }

    def _mean(self, thresholds: tuple[float, ...], windows: tuple[int, ...]) -> MeanQuality:
        chosen = [self.at[threshold, window] for threshold in thresholds for window in windows]
        return MeanQuality(
            all=sum(result.all.pq for result in chosen) / len(chosen),
            things=sum(result.things.pq for result in chosen) / len(chosen),
            stuff=sum(result.stuff.pq for result in chosen) / len(chosen),
        )


@dataclass(frozen=True)
class _Table:
    """The segments of one or several frames."""

    pairs: np.ndarray  # [P] each once
    pixels: np.ndarray  # [P, 1 + T] shared pixels; then how many of them each threshold takes the label from

    def at(self, column: int) -> tuple[np.ndarray, np.ndarray]:
        """Pairs and pixels when the threshold of a column has done its work; column 0: depth ignored."""
        if column == 0:
            return self.pairs, self.pixels[:, 0]
        taken = self.pixels[:, column : column + 1]
        unlabeled = self.pairs | VOID_PANOPTIC_ID  # the same true segment, no predicted label
        pairs = np.concatenate([self.pairs, unlabeled])
        pairs, pixels = summed(pairs, np.concatenate([self.pixels[:, :1] - taken, taken]))
        left = pixels[:, 0] > 0
        return pairs[left], pixels[left, 0]

    @classmethod
    def joined(cls, tables: list[_Table]) -> _Table:
        pairs = np.concatenate([table.pairs for table in tables])
        return cls(*summed(pairs, np.concatenate([table.pixels for table in tables])))


class DepthPanopticQuality:
    """Counts segments over images (``add``) or videos (``add_sequence``) at all thresholds and windows."""

    def __init__(self, taxonomy: Taxonomy, settings: DepthPanopticSettings | None = None) -> None:
        self.taxonomy = taxonomy
        self.settings = settings or DepthPanopticSettings()
        self.counts = self._zeros()
        self.sequences = 0
        self._abs_rel_sum = 0.0
        self._with_depth = 0  # sequences that have any true depth

    def add(
        self,
        prediction_ids: np.ndarray,
        truth_ids: np.ndarray,
        prediction_depth: np.ndarray,
        truth_depth: np.ndarray,
    ) -> None:
        """Count a single image, a sequence of one; maps as in `DepthFrame`.

        Raises ValueError where the shapes differ, an id's category is unknown, or the settings ask for longer windows.
        """
        self.add_sequence([DepthFrame(prediction_ids, truth_ids, prediction_depth, truth_depth)])

    def add_sequence(self, frames: Iterable[DepthFrame]) -> None:
        """Count a video, whose ids mean the same objects in all of its frames. One frame is held at a time.

        Raises ValueError as `add`, and where the video has fewer frames than the longest window; nothing of the
        video is counted then.
        """
        counts = self._zeros()
        recent: deque[_Table] = deque(maxlen=max(self.settings.windows))
        error_sum, error_pixels, length = 0.0, 0, 0
        for frame in frames:
            errors, is_known = relative_errors(frame)
            recent.append(self._table(frame, errors))
            length += 1
            self._count_windows(recent, counts)
            error_sum += float(errors.sum())
            error_pixels += int(is_known.sum())
        if length < max(self.settings.windows):
            raise ValueError(
                f"the sequence has {length} frames and a window {max(self.settings.windows)}; "
                "set windows no longer than the shortest sequence"
            )
        self.counts = {key: self.counts[key] + counts[key] for key in counts}
        self.sequences += 1
        if error_pixels:
            self._abs_rel_sum += error_sum / error_pixels
            self._with_depth += 1

    def merge(self, other: DepthPanopticQuality) -> None:
        """Add what another accumulator has counted; raises ValueError where it counts differently."""
        check_same("taxonomy", self.taxonomy, other.taxonomy)
        check_same("settings", self.settings, other.settings)
        self.counts = {key: self.counts[key] + other.counts[key] for key in self.counts}
        self.sequences += other.sequences
        self._abs_rel_sum += other._abs_rel_sum
        self._with_depth += other._with_depth

    def result(self) -> DepthPanopticResult:
        settings = self.settings
        return DepthPanopticResult(
            settings=settings,
            at={
                key: panoptic_result(counts, self.taxonomy, settings.absent, settings.epsilon)
                for key, counts in self.counts.items()
            },
            sequences=self.sequences,
            abs_rel=self._abs_rel_sum / self._with_depth if self._with_depth else math.nan,
        )

    def _zeros(self) -> dict[tuple[float, int], SegmentCounts]:
        thresholds = (DEPTH_IGNORED, *self.settings.thresholds)
        zeros = SegmentCounts.zeros(len(self.taxonomy))
        return {(threshold, window): zeros for threshold in thresholds for window in self.settings.windows}

    def _table(self, frame: DepthFrame, errors: np.ndarray) -> _Table:
        truth_ids = frame.truth_ids
        if self.settings.instance_zero == "void":
            truth_ids = without_groups(truth_ids, self.taxonomy)
        pairs, starts = pair_runs(frame.prediction_ids, truth_ids)
        columns = [np.diff(starts, append=errors.size)]
        for threshold in self.settings.thresholds:
            columns.append(np.add.reduceat((errors > threshold).ravel(), starts, dtype=np.int64))
        table = _Table(*summed(pairs, np.stack(columns, axis=1)))
        check_categories(table.pairs, len(self.taxonomy))
        return table

    def _count_windows(self, recent: deque[_Table], counts: dict[tuple[float, int], SegmentCounts]) -> None:
        """Count the windows that end with the newest frame."""
        thresholds = (DEPTH_IGNORED, *self.settings.thresholds)
        for window in self.settings.windows:
            if window > len(recent):
                continue
            table = _Table.joined(list(recent)[-window:])
            for column, threshold in enumerate(thresholds):
                matching = match_segments(*table.at(column), len(self.taxonomy))
                counts[threshold, window] += SegmentCounts.of(matching, len(self.taxonomy))


def without_groups(panoptic_ids: np.ndarray, taxonomy: Taxonomy) -> np.ndarray:
    """Panoptic ids [H, W] uint16 with void for things of instance 0, those that are not told apart."""
    table = np.arange(VOID_PANOPTIC_ID + 1, dtype=np.uint16)
    table[np.array(taxonomy.thing_ids, np.int64) * LABEL_DIVISOR] = VOID_PANOPTIC_ID
    return table[panoptic_ids]


def relative_errors(frame: DepthFrame) -> tuple[np.ndarray, np.ndarray]:
    """|predicted - true| / true [H, W] float64, 0 where the truth is unknown, and where it is known [H, W] bool.

    Raises ValueError where depth and labels differ in shape.
    """
    for name in ("prediction_depth", "truth_depth"):
        if getattr(frame, name).shape != frame.truth_ids.shape:
            raise ValueError(
                f"{name} {getattr(frame, name).shape} and truth_ids {frame.truth_ids.shape}: "
                "expected maps of one size; resize the prediction"
            )
    # In float64 no unsigned type wraps around, and a ratio of depth PNGs is the same as of their integers.
    truth, prediction = frame.truth_depth.astype(np.float64), frame.prediction_depth.astype(np.float64)
    is_known = (truth > 0) & (truth < np.inf)
    prediction[~np.isfinite(prediction)] = 0
    errors = np.zeros(truth.shape)
    np.divide(np.abs(prediction - truth, out=prediction), truth, out=errors, where=is_known)
    return errors, is_known
