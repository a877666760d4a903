# SPDX-License-Identifier: Apache-2.0
"""From dense location and kernel maps to a kernel per segment (PanopticDepth, section 3.1), in static shapes.

Letters: B images, N segments, C mask kernel size, D depth kernel size, R region channels, h w map size. A segment
that does not exist has score 0; every shape depends on the image size alone, so the exported graph needs no
data-dependent operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Kernels(NamedTuple):
    """Generated kernels of N segments an image; a row with score 0 is empty."""

    category: Tensor  # [B, N] int64
    score: Tensor  # [B, N]
    mask: Tensor  # [B, N, C]
    depth: Tensor  # [B, N, D]


def thing_kernels(
    center_logits: Tensor,
    mask_kernels: Tensor,
    depth_kernels: Tensor,
    thing_ids: Tensor,
    *,
    window: int,
    count: int,
    min_score: float,
) -> Kernels:
    """Kernels at the best `count` center peaks of one pyramid level.

    A center's probability is averaged with that of its `window` x `window` neighborhood, then kept where it
    is the maximum of its 3x3. Maps are [B, T or C or D, h, w]; `thing_ids` [T] are the categories of the
    center channels.
    """
    probability = center_logits.sigmoid()
    neighborhood = F.avg_pool2d(probability, window, stride=1, padding=window // 2)
    smooth = (probability + neighborhood) / 2
    peaks = torch.where(F.max_pool2d(smooth, 3, stride=1, padding=1) == smooth, smooth, 0.0)

    positions = peaks.shape[2] * peaks.shape[3]
    score, index = peaks.flatten(1).topk(min(count, positions), dim=1)  # [B, N]
    thing = torch.div(index, positions, rounding_mode="floor")
    position = index - thing * positions
    return Kernels(
        category=thing_ids.index_select(0, thing.flatten()).unflatten(0, thing.shape),
        score=torch.where(score > min_score, score, 0.0),
        mask=gather_positions(mask_kernels, position),
        depth=gather_positions(depth_kernels, position),
    )


def region_kernels(
    region_logits: Tensor,
    mask_kernels: Tensor,
    depth_kernels: Tensor,
    region_ids: Tensor,
    *,
    adaptive: bool,
    min_probability: float,
    min_score: float,
) -> Kernels:
    """One kernel per region channel from one pyramid level, out of the positions that the channel wins.

    Adaptive fusion (equation 1): the mask kernel and the score are sums over confident positions divided by the
    count of all won positions, so that an unsure region weighs less; the depth kernel is the plain mean over
    confident positions. Otherwise, as in PanopticFCN, all won positions count, and kernels are divided by the
    area of the map, so that a region's size scales its kernel.

    Maps are [B, R or C or D, h, w]; `region_ids` [R] are the categories of the region channels.
    """
    batch, channels, _, _ = region_logits.shape
    probability = region_logits.sigmoid().flatten(2)  # [B, R, hw]
    winner = probability.argmax(dim=1, keepdim=True)  # [B, 1, hw]
    channel = torch.arange(channels, device=region_logits.device)
    won = (winner == channel[:, None]).to(probability.dtype)
    confident = torch.where(probability >= min_probability, won, 0.0) if adaptive else won

    won_count = won.sum(dim=2, keepdim=True).clamp(min=1)  # [B, R, 1]
    if adaptive:
        mask_area, depth_area = won_count, confident.sum(dim=2, keepdim=True).clamp(min=1)
    else:
        mask_area = depth_area = torch.full_like(won_count, probability.shape[2])
    score = (confident * probability).sum(dim=2) / won_count[..., 0]
    return Kernels(
        category=region_ids.expand(batch, -1),
        score=torch.where(score > min_score, score, 0.0),
        mask=confident @ mask_kernels.flatten(2).mT / mask_area,
        depth=confident @ depth_kernels.flatten(2).mT / depth_area,
    )


def concatenate(levels: Sequence[Kernels]) -> Kernels:
    """The segments of all levels side by side."""
    return Kernels(*(torch.cat(parts, dim=1) for parts in zip(*levels, strict=True)))


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


def fuse_regions(levels: Sequence[Kernels]) -> Kernels:
    """The mean over the pyramid levels on which each region was found."""
    present = torch.stack([(level.score > 0).to(level.score.dtype) for level in levels])  # [L, B, K]
    count = present.sum(dim=0).clamp(min=1)
    score, mask, depth = (torch.stack(parts) for parts in list(zip(*levels, strict=True))[1:])
    return Kernels(
        category=levels[0].category,
        score=(present * score).sum(dim=0) / count,
        mask=(present[..., None] * mask).sum(dim=0) / count[..., None],
        depth=(present[..., None] * depth).sum(dim=0) / count[..., None],
    )


def dynamic_convolution(kernels: Tensor, embedding: Tensor) -> Tensor:
    """Each segment's 1x1 convolution: kernels [B, N, C] on an embedding [B, C, h, w] give [B, N, h, w]."""
    return (kernels @ embedding.flatten(2)).unflatten(2, embedding.shape[2:])


def gather_positions(maps: Tensor, position: Tensor) -> Tensor:
    """Columns of maps [B, C, h, w] at flat positions [B, N], as [B, N, C]."""
    index = position[:, None, :].expand(-1, maps.shape[1], -1)
    return maps.flatten(2).gather(2, index).mT


def gather_rows(rows: Tensor, index: Tensor) -> Tensor:
    """Rows [B, N, C] at [B, M], as [B, M, C]."""
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[2]))
