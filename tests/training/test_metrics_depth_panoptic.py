# SPDX-License-Identifier: Apache-2.0
"""Depth-aware (video) panoptic quality against ViP-DeepLab's script, a slow obvious way, and hand-made maps."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from panoptic_depth_ros.taxonomy import VOID_PANOPTIC_ID, Category, Taxonomy
from panoptic_depth_training.datasets.cityscapes import CITYSCAPES
from panoptic_depth_training.metrics import DepthFrame, DepthPanopticQuality, DepthPanopticSettings, PanopticQuality
from panoptic_depth_training.metrics.depth_panoptic import (
    DEPTH_IGNORED,
    OCCURRING,
    PANOPTIC_DEPTH_CITYSCAPES,
    VIP_DEEPLAB_CITYSCAPES,
    VIP_DEEPLAB_SEMKITTI,
    DepthPanopticResult,
)

VOID = VOID_PANOPTIC_ID
DATA = Path(__file__).parents[1] / "data" / "metrics"
SMALL = Taxonomy((Category("road", False, (9, 9, 9)), Category("car", True, (9, 9, 9))))
CAR = 1
NO_LABEL = len(SMALL)


@pytest.fixture(scope="module")
def maps() -> dict[str, np.ndarray]:
    return dict(np.load(DATA / "depth_panoptic.npz"))


def video(maps: dict[str, np.ndarray], sequence: int) -> Iterator[DepthFrame]:
    """The frames of one sequence, with their depth as the unsigned integers of the files."""
    frames = {name: values[sequence] for name, values in maps.items()}
    for i in range(len(frames["truth_ids"])):
        yield DepthFrame(**{name: values[i] for name, values in frames.items()})


def one_row(prediction: list[int], truth: list[int], predicted_m: list[float], true_m: list[float]) -> DepthFrame:
    ids = (np.array([values], np.uint16) for values in (prediction, truth))
    depths = (np.array([values], np.float32) for values in (predicted_m, true_m))
    return DepthFrame(*ids, *depths)


def scored(frame: DepthFrame, threshold: float = 0.25) -> DepthPanopticQuality:
    quality = DepthPanopticQuality(SMALL, DepthPanopticSettings((threshold,)))
    quality.add_sequence([frame])
    return quality


@pytest.mark.parametrize("settings", [VIP_DEEPLAB_CITYSCAPES, PANOPTIC_DEPTH_CITYSCAPES])
def test_counts_and_means_are_those_of_the_published_scripts(maps, settings: DepthPanopticSettings):
    expected = json.loads((DATA / "depth_panoptic.json").read_text())
    quality = DepthPanopticQuality(CITYSCAPES, settings)
    for sequence in range(2):
        part = DepthPanopticQuality(CITYSCAPES, settings)
        part.add_sequence(video(maps, sequence))
        quality.merge(part)
    result = quality.result()
    assert len(expected["at"]) == len(result.at) == 16
    for cell in expected["at"]:
        counts = quality.counts[cell["threshold"], cell["window"]]
        for name in ("tp", "fp", "fn"):
            assert getattr(counts, name).tolist() == cell[name]  # 'no label' included
        np.testing.assert_allclose(counts.iou, cell["iou"], rtol=0, atol=1e-12)
        at = result.at[cell["threshold"], cell["window"]]
        means = [at.all.pq, at.things.pq, at.stuff.pq]
        if settings is VIP_DEEPLAB_CITYSCAPES:
            np.testing.assert_allclose(means, np.array(cell["script"], float), rtol=0, atol=1e-12)
            assert " ".join(f"{100 * mean:.2f}" for mean in means) == cell["printed"]
        else:
            np.testing.assert_allclose(means, cell["guarded"], rtol=0, atol=1e-12)
    if settings is PANOPTIC_DEPTH_CITYSCAPES:
        assert result.dpq.all == pytest.approx(expected["guarded"]["dpq_guarded"], abs=1e-12)
        assert result.dvpq.all == pytest.approx(expected["guarded"]["dvpq_guarded"], abs=1e-12)
        assert result.vpq.all == pytest.approx(expected["guarded"]["vpq_guarded"], abs=1e-12)


def slow_counts(frames: list[DepthFrame], threshold: float, window: int) -> np.ndarray:
    """[K, 4] iou, tp, fp, fn: frames side by side, labels taken pixel by pixel, one mask per segment."""
    out = np.zeros((len(CITYSCAPES), 4))
    for first in range(len(frames) - window + 1):
        chosen = frames[first : first + window]
        prediction = np.hstack([frame.prediction_ids for frame in chosen]).astype(int)
        truth = np.hstack([frame.truth_ids for frame in chosen]).astype(int)
        predicted_m = np.hstack([frame.prediction_depth for frame in chosen]).astype(float)
        true_m = np.hstack([frame.truth_depth for frame in chosen]).astype(float)
        for pixel in zip(*np.nonzero(true_m > 0), strict=True):
            if threshold > 0 and abs(predicted_m[pixel] - true_m[pixel]) / true_m[pixel] > threshold:
                prediction[pixel] = VOID
        matched = set()
        for t in set(np.unique(truth)) - {VOID}:
            hits = []
            for p in set(np.unique(prediction)) - {VOID}:
                union = ((prediction == p) & (truth != VOID)) | (truth == t)
                iou = ((prediction == p) & (truth == t)).sum() / union.sum()
                if p // 1000 == t // 1000 and iou > 0.5:
                    hits.append(iou)
                    matched.add(p)
            out[t // 1000] += [hits[0], 1, 0, 0] if hits else [0, 0, 0, 1]
        for p in set(np.unique(prediction)) - matched - {VOID}:
            if (truth[prediction == p] == VOID).mean() <= 0.5:
                out[p // 1000, 2] += 1
    return out


def random_video(seed: int, length: int) -> list[DepthFrame]:
    """Frames 16x24 of blocks whose prediction is a little wrong, with speckled depth errors and unknown depth."""
    rng = np.random.default_rng(seed)
    palette = np.array([0, 2000, 8000, 11000, 11001, 13001, 13002, 13003, 18001, VOID])
    blocks = rng.choice(palette, (4, 6))
    frames = []
    for _ in range(length):
        blocks = np.where(rng.random(blocks.shape) < 0.15, rng.choice(palette, blocks.shape), blocks)
        changed = np.where(rng.random(blocks.shape) < 0.15, rng.choice(palette, blocks.shape), blocks)
        truth, prediction = (x.repeat(4, axis=0).repeat(4, axis=1).astype(np.uint16) for x in (blocks, changed))
        true_depth = rng.choice([0, 1000, 2560, 8000], truth.shape).astype(np.uint16)
        off = rng.choice([1, 0.91, 1.1, 0.9, 1.25, 0.7, 1.5, 1.6, 0], truth.shape, p=[0.5] + [0.0625] * 8)
        frames.append(DepthFrame(np.roll(prediction, 1, axis=1), truth, np.round(true_depth * off), true_depth))
    return frames


@pytest.mark.parametrize("seed", range(3))
def test_random_videos_give_what_the_slow_way_gives(seed: int):
    frames = random_video(seed, length=5)
    settings = DepthPanopticSettings((0.1, 0.5, 0.25), (1, 2, 5))
    quality = DepthPanopticQuality(CITYSCAPES, settings)
    quality.add_sequence(iter(frames))
    for (threshold, window), counts in quality.counts.items():
        slow = slow_counts(frames, threshold, window)
        fast = np.stack([counts.tp, counts.fp, counts.fn], axis=1)[:-1]
        np.testing.assert_array_equal(fast, slow[:, 1:])
        np.testing.assert_allclose(counts.iou[:-1], slow[:, 0], rtol=0, atol=1e-12)
    assert len(quality.counts) == 12
    assert quality.counts[0.1, 1].tp.sum() < quality.counts[0.5, 1].tp.sum()
    predicted, true = (np.stack([getattr(f, name) for f in frames]) for name in ("prediction_depth", "truth_depth"))
    errors = np.abs(predicted - true)[true > 0] / true[true > 0]
    assert quality.result().abs_rel == pytest.approx(errors.mean(), rel=1e-12)


def test_semkitti_means_are_what_the_formula_with_its_epsilon_gives():
    frames, settings = random_video(seed=7, length=3), replace(VIP_DEEPLAB_SEMKITTI, windows=(1, 2))
    quality = DepthPanopticQuality(CITYSCAPES, settings)
    quality.add_sequence(iter(frames))
    means = {}
    for threshold in (0.5, 0.25, 0.1):
        for window in (1, 2):
            iou, tp, fp, fn = slow_counts(frames, threshold, window).T
            category_pq = iou / (tp + 1e-10) * tp / (tp + fp / 2 + fn / 2 + 1e-10)
            means[threshold, window] = category_pq.mean()
    assert 0 < means[0.1, 1] < means[0.5, 1]
    result = quality.result()
    assert result.dpq.all == pytest.approx(np.mean([means[t, 1] for t in (0.5, 0.25, 0.1)]), rel=1e-12)
    assert result.dvpq.all == pytest.approx(np.mean(list(means.values())), rel=1e-12)


def test_things_without_an_instance_are_void_or_a_segment_as_the_settings_say():
    ids = np.array([[1000, 1000, 1001, 0]], np.uint16)  # two cars that are not told apart, a car, a road
    frame = DepthFrame(ids + (ids == 1000) * np.uint16(7), ids, np.full((1, 4), 10.0), np.full((1, 4), 10.0))
    cars = {}
    for settings in (OCCURRING, VIP_DEEPLAB_CITYSCAPES):
        quality = DepthPanopticQuality(SMALL, replace(settings, windows=(1,)))
        quality.add_sequence([frame])
        counts = quality.counts[0.5, 1]
        cars[settings.instance_zero] = [int(n[CAR]) for n in (counts.tp, counts.fp, counts.fn)]
        assert counts.tp[0] == 1  # stuff has instance 0
    assert cars == {"void": [1, 0, 0], "segment": [2, 0, 0]}


def test_an_error_of_exactly_the_threshold_passes():
    frame = one_row([1001] * 4, [1001] * 4, [12.5, 7.5, 12.5, 7.5], [10] * 4)
    assert scored(frame).result().dpq.things == 1
    above = one_row([1001] * 4, [1001] * 4, [12.50001, 7.49999, 10, 10], [10] * 4)
    assert scored(above).result().dpq.things == 0
    ids, depth = np.full((1, 2), 1001, np.uint16), np.array([[10.0, 10.0]])
    assert scored(DepthFrame(ids, ids, depth * 1.25 + 1e-9, depth)).result().dpq.things == 0


def test_the_prediction_loses_its_label_and_the_truth_keeps_its_own():
    # One of three pixels of the car is too far: 2 of 3 remain. Of a car that is too far as a whole nothing remains:
    # it is missed, and nothing is invented but a segment without label, which no mean counts.
    one_off = scored(one_row([1001] * 3, [1001] * 3, [20, 10, 10], [10] * 3)).counts[0.25, 1]
    assert one_off.iou[CAR] == pytest.approx(2 / 3)
    two_off = scored(one_row([1001] * 3, [1001] * 3, [20, 20, 10], [10] * 3)).counts[0.25, 1]
    assert (two_off.tp[CAR], two_off.fp[CAR], two_off.fn[CAR]) == (0, 1, 1)
    with np.errstate(all="raise"):  # a segment without pixels is none
        all_off = scored(one_row([1001] * 3, [1001] * 3, [20, 20, 20], [10] * 3)).counts[0.25, 1]
    assert (all_off.tp[CAR], all_off.fp[CAR], all_off.fn[CAR]) == (0, 0, 1)
    assert all_off.fp[NO_LABEL] == 1


def test_without_true_depth_the_label_stays():
    assert scored(one_row([1001] * 2, [1001] * 2, [50, 0], [0, math.nan])).result().dpq.things == 1


def test_an_unknown_predicted_depth_is_a_wrong_one():
    unknown = scored(one_row([1001] * 3, [1001] * 3, [math.nan, math.inf, 10], [10] * 3)).result()
    zero = scored(one_row([1001] * 3, [1001] * 3, [0, 0, 10], [10] * 3)).result()
    assert unknown.at[0.25, 1].things.pq == zero.at[0.25, 1].things.pq == 0
    assert unknown.abs_rel == zero.abs_rel == pytest.approx(2 / 3)


def test_unsigned_depth_does_not_wrap_around():
    ids, true_depth = np.full((1, 2), 1001, np.uint16), np.full((1, 2), 1100, np.uint16)
    quality = DepthPanopticQuality(SMALL)
    quality.add(ids, ids, true_depth - np.uint16(100), true_depth)
    assert quality.result().dpq.things == 1  # 1000 - 1100 would be 65436


def test_meters_and_the_files_integers_score_alike(maps):
    settings = DepthPanopticSettings(windows=(1, 3))
    integers, meters = DepthPanopticQuality(CITYSCAPES, settings), DepthPanopticQuality(CITYSCAPES, settings)
    integers.add_sequence(video(maps, 0))
    meters.add_sequence(
        DepthFrame(f.prediction_ids, f.truth_ids, np.float32(f.prediction_depth / 256), np.float32(f.truth_depth / 256))
        for f in video(maps, 0)
    )
    assert meters.result().to_dict() == integers.result().to_dict()


def test_without_regard_to_depth_it_is_panoptic_quality(maps):
    quality, plain = DepthPanopticQuality(CITYSCAPES), PanopticQuality(CITYSCAPES)
    for frame in video(maps, 1):
        quality.add(frame.prediction_ids, frame.truth_ids, frame.prediction_depth, frame.truth_depth)
        plain.add(frame.prediction_ids, frame.truth_ids)
    assert quality.result().at[DEPTH_IGNORED, 1].to_dict() == plain.result().to_dict()
    assert quality.result().sequences == 6


def test_an_object_that_changes_its_id_is_two_in_a_window():
    frames = [one_row([p] * 4, [1001] * 4, [10] * 4, [10] * 4) for p in (1001, 1002)]
    quality = DepthPanopticQuality(SMALL, DepthPanopticSettings((0.5,), (1, 2)))
    quality.add_sequence(frames)
    assert quality.counts[0.5, 1].tp[CAR] == 2
    pair = quality.counts[0.5, 2]  # each id holds half of the tube
    assert (pair.tp[CAR], pair.fp[CAR], pair.fn[CAR]) == (0, 2, 1)
    result = quality.result()
    assert (result.dpq.things, result.dvpq.things, result.vpq.things) == (1, 0.5, 0.5)


def test_a_sequence_shorter_than_a_window_is_refused_and_leaves_no_trace(maps):
    quality = DepthPanopticQuality(CITYSCAPES, VIP_DEEPLAB_SEMKITTI)
    with pytest.raises(ValueError, match="6 frames and a window 20; set windows no longer"):
        quality.add_sequence(video(maps, 0))
    assert quality.sequences == 0
    assert all(counts.tp.sum() == 0 for counts in quality.counts.values())


@pytest.mark.parametrize(
    ("settings", "things", "all_categories"),
    [
        (DepthPanopticSettings((0.5,)), 1, 1),  # over what occurs
        (DepthPanopticSettings((0.5,), absent="zero"), 1 / 8, 2 / 19),
        (DepthPanopticSettings((0.5,), absent="nan"), math.nan, math.nan),
        (DepthPanopticSettings((0.5,), absent="nan", epsilon=1e-10), 1 / 8, 2 / 19),
    ],
)
def test_absent_categories_count_as_the_settings_say(
    settings: DepthPanopticSettings, things: float, all_categories: float
):
    frame = one_row([0, 0, 13001], [0, 0, 13001], [10] * 3, [10] * 3)
    quality = DepthPanopticQuality(CITYSCAPES, settings)
    quality.add_sequence([frame])
    dpq = quality.result().dpq
    # epsilon takes 2e-10 of each quality, like the script that has it.
    assert dpq.things == pytest.approx(things, rel=1e-9, nan_ok=True)
    assert dpq.all == pytest.approx(all_categories, rel=1e-9, nan_ok=True)


def test_epsilon_stands_in_both_denominators():
    quality = DepthPanopticQuality(SMALL, DepthPanopticSettings((0.5,), epsilon=0.25))
    quality.add_sequence([one_row([1001], [1001], [10], [10])])
    assert quality.result().dpq.things == pytest.approx((1 / 1.25) ** 2)


def test_a_category_without_a_match_is_nan_only_if_the_script_is_asked_for():
    frame = one_row([1001, 1001, 0], [0, 0, 0], [10] * 3, [10] * 3)
    for absent, things in (("left_out", 0), ("zero", 0), ("nan", math.nan)):
        quality = DepthPanopticQuality(SMALL, DepthPanopticSettings((0.5,), absent=absent))
        quality.add_sequence([frame])
        assert quality.result().dpq.things == pytest.approx(things, nan_ok=True)


def test_parts_merge_into_the_whole_across_processes(maps):
    settings = DepthPanopticSettings(windows=(1, 4))
    whole, first, second = (DepthPanopticQuality(CITYSCAPES, settings) for _ in range(3))
    for part, sequence in ((first, 0), (second, 1)):
        part.add_sequence(video(maps, sequence))
        whole.add_sequence(video(maps, sequence))
    merged = pickle.loads(pickle.dumps(first))
    merged.merge(pickle.loads(pickle.dumps(second)))
    assert merged.result().to_dict() == whole.result().to_dict()
    with pytest.raises(ValueError, match="differ in settings"):
        merged.merge(DepthPanopticQuality(CITYSCAPES))


def test_nothing_scored_is_unknown_and_still_plain_json():
    result: DepthPanopticResult = DepthPanopticQuality(SMALL).result()
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert values["dpq"] == {"all": None, "things": None, "stuff": None}
    assert values["abs_rel"] is None
    assert [(cell["threshold"], cell["window"]) for cell in values["at"]] == [(0, 1), (0.5, 1), (0.25, 1), (0.1, 1)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"thresholds": (0.0,)}, "between 0 and 1"),
        ({"thresholds": ()}, "between 0 and 1"),
        ({"thresholds": (1.25,)}, "between 0 and 1"),
        ({"windows": (2, 3)}, "one of them 1"),
        ({"windows": (0, 1)}, "one of them 1"),
        ({"windows": (1, 1)}, "each value once"),
    ],
)
def test_settings_without_meaning_are_refused(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        DepthPanopticSettings(**settings)


def test_depth_of_another_size_is_refused():
    ids, depth = np.zeros((2, 4), np.uint16), np.ones((2, 4), np.float32)
    with pytest.raises(ValueError, match=r"prediction_depth \(1, 2\) and truth_ids \(2, 4\)"):
        DepthPanopticQuality(SMALL).add(ids, ids, depth[:1, :2], depth)
