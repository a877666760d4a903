# SPDX-License-Identifier: Apache-2.0
"""Panoptic quality against the COCO panoptic API's numbers, a slow obvious implementation, and hand-made maps."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest

from panoptic_depth_ros.taxonomy import VOID_PANOPTIC_ID, Category, Taxonomy
from panoptic_depth_training.datasets.cityscapes import CITYSCAPES
from panoptic_depth_training.metrics import PanopticQuality
from panoptic_depth_training.metrics.panoptic import PanopticResult

VOID = VOID_PANOPTIC_ID
DATA = Path(__file__).parents[1] / "data" / "metrics"
GRAY = (9, 9, 9)
SMALL = Taxonomy(
    (
        Category("road", False, GRAY),
        Category("sky", False, GRAY),
        Category("car", True, GRAY),
        Category("person", True, GRAY),
    )
)
ROAD, CAR, PERSON = 0, 2, 3


def score(prediction: list[int], truth: list[int], crowds: bool = False) -> PanopticResult:
    quality = PanopticQuality(SMALL, instance_zero_is_crowd=crowds)
    quality.add(np.array([prediction], np.uint16), np.array([truth], np.uint16))
    return quality.result()


def counts(result: PanopticResult, category: int) -> tuple[int, int, int]:
    return int(result.tp[category]), int(result.fp[category]), int(result.fn[category])


def slow_counts(
    predictions: np.ndarray, truths: np.ndarray, num_categories: int, crowd_categories: tuple[int, ...]
) -> np.ndarray:
    """[K, 4] iou, tp, fp, fn by full-image masks, one pair of segments at a time."""
    out = np.zeros((num_categories, 4))
    for prediction, truth in zip(predictions, truths, strict=True):
        void, matched = truth == VOID, set()
        segments = [t for t in np.unique(truth) if t != VOID]
        crowds = [t for t in segments if t % 1000 == 0 and t // 1000 in crowd_categories]
        for t in set(segments) - set(crowds):
            hits = []
            for p in np.unique(prediction):
                union = ((prediction == p) & ~void) | (truth == t)
                iou = ((prediction == p) & (truth == t)).sum() / union.sum()
                if p // 1000 == t // 1000 and iou > 0.5:
                    hits.append(iou)
                    matched.add(p)
            out[t // 1000] += [hits[0], 1, 0, 0] if hits else [0, 0, 0, 1]
        for p in set(np.unique(prediction)) - matched - {VOID}:
            mask = prediction == p
            forgiven = void | np.isin(truth, [t for t in crowds if t // 1000 == p // 1000])
            if (mask & forgiven).sum() <= 0.5 * mask.sum():
                out[p // 1000, 2] += 1
    return out


def random_maps(seed: int, num_categories: int) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and truths [4, 24, 32]: blocks of random ids, and the same with some blocks and pixels changed."""
    rng = np.random.default_rng(seed)
    used = rng.choice(num_categories, num_categories - 2, replace=False)  # two categories never occur
    palette = np.append(used[:, None] * 1000 + [0, 0, 1, 2], [[VOID] * 4], axis=0).ravel()
    blocks = rng.choice(palette, (4, 6, 8))
    changed = np.where(rng.random(blocks.shape) < 0.3, rng.choice(palette, blocks.shape), blocks)
    truths, predictions = (x.repeat(4, axis=1).repeat(4, axis=2).astype(np.uint16) for x in (blocks, changed))
    speckles = rng.random(predictions.shape) < 0.1
    predictions[speckles] = rng.choice(palette, speckles.sum())
    return np.roll(predictions, 1, axis=2), truths


def test_counts_and_means_are_those_of_the_coco_panoptic_api():
    maps, expected = np.load(DATA / "panoptic.npz"), json.loads((DATA / "panoptic.json").read_text())
    whole = PanopticQuality(CITYSCAPES, instance_zero_is_crowd=True)
    for prediction, truth, image_expected in zip(maps["prediction"], maps["truth"], expected["images"], strict=True):
        quality = PanopticQuality(CITYSCAPES, instance_zero_is_crowd=True)
        quality.add(prediction, truth)
        assert_equals(quality.result(), image_expected)
        whole.merge(quality)
    assert_equals(whole.result(), expected["sum"])
    # The crowds in these maps matter: without them the same maps score differently.
    plain = PanopticQuality(CITYSCAPES)
    for prediction, truth in zip(maps["prediction"], maps["truth"], strict=True):
        plain.add(prediction, truth)
    assert plain.result().all.pq < whole.result().all.pq


