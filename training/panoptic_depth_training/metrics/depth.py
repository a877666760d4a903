# SPDX-License-Identifier: Apache-2.0
"""Errors of metric depth, as the literature reports them since Eigen et al. (NeurIPS 2014).

With p the predicted and g the true depth of a pixel in meters and d = ln p - ln g:
abs rel = mean |p - g| / g, sq rel = mean (p - g)^2 / g [m], rmse = sqrt(mean (p - g)^2) [m], rmse log = sqrt(mean d^2),
silog = 100 sqrt(mean d^2 - (mean d)^2), delta_i = share of pixels with max(p / g, g / p) < 1.25^i.
H, W: image; N: pixels with known truth; R: ranges of true depth.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from panoptic_depth_training.metrics.panoptic import check_same, known

DELTA = 1.25


@dataclass(frozen=True)
class Crop:
    """The scored part of an image, as shares of its height and width from the top left corner."""

    top: float
    bottom: float
    left: float
    right: float

    def __post_init__(self) -> None:
        if not (0 <= self.top < self.bottom <= 1 and 0 <= self.left < self.right <= 1):
            raise ValueError(f"{self}: expected 0 <= top < bottom <= 1 and 0 <= left < right <= 1")

    def slices(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns, rounded down as evaluation scripts do."""
        rows = slice(int(self.top * height), int(self.bottom * height))
        return rows, slice(int(self.left * width), int(self.right * width))


GARG_CROP = Crop(0.40810811, 0.99189189, 0.03594771, 0.96405229)  # KITTI, Garg et al. (ECCV 2016)
EIGEN_CROP = Crop(0.3324324, 0.91351351, 0.0359477, 0.96405229)  # KITTI, Eigen et al. (NeurIPS 2014)


@dataclass(frozen=True)
class DepthSettings:
    """Which pixels count and how they are averaged: without it, no two depth scores can be compared."""

    # True depth counts strictly between these two (m): truth that was clipped to the cap is no measurement.
    # Predictions are clipped to them.
    min_depth_m: float = 1e-3
    max_depth_m: float = 80.0
    crop: Crop | None = None
    averaging: Literal["image", "pixel"] = "image"  # scores per image, then their mean; or over all pixels at once
    median_scaling: bool = False  # multiply each prediction by median(true) / median(predicted), before clipping
    range_edges_m: tuple[float, ...] = (0.0, 10.0, 20.0, 40.0, 80.0)  # scores also per [edge, next edge) of true depth

    def __post_init__(self) -> None:
        if not 0 < self.min_depth_m < self.max_depth_m < math.inf:
            raise ValueError(
                f"min_depth_m {self.min_depth_m}, max_depth_m {self.max_depth_m}: expected 0 < minimum < maximum"
            )
        if len(self.range_edges_m) == 1 or any(near >= far for near, far in pairwise(self.range_edges_m)):
            raise ValueError(f"range_edges_m {self.range_edges_m}: expected none, or two or more rising depths")
        if self.averaging not in ("image", "pixel"):
            raise ValueError(f"averaging {self.averaging!r}: expected 'image' or 'pixel'")


