# SPDX-License-Identifier: Apache-2.0
"""Kernels come from the positions and groups that the paper names; slow obvious code says which."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from panoptic_depth_model.kernels import (
    Kernels,
    dynamic_convolution,
    fuse_things,
    region_kernels,
    side_by_side,
    sort_by_score,
    thing_kernels,
)


def clustered_kernels(seed: int, count: int = 30) -> Kernels:
    """Kernels around a few directions, so that many are nearly parallel; some rows are empty."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(6, 8, generator=generator)
    pick = torch.randint(0, 6, (count,), generator=generator)
    mask = directions[pick] + 0.2 * torch.randn(count, 8, generator=generator)
    score = torch.rand(count, generator=generator).sort(descending=True).values
    score = torch.where(score < 0.15, 0.0, score)
    category = torch.randint(0, 2, (count,), generator=generator)
    depth = torch.randn(count, 5, generator=generator)
    return Kernels(category[None], score[None], mask[None], depth[None])


def fuse_slowly(kernels: Kernels, threshold: float) -> dict[int, tuple[Tensor, Tensor]]:
    """{row that stays: (mean mask kernel, mean depth kernel)}, telling the rule one row at a time."""
    category, score, mask, depth = (part[0] for part in kernels)
    claimed_by: dict[int, int] = {}
    for i in range(len(score)):
        for j in range(i, len(score)):
            same = category[i] == category[j] and min(score[i], score[j]) > 0
            if same and F.cosine_similarity(mask[i], mask[j], dim=0) >= threshold and j not in claimed_by:
                claimed_by[j] = i
    groups: dict[int, list[int]] = {}
    for j, i in claimed_by.items():
        if claimed_by[i] == i:
            groups.setdefault(i, []).append(j)
    return {i: (mask[group].mean(0), depth[group].mean(0)) for i, group in groups.items()}


@pytest.mark.parametrize("seed", range(40))
def test_fusion_equals_the_slow_telling(seed):
    kernels = clustered_kernels(seed)
    fused, expected = fuse_things(kernels, 0.9), fuse_slowly(kernels, 0.9)
    assert (fused.score[0] > 0).nonzero().flatten().tolist() == sorted(expected)
    for row, (mask, depth) in expected.items():
        torch.testing.assert_close(fused.mask[0, row], mask)
        torch.testing.assert_close(fused.depth[0, row], depth)
        assert fused.score[0, row] == kernels.score[0, row]


def test_a_row_claimed_by_a_claimed_row_belongs_to_nobody():
    def unit(degrees: float) -> list[float]:
        return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]

    mask = torch.tensor([[unit(0), unit(20), unit(40)]])  # neighbors are similar, the ends are not
    kernels = Kernels(torch.zeros(1, 3, dtype=torch.int64), torch.tensor([[0.9, 0.8, 0.7]]), mask, mask)
    fused = fuse_things(kernels, math.cos(math.radians(25)))
    assert (fused.score > 0).tolist() == [[True, False, False]]


def test_fusion_of_a_batch_equals_fusion_of_its_images():
    singles = [clustered_kernels(seed) for seed in range(3)]
    batch = Kernels(*(torch.cat(parts) for parts in zip(*singles, strict=True)))
    fused = fuse_things(batch, 0.9)
    for i, single in enumerate(singles):
        torch.testing.assert_close(Kernels(*(part[i : i + 1] for part in fused)), fuse_things(single, 0.9))


def things_found(
    centers: list[Tensor], mask_kernels: list[Tensor], depth_kernels: list[Tensor], ids: tuple[int, ...], **options
) -> Kernels:
    settings = {"windows": (3,) * len(centers), "per_level": 100, "count": 500, "min_score": 0.01} | options
    kernels = (side_by_side(maps) for maps in (mask_kernels, depth_kernels))
    return thing_kernels(centers, *kernels, torch.tensor(ids), **settings)


def test_a_center_is_found_where_its_smoothed_map_peaks():
    centers = torch.full((1, 2, 9, 12), -9.0)
    centers[0, 1, 4, 7] = 4.0  # a person at row 4, column 7
    centers[0, 1, 4, 8] = 2.0  # its neighbor is no peak
    maps = torch.arange(9 * 12.0).reshape(1, 1, 9, 12)
    found = things_found([centers], [maps], [2 * maps], (11, 15), min_score=0.1)
    assert (found.score > 0).sum() == 1
    assert found.category[0, 0] == 15
    assert found.mask[0, 0].tolist() == [4 * 12 + 7]
    assert found.depth[0, 0].tolist() == [2 * (4 * 12 + 7)]
    probability = centers.sigmoid()[0, 1]
    expected = (probability[4, 7] + probability[3:6, 6:9].mean()) / 2
    torch.testing.assert_close(found.score[0, 0], expected)


