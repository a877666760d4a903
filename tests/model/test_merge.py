# SPDX-License-Identifier: Apache-2.0
"""The static merge gives what the sequential one gives, and the cases of the papers come out as they say."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from panoptic_depth_model.merge import (
    APART,
    GROUP,
    accept_greedily,
    accept_regions,
    excess,
    first_largest,
    mask_quality,
    most_probable,
    painted,
)
from panoptic_depth_model.resampling import in_image, upsampled
from tests.model.sequential_merge import merge_sequentially

ROUNDS = 8
MAX_OVERLAP = 0.5


@dataclass(frozen=True)
class Scenes:
    """B images with T things and R regions."""

    things: Tensor  # probability [B, T, h, w]
    score: Tensor  # [B, T]
    regions: Tensor  # probability [B, R, h, w]
    found: Tensor  # [B, R] bool
    is_stuff: Tensor  # [R] bool


def at_once(scenes: Scenes, min_area: float, allow_void: bool, min_probability: float) -> tuple[Tensor, Tensor]:
    """The static merge of all images: labels [B, h, w] and which segments stay [B, T + R]."""
    masks = scenes.things > min_probability
    inside = masks.flatten(2).float()
    thing_stays = accept_greedily(inside, scenes.score, MAX_OVERLAP, ROUNDS)
    taken = (inside * thing_stays[..., None]).sum(dim=1, keepdim=True)
    region_stays = accept_regions(scenes.regions.flatten(2), scenes.found, taken, min_area) & scenes.is_stuff
    stays = torch.cat([thing_stays, region_stays], dim=1)
    if allow_void:
        return painted(masks, scenes.score, scenes.regions, scenes.found, stays), stays
    return in_image(most_probable(torch.cat([scenes.things, scenes.regions], dim=1), stays)).long(), stays


def one_by_one(scenes: Scenes, min_area: float, allow_void: bool, min_probability: float) -> tuple[Tensor, Tensor]:
    answers = [
        merge_sequentially(
            things,
            score,
            regions,
            found,
            scenes.is_stuff,
            min_probability=min_probability,
            max_overlap=MAX_OVERLAP,
            min_area=min_area,
            allow_void=allow_void,
        )
        for things, score, regions, found in zip(
            scenes.things, scenes.score, scenes.regions, scenes.found, strict=True
        )
    ]
    labels, stays = zip(*answers, strict=True)
    return torch.stack(labels), torch.stack(stays)


def boxes(generator: torch.Generator, *shape: int, size: int) -> Tensor:
    """Random boxes [*shape, size, size] bool; some come out empty."""
    low, high = (torch.rand(*shape, 2, generator=generator) * size for _ in range(2))
    top_left, bottom_right = torch.minimum(low, high), torch.maximum(low, high)
    grid = torch.arange(size)
    inside = (grid >= top_left[..., None]) & (grid < bottom_right[..., None])  # [*shape, 2, size]
    return inside[..., 0, :, None] & inside[..., 1, None, :]


def random_scenes(seed: int, count: int, things: int, regions: int, size: int = 16) -> Scenes:
    """Boxes of uneven probability on patchy regions; the first region stands for things, some were not found."""
    generator = torch.Generator().manual_seed(seed)
    inside = boxes(generator, count, things, size=size)
    noise = torch.rand(count, things, size, size, generator=generator)
    score = torch.rand(count, things, generator=generator)
    patches = torch.rand(count, regions, size // 4, size // 4, generator=generator)
    return Scenes(
        things=torch.where(inside, 0.35 + 0.65 * noise, 0.5 * noise),
        score=torch.where(score < 0.2, 0.0, score),
        regions=torch.nn.functional.interpolate(patches, size=(size, size), mode="bilinear"),
        found=torch.rand(count, regions, generator=generator) < 0.7,
        is_stuff=torch.arange(regions) > 0,
    )


def quantized(scenes: Scenes, steps: int) -> Scenes:
    """With many equal scores and probabilities."""
    things, score, regions = (
        (values * steps).round() / steps for values in (scenes.things, scenes.score, scenes.regions)
    )
    return Scenes(things, score, regions, scenes.found, scenes.is_stuff)


def assert_same(scenes: Scenes, min_area: float, allow_void: bool, min_probability: float = 0.5) -> Tensor:
    """Both merges agree; returns the labels."""
    labels, stays = at_once(scenes, min_area, allow_void, min_probability)
    expected_labels, expected_stays = one_by_one(scenes, min_area, allow_void, min_probability)
    assert torch.equal(stays, expected_stays)
    assert torch.equal(labels, expected_labels)
    return labels


@pytest.mark.parametrize("allow_void", [False, True])
@pytest.mark.parametrize(
    ("seed", "count", "things", "regions"), [(1, 400, 12, 5), (2, 300, 30, 8), (3, 100, 3, 1), (4, 20, 200, 6)]
)
def test_both_merges_agree_on_random_scenes(seed, count, things, regions, allow_void):
    scenes = random_scenes(seed, count, things, regions)
    labels = assert_same(scenes, 10, allow_void)
    assert (labels == 0).any() == (allow_void or regions == 1)
    assert labels.unique().numel() > min(things, 20) // 2


@pytest.mark.parametrize("allow_void", [False, True])
def test_both_merges_agree_where_scores_and_probabilities_are_equal(allow_void):
    assert_same(quantized(random_scenes(5, 150, 20, 6), steps=4), 10, allow_void)


@pytest.mark.parametrize("allow_void", [False, True])
@pytest.mark.parametrize("min_area", [0, 1, 257])
def test_both_merges_agree_at_the_ends_of_the_area_rule(min_area, allow_void):
    assert_same(random_scenes(6, 50, 6, 5), min_area, allow_void)


@pytest.mark.parametrize("allow_void", [False, True])
def test_both_merges_agree_on_another_mask_threshold(allow_void):
    scenes = random_scenes(7, 100, 12, 5)
    labels = assert_same(scenes, 10, allow_void, min_probability=0.4)
    assert not torch.equal(labels, assert_same(scenes, 10, allow_void, min_probability=0.5))


@pytest.mark.parametrize("allow_void", [False, True])
def test_both_merges_agree_on_masks_nested_in_each_other(allow_void):
    size, count = 32, 16
    rings = [boxes_around(size, margin) for margin in range(count)]
    for order in (rings, rings[::-1], rings[::2] + rings[1::2]):
        things, region = torch.stack(order)[None] * 0.9, torch.full((1, 1, size, size), 0.7)
        score = torch.linspace(0.9, 0.3, count)[None]
        yes = torch.ones(1, dtype=torch.bool)
        assert_same(Scenes(things, score, region, yes[None], yes), 4, allow_void)


def boxes_around(size: int, margin: int) -> Tensor:
    box = torch.zeros(size, size)
    box[margin : size - margin, margin : size - margin] = 1
    return box


@pytest.mark.parametrize("allow_void", [False, True])
def test_where_nothing_is_found_all_is_void(allow_void):
    scenes = random_scenes(8, 3, 5, 4)
    nothing = Scenes(scenes.things, torch.zeros(3, 5), scenes.regions, torch.zeros(3, 4).bool(), scenes.is_stuff)
    assert assert_same(nothing, 1, allow_void).max() == 0


@pytest.mark.parametrize("allow_void", [False, True])
def test_where_all_is_refused_all_is_void(allow_void):
    scenes = random_scenes(9, 3, 5, 4)
    empty = Scenes(scenes.things * 0.4, scenes.score, scenes.regions, scenes.found, scenes.is_stuff)
    assert assert_same(empty, 257, allow_void).max() == 0


def test_a_region_that_stands_for_things_takes_pixels_from_stuff_and_never_stays():
    regions = torch.tensor([[[[0.9, 0.9, 0.2, 0.2]], [[0.3, 0.3, 0.8, 0.8]]]])
    found, is_stuff = torch.tensor([[True, True]]), torch.tensor([False, True])
    scenes = Scenes(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1), regions, found, is_stuff)
    assert assert_same(scenes, 2, True).tolist() == [[[0, 0, 3, 3]]]
    assert assert_same(scenes, 3, True).max() == 0  # stuff wins two pixels
    assert assert_same(scenes, 2, False).tolist() == [[[3, 3, 3, 3]]]


def test_things_paint_before_regions_and_keep_what_they_painted():
    things = torch.tensor([[[[0.6, 0.6, 0.6, 0.1]], [[0.1, 0.9, 0.9, 0.9]]]])
    regions = torch.full((1, 1, 1, 4), 0.95)
    scenes = Scenes(things, torch.tensor([[0.8, 0.5]]), regions, torch.ones(1, 1).bool(), torch.tensor([True]))
    # The second thing is covered on two of its three pixels. The region has one pixel that nobody painted.
    assert assert_same(scenes, 1, True).tolist() == [[[1, 1, 1, 3]]]
    # Without void the most probable one has each pixel.
    assert assert_same(scenes, 1, False).tolist() == [[[3, 3, 3, 3]]]
    assert assert_same(scenes, 2, False).tolist() == [[[1, 1, 1, 1]]]


def spans(*limits: tuple[int, int], length: int = 40) -> Tensor:
    """Masks on a line of pixels, each from start to stop."""
    return torch.stack([(torch.arange(length) >= a) & (torch.arange(length) < b) for a, b in limits])


def both(masks: Tensor, score: Tensor, rounds: int = ROUNDS) -> tuple[list[bool], list[bool]]:
    """Which masks [T, P] stay: all at once, and one after the other."""
    static = accept_greedily(masks[None].float(), score[None], MAX_OVERLAP, rounds)[0]
    no_regions = torch.zeros(0, 1, masks.shape[1])
    _, stays = merge_sequentially(
        masks[:, None].float(),
        score,
        torch.cat([no_regions, torch.zeros(1, 1, masks.shape[1])]),
        torch.tensor([False]),
        torch.tensor([True]),
        min_probability=0.5,
        max_overlap=MAX_OVERLAP,
        min_area=1,
        allow_void=True,
    )
    return static.tolist(), stays[: len(masks)].tolist()


def test_equal_scores_are_visited_in_row_order():
    masks, score = spans((0, 10), (0, 10), (20, 30)), torch.tensor([0.5, 0.5, 0.5])
    assert both(masks, score) == ([True, False, True], [True, False, True])


def test_a_mask_inside_a_better_one_is_dropped_and_the_other_way_round_kept():
    small, large = (10, 14), (0, 40)
    assert both(spans(large, small), torch.tensor([0.9, 0.8])) == ([True, False], [True, False])
    assert both(spans(small, large), torch.tensor([0.9, 0.8])) == ([True, True], [True, True])


def test_a_mask_exactly_half_covered_stays():
    assert both(spans((0, 10), (5, 15)), torch.tensor([0.9, 0.8])) == ([True, True], [True, True])
    assert both(spans((0, 10), (4, 14)), torch.tensor([0.9, 0.8])) == ([True, False], [True, False])


def test_a_dropped_mask_covers_nothing():
    # The second falls to the first, so the third is free but for 2 pixels.
    masks = spans((0, 20), (4, 24), (18, 28))
    assert both(masks, torch.tensor([0.9, 0.8, 0.7])) == ([True, False, True], [True, False, True])


def test_overlap_counts_the_union_of_better_masks():
    masks = spans((0, 10), (10, 20), (6, 14))  # the third is half under each of the others, so wholly covered
    assert both(masks, torch.tensor([0.9, 0.8, 0.7])) == ([True, True, False], [True, True, False])


@pytest.mark.parametrize("score", [torch.zeros(3), torch.tensor([0.0, 0.9, 0.0])])
def test_a_row_without_score_or_pixels_is_never_accepted(score):
    masks = spans((0, 10), (5, 5), (20, 30))
    assert both(masks, score) == ([False] * 3, [False] * 3)


def test_after_r_rounds_the_best_r_masks_are_settled_however_long_the_chain():
    masks = spans(*((3 * i, 3 * i + 10) for i in range(30)), length=100)
    # Each falls to the one before it if that stays.
    score = torch.linspace(0.9, 0.3, 30)
    for rounds in range(1, 31):
        static, sequential = both(masks, score, rounds)
        assert static[:rounds] == sequential[:rounds]


def test_a_mask_is_where_it_is_above_its_threshold_by_however_little():
    least = torch.tensor([0.0, 0.4, 0.5, 0.9])
    for place in least.tolist():
        probability = torch.stack([least, torch.nextafter(least, torch.tensor(1.0)), least.new_ones(4)])[None]
        assert torch.equal(excess(probability, place).ceil(), (probability > place).float())


def test_mask_quality_is_the_mean_inside_the_mask():
    probability = torch.tensor([[[0.6, 0.8, 0.1, 0.5], [0.1, 0.2, 0.3, 0.4]]])
    for least, expected in ((0.5, [0.7, 0.0]), (0.25, [1.9 / 3, 0.35])):
        torch.testing.assert_close(mask_quality(excess(probability, least), least), torch.tensor([expected]))


def test_a_region_needs_enough_pixels_that_no_thing_paints():
    three_regions = [[0.9, 0.9, 0.9, 0.2], [0.1, 0.1, 0.1, 0.8], [0.2, 0.2, 0.2, 0.9]]
    probability = torch.tensor([three_regions])  # [1, R, 4 pixels]
    found = torch.tensor([[True, True, False]])  # the third wins nowhere: it was not found
    taken = torch.tensor([[[2.0, 0.0, 0.0, 0.0]]])  # by two things
    assert accept_regions(probability, found, taken, 1).tolist() == [[True, True, False]]
    assert accept_regions(probability, found, taken, 2).tolist() == [[True, False, False]]
    assert accept_regions(probability, found, taken, 3).tolist() == [[False, False, False]]


def test_regions_that_are_equally_probable_share_a_pixel():
    probability = torch.tensor([[[0.9, 0.8], [0.9, 0.1], [0.2, 0.3]]])
    found, taken = torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 1, 2)
    assert accept_regions(probability, found, taken, 1).tolist() == [[True, True, False]]


@pytest.mark.parametrize("rows", [16, 64, 112, 128])
def test_the_first_of_the_largest_rows_wins(rows):
    generator = torch.Generator().manual_seed(rows)
    fine = torch.rand(2, rows, 5, 9, generator=generator)
    for values in (fine, (4 * fine).round(), torch.zeros_like(fine), -fine):
        groups = APART * values.unflatten(1, (-1, GROUP)).flatten(0, 1)
        assert torch.equal(first_largest(groups, batch=2)[:, 0], values.argmax(dim=1) + 1.0)


@pytest.mark.parametrize("rows", [1, 7, 16, 17, 61])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_the_most_probable_segment_is_that_of_the_upsampled_probabilities(factor, rows):
    generator = torch.Generator().manual_seed(factor)
    probability, stays = torch.rand(3, rows, 6, 7, generator=generator), torch.rand(3, rows, generator=generator) < 0.5
    probability[:, :, :, 3:] *= 1e-3  # what does not stay loses to what hardly shows
    stays[0, rows // 2], stays[1] = True, False
    labels = in_image(most_probable(probability, stays, factor)).long()
    expected = torch.where(stays[..., None, None], upsampled(probability, factor), -1.0).argmax(dim=1) + 1
    expected[~stays.any(dim=1)] = 0
    assert torch.equal(labels, expected)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_only_segments_that_stay_get_pixels_however_improbable_they_are(factor):
    generator = torch.Generator().manual_seed(factor)
    probability = (100 * torch.rand(1, 40, 9, 9, generator=generator) - 110).sigmoid()
    stays = torch.rand(1, 40, generator=generator) < 0.2
    labels = most_probable(probability, stays, factor).unique().tolist()
    assert set(labels) <= set((stays[0].nonzero()[:, 0] + 1).tolist())


def test_of_equally_probable_segments_the_first_that_stays_wins():
    stays = torch.tensor([[False, True, True] + [True] * 20])
    for probability in (0.0, 0.5, 1.0):
        assert (most_probable(torch.full((1, 23, 3, 4), probability), stays, 2) == 2).all()
