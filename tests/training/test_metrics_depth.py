# SPDX-License-Identifier: Apache-2.0
"""Depth errors worked out by hand, and by one formula per line on random maps."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest

from panoptic_depth_training.metrics import Crop, DepthErrors, DepthSettings
from panoptic_depth_training.metrics.depth import GARG_CROP, DepthScores


def scores_of(prediction: list[float], truth: list[float], settings: DepthSettings | None = None) -> DepthScores:
    errors = DepthErrors(settings)
    errors.add(np.array([prediction], np.float32), np.array([truth], np.float32))
    return errors.result().overall


def slow_scores(p: np.ndarray, g: np.ndarray) -> dict[str, float]:
    """Scores of predicted and true depths [N] as their definitions read."""
    return {
        "abs_rel": np.mean(np.abs(p - g) / g),
        "sq_rel": np.mean((p - g) ** 2 / g),
        "rmse": np.sqrt(np.mean((p - g) ** 2)),
        "rmse_log": np.sqrt(np.mean((np.log(p) - np.log(g)) ** 2)),
        "silog": 100 * np.std(np.log(p) - np.log(g)),
        "delta_1": np.mean(np.maximum(p / g, g / p) < 1.25),
        "delta_2": np.mean(np.maximum(p / g, g / p) < 1.25**2),
        "delta_3": np.mean(np.maximum(p / g, g / p) < 1.25**3),
    }


def random_depths(seed: int, count: int = 4) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Predictions and truths 20x30 float32 of 0 to 100 m with unknown truth, some unknown predictions and zeros."""
    rng = np.random.default_rng(seed)
    predictions, truths = [], []
    for _ in range(count):
        truth = rng.uniform(0.5, 100, (20, 30)).astype(np.float32)
        prediction = truth * np.exp(rng.normal(0.1, 0.3, truth.shape)).astype(np.float32)
        truth[rng.random(truth.shape) < rng.uniform(0.1, 0.6)] = rng.choice([0, np.nan, np.inf])
        prediction[rng.random(truth.shape) < 0.05] = np.nan
        prediction[rng.random(truth.shape) < 0.05] = 0
        predictions.append(prediction)
        truths.append(truth)
    return predictions, truths


@pytest.mark.parametrize("averaging", ["image", "pixel"])
@pytest.mark.parametrize("median_scaling", [False, True])
def test_random_maps_give_what_the_definitions_say(averaging: str, median_scaling: bool):
    predictions, truths = random_depths(seed=3)
    settings = DepthSettings(
        min_depth_m=1.0,
        max_depth_m=60.0,
        crop=Crop(0.25, 1.0, 0.1, 0.9),
        averaging=averaging,
        median_scaling=median_scaling,
        range_edges_m=(5.0, 20.0, 60.0),
    )
    errors = DepthErrors(settings)
    pixels = []
    for prediction, truth in zip(predictions, truths, strict=True):
        errors.add(prediction, truth)
        p, g = prediction[5:, 3:27].astype(np.float64), truth[5:, 3:27].astype(np.float64)
        valid = (g > 1) & (g < 60) & np.isfinite(p)
        p, g = p[valid], g[valid]
        scale = np.median(g) / np.median(p) if median_scaling else 1
        pixels.append((np.clip(p * scale, 1, 60), g))
    result = errors.result()
    for near, far, scores in ((1, 60, result.overall), *result.ranges):
        inside = [(p[(g >= near) & (g < far)], g[(g >= near) & (g < far)]) for p, g in pixels]
        if averaging == "pixel":
            inside = [(np.concatenate([p for p, _ in inside]), np.concatenate([g for _, g in inside]))]
        slow = [slow_scores(p, g) for p, g in inside]
        for name in slow[0]:
            expected = np.mean([values[name] for values in slow])
            assert getattr(scores, name) == pytest.approx(expected, rel=1e-10), name
        assert scores.pixels == sum(len(g) for _, g in inside)
        assert scores.images == 4


def test_scores_worked_out_by_hand():
    scores = scores_of([11, 30, 40], [10, 20, 40])
    assert scores.abs_rel == pytest.approx((0.1 + 0.5) / 3)
    assert scores.sq_rel == pytest.approx((1 / 10 + 100 / 20) / 3)
    assert scores.rmse == pytest.approx(math.sqrt(101 / 3))
    assert scores.rmse_log == pytest.approx(math.sqrt((math.log(1.1) ** 2 + math.log(1.5) ** 2) / 3))
    assert (scores.delta_1, scores.delta_2) == (pytest.approx(2 / 3), 1)


def test_a_ratio_of_exactly_1_25_is_outside_delta_1_from_both_sides():
    assert scores_of([12.5, 8.0, 10.0], [10.0, 10.0, 10.0]).delta_1 == pytest.approx(1 / 3)
    assert scores_of([12.5, 8.0, 10.0], [10.0, 10.0, 10.0]).delta_2 == 1


def test_silog_forgives_a_common_scale():
    assert scores_of([20, 40, 60], [10, 20, 30]).silog == pytest.approx(0, abs=1e-5)
    assert scores_of([20, 40, 60], [10, 20, 30]).abs_rel == pytest.approx(1)


