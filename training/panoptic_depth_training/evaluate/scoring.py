# SPDX-License-Identifier: Apache-2.0
"""What a model answers, compared with the truth of a data set: every score that the truth can carry, and no other.

Answers are made as on the vehicle and enlarged to the image's own size; the truth is never resampled.
H, W: image; K: categories.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np

from panoptic_depth_ros.manifest import Manifest
from panoptic_depth_ros.maps import OutputMaps
from panoptic_depth_ros.pipeline import Pipeline
from panoptic_depth_ros.taxonomy import VOID_CATEGORY, Taxonomy
from panoptic_depth_ros.timing import Stopwatch
from panoptic_depth_training.datasets.labeled import DataError, LabeledImage, LabeledImages, Supervision
from panoptic_depth_training.metrics import (
    DepthErrors,
    DepthFrame,
    DepthPanopticQuality,
    DepthPanopticSettings,
    DepthSettings,
    MeanIou,
    PanopticQuality,
    category_ids,
)
from panoptic_depth_training.metrics.depth import DepthResult
from panoptic_depth_training.metrics.depth_panoptic import OCCURRING, DepthPanopticResult
from panoptic_depth_training.metrics.panoptic import PanopticResult, ThingSizes, known
from panoptic_depth_training.metrics.semantic import SemanticResult


@dataclass(frozen=True)
class ScoringSettings:
    """What somebody who compares two scores has to know."""

    depth: DepthSettings = field(default_factory=DepthSettings)
    protocol: DepthPanopticSettings = OCCURRING  # of DPQ and DVPQ, but for the windows
    windows: tuple[int, ...] = ()  # of DVPQ [frames], where truth and model allow it; empty: images are no videos


@dataclass(frozen=True)
class Rules:
    """Which scores a model gets on a data set, and how."""

    taxonomy: Taxonomy
    supervision: Supervision
    # What a pixel counts as where the model says that there is no depth (sky) and the truth has one: the model's
    # farthest. Left out, as unknown, a model could earn by calling sky what it finds hard. None: it has no depth.
    blank_depth_m: float | None
    settings: ScoringSettings

    @property
    def has_categories(self) -> bool:
        return self.supervision.has_segments

    @property
    def has_segments(self) -> bool:
        """Labels that leave open which of several categories it is cannot say whether a segment is right."""
        return self.supervision.has_segments and not any(self.supervision.confusable)

    @property
    def windows(self) -> tuple[int, ...]:
        """Of DVPQ, which needs segments and depth; empty: the images are not scored as videos."""
        return self.settings.windows if self.has_segments and self.blank_depth_m is not None else ()


def rules_for(manifest: Manifest, images: LabeledImages, settings: ScoringSettings) -> Rules:
    """Raises ValueError where model and data set speak of different categories."""
    ours = [(category.name, category.is_thing) for category in manifest.taxonomy]
    theirs = [(category.name, category.is_thing) for category in images.taxonomy]
    if ours != theirs:
        raise ValueError(
            f"the model knows the categories {', '.join(manifest.taxonomy.names)}; the data set has "
            f"{', '.join(images.taxonomy.names)}: score it on data with its own categories"
        )
    has_depth = any(category.has_depth for category in manifest.taxonomy)
    return Rules(images.taxonomy, images.supervision, manifest.max_depth_m if has_depth else None, settings)


@dataclass(frozen=True)
class Answer:
    """What a model says about an image, at the image's size."""

    panoptic_ids: np.ndarray  # [H, W] uint16, VOID_PANOPTIC_ID where void
    depth: np.ndarray | None  # [H, W] float32 m, NaN where it says that there is none; None without a camera


def answer(pipeline: Pipeline, image: LabeledImage) -> Answer:
    """A model's answer, made as on the vehicle."""
    height, width = image.rgb.shape[:2]
    maps = OutputMaps(pipeline(image.rgb, image.camera, Stopwatch()), image.rgb, height, width)
    return Answer(maps.panoptic_ids(np.empty((height, width), np.uint16)), maps.depth)


@dataclass(frozen=True)
class FrameScore:
    """An image by itself; None where its truth does not tell."""

    index: int  # in the data set
    name: str
    pq: float | None
    miou: float | None
    abs_rel: float | None

    @property
    def rank(self) -> float:
        """More is better: by segments, else by categories, else by depth."""
        if self.pq is not None:
            return self.pq
        if self.miou is not None:
            return self.miou
        return -math.inf if self.abs_rel is None else -self.abs_rel


