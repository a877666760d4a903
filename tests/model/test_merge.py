# SPDX-License-Identifier: Apache-2.0
"""The static merge gives what the sequential one gives, and the cases of the papers come out as they say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from panoptic_depth_model.merge import accept_greedily, accept_sequentially, accept_stuff, mask_quality

ROUNDS = 8


def rectangles(generator: torch.Generator, count: int, size: int = 24) -> Tensor:
    """Random boxes [count, size * size] bool; some come out empty."""
    low, high = (torch.rand(count, 2, generator=generator) * size for _ in range(2))
    top_left, bottom_right = torch.minimum(low, high), torch.maximum(low, high)
    grid = torch.arange(size)
    inside = (grid >= top_left[..., None]) & (grid < bottom_right[..., None])  # [count, 2, size]
    return (inside[:, 0, :, None] & inside[:, 1, None, :]).flatten(1)


def both(masks: Tensor, score: Tensor, rounds: int = ROUNDS) -> tuple[list[bool], list[bool]]:
    static = accept_greedily(masks[None], score[None], 0.5, rounds)[0]
    return static.tolist(), accept_sequentially(masks[None], score[None], 0.5)[0].tolist()


def spans(*limits: tuple[int, int], length: int = 40) -> Tensor:
    """Masks on a line of pixels, each from start to stop."""
    return torch.stack([(torch.arange(length) >= a) & (torch.arange(length) < b) for a, b in limits])


@pytest.mark.parametrize("count", [1, 5, 20, 60])
def test_the_static_merge_equals_the_sequential_one_on_random_boxes(count):
    generator = torch.Generator().manual_seed(count)
    masks = torch.stack([rectangles(generator, count) for _ in range(250)])
    score = torch.rand(250, count, generator=generator)
    score[score < 0.2] = 0.0
    assert torch.equal(accept_greedily(masks, score, 0.5, ROUNDS), accept_sequentially(masks, score, 0.5))


def test_equal_scores_are_visited_in_row_order():
    masks, score = spans((0, 10), (0, 10), (20, 30)), torch.tensor([0.5, 0.5, 0.5])
    assert both(masks, score) == ([True, False, True], [True, False, True])


def test_many_equal_scores_merge_alike():
    generator = torch.Generator().manual_seed(1)
    masks = torch.stack([rectangles(generator, 30) for _ in range(100)])
    score = torch.randint(0, 4, (100, 30), generator=generator) / 4
    assert torch.equal(accept_greedily(masks, score, 0.5, ROUNDS), accept_sequentially(masks, score, 0.5))


def test_a_mask_inside_a_better_one_is_dropped_and_the_other_way_round_kept():
    small, large = (10, 14), (0, 40)
    assert both(spans(large, small), torch.tensor([0.9, 0.8]))[0] == [True, False]
    assert both(spans(small, large), torch.tensor([0.9, 0.8]))[0] == [True, True]


def test_a_mask_exactly_half_covered_stays():
    assert both(spans((0, 10), (5, 15)), torch.tensor([0.9, 0.8]))[0] == [True, True]
    assert both(spans((0, 10), (4, 14)), torch.tensor([0.9, 0.8]))[0] == [True, False]


def test_a_dropped_mask_covers_nothing():
    # The second falls to the first, so the third is free but for 2 pixels.
    masks = spans((0, 20), (4, 24), (18, 28))
    assert both(masks, torch.tensor([0.9, 0.8, 0.7])) == ([True, False, True], [True, False, True])


def test_overlap_counts_the_union_of_better_masks():
    masks = spans((0, 10), (10, 20), (6, 14))  # the third is half under each of the others, so wholly covered
    assert both(masks, torch.tensor([0.9, 0.8, 0.7]))[0] == [True, True, False]


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


def test_mask_quality_is_the_mean_inside_the_mask():
    probability = torch.tensor([[[0.6, 0.8, 0.1, 0.5], [0.1, 0.2, 0.3, 0.4]]])
    torch.testing.assert_close(mask_quality(probability), torch.tensor([[0.7, 0.0]]))


def test_stuff_needs_enough_pixels_that_no_thing_paints():
    three_categories = [[0.9, 0.9, 0.9, 0.2], [0.1, 0.1, 0.1, 0.8], [0.2, 0.2, 0.2, 0.9]]
    probability = torch.tensor([three_categories])  # [1, K, 4 pixels]
    found = torch.tensor([[True, True, False]])  # the third category wins nowhere: it was not found
    painted = torch.tensor([[[True, False, False, False]]])
    assert accept_stuff(probability, found, painted, 1).tolist() == [[True, True, False]]
    assert accept_stuff(probability, found, painted, 2).tolist() == [[True, False, False]]
    assert accept_stuff(probability, found, painted, 3).tolist() == [[False, False, False]]
