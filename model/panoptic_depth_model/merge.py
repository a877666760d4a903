# SPDX-License-Identifier: Apache-2.0
"""From overlapping masks to one segment per pixel, in static shapes.

Letters: B images, T things, K categories, N = T + stuff rows, P pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def accept_greedily(masks: Tensor, score: Tensor, max_overlap: float, rounds: int) -> Tensor:
    """Which masks survive a visit in falling score, where one that is mostly covered by survivors is dropped.

    The visit is sequential as written. Here all ranks are decided at once, and again with the last round's
    answer: rank i looks only at lower ranks, so round r leaves at least ranks 0..r-1 final, and in practice a
    few rounds settle all of them.

    Args:
        masks: [B, T, P] bool.
        score: [B, T]; 0 for a row that takes no part. Equal scores are visited in row order.
        max_overlap: the largest covered share of its own area that a mask may have.
        rounds: see above; ranks beyond it may differ from the sequential visit where masks form longer
            chains, each dropped because of the one before it.

    Returns:
        accepted [B, T] bool.
    """
    count = masks.shape[1]
    row = torch.arange(count, device=masks.device)
    ahead = score[:, None, :] > score[:, :, None]  # [B, i, j]: j is visited before i
    tied = (score[:, None, :] == score[:, :, None]) & (row[None, :] < row[:, None])
    rank = (ahead | tied).sum(dim=2).to(score.dtype)[..., None]  # [B, T, 1]

    area = masks.to(score.dtype).sum(dim=2)
    valid = (score > 0) & (area > 0)
    accepted = valid
    for _ in range(rounds):
        ranks = torch.where(masks & accepted[..., None], rank, float(count))
        painter = ranks.amin(dim=1, keepdim=True)  # [B, 1, P]
        covered = (masks & (painter < rank)).to(score.dtype).sum(dim=2)
        accepted = valid & (covered <= max_overlap * area)
    return accepted


def accept_sequentially(masks: Tensor, score: Tensor, max_overlap: float) -> Tensor:
    """`accept_greedily` as the papers tell it: one mask after the other, each painted where it survives."""
    accepted = torch.zeros_like(score, dtype=torch.bool)
    for image in range(len(masks)):
        painted = torch.zeros_like(masks[image, 0])
        for row in torch.argsort(score[image], descending=True, stable=True).tolist():
            mask = masks[image, row]
            if score[image, row] <= 0 or not mask.any():
                continue
            if (mask & painted).sum() <= max_overlap * mask.sum():
                accepted[image, row] = True
                painted |= mask
    return accepted


def mask_quality(probability: Tensor) -> Tensor:
    """Mean probability [B, T] inside each mask (probability > 0.5) of [B, T, P]; 0 for an empty mask."""
    inside = (probability > 0.5).to(probability.dtype)
    return (probability * inside).sum(dim=2) / inside.sum(dim=2).clamp(min=1)


def accept_stuff(probability: Tensor, found: Tensor, painted: Tensor, min_area: float) -> Tensor:
    """Which categories win at least `min_area` pixels that no accepted thing paints.

    Args:
        probability: [B, K, P] of every category's region.
        found: [B, K] bool.
        painted: [B, 1, P] bool.
    """
    category = torch.arange(probability.shape[1], device=probability.device)
    winner = torch.where(found[..., None], probability, 0.0).argmax(dim=1, keepdim=True)
    area = ((winner == category[:, None]) & ~painted).to(probability.dtype).sum(dim=2)
    return found & (area >= min_area)
