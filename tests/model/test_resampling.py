# SPDX-License-Identifier: Apache-2.0
"""What is sampled where it is needed equals what is taken from maps that were upsampled whole."""

from __future__ import annotations

import pytest
import torch

from panoptic_depth_model.resampling import (
    between,
    block_sums,
    box_mean,
    interleaved,
    repeated,
    upsampled,
    upsampled_rows,
)


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("size", [(3, 5), (1, 2), (6, 1)])
def test_a_row_for_each_block_is_sampled_as_from_upsampled_maps(size, stride):
    maps = torch.randn(2, 7, *size)
    rows = torch.randint(0, 7, (2, size[0] * 4 // stride, size[1] * 4 // stride))
    fine_rows = rows.repeat_interleave(stride, 1).repeat_interleave(stride, 2)
    expected = upsampled(maps, 4).gather(1, fine_rows[:, None])[:, 0]
    torch.testing.assert_close(upsampled_rows(maps, rows, 4, stride), expected)


def test_rows_of_a_part_of_the_image_are_sampled_there():
    maps, rows = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 8, 8))
    whole = upsampled_rows(maps, rows, 4, 2)
    torch.testing.assert_close(upsampled_rows(maps, rows[:, :5, :3], 4, 2), whole[:, :10, :6])


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("size", [(3, 5), (1, 2), (6, 1)])
def test_interleaving_the_maps_between_gives_bilinear_upsampling(size, factor):
    maps = torch.randn(2, 3, *size)
    parts = [between(row, factor, 3) for row in between(maps, factor, 2)]
    channels = [interleaved([[part[:, channel] for part in row] for row in parts]) for channel in range(3)]
    torch.testing.assert_close(torch.stack(channels, dim=1) / (2 * factor) ** 2, upsampled(maps, factor))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_block_sums_are_sums_of_blocks(size):
    maps = torch.arange(2 * 8 * 12.0).view(2, 8, 12)
    expected = torch.nn.functional.avg_pool2d(maps, size) * size**2
    assert torch.equal(block_sums(maps, size), expected)


@pytest.mark.parametrize("window", [3, 5])
@pytest.mark.parametrize("size", [(9, 12), (1, 2)])
def test_a_box_mean_is_average_pooling_with_zeros_around(size, window):
    maps = torch.randn(2, 3, *size)
    expected = torch.nn.functional.avg_pool2d(maps, window, stride=1, padding=window // 2)
    torch.testing.assert_close(box_mean(maps, window), expected)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_every_value_is_repeated_as_a_block(factor):
    maps = torch.arange(24.0).view(1, 2, 3, 4)
    assert torch.equal(repeated(maps, factor), maps.repeat_interleave(factor, 2).repeat_interleave(factor, 3))