@dataclass(frozen=True)
class ScoringResult:
    """All scores; None where the truth does not carry them."""

    frames: tuple[FrameScore, ...]  # in the data set's order
    panoptic: PanopticResult | None
    thing_sizes: ThingSizes | None
    semantic: SemanticResult | None
    depth: DepthResult | None
    blank_share: float  # of the pixels with true depth: where the model said that there is none
    depth_panoptic: DepthPanopticResult | None
    video: DepthPanopticResult | None
    faults: tuple[str, ...]  # images that could not be scored, a sentence each
    left_out_sequences: tuple[str, ...]  # of DVPQ, a sentence each

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; None for NaN and for what was not scored."""
        parts = {
            "panoptic": self.panoptic,
            "semantic": self.semantic,
            "depth": self.depth,
            "depth_panoptic": self.depth_panoptic,
            "video": self.video,
        }
        return {
            "images": len(self.frames),
            **{name: part and part.to_dict() for name, part in parts.items()},
            "thing_sizes": self.thing_sizes and self.thing_sizes.to_dict(),
            "share_of_true_depth_predicted_as_none": known(self.blank_share),
            "images_not_scored": list(self.faults),
            "sequences_left_out_of_video": list(self.left_out_sequences),
            "frames": [asdict(frame) for frame in self.frames],
        }


def readable(result: ScoringResult, data: str) -> ScoringResult:
    """The result; raises ValueError where it is of no image."""
    if not result.frames:
        raise ValueError(
            f"data {data}: no image could be scored; python -m panoptic_depth_training.check_data {data} says why\n"
            + "\n".join(result.faults)
        )
    return result


class Scores:
    """Sums scores over images."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        # A thing of instance 0 is things that are not told apart: a crowd, in which nothing can be matched.
        self.panoptic = PanopticQuality(rules.taxonomy, instance_zero_is_crowd=True)
        self.semantic = MeanIou(rules.taxonomy.names)
        self.depth = DepthErrors(rules.settings.depth)
        protocol = rules.settings.protocol
        self.depth_panoptic = DepthPanopticQuality(rules.taxonomy, replace(protocol, windows=(1,)))
        self.video = DepthPanopticQuality(rules.taxonomy, replace(protocol, windows=rules.windows or (1,)))
        self.frames: list[FrameScore] = []
        self.faults: list[str] = []
        self.left_out_sequences: list[str] = []
        self._depth_pixels = 0  # whose truth counts
        self._blank_pixels = 0  # of these

    def add(self, index: int, image: LabeledImage, given: Answer) -> DepthFrame | None:
        """Count an image, or nothing of it where it raises ValueError; return the maps that DPQ compares, if any.

        Raises ValueError where the truth contradicts itself (sizes, unknown categories).
        """
        alone = Scores(self.rules)
        frame = alone._compare(image, given)
        result = alone.result()
        alone.frames.append(
            FrameScore(
                index,
                name=image.name or str(index),
                pq=known(result.panoptic.all.pq) if result.panoptic else None,
                miou=known(result.semantic.miou) if result.semantic else None,
                abs_rel=known(result.depth.overall.abs_rel) if result.depth else None,
            )
        )
        self.merge(alone)
        return frame

    def _compare(self, image: LabeledImage, given: Answer) -> DepthFrame | None:
        rules = self.rules
        if rules.has_categories:
            true, predicted = category_ids(image.panoptic_ids), category_ids(given.panoptic_ids)
            if any(rules.supervision.confusable):
                predicted = scored_as(rules.supervision, len(rules.taxonomy))[true, predicted]
            self.semantic.add(predicted, true)
        if rules.has_segments:
            self.panoptic.add(given.panoptic_ids, image.panoptic_ids)
        if given.depth is None or rules.blank_depth_m is None or not image.depth.any():
            return None
        is_blank = np.isnan(given.depth)
        depth = np.where(is_blank, np.float32(rules.blank_depth_m), given.depth)
        self.depth.add(depth, image.depth)
        self._count_blanks(is_blank, image.depth)
        if not rules.has_segments:
            return None
        frame = DepthFrame(given.panoptic_ids, image.panoptic_ids, depth, image.depth)
        self.depth_panoptic.add_sequence([frame])
        return frame

    def _count_blanks(self, is_blank: np.ndarray, truth: np.ndarray) -> None:
        settings = self.rules.settings.depth
        if settings.crop:
            window = settings.crop.slices(*truth.shape)
            is_blank, truth = is_blank[window], truth[window]
        counts = (truth > settings.min_depth_m) & (truth < settings.max_depth_m)
        self._depth_pixels += int(np.count_nonzero(counts))
        self._blank_pixels += int(np.count_nonzero(counts & is_blank))

    def merge(self, other: Scores) -> None:
        """Add what another one has counted under the same rules."""
        self.panoptic.merge(other.panoptic)
        self.semantic.merge(other.semantic)
        self.depth.merge(other.depth)
        self.depth_panoptic.merge(other.depth_panoptic)
        self.video.merge(other.video)
        self.frames += other.frames
        self.faults += other.faults
        self.left_out_sequences += other.left_out_sequences
        self._depth_pixels += other._depth_pixels
        self._blank_pixels += other._blank_pixels

    def result(self) -> ScoringResult:
        depth = self.depth.result()
        return ScoringResult(
            frames=tuple(sorted(self.frames, key=lambda frame: frame.index)),
            panoptic=self.panoptic.result() if self.rules.has_segments else None,
            thing_sizes=self.panoptic.thing_sizes if self.rules.has_segments else None,
            semantic=self._semantic_result() if self.rules.has_categories else None,
            depth=depth if depth.overall.pixels else None,
            blank_share=self._blank_pixels / self._depth_pixels if self._depth_pixels else math.nan,
            depth_panoptic=self.depth_panoptic.result() if self.depth_panoptic.sequences else None,
            video=self.video.result() if self.video.sequences else None,
            faults=tuple(self.faults),
            left_out_sequences=tuple(self.left_out_sequences),
        )

    def _semantic_result(self) -> SemanticResult:
        """For merged categories the mean runs over those that the truth holds: only they are labels of the data set."""
        result, confusable = self.semantic.result(), self.rules.supervision.confusable
        if not any(confusable):
            return result
        iou = np.where(self.semantic.confusion.any(axis=1), result.iou, np.nan)
        miou = float(np.nanmean(iou)) if not np.isnan(iou).all() else math.nan
        names = tuple(
            "/".join([name, *(result.names[other] for other in confusable[k] if other != k)])
            for k, name in enumerate(result.names)
        )
        return replace(result, names=names, iou=iou, miou=miou)


