# SPDX-License-Identifier: Apache-2.0
"""From dense location and kernel maps to a kernel per segment (PanopticDepth, section 3.1), in static shapes.

Letters: B images, N segments, T things, R region channels, C mask kernel size, D depth kernel size, L pyramid levels,
h w size of a level, P positions of all levels. A segment that does not exist has score 0; every shape depends on the
image size alone, so the exported graph needs no data-dependent operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from panoptic_depth_model.resampling import box_mean


class Kernels(NamedTuple):
    """Generated kernels of N segments an image; a row with score 0 is empty."""

    category: Tensor  # [B, N] int64
    score: Tensor  # [B, N]
    mask: Tensor  # [B, N, C]
    depth: Tensor  # [B, N, D]


def side_by_side(levels: Sequence[Tensor]) -> Tensor:
    """The positions of all levels in one row: [B, C, P] of maps [B, C, h, w], each level with its own h and w."""
    return torch.cat([level.flatten(2) for level in levels], dim=2)


def areas_of(levels: Sequence[Tensor]) -> list[int]:
    """Positions of every level, of its maps [B, C, h, w]."""
    return [level.shape[2] * level.shape[3] for level in levels]


def thing_kernels(
    center_logits: Sequence[Tensor],
    mask_kernels: Tensor,
    depth_kernels: Tensor,
    thing_ids: Tensor,
    *,
    windows: Sequence[int],
    per_level: int,
    count: int,
    min_score: float,
) -> Kernels:
    """Kernels at the best `count` center peaks, in falling score; no more than `per_level` are of one pyramid level.

    Args:
        center_logits: [B, T, h, w] of every level.
        mask_kernels, depth_kernels: [B, C or D, P], all levels side by side.
        thing_ids: [T], the categories of the center channels.
        windows: of `center_peaks`, for every level.
    """
    areas = areas_of(center_logits)
    peaks = [
        center_peaks(logits, window).flatten(1).topk(min(per_level, area), dim=1)
        for logits, window, area in zip(center_logits, windows, areas, strict=True)
    ]
    # Of M candidates the score and the place in their level.
    candidate, index = (torch.cat(parts, dim=1) for parts in zip(*peaks, strict=True))  # [B, M]
    counts = [score.shape[1] for score, _ in peaks]
    starts = [sum(areas[:number]) for number in range(len(areas))]
    area, start = (of_level(values, counts, index.device) for values in (areas, starts))  # [M]
    # Comparisons, for engines divide integers as floats: OpenVINO takes a few quotients for the next lower number.
    channel = torch.arange(1, len(thing_ids), device=index.device)
    thing = (index[..., None] >= area[:, None] * channel).sum(dim=2)

    score, row = candidate.topk(min(count, candidate.shape[1]), dim=1)
    position = (start + index - thing * area).gather(1, row)
    return Kernels(
        category=thing_ids.index_select(0, thing.gather(1, row).flatten()).view_as(row),
        score=torch.where(score > min_score, score, 0.0),
        mask=gather_positions(mask_kernels, position),
        depth=gather_positions(depth_kernels, position),
    )


def of_level(values: Sequence[int], counts: Sequence[int], device: torch.device) -> Tensor:
    """Its level's value for each of so many entries of every level, side by side [sum of counts] int64."""
    return torch.cat([torch.full((n,), value, device=device) for value, n in zip(values, counts, strict=True)])


def center_peaks(center_logits: Tensor, window: int) -> Tensor:
    """Score [B, T, h, w] of the peaks of one level, 0 elsewhere.

    A center's probability is averaged with that of its `window` x `window` neighborhood, then kept where it
    is the maximum of its 3x3.
    """
    probability = center_logits.sigmoid()
    smooth = (probability + box_mean(probability, window)) / 2
    return torch.where(F.max_pool2d(smooth, 3, stride=1, padding=1) == smooth, smooth, 0.0)


