# SPDX-License-Identifier: Apache-2.0
"""What it costs to score frames of Cityscapes' size, beside the way that the definitions read.

python benchmarks/metrics.py

Both ways must agree on every score, or the benchmark stops.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table

from panoptic_depth_ros.taxonomy import VOID_PANOPTIC_ID
from panoptic_depth_training.datasets.cityscapes import CITYSCAPES
from panoptic_depth_training.metrics import (
    DepthErrors,
    DepthFrame,
    DepthPanopticQuality,
    DepthPanopticSettings,
    MeanIou,
    PanopticQuality,
    category_ids,
)

HEIGHT, WIDTH = 1024, 2048
FRAMES = 6  # a sequence of Cityscapes-DVPS
THRESHOLDS, WINDOWS = (0.5, 0.25, 0.1), (1, 2, 3, 4)
VALIDATION_FRAMES = 500  # images in Cityscapes' validation split
T = TypeVar("T")


def drive() -> list[DepthFrame]:
    """A wavy street with 40 things that move; the prediction has ragged borders, some wrong labels and noisy depth."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    centers, sizes = rng.uniform(0.2, 0.9, (40, 2)), rng.uniform(15, 120, (40, 2))
    categories = rng.choice(CITYSCAPES.thing_ids, 40)
    return [_frame(rng, y, x, centers * (HEIGHT, WIDTH) + (0, 6 * t), sizes, categories) for t in range(FRAMES)]


def _frame(
    rng: np.random.Generator,
    y: np.ndarray,
    x: np.ndarray,
    centers: np.ndarray,
    sizes: np.ndarray,
    categories: np.ndarray,
) -> DepthFrame:
    ragged = y + 2 * rng.standard_normal(y.shape, np.float32)
    labels = []
    for rows in (ragged, y):
        bands = np.clip((rows + 60 * np.sin(x / 150)) / HEIGHT * 11, 0, 10).astype(np.uint16)
        ids = (10 - bands) * np.uint16(1000)
        for i, ((row, column), (height, width)) in enumerate(zip(centers, sizes, strict=True)):
            ids[((rows - row) / height) ** 2 + ((x - column) / width) ** 2 < 1] = categories[i] * 1000 + i + 1
        labels.append(ids)
    prediction, truth = labels
    prediction[:, 1500:1600] = VOID_PANOPTIC_ID
    truth[900:] = VOID_PANOPTIC_ID  # the bonnet
    true_depth = np.clip(2000 / (y + 20), 2, 79).astype(np.float32)
    predicted_depth = true_depth * np.exp(0.12 * rng.standard_normal(y.shape, np.float32))
    true_depth[rng.random(y.shape) < 0.3] = 0
    return DepthFrame(prediction, truth, predicted_depth, true_depth)


