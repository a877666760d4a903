# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy

import numpy as np
import pytest

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.manifest import MAX_SEGMENTS, Manifest
from panoptic_depth_ros.prediction import VOID_CATEGORY, Prediction, number_instances, predict
from panoptic_depth_ros.preprocess import place
from panoptic_depth_ros.taxonomy import VOID_PANOPTIC_ID, Taxonomy

CAR, PERSON = 2, 3
# Twice as many pixels as the made-up network's 12 x 16 and a wider shape: it fills rows 2 to 9.
IMAGE = (16, 32)
PLACEMENT = place(*IMAGE, 12, 16)


@pytest.fixture
def outputs() -> dict[str, np.ndarray]:
    ids = np.zeros((12, 16), np.uint8)
    ids[:4], ids[4:, :8], ids[4:, 8:] = 2, 1, 4  # sky, car, car; rows 3 and 5 of the table are unused
    return {
        "segment_ids": ids,
        "depth": np.arange(12 * 16, dtype=np.float32).reshape(12, 16) + 1,
        "segment_category": np.array([CAR, 1, 0, CAR, PERSON], np.int32),
        "segment_score": np.array([0.6, 0.9, 0.0, 0.8, 0.0], np.float32),
        "segment_area": np.array([64, 64, 0, 64, 0], np.int32),
        "segment_depth": np.array([5.0, 50.0, 0.0, 7.0, 0.0], np.float32),
    }


def camera(fx: float) -> PinholeCamera:
    return PinholeCamera(*IMAGE, fx, fx, 15.5, 7.5)


def test_padding_is_cut_away(outputs: dict[str, np.ndarray], manifest: Manifest) -> None:
    prediction = predict(outputs, manifest, PLACEMENT, camera(16.0))
    np.testing.assert_array_equal(prediction.segment_ids, outputs["segment_ids"][2:10])
    assert prediction.depth is not None
    np.testing.assert_array_equal(prediction.depth[2:], outputs["depth"][4:10])  # focal lengths agree: 16 px * 1/2


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_depth_grows_with_the_focal_length(outputs: dict[str, np.ndarray], manifest: Manifest, factor: float) -> None:
    prediction = predict(outputs, manifest, PLACEMENT, camera(16.0 * factor))
    assert prediction.depth is not None
    np.testing.assert_allclose(prediction.depth[2:], factor * outputs["depth"][4:10])
    np.testing.assert_allclose(
        prediction.segments.mean_depth, [5 * factor, np.nan, np.nan, 7 * factor, np.nan], rtol=1e-6
    )


def test_sky_has_no_depth_and_void_keeps_its(outputs: dict[str, np.ndarray], manifest: Manifest) -> None:
    outputs["segment_ids"][9, 3] = 0
    prediction = predict(outputs, manifest, PLACEMENT, camera(16.0))
    assert prediction.depth is not None
    np.testing.assert_array_equal(np.isnan(prediction.depth), outputs["segment_ids"][2:10] == 2)


def test_an_engines_outputs_are_not_written_to(outputs: dict[str, np.ndarray], manifest: Manifest) -> None:
    before = copy.deepcopy(outputs)
    predict(outputs, manifest, PLACEMENT, camera(40.0))
    for name, values in outputs.items():
        np.testing.assert_array_equal(values, before[name])


def test_without_a_camera_nothing_is_metric(outputs: dict[str, np.ndarray], manifest: Manifest) -> None:
    prediction = predict(outputs, manifest, PLACEMENT, None)
    assert prediction.depth is None
    assert np.isnan(prediction.segments.mean_depth).all()
    np.testing.assert_array_equal(prediction.category_of_segment[:6], [VOID_CATEGORY, CAR, 1, VOID_CATEGORY, CAR, 255])


def test_lookup_tables_answer_for_every_segment_id(outputs: dict[str, np.ndarray], manifest: Manifest) -> None:
    prediction = predict(outputs, manifest, PLACEMENT, None)
    # The surer car is number 1, whatever its row; sky is stuff.
    expected = {1: 2002, 2: 1000, 4: 2001}
    table = prediction.panoptic_id_of_segment
    assert table.shape == (256,)
    assert table.dtype == np.uint16
    assert {k: int(v) for k, v in enumerate(table) if v != VOID_PANOPTIC_ID} == expected
    assert {k: int(v) for k, v in enumerate(prediction.instance_of_segment) if v} == {1: 2, 4: 1}
    assert {k: int(v) for k, v in enumerate(prediction.category_of_segment) if v != 255} == {1: 2, 2: 1, 4: 2}


def test_instances_are_counted_per_thing_category_by_falling_score(taxonomy: Taxonomy) -> None:
    category = np.array([CAR, PERSON, 0, CAR, VOID_CATEGORY, CAR, PERSON])
    score = np.array([0.5, 0.4, 0.9, 0.7, 0.0, 0.5, 0.6], np.float32)
    # Cars score .5, .7, .5: of equals the earlier row goes first.
    np.testing.assert_array_equal(number_instances(category, score, taxonomy), [2, 2, 0, 1, 0, 3, 1])


def test_as_many_instances_as_there_are_segment_ids_stay_apart(manifest: Manifest) -> None:
    count = MAX_SEGMENTS
    ids = np.arange(count + 1, dtype=np.uint8).reshape(16, 16)
    outputs: dict[str, np.ndarray] = {
        "segment_ids": ids,
        "depth": np.ones((16, 16), np.float32),
        "segment_category": np.full(count, PERSON, np.int32),
        "segment_score": np.linspace(1, 0.5, count, dtype=np.float32),
        "segment_area": np.ones(count, np.int32),
        "segment_depth": np.ones(count, np.float32),
    }
    prediction: Prediction = predict(outputs, manifest, place(16, 16, 16, 16), None)
    np.testing.assert_array_equal(prediction.panoptic_id_of_segment[1:], PERSON * 1000 + np.arange(1, count + 1))
    np.testing.assert_array_equal(prediction.instance_of_segment[1:], np.arange(1, count + 1))
