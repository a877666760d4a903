# SPDX-License-Identifier: Apache-2.0
"""Score trained weights on labeled images.

python -m panoptic_depth_training.evaluate WEIGHTS.pt --data synthetic:HELDOUT
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from panoptic_depth_model.deployable import Deployable
from panoptic_depth_model.panoptic_depth import PanopticDepth
from panoptic_depth_model.weights import load_weights, save_weights
from panoptic_depth_ros.taxonomy import LABEL_DIVISOR, VOID_PANOPTIC_ID
from panoptic_depth_training.augment import depth_at_focal_length, fitted
from panoptic_depth_training.data import open_dataset
from panoptic_depth_training.facts import ModelFacts

MATCH_IOU = 0.5  # segments of one category that overlap more are the same; above one half that is one pair


@dataclass
class Tally:
    """Counts over images, per category, and sums of depth errors."""

    num_categories: int
    max_depth_m: float
    confusion: np.ndarray = field(init=False)  # [K, K + 1] true by predicted category; last column void
    matched: np.ndarray = field(init=False)  # [K] segments
    matched_iou: np.ndarray = field(init=False)
    missed: np.ndarray = field(init=False)
    invented: np.ndarray = field(init=False)
    abs_rel: list[float] = field(default_factory=list)  # of each image
    delta_1: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        k = self.num_categories
        self.confusion = np.zeros((k, k + 1), np.int64)
        self.matched, self.missed, self.invented = (np.zeros(k, np.int64) for _ in range(3))
        self.matched_iou = np.zeros(k)

    def add_labels(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Panoptic ids [H, W] of an image."""
        known = truth != VOID_PANOPTIC_ID
        predicted, true = prediction[known].astype(np.int64), truth[known].astype(np.int64)
        k = self.num_categories
        category = np.minimum(predicted // LABEL_DIVISOR, k)
        cell = true // LABEL_DIVISOR * (k + 1) + category
        self.confusion += np.bincount(cell, minlength=k * (k + 1)).reshape(k, k + 1)

        predicted_area, true_area = areas(predicted), areas(true)
        unmatched_predictions, unmatched_truths = set(predicted_area) - {VOID_PANOPTIC_ID}, set(true_area)
        pairs, overlaps = np.unique(np.stack([predicted, true]), axis=1, return_counts=True)
        for (p, t), overlap in zip(pairs.T.tolist(), overlaps.tolist(), strict=True):
            iou = overlap / (predicted_area[p] + true_area[t] - overlap)
            if p // LABEL_DIVISOR == t // LABEL_DIVISOR and iou > MATCH_IOU:
                self.matched[t // LABEL_DIVISOR] += 1
                self.matched_iou[t // LABEL_DIVISOR] += iou
                unmatched_predictions.remove(p)
                unmatched_truths.remove(t)
        for t in unmatched_truths:
            self.missed[t // LABEL_DIVISOR] += 1
        for p in unmatched_predictions:
            self.invented[p // LABEL_DIVISOR] += 1

    def add_depth(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Depth [H, W] in meters of an image; only true depth up to the network's limit counts."""
        known = (truth > 0) & (truth <= self.max_depth_m)
        if not known.any():
            return
        prediction, truth = prediction[known], truth[known]
        self.abs_rel.append(float(np.mean(np.abs(prediction - truth) / truth)))
        self.delta_1.append(float(np.mean(np.maximum(prediction / truth, truth / prediction) < 1.25)))

    def iou(self) -> np.ndarray:
        """Intersection over union [K] of the categories' pixels; NaN where a category never occurs."""
        right = np.diag(self.confusion)
        union = self.confusion.sum(axis=1) + self.confusion[:, :-1].sum(axis=0) - right
        return np.where(union > 0, right / np.maximum(union, 1), np.nan)

    def pq(self) -> np.ndarray:
        """Panoptic quality [K]; NaN where a category never occurs."""
        count = self.matched + (self.missed + self.invented) / 2
        return np.where(count > 0, self.matched_iou / np.maximum(count, 0.5), np.nan)


def areas(ids: np.ndarray) -> dict[int, int]:
    values, counts = np.unique(ids, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def evaluate(network: PanopticDepth, facts: ModelFacts, data: str, count: int) -> dict[str, float | str]:
    """Scores of a network at its training size on the first `count` images."""
    images, taxonomy = open_dataset(data)
    tally = Tally(len(taxonomy), network.config.depth.max_m)
    deployable = Deployable(network).eval()
    for index in range(min(count, len(images))):
        image = fitted(images[index], facts.height, facts.width)
        with torch.inference_mode():
            outputs = deployable(torch.from_numpy(image.rgb)[None])
        segment_ids, depth, category = (output[0].numpy() for output in outputs[:3])
        tally.add_labels(panoptic_ids(segment_ids, category, taxonomy.thing_ids), image.panoptic_ids)
        tally.add_depth(depth, depth_at_focal_length(image, facts.focal_length_px))
    iou, pq = tally.iou(), tally.pq()
    things, stuff = list(taxonomy.thing_ids), list(taxonomy.stuff_ids)
    scores: dict[str, float | str] = {
        "images": float(min(count, len(images))),
        "miou": mean(iou),
        "pq": mean(pq),
        "pq_things": mean(pq[things]),
        "pq_stuff": mean(pq[stuff]),
        "abs_rel": mean(np.array(tally.abs_rel)),
        "delta_1": mean(np.array(tally.delta_1)),
    }
    categories = zip(taxonomy.names, iou.tolist(), strict=True)
    return scores | {
        f"iou_{name.replace(' ', '_')}": round(value, 4) for name, value in categories if value >= 0
    }


def panoptic_ids(segment_ids: np.ndarray, category: np.ndarray, thing_ids: tuple[int, ...]) -> np.ndarray:
    """Panoptic ids [H, W] uint16 of segment ids [H, W] and their categories [N]; things count by row."""
    instance = np.where(np.isin(category, thing_ids), np.arange(1, len(category) + 1), 0)
    ids = np.concatenate([[VOID_PANOPTIC_ID], category * LABEL_DIVISOR + instance])
    return ids.astype(np.uint16)[segment_ids]


def mean(values: np.ndarray) -> float:
    """The mean of what is known, rounded as it is written into manifests."""
    known = values[~np.isnan(values)]
    return round(float(known.mean()), 4) if len(known) else float("nan")


def table(scores: Mapping[str, float | str]) -> str:
    """The scores for a terminal."""
    lines = (
        f"{name:<18} {value:8.3f}" if isinstance(value, float) else f"{name:<18} {value}"
        for name, value in scores.items()
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path, help="weights written by panoptic_depth_training.train")
    parser.add_argument("--data", required=True, help="synthetic:FOLDER")
    parser.add_argument("--count", type=int, default=50, help="how many images (default %(default)s)")
    parser.add_argument("--record", action="store_true", help="write the scores into the weights file")
    options = parser.parse_args()
    try:
        network, stored = load_weights(options.weights)
        facts = ModelFacts.from_dict(stored)
        scores = evaluate(network, facts, options.data, options.count)
        print(table(scores))
        if options.record:
            save_weights(options.weights, network, replace(facts, scores=facts.scores | scores).to_dict())
    except (ValueError, OSError) as error:
        sys.exit(f"evaluate: {error}")


if __name__ == "__main__":
    main()
