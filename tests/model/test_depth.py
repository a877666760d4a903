# SPDX-License-Identifier: Apache-2.0
"""Kernels and embedding become meters as the paper's equations 4 and 5 say, and as the released network does."""

from __future__ import annotations

import math

import pytest
import torch

from panoptic_depth_model.depth import RELEASED, SCHEMES, VARIANTS, DepthScale, select_then_dot, upsampled_depth
from panoptic_depth_model.resampling import in_image, repeated, upsampled


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ("T1", lambda s, r, n: 60 * s + 80 * r * n),
        ("T2", lambda s, r, n: 60 * s + 80 * r * (n - 0.5)),
        ("direct", lambda s, r, n: 80 * n),
        ("pixel", lambda s, r, n: 80 * n),
    ],
)
def test_each_scheme_follows_its_equation(scheme, expected):
    scale = DepthScale(scheme, shift_limit_m=60.0, range_limit_m=80.0, supervise_shift=False)
    kernel = torch.tensor([0.3, -0.7])
    for logit in (-2.0, 0.0, 1.5):
        depth = scale.depth_m(torch.tensor(logit), kernel)
        assert depth.item() == pytest.approx(expected(sigmoid(0.3), sigmoid(-0.7), sigmoid(logit)), rel=1e-5)


@pytest.mark.parametrize(("scheme", "at_zero"), [("T1", 30.0 + 40.0 * 0.5), ("T2", 30.0)])
def test_the_shift_is_the_nearest_depth_in_scheme_1_and_the_mean_in_scheme_2(scheme, at_zero):
    scale = DepthScale(scheme, shift_limit_m=60.0, range_limit_m=80.0)
    kernel = torch.zeros(4)  # sigmoid(0) = 0.5: shift 30 m, range 40 m
    depth = scale.depth_m(torch.tensor([-30.0, 0.0, 30.0]), kernel)
    torch.testing.assert_close(depth, torch.tensor([at_zero - 20.0, at_zero, at_zero + 20.0]))


def test_the_released_network_has_a_mean_below_44_m_and_a_half_range_below_88_m():
    mean, half_range, logit = 0.4, -1.2, 0.9
    kernel = torch.tensor([mean, half_range])
    expected = 44 * sigmoid(mean) + 88 * sigmoid(half_range) * (2 * sigmoid(logit) - 1)
    assert RELEASED.depth_m(torch.tensor(logit), kernel).item() == pytest.approx(expected, rel=1e-5)
    assert RELEASED.limited(torch.tensor([-3.0, 40.0, 100.0])).tolist() == [0.0, 40.0, 80.0]


def test_the_variants_are_the_rows_of_the_ablation():
    assert {letter: (v.scheme, v.supervise_shift) for letter, v in VARIANTS.items()} == {
        "A": ("pixel", False),
        "B": ("direct", False),
        "C": ("T1", False),
        "D": ("T2", False),
        "E": ("T1", True),
        "F": ("T2", True),
    }
    assert {(v.shift_limit_m, v.range_limit_m) for v in VARIANTS.values()} == {(88.0, 88.0)}


@pytest.mark.parametrize("scheme", ["T1", "T2"])
def test_a_segment_starts_at_12_m(scheme):
    scale = DepthScale(scheme)
    kernel = torch.cat([torch.tensor(scale.starting_values), torch.zeros(16)])
    assert scale.shift_m(kernel).item() == pytest.approx(12.0, rel=1e-5)
    assert scale.depth_m(torch.tensor(0.0), kernel).item() == pytest.approx(18.0 if scheme == "T1" else 12.0, rel=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_selecting_before_the_product_equals_selecting_whole_depth_maps(scheme):
    scale = DepthScale(scheme, supervise_shift=False)
    embedding = torch.randn(2, scale.embedding_size(4), 3, 7)
    kernels = torch.randn(2, 5, scale.kernel_size(4))
    rows = torch.randint(0, 5, (2, 3, 7))
    if scale.has_kernels:
        expected = scale.segment_depth(kernels, embedding).gather(1, rows[:, None])[:, 0]
    else:
        expected = scale.pixel_depth(embedding)
    torch.testing.assert_close(select_then_dot(kernels, rows, embedding, scale), expected)


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_upsampling_the_products_equals_products_with_the_upsampled_embedding(scheme, stride):
    scale = DepthScale(scheme, supervise_shift=False)
    embedding = torch.randn(2, scale.embedding_size(4), 3, 7)
    kernels = torch.randn(2, 5, scale.kernel_size(4))
    rows = torch.randint(0, 5, (2, (4 // stride) ** 2, 3, 7))
    fine_rows = repeated(in_image(rows.float())[:, None], stride)[:, 0].long()
    expected = select_then_dot(kernels, fine_rows, upsampled(embedding, 4), scale)
    depth_m = upsampled_depth(kernels, rows, embedding, scale, 4)
    torch.testing.assert_close(depth_m, expected, atol=1e-4, rtol=0.0)


def test_a_segments_depth_map_is_the_product_of_its_kernel_and_the_embedding():
    scale = DepthScale("T2")
    kernels, embedding = torch.randn(2, 5, 6), torch.randn(2, 4, 3, 7)
    logits = torch.einsum("bne,behw->bnhw", kernels[..., 2:], embedding)
    maps = scale.segment_depth(kernels, embedding)
    for image, row in ((0, 0), (1, 4)):
        torch.testing.assert_close(maps[image, row], scale.depth_m(logits[image, row], kernels[image, row]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scheme": "T3"}, "unknown depth scheme 'T3'; expected one of pixel, direct, T1, T2"),
        ({"min_m": 5.0, "max_m": 5.0}, "expected 0 <= minimum < maximum"),
        ({"scheme": "direct"}, "has no shift to supervise"),
    ],
)
def test_a_scale_that_makes_no_sense_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        DepthScale(**values)