@dataclass(frozen=True)
class DepthScores:
    """Errors over the pixels of some range; NaN where there are none."""

    images: int  # that have such pixels
    pixels: int
    abs_rel: float
    sq_rel: float  # [m]
    rmse: float  # [m]
    rmse_log: float
    silog: float  # x 100
    delta_1: float
    delta_2: float
    delta_3: float

    def to_dict(self) -> dict[str, float | int | None]:
        return {name: known(value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class DepthResult:
    """Scores over everything and per range of true depth, with the settings that they hold for."""

    settings: DepthSettings
    overall: DepthScores
    ranges: tuple[tuple[float, float, DepthScores], ...]  # from, to (m), scores
    coverage: float  # share of the pixels with true depth for which a depth was predicted; the others do not count

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; None for NaN."""
        return {
            "settings": asdict(self.settings) | {"range_edges_m": list(self.settings.range_edges_m)},
            "overall": self.overall.to_dict(),
            "ranges": {f"{near:g}-{far:g} m": scores.to_dict() for near, far, scores in self.ranges},
            "coverage": known(self.coverage),
        }


class DepthErrors:
    """Sums errors of depth over images."""

    def __init__(self, settings: DepthSettings | None = None) -> None:
        self.settings = settings or DepthSettings()
        rows = max(1, len(self.settings.range_edges_m))  # all pixels, then the ranges
        self._moments = np.zeros((rows, _MOMENTS))  # over all pixels
        self._score_sums = np.zeros((rows, _SCORES))  # over the images' scores
        self._images = np.zeros(rows, np.int64)  # that have pixels
        self._truth_pixels = 0

    def add(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Count an image; depth [H, W] in meters. Not finite in the prediction and 0 or not finite in the truth mean
        unknown.

        Raises ValueError where the shapes differ.
        """
        predicted, true, truth_pixels = _scored_pixels(prediction, truth, self.settings)
        self._truth_pixels += truth_pixels
        if not len(true):
            return
        moments = _moments(predicted, true, self.settings.range_edges_m)
        self._moments += moments
        has_pixels = moments[:, 0] > 0
        self._score_sums[has_pixels] += _scores(moments[has_pixels])
        self._images += has_pixels

    def merge(self, other: DepthErrors) -> None:
        """Add what another accumulator has counted; raises ValueError where it counts differently."""
        check_same("settings", self.settings, other.settings)
        self._moments += other._moments
        self._score_sums += other._score_sums
        self._images += other._images
        self._truth_pixels += other._truth_pixels

    def result(self) -> DepthResult:
        with np.errstate(invalid="ignore"):
            if self.settings.averaging == "image":
                scores = self._score_sums / self._images[:, None]
            else:
                scores = _scores(self._moments)
        pixels = self._moments[:, 0]
        rows = [
            DepthScores(int(row_images), int(row_pixels), *row)
            for row, row_images, row_pixels in zip(scores.tolist(), self._images, pixels, strict=True)
        ]
        edges = pairwise(self.settings.range_edges_m)
        return DepthResult(
            settings=self.settings,
            overall=rows[0],
            ranges=tuple((near, far, row) for (near, far), row in zip(edges, rows[1:], strict=True)),
            coverage=rows[0].pixels / self._truth_pixels if self._truth_pixels else math.nan,
        )


def _scored_pixels(
    prediction: np.ndarray, truth: np.ndarray, settings: DepthSettings
) -> tuple[np.ndarray, np.ndarray, int]:
    """Predicted and true depth [N] float64 where both are known, and at how many pixels the truth is."""
    if prediction.shape != truth.shape or truth.ndim != 2:
        raise ValueError(
            f"prediction {prediction.shape} and truth {truth.shape}: expected two [H, W] maps of one size; "
            "resize the prediction"
        )
    if settings.crop is not None:
        window = settings.crop.slices(*truth.shape)
        prediction, truth = prediction[window], truth[window]
    in_truth = (truth > settings.min_depth_m) & (truth < settings.max_depth_m)
    both = in_truth & np.isfinite(prediction)
    predicted, true = prediction[both].astype(np.float64), truth[both].astype(np.float64)
    if settings.median_scaling and len(true):
        predicted *= np.median(true) / max(np.median(predicted), settings.min_depth_m)
    return predicted.clip(settings.min_depth_m, settings.max_depth_m), true, int(in_truth.sum())


_MOMENTS = 9  # count, then sums: |e|/g, e^2/g, e^2, d^2, d, three times "within 1.25^i"
_SCORES = 8  # the ratios, in the order of DepthScores


def _moments(predicted: np.ndarray, true: np.ndarray, range_edges_m: tuple[float, ...]) -> np.ndarray:
    """[1 + R, 9]: the first row of all pixels, then one of each range."""
    pieces = []  # the ranges, and what lies before and behind them
    for near, far in pairwise((-math.inf, *range_edges_m, math.inf)):
        inside = (true >= near) & (true < far)
        pieces.append(_sums(predicted[inside], true[inside]))
    return np.stack([np.sum(pieces, axis=0), *pieces[1:-1]])


def _sums(predicted: np.ndarray, true: np.ndarray) -> list[float]:
    """Count and sums, in the order of _MOMENTS, over pixels [N]."""
    error = predicted - true
    squared, log_error = error * error, np.log(predicted / true)
    ratio = np.maximum(predicted / true, true / predicted)
    terms = (np.abs(error) / true, squared / true, squared, log_error * log_error, log_error)
    within = (int(np.count_nonzero(ratio < DELTA**i)) for i in (1, 2, 3))
    return [len(true), *(float(term.sum()) for term in terms), *within]


def _scores(moments: np.ndarray) -> np.ndarray:
    """[..., 8] scores, in the order of DepthScores, of moments [..., 9]; NaN where there are no pixels."""
    means = moments[..., 1:] / moments[..., :1]
    abs_rel, sq_rel, square, square_log, log = (means[..., i] for i in range(5))
    variance_log = np.maximum(square_log - log * log, 0)  # rounding can take it below zero
    roots = [np.sqrt(square), np.sqrt(square_log), 100 * np.sqrt(variance_log)]
    return np.stack([abs_rel, sq_rel, *roots, *(means[..., i] for i in (5, 6, 7))], axis=-1)
