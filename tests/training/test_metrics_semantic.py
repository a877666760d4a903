# SPDX-License-Identifier: Apache-2.0
"""Mean IoU worked out by hand, and by one mask per category on random maps."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest

from panoptic_depth_training.metrics import MeanIou, category_ids

VOID = 255
NAMES = ("road", "car", "person")


def iou_of(prediction: list[int], truth: list[int]) -> np.ndarray:
    metric = MeanIou(NAMES)
    metric.add(np.array([prediction], np.uint8), np.array([truth], np.uint8))
    return metric.result().iou


def test_iou_is_of_pixels():
    np.testing.assert_allclose(iou_of([1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]), [2 / 4, 2 / 4, np.nan])


def test_unlabeled_pixels_do_not_count_and_predicted_void_is_wrong():
    np.testing.assert_allclose(iou_of([0, 0, VOID, 1], [0, 0, 0, VOID]), [2 / 3, np.nan, np.nan])


def test_a_category_that_is_predicted_but_never_true_counts_as_zero():
    np.testing.assert_allclose(iou_of([0, 1], [0, 0]), [1 / 2, 0, np.nan])


@pytest.mark.parametrize("seed", range(5))
def test_random_maps_give_what_masks_give(seed: int):
    rng = np.random.default_rng(seed)
    names = tuple(f"c{i}" for i in range(7))
    truths = rng.choice([0, 1, 2, 4, 5, VOID], (3, 20, 30)).astype(np.uint8)  # never 3 nor 6
    right = rng.random(truths.shape) < 0.6
    predictions = np.where(right, truths, rng.choice([0, 1, 2, 3, 4, 5, VOID], truths.shape))
    metric = MeanIou(names)
    for prediction, truth in zip(predictions, truths, strict=True):
        metric.add(prediction, truth)
    result, known = metric.result(), truths != VOID
    expected = []
    for i in range(7):
        union = (known & ((predictions == i) | (truths == i))).sum()
        expected.append((known & (predictions == i) & (truths == i)).sum() / union if union else math.nan)
    np.testing.assert_allclose(result.iou, expected, rtol=1e-14)
    assert expected[3] == 0
    assert math.isnan(expected[6])
    assert result.miou == pytest.approx(np.mean(expected[:6]))
    assert result.pixel_accuracy == pytest.approx((predictions == truths)[known].mean())


def test_finer_predictions_are_scored_as_the_groups_of_a_coarser_truth():
    # The network tells car, truck, road and sky apart; the truth knows road and vehicle, and no sky.
    metric = MeanIou(("road", "vehicle"), groups=(1, 1, 0, None))
    metric.add(np.array([[0, 1, 2, 3, 2, 3]]), np.array([[1, 1, 0, 0, 1, VOID]]))
    np.testing.assert_allclose(metric.result().iou, [1 / 3, 2 / 3])
    assert metric.result().pixel_accuracy == pytest.approx(3 / 5)


def test_categories_of_panoptic_ids():
    ids = np.array([[0, 13001, 18999, 64999, 65535]], np.uint16)
    assert category_ids(ids).tolist() == [[0, 13, 18, 64, VOID]]
    assert category_ids(ids).dtype == np.uint8


def test_parts_merge_into_the_whole_across_processes():
    first, second, whole = MeanIou(NAMES), MeanIou(NAMES), MeanIou(NAMES)
    for metric, prediction in ((first, [[0, 1]]), (second, [[1, 1]])):
        for target in (metric, whole):
            target.add(np.array(prediction), np.array([[0, 1]]))
    merged = pickle.loads(pickle.dumps(first))
    merged.merge(second)
    np.testing.assert_array_equal(merged.confusion, whole.confusion)
    assert merged.result().miou == pytest.approx((1 / 2 + 2 / 3) / 2)
    with pytest.raises(ValueError, match="differ in names"):
        merged.merge(MeanIou(("road",)))
    with pytest.raises(ValueError, match="differ in groups"):
        merged.merge(MeanIou(NAMES, groups=(0, 0, 1)))


def test_nothing_scored_is_unknown_and_still_plain_json():
    values = json.loads(json.dumps(MeanIou(NAMES).result().to_dict(), allow_nan=False))
    assert values == {"miou": None, "pixel_accuracy": None, "iou": dict.fromkeys(NAMES)}


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        ([[3]], [[0]], "prediction holds category 3; expected categories below 3 or 255"),
        ([[0]], [[13]], "truth holds category 13"),
        ([[0, 1]], [[0]], r"prediction \(1, 2\) and truth \(1, 1\)"),
    ],
)
def test_maps_that_cannot_be_scored_are_refused(prediction: list, truth: list, message: str):
    with pytest.raises(ValueError, match=message):
        MeanIou(NAMES).add(np.array(prediction, np.uint8), np.array(truth, np.uint8))


def test_a_group_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="groups hold 2; expected None or a position in the 2 names"):
        MeanIou(("road", "vehicle"), groups=(0, 2))