def scored_as(supervision: Supervision, num_categories: int) -> np.ndarray:
    """For data with merged categories: what a prediction counts as [256, 256] uint8, by true label and prediction.

    The label, where the pixel may in truth be what was predicted. Elsewhere a category that is no label of its own
    counts as the first label that may be it, and the others as themselves.
    """
    possible = supervision.confusable
    counted = np.arange(VOID_CATEGORY + 1, dtype=np.uint8)
    for category in range(num_categories):
        labels = [label for label in range(num_categories) if category in possible[label] and label != category]
        if labels and not possible[category]:
            counted[category] = labels[0]
    table = np.tile(counted, (VOID_CATEGORY + 1, 1))
    for label in range(num_categories):
        table[label, [label, *possible[label]]] = label
    return table


def sequences(images: LabeledImages, count: int) -> list[range]:
    """The first `count` images, those of one sequence together."""
    groups = groupby(range(count), key=images.sequence_of)
    members = [list(indices) for _, indices in groups]
    return [range(indices[0], indices[-1] + 1) for indices in members]


def score(
    pipeline: Pipeline, images: LabeledImages, part: Sequence[int], scores: Scores, done: Callable[[], None]
) -> None:
    """Add images, as one video where videos are scored. One that cannot be used is noted in `scores` and skipped.

    `done` is called after each.
    """
    windows = scores.rules.windows
    if not windows:
        for index in part:
            score_image(pipeline, images, index, scores)
            done()
        return

    def frames() -> Iterator[DepthFrame]:
        lost = 0
        for index in part:
            frame = score_image(pipeline, images, index, scores)
            done()
            if frame is None:
                lost += 1
            else:
                yield frame
        if lost or len(part) < max(windows):
            raise _NoVideo(f"{len(part)} images, of which {lost} cannot be used; a window has {max(windows)}")

    try:
        scores.video.add_sequence(frames())
    except _NoVideo as reason:  # nothing of it is counted then
        scores.left_out_sequences.append(f"{images.sequence_of(part[0])}: {reason}")


def score_image(pipeline: Pipeline, images: LabeledImages, index: int, scores: Scores) -> DepthFrame | None:
    """Add one image, or note why it cannot be used."""
    try:
        image = images[index]
    except DataError as error:
        scores.faults.append(f"{images.name_of(index)}: {error}")
        return None
    given = answer(pipeline, image)  # where this fails the model is at fault, and no image after it would fare better
    try:
        return scores.add(index, image, given)
    except ValueError as error:
        scores.faults.append(f"{images.name_of(index)}: {error}")
        return None


class _NoVideo(Exception):
    """A sequence cannot be scored as a video."""
