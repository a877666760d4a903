# SPDX-License-Identifier: Apache-2.0
"""What is sampled where it is needed equals what is taken from maps that were upsampled whole."""

from __future__ import annotations

import pytest
import torch

from panoptic_depth_model.resampling import (
    between,
    block_sums,
    box_mean,
    in_blocks,
    in_cells,
    in_image,
    repeated,
    upsampled,
    upsampled_rows,
)


@pytest.mark.parametrize("blocks", [1, 2, 4])
@pytest.mark.parametrize("size", [(3, 5), (1, 2), (6, 1)])
def test_a_row_for_each_block_is_sampled_as_from_upsampled_maps(size, blocks):
    maps, rows = torch.randn(2, 7, *size), torch.randint(0, 7, (2, blocks**2, *size))
    fine_rows = repeated(in_image(rows.float())[:, None], 4 // blocks).long()
    expected = upsampled(maps, 4).gather(1, fine_rows)[:, 0]
    torch.testing.assert_close(in_image(upsampled_rows(maps, rows, 4)), expected)


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("size", [(3, 5), (1, 2), (6, 1)])
def test_the_maps_between_are_those_of_bilinear_upsampling_but_for_a_factor_at_the_borders(size, factor):
    maps = torch.randn(2, 3, *size)
    fine, ones = (upsampled_between(each, factor) for each in (maps, torch.ones_like(maps)))
    torch.testing.assert_close(fine / ones, upsampled(maps, factor))


def upsampled_between(maps: torch.Tensor, factor: int) -> torch.Tensor:
    cells = torch.stack(list(between(maps, factor)), dim=2)  # [B, C, factor**2, h, w]
    return torch.stack([in_image(channel) for channel in cells.unbind(dim=1)], dim=1)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_the_maps_between_are_scaled_by_a_whole_number_within_the_borders(factor):
    maps = torch.rand(1, 2, 3, 4)
    for scaled, plain in zip(between(maps, factor, scale=2.0**100), between(maps, factor), strict=True):
        assert torch.equal(scaled, 2.0**100 * plain)
    inner = upsampled_between(torch.ones(1, 1, 3, 3), factor)[0, 0, factor : 2 * factor, factor : 2 * factor]
    assert torch.equal(inner, torch.full_like(inner, 1 if factor == 1 else 4 * factor**2))


def test_a_map_in_cells_has_a_pixel_of_every_cell_in_each_channel():
    image = torch.arange(24).view(1, 4, 6)
    cells = in_cells(image, 2)
    assert cells[0, 1].tolist() == [[1, 3, 5], [13, 15, 17]]  # row 0, column 1 of every 2 x 2
    assert cells[0, 2].tolist() == [[6, 8, 10], [18, 20, 22]]
    assert torch.equal(in_image(cells), image.float())


def test_pixels_of_a_cell_lie_in_blocks():
    cells = in_cells(torch.arange(64).view(1, 8, 8), 4)  # 2 x 2 cells of 4 x 4 pixels
    assert in_blocks(cells, 2)[0, 1, :, 0, :, 0, 0].tolist() == [[16, 17], [24, 25]]  # below, to the left


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
