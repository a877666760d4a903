# SPDX-License-Identifier: Apache-2.0
"""The merge of panoptic_depth_model/merge.py, slow and obvious: one segment after the other."""

from __future__ import annotations

import torch
from torch import Tensor


def merge_sequentially(
    things: Tensor,
    score: Tensor,
    regions: Tensor,
    found: Tensor,
    is_stuff: Tensor,
    *,
    min_probability: float,
    max_overlap: float,
    min_area: float,
    allow_void: bool,
) -> tuple[Tensor, Tensor]:
    """One image's merge as the papers tell it: things in falling score, then regions.

    Args:
        things: probability [T, h, w].
        score: [T]; 0 for a row that takes no part.
        regions: probability [R, h, w].
        found: [R] bool.
        is_stuff: [R] bool; False where a region stands for things.

    Returns:
        labels [h, w], row + 1 of things and then regions, 0 void; and which of them stay [T + R] bool.
    """
    labels = torch.zeros(things.shape[1:], dtype=torch.int64)
    stays = torch.zeros(len(things) + len(regions), dtype=torch.bool)
    for row in torch.argsort(score, descending=True, stable=True).tolist():
        mask = things[row] > min_probability
        area, covered = int(mask.sum()), int((mask & (labels > 0)).sum())
        if score[row] > 0 and area > 0 and covered <= max_overlap * area:
            stays[row] = True
            labels[mask & (labels == 0)] = row + 1
    shown = torch.where(found[:, None, None], regions, 0.0)
    best, winner = shown.amax(dim=0), shown.argmax(dim=0)
    free = labels == 0
    for row in range(len(regions)):
        area = int((free & (shown[row] == best)).sum())
        if found[row] and is_stuff[row] and area >= min_area:
            stays[len(things) + row] = True
            labels[free & (winner == row)] = len(things) + row + 1
    if not allow_void and bool(stays.any()):
        probability = torch.cat([things, regions])
        probability[~stays] = -1.0
        labels = probability.argmax(dim=0) + 1
    return labels, stays
