# SPDX-License-Identifier: Apache-2.0
"""What a comparison of two answers says, on answers made by hand."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest

from panoptic_depth_ros.manifest import Manifest
from panoptic_depth_ros.taxonomy import Category, Taxonomy
from panoptic_depth_training.export.agreement import (
    LIMITS,
    NO_SEGMENTS,
    Comparison,
    Outputs,
    Quality,
    agreement,
    compare,
    faults,
    labels_fit,
    overall,
    table,
)
from panoptic_depth_training.export.pictures import Picture, Pictures

H, W = 32, 64
ROAD, CAR = 0, 1
TAXONOMY = Taxonomy((Category("road", False, (1, 1, 1)), Category("car", True, (2, 2, 2))))
MANIFEST = Manifest("m", "1", "compact", H, W, 50.0, 0.5, 80.0, TAXONOMY, 18, "")


@pytest.fixture
def answer() -> Outputs:
    """A road, and two cars of 64 px on it."""
    ids = np.ones((H, W), np.uint8)
    ids[4:12, 4:12], ids[20:28, 40:48] = 2, 3
    return {
        "segment_ids": ids,
        "depth": np.linspace(2, 40, H * W, dtype=np.float32).reshape(H, W),
        "segment_category": np.array([ROAD, CAR, CAR, 0], np.int32),
        "segment_score": np.array([0.9, 0.5, 0.5, 0], np.float32),
        "segment_area": np.array([H * W - 128, 64, 64, 0], np.int32),
        "segment_depth": np.array([20, 5, 30, 0], np.float32),
    }


def swapped(answer: Outputs) -> Outputs:
    """The cars in the other order of rows."""
    ids = np.array([0, 1, 3, 2, 4], np.uint8)[answer["segment_ids"]]
    table = {name: values[[0, 2, 1, 3]] for name, values in answer.items() if values.ndim == 1}
    return {**answer, **table, "segment_ids": ids}


def without_second_car(answer: Outputs) -> Outputs:
    other = copy.deepcopy(answer)
    other["segment_ids"][other["segment_ids"] == 3] = 1
    other["segment_score"][2] = 0
    return other


def test_an_answer_agrees_with_itself(answer):
    found = agreement("a", answer, copy.deepcopy(answer))
    assert (found.segments, found.equal_pixels, found.equal_ids) == (3, 1, 1)
    assert (found.depth_median, found.depth_p99, found.depth_max, found.score_difference) == (0, 0, 0, 0)
    for precision in LIMITS:
        assert faults(Comparison((found,), ()), precision) == []


def test_rows_in_another_order_are_the_same_segments_with_other_ids(answer):
    found = agreement("a", answer, swapped(answer))
    assert found.equal_pixels == 1
    assert found.equal_ids == 1 - 128 / (H * W)
    assert faults(Comparison((found,), ()), "fp16") == []
    assert faults(Comparison((found,), ()), "float32") == ["equal ids 0.9375 (limit 0.999)"]


def test_errors_of_depth_are_relative_and_of_scores_are_differences(answer):
    other = copy.deepcopy(answer)
    other["depth"] *= 1.01
    other["depth"][0, 0] *= 2  # one pixel moves the largest error alone
    other["segment_score"] += np.float32(0.03)
    found = agreement("a", answer, other)
    assert found.depth_median == pytest.approx(0.01, rel=1e-3)
    assert found.depth_p99 == pytest.approx(0.01, rel=1e-3)
    assert found.depth_max == pytest.approx(1.02, rel=1e-3)
    assert found.score_difference == pytest.approx(0.03, rel=1e-3)
    assert [text.split(" 0.")[0] for text in faults(Comparison((found,), ()), "fp16")] == [
        "depth median", "score difference"
    ]


def test_a_lost_segment_costs_its_pixels(answer):
    assert agreement("a", answer, without_second_car(answer)).equal_pixels == 1 - 64 / (H * W)


def test_a_depth_that_is_no_number_is_past_every_tolerance(answer):
    other = copy.deepcopy(answer)
    other["depth"][:] = np.nan
    found = Comparison((agreement("a", answer, other),), ())
    for precision in LIMITS:
        assert faults(found, precision)[0] == f"depth median inf (limit {LIMITS[precision].depth_median:g})"


def test_over_all_pictures_shares_and_errors_are_means_and_the_largest_depth_error_is_the_largest(answer):
    good = agreement("a", answer, answer)
    bad = replace(good, picture="b", equal_pixels=0.8, depth_median=0.2, depth_max=0.7, score_difference=0.1)
    found = overall([good, bad])
    assert found.segments == 6
    assert (found.equal_pixels, found.depth_median, found.score_difference) == pytest.approx((0.9, 0.1, 0.05))
    assert found.depth_max == 0.7


def test_pictures_without_a_segment_are_said_to_show_little(answer):
    empty = replace(agreement("a", answer, answer), segments=0)
    nothing = Comparison((empty,), (Quality("file", math.nan, None),))
    assert NO_SEGMENTS in table(nothing)
    assert "nan" not in table(nothing)
    some = replace(nothing, agreements=(empty, agreement("b", answer, answer)))
    assert NO_SEGMENTS not in table(some)


def stacked(row: Outputs, count: int) -> Outputs:
    return {name: np.stack([values] * count) for name, values in row.items()}


def pictures_of(answer: Outputs, count: int) -> list[Picture]:
    labels = np.array([0, ROAD * 1000, CAR * 1000 + 1, CAR * 1000 + 2], np.uint16)[answer["segment_ids"]]
    return [Picture(f"p{index}", np.full((H, W, 3), index, np.uint8), labels) for index in range(count)]


def test_panoptic_quality_is_that_of_the_first_answer_and_of_the_labels(answer):
    """Without one of two cars: road 1984 of 2048 px, cars one match and one missed."""
    lost = without_second_car(answer)
    answers = {"fine": lambda images: stacked(answer, 1), "file": lambda images: stacked(lost, 1)}
    found = compare(pictures_of(answer, 2), answers, MANIFEST, 1, has_labels=True)
    road, car = (H * W - 128) / (H * W - 64), 1 / 1.5
    for quality, expected in zip(found.qualities, (100, 100 * (road + car) / 2), strict=True):
        assert quality.by_network == pytest.approx(expected)
        assert quality.by_labels == pytest.approx(expected)
    assert [each.picture for each in found.agreements] == ["p0", "p1"]
    assert "(+0.00)" in table(found)
    assert f"({100 * (road + car) / 2 - 100:+.2f})" in table(found)


def test_the_agreement_is_that_of_the_last_two_answers(answer):
    lost = without_second_car(answer)
    named = {"own": answer, "coarser": lost, "file": lost}
    answers = {name: lambda images, row=row: stacked(row, 1) for name, row in named.items()}
    found = compare(pictures_of(answer, 1), answers, MANIFEST, 1, has_labels=True)
    assert found.agreements[0].equal_pixels == 1
    assert found.qualities[0].by_network == 100 > found.qualities[1].by_network == found.qualities[2].by_network


def test_labels_of_other_categories_are_no_measure(answer):
    answers = {"one": lambda images: stacked(answer, 1), "two": lambda images: stacked(answer, 1)}
    strange = [replace(picture, panoptic_ids=picture.panoptic_ids + 7000) for picture in pictures_of(answer, 1)]
    found = compare(strange, answers, MANIFEST, 1, has_labels=False)
    assert [quality.by_labels for quality in found.qualities] == [None, None]
    others = Taxonomy((Category("road", False, (1, 1, 1)), Category("van", True, (2, 2, 2))))
    recolored = Taxonomy((Category("road", False, (9, 9, 9)), Category("car", True, (2, 2, 2))))
    for taxonomy, fits in ((None, False), (others, False), (recolored, True)):
        assert labels_fit(Pictures("", 1, taxonomy, lambda: iter(())), MANIFEST) == fits


def test_the_last_batch_is_filled_up_and_what_fills_it_does_not_count(answer):
    shown = []

    def infer(images):
        shown.append(images[:, 0, 0, 0].tolist())
        return stacked(answer, len(images))

    found = compare(pictures_of(answer, 3), {"one": infer, "two": infer}, MANIFEST, 2, has_labels=False)
    assert shown == [[0, 1], [0, 1], [2, 2], [2, 2]]
    assert [each.picture for each in found.agreements] == ["p0", "p1", "p2"]
