# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest

from panoptic_depth_ros.engines.errors import EngineError
from panoptic_depth_ros.engines.parity import LIMITS, PROBES, Outputs, check, compare, match_segments, probe_images

H, W = 20, 30


@pytest.fixture
def outputs() -> Outputs:
    """Two images' answers: a road, and two cars that lie on it as squares of 25 and 36 px; a row is unused."""
    ids = np.full((2, H, W), 1, np.uint8)
    ids[:, 2:7, 2:7], ids[:, 10:16, 20:26], ids[:, :, 0] = 2, 3, 0
    areas = [[int((ids[0] == k).sum()) for k in (1, 2, 3, 4)]] * 2
    return {
        "segment_ids": ids,
        "depth": np.random.default_rng(0).uniform(2, 40, (2, H, W)).astype(np.float32),
        "segment_category": np.array([[5, 13, 13, 0]] * 2, np.int32),
        "segment_score": np.array([[0.9, 0.5, 0.5, 0]] * 2, np.float32),
        "segment_area": np.array(areas, np.int32),
        "segment_depth": np.array([[10, 5, 6, 0]] * 2, np.float32),
    }


def swapped(outputs: Outputs) -> Outputs:
    """The two cars in the other order of rows, as when rounding swaps two equal scores."""
    ids = np.array([0, 1, 3, 2, 4], np.uint8)[outputs["segment_ids"]]
    table = {name: values[:, [0, 2, 1, 3]] for name, values in outputs.items() if values.ndim == 2}
    return {**outputs, **table, "segment_ids": ids}


def test_equal_answers_are_equal(outputs: Outputs) -> None:
    parity = compare([outputs], [copy.deepcopy(outputs)])
    assert parity == replace(parity, segments=6, equal_pixels=1.0, depth_median=0.0, depth_p99=0.0)
    for arithmetic in LIMITS:
        check(parity, arithmetic)


def test_the_order_of_rows_does_not_matter(outputs: Outputs) -> None:
    parity = compare([outputs], [swapped(outputs)])
    assert parity.equal_pixels == 1.0
    assert parity.area_difference == 0.0
    assert parity.mean_depth_difference == 0.0


def test_segments_are_matched_one_to_one_within_a_category(outputs: Outputs) -> None:
    a = {name: values[0] for name, values in outputs.items()}
    b = copy.deepcopy(a)
    b["segment_category"][1] = 14  # another category on the same pixels
    b["segment_ids"][0, 5] = 4  # a row that has no such category, on one pixel of the road
    assert match_segments(a, b)[:5].tolist() == [0, 1, -1, 3, -1]


@pytest.mark.parametrize(
    ("spoil", "outside"),
    [
        ("lost segment", "equal_pixels 0.9583"),
        ("other category", "equal_pixels 0.9583"),
        ("depth", "depth_median 0.1 "),
        ("some depth", "depth_p99 0.5"),
        ("nan depth", "depth_p99 inf"),
        ("scores", "score_difference 0.2"),
        ("areas", "area_difference 0.4"),
        ("mean depths", "mean_depth_difference 1"),
    ],
)
def test_a_wrong_engine_is_refused_with_the_figure_that_is_outside(
    outputs: Outputs, spoil: str, outside: str
) -> None:
    other = copy.deepcopy(outputs)
    ids, depth = other["segment_ids"], other["depth"]
    match spoil:
        case "lost segment":
            ids[ids == 2] = 0
        case "other category":
            other["segment_category"][:, 1] = 11
        case "depth":
            depth *= 1.1
        case "some depth":
            depth[:, :2] *= 1.5
        case "nan depth":
            depth[:, :2] = np.nan
        case "scores":
            other["segment_score"][:, :3] -= 0.2
        case "areas":
            other["segment_area"][:] = other["segment_area"] * 3 // 2
        case "mean depths":
            other["segment_depth"] *= 2
    parity = compare([outputs], [other])
    assert parity.segments == 6
    with pytest.raises(EngineError, match=rf"differs from ONNX Runtime on the probe images: .*{outside}.*not kept"):
        check(parity, "float32")


def test_rounding_of_half_precision_passes_as_such_only(outputs: Outputs) -> None:
    other = copy.deepcopy(outputs)
    other["depth"] *= 1.004
    parity = compare([outputs], [other])
    check(parity, "float16")
    with pytest.raises(EngineError, match=r"depth_median 0\.004"):
        check(parity, "float32")


def test_another_number_of_answers_is_an_error(outputs: Outputs) -> None:
    with pytest.raises(ValueError, match="zip"):
        compare([outputs, outputs], [outputs])


def test_probe_images_are_the_same_every_time_and_differ_among_themselves() -> None:
    images = probe_images(2, 24, 40)
    assert images.shape == (PROBES, 2, 24, 40, 3)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, probe_images(2, 24, 40))
    flat = images.reshape(PROBES * 2, -1)
    assert len(np.unique(flat, axis=0)) == PROBES * 2
    assert (images.std(axis=(2, 3, 4)) > 20).all()