def region_kernels(
    region_logits: Tensor,
    mask_kernels: Tensor,
    depth_kernels: Tensor,
    region_ids: Tensor,
    *,
    areas: Sequence[int],
    adaptive: bool,
    min_probability: float,
    min_score: float,
) -> Kernels:
    """One kernel per region channel, out of the positions that it wins (equals share one): the mean of its levels.

    On a level, adaptive fusion (equation 1) divides sums over confident positions by the count of all won ones, for
    mask kernel and score, so that an unsure region weighs less; the depth kernel is the plain mean over confident
    positions. Otherwise, as in PanopticFCN, all won positions count, and kernels are divided by the area of the level,
    so that a region's size scales its kernel.

    Args:
        region_logits, mask_kernels, depth_kernels: [B, R or C or D, P], all levels side by side.
        region_ids: [R], the categories of the region channels.
        areas: positions of every level; their sum is P.
    """
    probability = region_logits.sigmoid()
    wins = region_logits == region_logits.amax(dim=1, keepdim=True)
    won = wins.to(probability.dtype)
    confident = (wins & (probability >= min_probability)).to(probability.dtype) if adaptive else won
    level = of_level(range(len(areas)), areas, won.device)
    on_level = (level[:, None] == torch.arange(len(areas), device=won.device)).to(won.dtype)  # [P, L]
    sums = torch.cat([won, confident, confident * probability], dim=1) @ on_level
    won_count, confident_count, confidence = sums.chunk(3, dim=1)  # [B, R, L]
    score = confidence / won_count.clamp(min=1)
    present = (score > min_score).to(score.dtype)
    share = present / present.sum(dim=2, keepdim=True).clamp(min=1)  # of a level in the mean
    if adaptive:
        mask_share, depth_share = share / won_count.clamp(min=1), share / confident_count.clamp(min=1)
    else:
        mask_share = depth_share = share / on_level.sum(dim=0)
    return Kernels(
        category=region_ids.expand(len(won), -1),
        score=(share * score).sum(dim=2),
        mask=(confident * (mask_share @ on_level.mT)) @ mask_kernels.mT,
        depth=(confident * (depth_share @ on_level.mT)) @ depth_kernels.mT,
    )


def concatenate(tables: Sequence[Kernels]) -> Kernels:
    """The rows of all tables, one table after the other."""
    return Kernels(*(torch.cat(parts, dim=1) for parts in zip(*tables, strict=True)))


def sort_by_score(kernels: Kernels, count: int) -> Kernels:
    """The `count` best rows in falling score."""
    score, index = kernels.score.topk(min(count, kernels.score.shape[1]), dim=1)
    return Kernels(
        category=kernels.category.gather(1, index),
        score=score,
        mask=gather_rows(kernels.mask, index),
        depth=gather_rows(kernels.depth, index),
    )


def fuse_things(kernels: Kernels, min_similarity: float) -> Kernels:
    """Merge kernels that describe the same thing; rows must come in falling score.

    Row i absorbs every later row j of its category whose mask kernel has cosine similarity >=
    `min_similarity` with its own, unless an earlier row has claimed j. A claimed row is emptied (score 0);
    the row that stays gets the mean of its group's kernels and keeps its own score.
    """
    count = kernels.score.shape[1]
    valid = kernels.score > 0
    direction = F.normalize(kernels.mask, dim=2)
    similar = direction @ direction.mT >= min_similarity  # [B, N, N]
    same_category = kernels.category[:, :, None] == kernels.category[:, None, :]
    order = torch.arange(count, device=kernels.score.device)
    not_earlier = order[None, :] >= order[:, None]
    related = similar & same_category & not_earlier & valid[:, :, None] & valid[:, None, :]

    claims = related.to(kernels.score.dtype).cumsum(dim=1)  # rows 0..i that relate to j
    first_claim = related & (claims < 1.5)
    kept = valid & (claims[:, -1] == 1)  # nobody relates to it but itself
    group = (first_claim & kept[:, :, None]).to(kernels.score.dtype)
    size = group.sum(dim=2, keepdim=True).clamp(min=1)
    return Kernels(
        category=kernels.category,
        score=torch.where(kept, kernels.score, 0.0),
        mask=group @ kernels.mask / size,
        depth=group @ kernels.depth / size,
    )


def dynamic_convolution(kernels: Tensor, embedding: Tensor) -> Tensor:
    """Each segment's 1x1 convolution: kernels [B, N, C] on an embedding [B, C, h, w] give [B, N, h, w]."""
    return (kernels @ embedding.flatten(2)).unflatten(2, embedding.shape[2:])


def gather_positions(maps: Tensor, position: Tensor) -> Tensor:
    """Columns of maps [B, C, P] at positions [B, N], as [B, N, C]."""
    return maps.gather(2, position[:, None, :].expand(-1, maps.shape[1], -1)).mT


def gather_rows(rows: Tensor, index: Tensor) -> Tensor:
    """Rows [B, N, C] at [B, M], as [B, M, C]."""
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[2]))