def test_median_scaling_takes_a_common_scale_out():
    scores = scores_of([20, 40, 60], [10, 20, 30], DepthSettings(median_scaling=True))
    assert scores.abs_rel == pytest.approx(0)
    assert scores.rmse == pytest.approx(0, abs=1e-6)


def test_truth_at_the_cap_is_no_measurement():
    scores = scores_of([50, 10, 10, 10], [80, 10, 0, 81])
    assert (scores.pixels, scores.abs_rel) == (1, 0)


def test_predictions_are_clipped_to_the_cap():
    assert scores_of([500, 0], [79, 10]).rmse == pytest.approx(math.sqrt((1 + (10 - 1e-3) ** 2) / 2), rel=1e-6)


def test_unknown_predictions_are_left_out_and_told():
    errors = DepthErrors()
    errors.add(np.array([[np.nan, 11.0, np.nan, np.nan]]), np.array([[10.0, 10.0, 10.0, 0.0]]))
    result = errors.result()
    assert result.overall.abs_rel == pytest.approx(0.1)
    assert result.coverage == pytest.approx(1 / 3)


def test_averaging_by_image_weighs_images_alike_and_by_pixel_pixels():
    images = [([20.0] * 9, [10.0] * 9), ([10.0] + [9.0] * 8, [10.0] + [0.0] * 8)]
    for averaging, expected in (("image", 1 / 2), ("pixel", 9 / 10)):
        errors = DepthErrors(DepthSettings(averaging=averaging))
        for prediction, truth in images:
            errors.add(np.array([prediction]), np.array([truth]))
        assert errors.result().overall.abs_rel == pytest.approx(expected)


def test_an_image_without_truth_weighs_nothing():
    errors = DepthErrors()
    errors.add(np.array([[11.0]]), np.array([[10.0]]))
    errors.add(np.array([[11.0]]), np.array([[0.0]]))
    assert errors.result().overall.images == 1
    assert errors.result().overall.abs_rel == pytest.approx(0.1)


def test_each_range_has_its_own_scores_and_its_start_belongs_to_it():
    errors = DepthErrors()
    errors.add(np.array([[5.5, 11.0, 45.0]]), np.array([[5.0, 10.0, 50.0]]))
    ranges = {near: scores for near, _, scores in errors.result().ranges}
    assert ranges[0].rmse == pytest.approx(0.5)
    assert ranges[10].rmse == pytest.approx(1)
    assert ranges[20].pixels == ranges[20].images == 0
    assert math.isnan(ranges[20].abs_rel)
    assert ranges[40].abs_rel == pytest.approx(0.1)


def test_the_garg_crop_of_a_kitti_image_is_the_known_one():
    assert GARG_CROP.slices(375, 1242) == (slice(153, 371), slice(44, 1197))


def test_parts_merge_into_the_whole_across_processes():
    predictions, truths = random_depths(seed=8)
    whole, first, second = DepthErrors(), DepthErrors(), DepthErrors()
    for i, (prediction, truth) in enumerate(zip(predictions, truths, strict=True)):
        whole.add(prediction, truth)
        (first if i < 1 else second).add(prediction, truth)
    merged = pickle.loads(pickle.dumps(first))
    merged.merge(second)
    assert merged.result().overall.pixels == whole.result().overall.pixels
    assert merged.result().overall.silog == pytest.approx(whole.result().overall.silog, rel=1e-12)
    assert merged.result().coverage == whole.result().coverage
    with pytest.raises(ValueError, match="differ in settings"):
        first.merge(DepthErrors(DepthSettings(max_depth_m=50)))


def test_a_result_states_its_settings_and_is_plain_json():
    settings = DepthSettings(crop=GARG_CROP, range_edges_m=(0.0, 10.0, 80.0))
    values = json.loads(json.dumps(DepthErrors(settings).result().to_dict(), allow_nan=False))
    assert values["settings"]["max_depth_m"] == 80
    assert values["settings"]["averaging"] == "image"
    assert values["settings"]["crop"]["top"] == 0.40810811
    assert list(values["ranges"]) == ["0-10 m", "10-80 m"]
    assert values["overall"]["abs_rel"] is None
    assert values["coverage"] is None


def test_ranges_can_be_left_out():
    errors = DepthErrors(DepthSettings(range_edges_m=()))
    errors.add(np.array([[11.0]]), np.array([[10.0]]))
    assert errors.result().ranges == ()
    assert errors.result().overall.abs_rel == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_depth_m": 0.0}, "0 < minimum < maximum"),
        ({"min_depth_m": 90.0}, "0 < minimum < maximum"),
        ({"range_edges_m": (10.0,)}, "two or more rising"),
        ({"range_edges_m": (10.0, 5.0)}, "two or more rising"),
        ({"averaging": "frame"}, "'image' or 'pixel'"),
    ],
)
def test_settings_without_meaning_are_refused(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        DepthSettings(**settings)


def test_a_crop_outside_the_image_is_refused():
    with pytest.raises(ValueError, match="0 <= top < bottom <= 1"):
        Crop(0.5, 1.5, 0, 1)


def test_maps_of_different_size_are_refused():
    with pytest.raises(ValueError, match=r"prediction \(1, 2\) and truth \(2, 2\)"):
        DepthErrors().add(np.ones((1, 2)), np.ones((2, 2)))