def plain_counts(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[K, 4] iou, tp, fp, fn of panoptic quality: sort the pixels, then look at each pair of segments."""
    counts = np.zeros((len(CITYSCAPES), 4))
    true_area, predicted_area = areas(truth), areas(prediction)
    shared = areas(truth.astype(np.uint32) << 16 | prediction)
    matched = set()
    for pair, pixels in shared.items():
        t, p = pair >> 16, pair & 0xFFFF
        if t // 1000 != p // 1000 or t == VOID_PANOPTIC_ID:
            continue
        on_void = shared.get(VOID_PANOPTIC_ID << 16 | p, 0)
        iou = pixels / (true_area[t] + predicted_area[p] - pixels - on_void)
        if iou > 0.5:
            counts[t // 1000] += [iou, 1, 0, 0]
            matched |= {("true", t), ("predicted", p)}
    for t in true_area:
        if t != VOID_PANOPTIC_ID and ("true", t) not in matched:
            counts[t // 1000, 3] += 1
    for p, area in predicted_area.items():
        on_void = shared.get(VOID_PANOPTIC_ID << 16 | p, 0)
        if p != VOID_PANOPTIC_ID and ("predicted", p) not in matched and on_void / area <= 0.5:
            counts[p // 1000, 2] += 1
    return counts


def areas(ids: np.ndarray) -> dict[int, int]:
    values, pixels = np.unique(ids, return_counts=True)
    return dict(zip(values.tolist(), pixels.tolist(), strict=True))


def mean_quality(counts: np.ndarray) -> float:
    iou, tp, fp, fn = counts.T
    segments = tp + fp / 2 + fn / 2
    return float((iou[segments > 0] / segments[segments > 0]).mean())


def plain_panoptic(frames: list[DepthFrame]) -> float:
    return mean_quality(np.sum([plain_counts(frame.prediction_ids, frame.truth_ids) for frame in frames], axis=0))


def plain_depth_panoptic(frames: list[DepthFrame], windows: tuple[int, ...]) -> float:
    """Frames side by side, once per window and threshold."""
    qualities = []
    for window in windows:
        for threshold in THRESHOLDS:
            counts = np.zeros((len(CITYSCAPES), 4))
            for first in range(len(frames) - window + 1):
                chosen = frames[first : first + window]
                truth = np.hstack([frame.truth_ids for frame in chosen])
                prediction = np.hstack([frame.prediction_ids for frame in chosen])
                true_m = np.hstack([frame.truth_depth for frame in chosen]).astype(np.float64)
                predicted_m = np.hstack([frame.prediction_depth for frame in chosen]).astype(np.float64)
                known = true_m > 0
                off = np.abs(predicted_m[known] - true_m[known]) / true_m[known] > threshold
                prediction[known] = np.where(off, VOID_PANOPTIC_ID, prediction[known])
                counts += plain_counts(prediction, truth)
            qualities.append(mean_quality(counts))
    return float(np.mean(qualities))


def plain_depth(frames: list[DepthFrame]) -> float:
    """All eight scores, over everything and in four ranges, one formula each; the mean abs rel comes back."""
    results = []
    for frame in frames:
        scores = []
        for near, far in ((1e-3, 80), (1e-3, 10), (10, 20), (20, 40), (40, 80)):
            valid = (frame.truth_depth >= near) & (frame.truth_depth < far)
            p, g = (depth[valid].astype(np.float64) for depth in (frame.prediction_depth, frame.truth_depth))
            p = np.clip(p, 1e-3, 80)
            log_error, ratio = np.log(p) - np.log(g), np.maximum(p / g, g / p)
            scores.append([np.mean(np.abs(p - g) / g), np.mean((p - g) ** 2 / g), np.sqrt(np.mean((p - g) ** 2))])
            scores[-1] += [np.sqrt(np.mean(log_error**2)), 100 * np.std(log_error)]
            scores[-1] += [np.mean(ratio < 1.25**i) for i in (1, 2, 3)]
        results.append(scores)
    return float(np.mean([scores[0][0] for scores in results]))


def plain_miou(frames: list[DepthFrame]) -> float:
    """Two masks per category and image."""
    shared, union = np.zeros(len(CITYSCAPES)), np.zeros(len(CITYSCAPES))
    for frame in frames:
        predicted, true = frame.prediction_ids // 1000, frame.truth_ids // 1000
        labeled = frame.truth_ids != VOID_PANOPTIC_ID
        for k in range(len(CITYSCAPES)):
            shared[k] += (labeled & (predicted == k) & (true == k)).sum()
            union[k] += (labeled & ((predicted == k) | (true == k))).sum()
    return float((shared[union > 0] / union[union > 0]).mean())


def panoptic(frames: list[DepthFrame]) -> float:
    quality = PanopticQuality(CITYSCAPES)
    for frame in frames:
        quality.add(frame.prediction_ids, frame.truth_ids)
    return quality.result().all.pq


def depth_panoptic(frames: list[DepthFrame], windows: tuple[int, ...]) -> float:
    quality = DepthPanopticQuality(CITYSCAPES, DepthPanopticSettings(THRESHOLDS, windows))
    quality.add_sequence(frames)
    return quality.result().dvpq.all


def depth(frames: list[DepthFrame]) -> float:
    errors = DepthErrors()
    for frame in frames:
        errors.add(frame.prediction_depth, frame.truth_depth)
    return errors.result().overall.abs_rel


def miou(frames: list[DepthFrame]) -> float:
    metric = MeanIou(CITYSCAPES.names)
    for frame in frames:
        metric.add(category_ids(frame.prediction_ids), category_ids(frame.truth_ids))
    return metric.result().miou


def timed(function: Callable[[], T], rounds: int) -> tuple[float, T]:
    """Shortest time of a call in ms per frame, and what it returned."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        result = function()
        times.append((time.perf_counter() - start) / FRAMES * 1e3)
    return min(times), result


def main() -> None:
    console = Console()
    table = Table(
        "metric",
        "score",
        "ms/frame",
        "plain",
        "times",
        f"{VALIDATION_FRAMES} frames",
        title=f"{WIDTH}x{HEIGHT}, a made-up drive of {FRAMES} frames, one process; {os.cpu_count()} cores",
    )
    with console.status("drawing frames") as status:
        frames = drive()
        rows: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
            "PQ": (lambda: panoptic(frames), lambda: plain_panoptic(frames)),
            "mIoU": (lambda: miou(frames), lambda: plain_miou(frames)),
            "depth errors": (lambda: depth(frames), lambda: plain_depth(frames)),
            "DPQ": (lambda: depth_panoptic(frames, (1,)), lambda: plain_depth_panoptic(frames, (1,))),
            "DVPQ, windows 1 to 4": (
                lambda: depth_panoptic(frames, WINDOWS),
                lambda: plain_depth_panoptic(frames, WINDOWS),
            ),
        }
        for name, (fast, plain) in rows.items():
            status.update(f"{name}; the plain way takes up to a minute")
            ms, score = timed(fast, rounds=3)
            plain_ms, plain_score = timed(plain, rounds=1)
            if abs(score - plain_score) > 1e-12:
                raise AssertionError(f"{name}: {score} is not the plain way's {plain_score}")
            seconds = ms * VALIDATION_FRAMES / 1e3
            row = (f"{score:.4f}", f"{ms:.1f}", f"{plain_ms:.0f}", f"{plain_ms / ms:.0f}", f"{seconds:.0f} s")
            table.add_row(name, *row)
    console.print(table)


if __name__ == "__main__":
    main()