def assert_equals(result: PanopticResult, expected: dict) -> None:
    for name in ("tp", "fp", "fn"):
        assert getattr(result, name).tolist() == expected[name]
    np.testing.assert_allclose(result.iou, expected["iou"], rtol=0, atol=1e-12)
    for group in ("all", "things", "stuff"):
        quality = getattr(result, group)
        assert quality.num_categories == expected[group]["n"]
        for name in ("pq", "sq", "rq"):
            assert getattr(quality, name) == pytest.approx(expected[group][name], abs=1e-12)


@pytest.mark.parametrize("crowds", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_random_maps_give_what_the_slow_way_gives(seed: int, crowds: bool):
    predictions, truths = random_maps(seed, len(CITYSCAPES))
    quality = PanopticQuality(CITYSCAPES, instance_zero_is_crowd=crowds)
    for prediction, truth in zip(predictions, truths, strict=True):
        quality.add(prediction.astype(np.int32), truth)
    result = quality.result()
    slow = slow_counts(predictions, truths, len(CITYSCAPES), CITYSCAPES.thing_ids if crowds else ())
    assert result.tp.sum() > 10
    np.testing.assert_array_equal(np.stack([result.tp, result.fp, result.fn], axis=1), slow[:, 1:])
    np.testing.assert_allclose(result.iou, slow[:, 0], rtol=0, atol=1e-12)
    iou, tp, fp, fn = slow.T
    occurs = tp + fp + fn > 0
    assert 0 < occurs.sum() < len(CITYSCAPES)
    pq = iou[occurs] / (tp + fp / 2 + fn / 2)[occurs]
    assert result.all.pq == pytest.approx(pq.mean(), abs=1e-12)
    assert result.things.pq == pytest.approx(pq[np.array([c.is_thing for c in CITYSCAPES])[occurs]].mean(), abs=1e-12)


def test_things_are_counted_by_their_share_of_the_image():
    truth = np.full((100, 100), ROAD * 1000, np.uint16)
    prediction = truth.copy()
    truth[0, :2] = CAR * 1000 + 1  # 2 of 10 000 pixels: below the first edge; missed
    truth[10, :10] = PERSON * 1000 + 1  # 10: exactly the second edge, so of the third range; found
    prediction[10, :9] = PERSON * 1000 + 4
    truth[20:40, :20] = CAR * 1000 + 2  # 400: the largest; found, and a part of it is another car to the network
    prediction[20:36, :20] = CAR * 1000 + 2
    prediction[36:40, :20] = CAR * 1000 + 3
    truth[50:60, :20] = CAR * 1000  # a crowd, which forgives what lies on it
    prediction[50:60, :20] = CAR * 1000 + 7
    quality = PanopticQuality(SMALL, instance_zero_is_crowd=True)
    quality.add(prediction, truth)
    sizes = quality.thing_sizes
    assert sizes.true.tolist() == [1, 0, 1, 0, 1]
    assert sizes.found.tolist() == [0, 0, 1, 0, 1]
    assert sizes.predicted.tolist() == [0, 1, 0, 1, 1]
    assert sizes.right.tolist() == [0, 1, 0, 0, 1]
    assert sizes.to_dict()[1] == {
        "from": 0.00025, "to": 0.001, "true": 0, "found": 0, "predicted": 1, "right": 1,
    }  # fmt: skip


def test_half_of_the_union_is_no_match_and_more_than_half_is():
    # Cars of 3 and 2 pixels share 2 of 4 (1/2), then 2 of 3.
    assert counts(score([2001, 2001, 2001, 2], [0, 2001, 2001, 2001]), CAR) == (0, 1, 1)
    assert counts(score([2001, 2001, 2001, 2], [0, 2001, 2001, 0]), CAR) == (1, 0, 0)


def test_a_prediction_mostly_on_void_is_no_error_and_half_on_void_is():
    assert counts(score([2001, 2001, 2001, 2001], [VOID, VOID, VOID, 0]), CAR) == (0, 0, 0)
    assert counts(score([2001, 2001, 2001, 2001], [VOID, VOID, 0, 0]), CAR) == (0, 1, 0)


def test_void_pixels_do_not_count_in_the_union():
    result = score([2001, 2001, 2001, 2001], [2007, 2007, VOID, VOID])
    assert counts(result, CAR) == (1, 0, 0)
    assert result.iou[CAR] == 1


def test_a_crowd_is_neither_hit_nor_miss():
    truth = [2000, 2000, 2000, 2001]
    assert counts(score([2005, 2005, 2005, 2001], truth, crowds=True), CAR) == (1, 0, 0)
    assert counts(score([VOID, VOID, VOID, 2001], truth, crowds=True), CAR) == (1, 0, 0)
    # Without crowds, instance 0 is a car like any other.
    assert counts(score([2005, 2005, 2005, 2001], truth), CAR) == (2, 0, 0)
    assert counts(score([VOID, VOID, VOID, 2001], truth), CAR) == (1, 0, 1)


def test_a_crowd_forgives_its_own_category_only():
    result = score([3001, 3001, 3001, 0], [2000, 2000, 2000, 0], crowds=True)
    assert counts(result, PERSON) == (0, 1, 0)
    assert counts(result, CAR) == (0, 0, 0)


def test_stuff_has_no_crowds():
    assert counts(score([VOID, 2001], [0, 2001], crowds=True), ROAD) == (0, 0, 1)


def test_quality_is_of_segments():
    # One of two cars is found with 2 of its 3 pixels, the other is taken for road.
    result = score([2001, 2001, 0, 0, 0, 0], [2007, 2007, 2007, 2002, 0, 0])
    assert result.pq[CAR] == pytest.approx((2 / 3) / (1 + 1 / 2))
    assert result.sq[CAR] == pytest.approx(2 / 3)
    assert result.rq[CAR] == pytest.approx(1 / 1.5)
    assert (result.all.num_categories, result.things.num_categories, result.stuff.num_categories) == (2, 1, 1)


def test_a_category_that_never_occurs_is_left_out_of_the_mean():
    result = score([0, 0, 2001], [0, 0, 2001])
    assert result.all.pq == result.things.pq == result.stuff.pq == 1
    assert math.isnan(result.pq[PERSON])
    assert math.isnan(score([0], [0]).things.pq)


def test_a_category_that_is_predicted_but_never_true_counts_as_zero():
    result = score([0, 0, 2001], [0, 0, 0])
    assert result.things.pq == result.things.sq == 0
    assert result.all.pq == pytest.approx(1 / 3)


def test_parts_of_the_images_merge_into_the_whole():
    predictions, truths = random_maps(99, len(SMALL))
    whole = PanopticQuality(SMALL)
    parts = [PanopticQuality(SMALL), PanopticQuality(SMALL)]
    for i, (prediction, truth) in enumerate(zip(predictions, truths, strict=True)):
        whole.add(prediction, truth)
        parts[i % 2].add(prediction, truth)
    merged = pickle.loads(pickle.dumps(parts[0]))  # as it comes back from another process
    merged.merge(parts[1])
    assert merged.result().all.pq == pytest.approx(whole.result().all.pq, abs=1e-15)
    assert merged.result().fn.tolist() == whole.result().fn.tolist()
    assert merged.thing_sizes.to_dict() == whole.thing_sizes.to_dict()
    assert whole.thing_sizes.true.sum() > parts[0].thing_sizes.true.sum() > 0
    # Merging has left the parts as they were.
    assert parts[1].counts.fn.sum() < merged.counts.fn.sum()


def test_scores_that_count_differently_do_not_merge():
    with pytest.raises(ValueError, match=r"differ in instance_zero_is_crowd: False and True; use the same"):
        PanopticQuality(SMALL).merge(PanopticQuality(SMALL, instance_zero_is_crowd=True))
    with pytest.raises(ValueError, match="differ in taxonomy"):
        PanopticQuality(SMALL).merge(PanopticQuality(CITYSCAPES))


def test_a_result_is_plain_json():
    values = json.loads(json.dumps(score([0, 2001], [0, 2001]).to_dict(), allow_nan=False))
    assert values["all"] == {"pq": 1, "sq": 1, "rq": 1, "num_categories": 2}
    assert values["categories"]["person"]["pq"] is None
    assert values["categories"]["car"] == {"pq": 1, "sq": 1, "rq": 1, "iou": 1, "tp": 1, "fp": 0, "fn": 0}


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        (np.zeros((2, 2), np.uint16), np.zeros((2, 3), np.uint16), r"prediction \(2, 2\) and truth \(2, 3\)"),
        (np.zeros((0, 4), np.uint16), np.zeros((0, 4), np.uint16), "one size"),
        (np.zeros((2, 2)), np.zeros((2, 2), np.uint16), "prediction has type float64; expected integer ids"),
        (np.full((2, 2), -1), np.zeros((2, 2), np.uint16), "prediction holds ids -1 to -1"),
        (np.zeros((2, 2), np.uint16), np.full((2, 2), 65536), "truth holds ids 65536"),
        (np.zeros((2, 2), np.uint16), np.full((2, 2), 32000), "truth holds id 32000, category 32; expected .* below 4"),
        (np.full((2, 2), 4000), np.zeros((2, 2), np.uint16), "prediction holds id 4000, category 4"),
    ],
)
def test_maps_that_cannot_be_scored_are_refused(prediction: np.ndarray, truth: np.ndarray, message: str):
    quality = PanopticQuality(SMALL)
    with pytest.raises(ValueError, match=message):
        quality.add(prediction, truth)
    assert quality.counts.fn.sum() == 0
