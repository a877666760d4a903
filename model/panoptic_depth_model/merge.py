# SPDX-License-Identifier: Apache-2.0
"""From overlapping masks to one segment per pixel, in static shapes.

Letters: B images, T things, R regions, N = T + R segments (things first), P pixels, h w map size. Things come with a
score, regions with a flag whether they were found. A region may stand for things as well: it then competes for
pixels and is never accepted.

The rules (PanopticFCN after Panoptic FPN): things are visited in falling score and dropped where accepted things
already cover most of them; a region is accepted if it wins enough of what they leave. Then, in a depth-aware network,
the most probable accepted segment takes each pixel; otherwise things keep what they painted, the rest is for regions
where they win, and void is what nobody has.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from panoptic_depth_model.resampling import between, interleaved

GROUP = 8  # rows that `first_largest` compares at once


def accept_greedily(masks: Tensor, score: Tensor, max_overlap: float, rounds: int) -> Tensor:
    """Which masks survive a visit in falling score, where one that is mostly covered by survivors is dropped.

    The visit is sequential as written. Here all ranks are decided at once, and again with the last round's
    answer: rank i looks only at lower ranks, so round r leaves at least ranks 0..r-1 final, and in practice a
    few rounds settle all of them.

    Args:
        masks: [B, T, h, w] bool.
        score: [B, T]; 0 for a row that takes no part. Equal scores are visited in row order.
        max_overlap: the largest covered share of its own area that a mask may have.
        rounds: see above; ranks beyond it may differ from the sequential visit where masks form longer
            chains, each dropped because of the one before it.

    Returns:
        accepted [B, T] bool.
    """
    precedence = (masks.shape[1] - ranks(score)).to(score.dtype)  # [B, T], T for the first that is visited
    inside = masks.flatten(2).to(score.dtype)
    area = inside.sum(dim=2)
    own = inside * precedence[..., None]  # [B, T, P], 0 outside of the mask
    valid = (score > 0) & (area > 0)
    least = area - max_overlap * area  # that must not be covered
    accepted = valid
    for _ in range(rounds):
        painter = highest(masks, torch.where(accepted, precedence, 0.0))  # [B, 1, P]
        uncovered = (own >= painter.clamp(min=1)).to(score.dtype).sum(dim=2)
        accepted = valid & (uncovered >= least)
    return accepted


def highest(masks: Tensor, value: Tensor) -> Tensor:
    """The highest of values [B, T] >= 0 whose mask, of [B, T, h, w] bool, has the pixel: [B, 1, h * w]; 0 without any.

    The reduced dimension is the last: ONNX Runtime is twenty times slower over another one. And it multiplies a line of
    the image with repeated values twice as fast as a pixel with the values, as few numbers are a short loop.
    """
    width = masks.shape[3]
    across = masks.permute(0, 2, 3, 1).flatten(2)  # [B, h, w * T]
    products = across * value.repeat(1, width)[:, None, :]
    return products.unflatten(2, (width, -1)).amax(dim=3).flatten(1)[:, None, :]


def ranks(score: Tensor) -> Tensor:
    """Place in falling score [B, T] int64, from 0; equal scores in row order."""
    row = torch.arange(score.shape[1], device=score.device)
    ahead = score[:, None, :] > score[:, :, None]  # [B, i, j]: j is visited before i
    tied = (score[:, None, :] == score[:, :, None]) & (row[None, :] < row[:, None])
    return (ahead | tied).sum(dim=2)


def mask_quality(probability: Tensor, min_probability: float) -> Tensor:
    """Mean probability [B, T] inside each mask of [B, T, ...], where it is > `min_probability`; 0 for an empty mask."""
    inside = (probability > min_probability).flatten(2).to(probability.dtype)
    return (probability.flatten(2) * inside).sum(dim=2) / inside.sum(dim=2).clamp(min=1)


def accept_regions(probability: Tensor, found: Tensor, painted: Tensor, min_area: float) -> Tensor:
    """Which regions win at least `min_area` pixels that no accepted thing paints, [B, R] bool.

    Args:
        probability: [B, R, P].
        found: [B, R] bool.
        painted: [B, 1, P] bool.
    """
    region = torch.arange(probability.shape[1], device=probability.device)
    winner = torch.where(found[..., None], probability, 0.0).argmax(dim=1, keepdim=True)
    area = ((winner == region[:, None]) & ~painted).to(probability.dtype).sum(dim=2)
    return found & (area >= min_area)


def most_probable(probability: Tensor, stays: Tensor, factor: int = 1) -> Tensor:
    """The most probable segment that stays, as row + 1; 0 everywhere when none stays.

    Args:
        probability: [B, M, h, w]; rows beyond N take no part.
        stays: [B, N] bool.
        factor: how many times finer the answer's grid is than that of the probabilities, between which it is
            linear.

    Returns:
        [B, h * factor, w * factor] int64; of equal probabilities the first row.
    """
    rows, segments = probability.shape[1], stays.shape[1]
    lowered = F.pad(torch.where(stays, 0.0, -2.0), (0, rows - segments), value=-2.0)
    shown = probability + lowered[..., None, None]
    if rows % GROUP:  # once for all finer maps
        shown = F.pad(shown, (0, 0, 0, 0, 0, -rows % GROUP), value=-2.0)
    # The finer maps are compared before they are interleaved, which leaves labels alone to interleave.
    parts = [between(row, factor, 3) for row in between(shown, factor, 2)] if factor > 1 else [[shown]]
    best = interleaved([[first_largest(part) for part in row] for row in parts])
    return torch.where(stays.any(dim=1)[:, None, None], best + 1, 0)


def first_largest(values: Tensor) -> Tensor:
    """The row [B, h, w] int64 of the largest of values [B, N, h, w], of equal ones the first; N in whole groups.

    Argmax in two steps: the first group that has the largest value, then the first place in it. Maxima of whole maps
    are fast in every engine. Argmax over all rows takes ONNX Runtime four times as long, and OpenVINO six times where
    the rows are the last dimension. TensorRT-RTX needs over ten minutes to build a tournament of pairs.
    """
    largest = values[:, ::GROUP]
    for place in range(1, GROUP):
        largest = torch.maximum(largest, values[:, place::GROUP])
    start = largest.argmax(dim=1, keepdim=True) * GROUP
    group = values.gather(1, start + torch.arange(GROUP, device=values.device)[:, None, None])
    return (start + group.argmax(dim=1, keepdim=True))[:, 0]


def painted(masks: Tensor, score: Tensor, regions: Tensor, found: Tensor, stays: Tensor) -> Tensor:
    """The segment that has painted each pixel, as row + 1 [B, h, w]; 0 is void.

    Args:
        masks: [B, T, h, w] bool, of things.
        score: [B, T] of things.
        regions: probability [B, R, h, w].
        found: [B, R] bool; regions that were found compete also where they do not stay.
        stays: [B, T + R] bool, things first.
    """
    things = score.shape[1]
    rank = torch.where(masks & stays[:, :things, None, None], ranks(score)[..., None, None], things)
    winner = torch.where(found[..., None, None], regions, 0.0).argmax(dim=1)
    free = torch.where(stays[:, things:].gather(1, winner.flatten(1)).view_as(winner), things + winner + 1, 0)
    return torch.where(rank.amin(dim=1) < things, rank.argmin(dim=1) + 1, free)
