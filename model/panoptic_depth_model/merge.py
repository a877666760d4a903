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

from panoptic_depth_model.resampling import between

GROUP = 16  # rows that `first_largest` compares at once
APART = 2.0**100  # by which probabilities are stretched for it


def accept_greedily(inside: Tensor, score: Tensor, max_overlap: float, rounds: int) -> Tensor:
    """Which masks survive a visit in falling score, where one that is mostly covered by survivors is dropped.

    The visit is sequential as written. Here all ranks are decided at once, and again with the last round's
    answer: rank i looks only at lower ranks, so round r leaves at least ranks 0..r-1 final, and in practice a
    few rounds settle all of them.

    Args:
        inside: [B, T, P], 1 inside of a mask, else 0.
        score: [B, T]; 0 for a row that takes no part. Equal scores are visited in row order.
        max_overlap: the largest covered share of its own area that a mask may have.
        rounds: see above; ranks beyond it may differ from the sequential visit where masks form longer
            chains, each dropped because of the one before it.

    Returns:
        accepted [B, T] bool.
    """
    area = inside.sum(dim=2)
    accepted = (score > 0) & (area > 0)
    least = torch.where(accepted, area - max_overlap * area, torch.inf)  # that must not be covered
    first = ahead(score).to(score.dtype)
    own = torch.eye(score.shape[1], dtype=score.dtype, device=score.device)
    for _ in range(rounds):
        # 1 where a pixel is in the mask and in no accepted one that is visited first, otherwise 0 or less: whole
        # numbers, which a product of any precision gets right.
        free = (own - first * accepted.to(score.dtype)[:, None]) @ inside
        accepted = free.relu().sum(dim=2) >= least
    return accepted


def ahead(score: Tensor) -> Tensor:
    """Whether row j is visited before row i, [B, i, j] bool: it has more of the score [B, T], or as much and j < i."""
    row = torch.arange(score.shape[1], device=score.device)
    tied = (score[:, None, :] == score[:, :, None]) & (row[None, :] < row[:, None])
    return (score[:, None, :] > score[:, :, None]) | tied


def excess(probability: Tensor, min_probability: float) -> Tensor:
    """How much a mask is above `min_probability` at each pixel.

    Its ceiling is 1 inside of the mask and 0 outside, which engines compute faster than a comparison made a number.
    """
    return (probability - min_probability).relu()


def mask_quality(above: Tensor, min_probability: float) -> Tensor:
    """Mean probability [B, T] inside each mask; 0 for an empty one. `above` is the `excess` [B, T, ...]."""
    above = above.flatten(2)
    area = above.ceil().sum(dim=2)
    return torch.where(area > 0, min_probability + above.sum(dim=2) / area.clamp(min=1), 0.0)


def accept_regions(probability: Tensor, found: Tensor, taken: Tensor, min_area: float) -> Tensor:
    """Which regions win at least `min_area` pixels that no accepted thing paints, [B, R] bool.

    Equals share a pixel: telling them apart, as `first_largest` does, costs more than their few pixels matter.

    Args:
        probability: [B, R, P].
        found: [B, R] bool.
        taken: how many accepted things have a pixel in their masks [B, 1, P].
    """
    shown = probability * found[..., None].to(probability.dtype)
    to_win = shown.amax(dim=1, keepdim=True) + 2 * taken  # out of reach where a thing has the pixel
    area = (shown == to_win).to(probability.dtype).sum(dim=2)
    return found & (area >= min_area)


def most_probable(probability: Tensor, stays: Tensor, factor: int = 1) -> Tensor:
    """The most probable segment that stays, as row + 1; 0 everywhere when none stays.

    Args:
        probability: [B, M, h, w]; rows beyond N take no part.
        stays: [B, N] bool.
        factor: how many times finer the answer's grid is than that of the probabilities, between which it is
            linear.

    Returns:
        in cells [B, factor**2, h, w], as floats; of equal probabilities the first row.
    """
    batch, rows = probability.shape[:2]
    # From 2**-40 upwards, values that differ at all are then as far apart as `first_largest` asks for.
    raised = F.pad(torch.where(stays, 2.0**-40, -2.0), (0, rows - stays.shape[1]), value=-2.0)
    shown = probability + raised[..., None, None]
    if rows % GROUP:
        shown = F.pad(shown, (0, 0, 0, 0, 0, -rows % GROUP), value=-2.0)
    groups = shown.unflatten(1, (-1, GROUP)).flatten(0, 1)
    parts = between(groups, factor, scale=APART)
    labels = torch.cat([first_largest(part, batch) for part in parts], dim=1)
    last = stays.shape[1] * stays.to(labels.dtype).amax(dim=1)[:, None, None, None]  # 0 where none stays
    # Of a network that overflowed anything may come out; no label may point outside of the table.
    return torch.where((labels > 0) & (labels <= last), labels, 0.0)


def first_largest(groups: Tensor, batch: int) -> Tensor:
    """The row + 1, [B, 1, h, w], of the largest of values [B * G, GROUP, h, w], of equal ones the first; as floats.

    By maxima and differences: argmax is a sort in TensorRT and in OpenVINO, which takes them several times as long. In
    groups, as ONNX Runtime takes several times as long for the maximum of all rows at once. Values must be equal or
    further apart than there are rows, or else a row between them may come out.
    """
    count = len(groups) // batch * GROUP
    largest = groups.amax(dim=1, keepdim=True).unflatten(0, (batch, -1))  # [B, G, 1, h, w]
    largest = largest.amax(dim=1, keepdim=True).expand_as(largest).flatten(0, 1)
    mark = torch.arange(count - 1, -1, -1, dtype=groups.dtype, device=groups.device).view(-1, GROUP, 1, 1)
    # Of the largest rows the mark is left, the others are far below.
    first = (groups - largest + mark.repeat(batch, 1, 1, 1)).amax(dim=1, keepdim=True)
    return count - first.unflatten(0, (batch, -1)).amax(dim=1)


def painted(masks: Tensor, score: Tensor, regions: Tensor, found: Tensor, stays: Tensor) -> Tensor:
    """The segment that has painted each pixel, as row + 1 [B, h, w]; 0 is void. For networks without depth alone.

    Args:
        masks: [B, T, h, w] bool, of things.
        score: [B, T] of things.
        regions: probability [B, R, h, w].
        found: [B, R] bool; regions that were found compete also where they do not stay.
        stays: [B, T + R] bool, things first.
    """
    things = score.shape[1]
    ranks = ahead(score).sum(dim=2)
    rank = torch.where(masks & stays[:, :things, None, None], ranks[..., None, None], things)
    winner = torch.where(found[..., None, None], regions, 0.0).argmax(dim=1)
    free = torch.where(stays[:, things:].gather(1, winner.flatten(1)).view_as(winner), things + winner + 1, 0)
    return torch.where(rank.amin(dim=1) < things, rank.argmin(dim=1) + 1, free)
