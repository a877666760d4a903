# SPDX-License-Identifier: Apache-2.0
"""Scores worked out by hand on a few pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from panoptic_depth_model.panoptic_depth import PRESETS, PanopticDepth
from panoptic_depth_ros.taxonomy import VOID_PANOPTIC_ID
from panoptic_depth_training.datasets.cityscapes import CITYSCAPES
from panoptic_depth_training.evaluate import Tally, evaluate, panoptic_ids, table
from panoptic_depth_training.facts import ModelFacts

VOID = VOID_PANOPTIC_ID


def tally_of(prediction: list[int], truth: list[int]) -> Tally:
    tally = Tally(3, 80.0)
    tally.add_labels(np.array([prediction], np.uint16), np.array([truth], np.uint16))
    return tally


def test_the_truth_itself_scores_one():
    ids = [0, 0, 1001, 1001, 1002, 2001]
    tally = tally_of(ids, ids)
    assert tally.iou().tolist() == [1, 1, 1]
    assert tally.pq().tolist() == [1, 1, 1]


def test_iou_is_of_pixels_and_pq_of_segments():
    #  One of two cars is found with 2 of its 3 pixels, the other is taken for road.
    tally = tally_of([1001, 1001, 0, 0, 0, 0], [1007, 1007, 1007, 1002, 0, 0])
    np.testing.assert_allclose(tally.iou(), [2 / 4, 2 / 4, np.nan])
    # Road: 2 of 4 pixels is no match, so one missed and one invented.
    np.testing.assert_allclose(tally.pq(), [0, (2 / 3) / (1 + 1 / 2), np.nan])


def test_pixels_without_truth_do_not_count_and_predicted_void_is_a_miss():
    tally = tally_of([0, 0, VOID, 1001], [0, 0, 0, VOID])
    np.testing.assert_allclose(tally.iou(), [2 / 3, np.nan, np.nan])
    np.testing.assert_allclose(tally.pq(), [2 / 3, np.nan, np.nan])


def test_depth_scores_leave_out_what_is_unknown_or_beyond_the_limit():
    tally = Tally(3, 80.0)
    tally.add_depth(np.array([11.0, 30.0, 5.0, 5.0]), np.array([10.0, 20.0, 0.0, 100.0]))
    assert tally.abs_rel == [pytest.approx((0.1 + 0.5) / 2)]
    assert tally.delta_1 == [0.5]


def test_panoptic_ids_number_things_by_row():
    segment_ids, category = np.array([[0, 1], [2, 3]], np.uint8), np.array([13, 13, 0], np.int32)
    ids = panoptic_ids(segment_ids, category, CITYSCAPES.thing_ids)
    assert ids.tolist() == [[VOID, 13001], [13002, 0]]


def test_an_untrained_network_gets_a_row_for_every_score(frames):
    torch.manual_seed(0)
    network = PanopticDepth(PRESETS["compact"]).eval()
    facts = ModelFacts("compact", CITYSCAPES, 64, 96, 80.0)
    scores = evaluate(network, facts, f"synthetic:{frames}", 2)
    assert scores["images"] == 2
    for name in ("miou", "pq", "pq_things", "pq_stuff", "delta_1"):
        assert 0 <= float(scores[name]) <= 1
    assert not math.isnan(float(scores["abs_rel"]))
    assert "iou_car" in scores
    assert "miou" in table(scores)
