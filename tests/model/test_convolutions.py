# SPDX-License-Identifier: Apache-2.0
"""Taps move as their offsets say; a slow loop over positions and torchvision's operator are the references."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

from panoptic_depth_model.convolutions import (
    TAPS,
    DeformableConv,
    convolve_by_torchvision,
    convolve_on_grid,
    group_norm,
    use_convolution,
    with_coordinates,
)


def sample(channel: Tensor, y: float, x: float) -> float:
    """Bilinear value of [h, w] at (y, x); 0 outside."""
    top, left = math.floor(y), math.floor(x)
    total = 0.0
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < channel.shape[0] and 0 <= column < channel.shape[1]:
                total += float(channel[row, column]) * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def convolve_slowly(conv: DeformableConv, x: Tensor, output: int, row: int, column: int) -> float:
    """One output value for one image [C, h, w], told tap by tap."""
    raw = torch.nn.functional.conv2d(x[None], conv.offsets.weight, conv.offsets.bias, padding=1)[0, :, row, column]
    total = 0.0 if conv.bias is None else float(conv.bias[output])
    for tap in range(TAPS):
        y = row + tap // 3 - 1 + float(raw[2 * tap])
        x_position = column + tap % 3 - 1 + float(raw[2 * tap + 1])
        share = float(raw[2 * TAPS + tap].sigmoid())
        for channel in range(x.shape[0]):
            weight = float(conv.weight[output, channel, tap // 3, tap % 3])
            total += weight * share * sample(x[channel], y, x_position)
    return total


def wandering(in_channels: int, out_channels: int, bias: bool) -> DeformableConv:
    """With offsets of a few pixels, so that taps leave the map at its edges."""
    torch.manual_seed(0)
    conv = DeformableConv(in_channels, out_channels, bias)
    with torch.no_grad():
        conv.offsets.weight.normal_(std=0.5)
        conv.offsets.bias.uniform_(-2, 2)
        if conv.bias is not None:
            conv.bias.uniform_(-1, 1)
    return conv


@pytest.mark.parametrize("convolve", [None, convolve_by_torchvision, convolve_on_grid])
@pytest.mark.parametrize("bias", [True, False])
def test_a_deformable_convolution_equals_the_loop_over_its_taps(bias, convolve):
    conv, x = wandering(3, 2, bias), torch.randn(2, 3, 6, 7)
    if convolve:
        use_convolution(conv, convolve)
    with torch.no_grad():
        out = conv(x)
        for image, output, row, column in ((0, 0, 0, 0), (0, 1, 5, 6), (1, 0, 2, 3), (1, 1, 4, 0), (1, 1, 3, 5)):
            expected = convolve_slowly(conv, x[image], output, row, column)
            assert out[image, output, row, column].item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("height", "width"), [(37, 90), (130, 130)])
def test_strips_join_to_the_whole_map(height, width):
    """Of three strips and of fifteen, the last of which has fewer rows."""
    conv, x = wandering(3, 2, True), torch.randn(2, 3, height, width)
    with torch.no_grad():
        whole = conv(x)
        use_convolution(conv, convolve_on_grid)
        torch.testing.assert_close(conv(x), whole, atol=1e-4, rtol=1e-4)


def test_gradients_are_those_of_torchvisions_operator():
    conv = wandering(4, 5, True)
    x, y = (torch.randn(2, 4, 6, 7).requires_grad_() for _ in range(2))
    y.data.copy_(x.data)
    direction = torch.randn(2, 5, 6, 7)

    def gradients(out: Tensor, image: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((out * direction).sum(), (image, *conv.parameters()))

    offsets, shares = conv.offsets(y).split([2 * TAPS, TAPS], dim=1)
    reference = deform_conv2d(y, offsets, conv.weight, conv.bias, padding=1, mask=shares.sigmoid())
    out = conv(x)
    torch.testing.assert_close(out, reference, atol=1e-4, rtol=1e-4)
    for ours, theirs in zip(gradients(out, x), gradients(reference, y), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_without_offsets_a_deformable_convolution_is_a_plain_one_times_the_tap_weight():
    conv, x = DeformableConv(3, 4, bias=False), torch.randn(1, 3, 5, 8)
    with torch.no_grad():
        conv.offsets.weight.zero_()
        conv.offsets.bias.zero_()  # sigmoid(0) = 0.5
        expected = torch.nn.functional.conv2d(x, conv.weight, padding=1) / 2
        torch.testing.assert_close(conv(x), expected, atol=1e-5, rtol=1e-5)


def test_a_network_that_has_diverged_says_so_with_nan():
    conv, x = wandering(3, 2, True), torch.randn(1, 3, 6, 7)
    x[0, 0, 3, 3] = torch.nan
    out = conv(x)
    assert out[0, :, 3, 3].isnan().all()
    assert out.isfinite().any()


def test_coordinates_run_from_minus_one_to_one_row_first():
    appended = with_coordinates(torch.zeros(2, 3, 3, 5))[:, 3:]
    assert appended.shape == (2, 2, 3, 5)
    assert appended[1, 0, :, 2].tolist() == [-1.0, 0.0, 1.0]
    assert appended[1, 1, 0].tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]


def test_groups_have_eight_channels_as_in_the_paper():
    assert group_norm(256).num_groups == 32
    assert group_norm(64).num_groups == 8