def test_a_level_with_fewer_positions_than_asked_for_gives_them_all():
    sizes = ((2, 4), (1, 2))
    centers, mask_kernels, depth_kernels = ([torch.zeros(1, count, *size) for size in sizes] for count in (3, 5, 6))
    found = things_found(centers, mask_kernels, depth_kernels, (0, 1, 2), windows=(5, 5))
    assert found.mask.shape == (1, 10, 5)


@pytest.fixture
def pyramid() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Random center logits of three levels, and kernels that say level, row and column of their position."""
    generator = torch.Generator().manual_seed(7)
    sizes = [(12, 20), (6, 10), (3, 5)]
    centers = [3 * torch.randn(2, 4, *size, generator=generator) for size in sizes]
    places = [torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij")) for size in sizes]
    kernels = [
        torch.cat([torch.full_like(place[:1], level), place]).float().expand(2, -1, -1, -1)
        for level, place in enumerate(places)
    ]
    return centers, kernels, [-maps for maps in kernels]


def slow_peaks(logits: Tensor, window: int) -> list[tuple[float, int, list[float]]]:
    """(score, thing, [row, column]) of all peaks of a level [T, h, w] in falling score."""
    probability = logits.sigmoid()
    smooth = (probability + F.avg_pool2d(probability, window, stride=1, padding=window // 2)) / 2
    peaks = []
    for thing, row, column in torch.cartesian_prod(*map(torch.arange, smooth.shape)).tolist():
        around = smooth[thing, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        if smooth[thing, row, column] == around.max():
            peaks.append((float(smooth[thing, row, column]), thing, [float(row), float(column)]))
    return sorted(peaks, reverse=True)


@pytest.mark.parametrize(("per_level", "count"), [(100, 500), (6, 500), (100, 8)])
def test_the_best_peaks_are_found_of_those_that_are_the_best_of_their_level(pyramid, per_level, count):
    windows, ids = (3, 3, 5), (3, 5, 7, 9)
    found = things_found(*pyramid, ids=ids, windows=windows, per_level=per_level, count=count, min_score=0.3)
    for image in range(2):
        expected = sorted(
            (
                (score, ids[thing], [float(level), *place])
                for level, (logits, window) in enumerate(zip(pyramid[0], windows, strict=True))
                for score, thing, place in slow_peaks(logits[image], window)[:per_level]
                if score > 0.3
            ),
            reverse=True,
        )[:count]
        score, category, place = zip(*expected, strict=True)
        there = found.score[image] > 0
        torch.testing.assert_close(found.score[image, there], torch.tensor(score))
        assert found.category[image, there].tolist() == list(category)
        assert found.mask[image, there].tolist() == list(place)
        assert torch.equal(found.depth[image, there], -found.mask[image, there])


PROBABILITY = torch.tensor([[0.9, 0.6, 0.3, 0.1], [0.2, 0.5, 0.2, 0.8]])  # [R=2, 4 positions]
MASK_KERNELS = torch.tensor([1.0, 2.0, 4.0, 8.0])


def regions_found(*, adaptive: bool, min_score: float = 0.1, ids: tuple[int, ...] = (0, 1)) -> Kernels:
    """Category 0 wins positions 0, 1, 2 and is confident at 0 and 1; category 1 wins position 3."""
    return region_kernels(
        PROBABILITY.logit()[None],
        MASK_KERNELS[None, None],
        10 * MASK_KERNELS[None, None],
        torch.tensor(ids),
        areas=[4],
        adaptive=adaptive,
        min_probability=0.4,
        min_score=min_score,
    )


def test_adaptive_fusion_divides_confident_sums_by_the_positions_won():
    found = regions_found(adaptive=True)
    torch.testing.assert_close(found.score, torch.tensor([[1.5 / 3, 0.8]]))
    torch.testing.assert_close(found.mask[0, :, 0], torch.tensor([3.0 / 3, 8.0]))
    torch.testing.assert_close(found.depth[0, :, 0], torch.tensor([30.0 / 2, 80.0]))


def test_without_adaptive_fusion_every_won_position_counts_and_the_map_area_divides():
    found = regions_found(adaptive=False)
    torch.testing.assert_close(found.score, torch.tensor([[1.8 / 3, 0.8]]))
    torch.testing.assert_close(found.mask[0, :, 0], torch.tensor([7.0 / 4, 8.0 / 4]))
    torch.testing.assert_close(found.depth[0, :, 0], torch.tensor([70.0 / 4, 80.0 / 4]))


def test_a_region_without_enough_score_or_without_a_position_was_not_found():
    assert regions_found(adaptive=True, min_score=0.6).score.tolist() == [[0.0, pytest.approx(0.8)]]
    nowhere = region_kernels(
        torch.tensor([[[2.0], [1.0]]]),
        torch.ones(1, 1, 1),
        torch.ones(1, 1, 1),
        torch.arange(2),
        areas=[1],
        adaptive=True,
        min_probability=0.4,
        min_score=0.1,
    )
    assert nowhere.score[0, 1] == 0
    assert nowhere.mask.isfinite().all()
    assert nowhere.depth.isfinite().all()


def test_regions_that_are_equally_probable_share_a_position():
    logits = torch.tensor([[[2.0, 3.0], [2.0, -1.0]]])
    maps = torch.tensor([[[1.0, 5.0]]])
    settings = {"areas": [2], "adaptive": True, "min_probability": 0.4, "min_score": 0.1}
    found = region_kernels(logits, maps, maps, torch.arange(2), **settings)
    assert found.mask[0, :, 0].tolist() == [3.0, 1.0]  # of both positions, and of the first alone


def test_region_channels_carry_the_categories_they_are_given():
    assert regions_found(adaptive=False, ids=(-1, 80)).category.tolist() == [[-1, 80]]


def slow_region(levels: list[tuple[Tensor, Tensor]], region: int, *, adaptive: bool) -> tuple[float, Tensor, Tensor]:
    """Score, and kernels divided by all won and by confident positions, of one image's region.

    Args:
        levels: probability [R, hw] and kernels [C, hw] of every level.
    """
    found = []
    for probability, kernels in levels:
        won = [i for i in range(probability.shape[1]) if probability[:, i].argmax() == region]
        used = [i for i in won if probability[region, i] >= 0.6 or not adaptive]
        score = sum(float(probability[region, i]) for i in used) / max(len(won), 1)
        if score > 0.5:
            total = kernels[:, used].sum(dim=1)
            areas = (len(won), len(used)) if adaptive else (probability.shape[1],) * 2
            found.append((score, *(total / area for area in areas)))
    if not found:
        return 0.0, torch.zeros(len(levels[0][1])), torch.zeros(len(levels[0][1]))
    return tuple(sum(values) / len(found) for values in zip(*found, strict=True))


@pytest.mark.parametrize("adaptive", [True, False])
def test_a_region_is_averaged_over_the_levels_that_have_it(adaptive):
    """A level on which it wins no position, or too low a score, does not count."""
    generator = torch.Generator().manual_seed(5)
    sizes = ((6, 8), (3, 4), (2, 2), (1, 1))
    logits, kernels = ([2 * torch.randn(2, count, *size, generator=generator) for size in sizes] for count in (4, 3))
    for level in logits:
        level[:, 3] -= 9  # is found nowhere
    ids = torch.arange(4)
    maps = [side_by_side(each) for each in (logits, kernels, kernels)]
    areas = [height * width for height, width in sizes]
    found = region_kernels(*maps, ids, areas=areas, adaptive=adaptive, min_probability=0.6, min_score=0.5)
    for image, region in torch.cartesian_prod(torch.arange(2), ids).tolist():
        levels = [
            (level[image].sigmoid().flatten(1), maps[image].flatten(1))
            for level, maps in zip(logits, kernels, strict=True)
        ]
        score, by_won, by_used = slow_region(levels, region, adaptive=adaptive)
        assert found.score[image, region] == pytest.approx(score)
        torch.testing.assert_close(found.mask[image, region], by_won)
        torch.testing.assert_close(found.depth[image, region], by_used)
    assert (found.score[:, :3] > 0).all()
    assert (found.score[:, 3] == 0).all()


def test_sorting_keeps_rows_together():
    kernels = clustered_kernels(0)
    shuffled = Kernels(*(part[:, torch.randperm(30)] for part in kernels))
    best = sort_by_score(Kernels(kernels.category, shuffled.score, kernels.mask, kernels.depth), 4)
    for row in range(4):
        source = (shuffled.score[0] == best.score[0, row]).nonzero()[0, 0]
        torch.testing.assert_close(best.mask[0, row], kernels.mask[0, source])
    assert best.score[0].tolist() == sorted(best.score[0].tolist(), reverse=True)


def test_dynamic_convolution_is_a_1x1_convolution_per_segment():
    kernels, embedding = torch.randn(2, 3, 4), torch.randn(2, 4, 5, 6)
    expected = torch.stack(
        [F.conv2d(e[None], k[:, :, None, None])[0] for k, e in zip(kernels, embedding, strict=True)]
    )
    torch.testing.assert_close(dynamic_convolution(kernels, embedding), expected)
