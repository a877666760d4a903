# SPDX-License-Identifier: Apache-2.0
"""The training losses of PanopticDepth: where segments are, what their masks are, how deep they lie.

Start reading at `panoptic_depth_losses`. Letters as in targets.py, and P pairs (an instance on a level it is
assigned to), padded to the same count in every image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from panoptic_depth_model.depth import DepthScale, normalized_weights
from panoptic_depth_model.kernels import dynamic_convolution, gather_positions
from panoptic_depth_model.panoptic_depth import LEVEL_STRIDES, Maps, PanopticDepth
from panoptic_depth_training.targets import LevelTargets, Targets, spread_over_levels

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
POSITIVES = 7  # positions an instance's kernel is learned at, on each of its levels
MIN_MASK_SHARE = 0.1  # of a position that may stand for an instance
SHAPE_WEIGHT = 5.0  # of the scale-invariant term within the depth error


@dataclass(frozen=True)
class LossWeights:
    """How much the terms count against the location losses; the defaults are the paper's."""

    mask: float = 4.0
    depth: float = 5.0


class Losses(NamedTuple):
    """The terms as they are summed, weights included."""

    centers: Tensor
    regions: Tensor
    things: Tensor
    stuff: Tensor
    depth: Tensor
    instance_depth: Tensor

    @property
    def total(self) -> Tensor:
        return torch.stack(tuple(self)).sum()


class FlatMaps(NamedTuple):
    """The heads' maps of all levels side by side."""

    centers: Tensor  # [B, T, L] logits
    regions: Tensor  # [B, K, L] logits
    mask_kernels: Tensor  # [B, C, L]
    depth_kernels: Tensor  # [B, D, L]


class Segments(NamedTuple):
    """Kernels of S segments an image with the masks they should give."""

    mask_kernels: Tensor  # [B, S, C]
    depth_kernels: Tensor  # [B, S, D]
    masks: Tensor  # [B, S, h, w] share
    weight: Tensor  # [B, S]; 0 for a row that is padding
    category: Tensor  # [B, S] int64; of things their position in thing_ids


def panoptic_depth_losses(
    network: PanopticDepth, maps: Maps, targets: Targets, weights: LossWeights
) -> Losses:
    """All losses of a batch. Missing depth and missing instances take no part; void is in nobody's region."""
    flat = flattened(maps)
    sizes = [(level.centers.shape[2], level.centers.shape[3]) for level in maps.levels]
    goal = spread_over_levels(targets, sizes, flat.centers.shape[1])
    things, stuff = thing_segments(flat, targets, goal), stuff_segments(flat, targets, goal)

    thing_masks = dynamic_convolution(network.embed_things(things.mask_kernels), maps.mask_embedding)
    stuff_masks = dynamic_convolution(network.embed_stuff(stuff.mask_kernels), maps.mask_embedding)
    thing_dice = (dice(thing_masks, things.masks) * things.weight).sum() / goal.assigned.sum().clamp(min=1)
    stuff_dice = (dice(stuff_masks, stuff.masks) * stuff.weight).sum() / stuff.weight.sum().clamp(min=1)

    # The region of a thing category spans many things, so it has no depth of its own.
    amorphous = stuff._replace(weight=stuff.weight * torch.isin(stuff.category, network.stuff_ids))
    scale = network.config.depth
    return Losses(
        centers=center_loss(flat.centers, goal),
        regions=region_loss(flat.regions, goal),
        things=weights.mask * thing_dice,
        stuff=weights.mask * stuff_dice,
        depth=weights.depth * pixel_depth_loss(things, amorphous, maps.depth_embedding, targets, scale),
        instance_depth=weights.depth * instance_depth_loss(things, targets, scale),
    )


def flattened(maps: Maps) -> FlatMaps:
    """The maps of all levels side by side."""
    parts = zip(*maps.levels, strict=True)
    return FlatMaps(*(torch.cat([level.flatten(2) for level in part], dim=2) for part in parts))


def center_loss(logits: Tensor, goal: LevelTargets) -> Tensor:
    """Focal loss over the center maps, per instance to be found."""
    focal = soft_focal(logits, goal.centers) * goal.clear[:, None]
    return focal.sum() / goal.assigned.sum().clamp(min=1)


def region_loss(logits: Tensor, goal: LevelTargets) -> Tensor:
    """Focal loss over the region maps: mean over the positions of a level, sum over levels and categories."""
    positions = torch.bincount(goal.level)  # of each level
    return (soft_focal(logits, goal.regions) / positions[goal.level]).sum() / len(logits)


def thing_segments(flat: FlatMaps, targets: Targets, goal: LevelTargets) -> Segments:
    """For every pair the kernels at its `POSITIVES` best positions, weighted by their center probability."""
    instance, level, valid = pairs(goal.assigned)  # [B, P]
    thing = targets.instance_things.gather(1, instance)
    positions = flat.centers.shape[2]
    probability = select(flat.centers.detach(), thing).sigmoid()  # [B, P, L]
    share = select(goal.masks, instance)
    candidate = (share > MIN_MASK_SHARE) & (goal.level == level[..., None]) & valid[..., None]
    weight, position = torch.where(candidate, probability, 0.0).topk(min(POSITIVES, positions), dim=2)
    weight = weight / weight.sum(dim=2, keepdim=True).clamp(min=1e-8)

    repeated = weight.shape[2]
    return Segments(
        mask_kernels=gather_positions(flat.mask_kernels, position.flatten(1)),
        depth_kernels=gather_positions(flat.depth_kernels, position.flatten(1)),
        masks=select(targets.instance_masks, instance).repeat_interleave(repeated, dim=1),
        weight=weight.flatten(1),
        category=thing.repeat_interleave(repeated, dim=1),
    )


def pairs(assigned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row, level and validity [B, P] of the True entries of assigned [B, rows, levels], padded to one P."""
    levels = assigned.shape[2]
    flags = assigned.flatten(1)
    count = max(int(flags.sum(dim=1).max()), 1)
    first = flags.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
    return first // levels, first % levels, flags.gather(1, first)


def stuff_segments(flat: FlatMaps, targets: Targets, goal: LevelTargets) -> Segments:
    """A segment for every category on every level where it has a region: its kernels are means over that."""
    levels = [goal.level == level for level in range(len(LEVEL_STRIDES))]
    # [B, K, positions of the level] each
    regions = [(goal.regions[..., here] > 0).to(flat.mask_kernels.dtype) for here in levels]
    present = torch.stack([region.any(dim=2) for region in regions], dim=2)  # [B, K, levels]
    category, level, valid = pairs(present)
    return Segments(
        mask_kernels=region_means(flat.mask_kernels, regions, levels, category, level),
        depth_kernels=region_means(flat.depth_kernels, regions, levels, category, level),
        masks=select(targets.regions, category),
        weight=valid.to(flat.mask_kernels.dtype),
        category=category,
    )


def region_means(
    kernels: Tensor, regions: list[Tensor], levels: list[Tensor], category: Tensor, level: Tensor
) -> Tensor:
    """Mean kernels [B, P, C] of maps [B, C, L] over the regions of pairs [B, P] of category and level."""
    means = [
        region @ kernels[..., here].mT / region.sum(dim=2, keepdim=True).clamp(min=1)
        for region, here in zip(regions, levels, strict=True)
    ]  # [B, K, C] each
    row = level * means[0].shape[1] + category
    return select(torch.cat(means, dim=1), row)


def select(rows: Tensor, index: Tensor) -> Tensor:
    """Rows [B, P, ...] at index [B, P] of [B, N, ...]."""
    index = index.reshape(*index.shape, *[1] * (rows.ndim - 2))
    return rows.gather(1, index.expand(-1, -1, *rows.shape[2:]))


def soft_focal(logits: Tensor, targets: Tensor) -> Tensor:
    """Focal loss of every element for targets in 0..1."""
    probability = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    right = probability * targets + (1 - probability) * (1 - targets)
    alpha = FOCAL_ALPHA * targets + (1 - FOCAL_ALPHA) * (1 - targets)
    return alpha * cross_entropy * (1 - right) ** FOCAL_GAMMA


def dice(logits: Tensor, masks: Tensor) -> Tensor:
    """Dice loss [B, S] of mask logits [B, S, h, w] for masks in 0..1."""
    probability, masks = logits.sigmoid().flatten(2), masks.flatten(2)
    overlap = (probability * masks).sum(dim=2)
    return 1 - 2 * overlap / (probability.square().sum(dim=2) + masks.square().sum(dim=2)).clamp(min=1e-8)


def pixel_depth_loss(
    things: Segments, stuff: Segments, embedding: Tensor, targets: Targets, scale: DepthScale
) -> Tensor:
    """Depth error over all pixels of all segments, each with its own kernel."""
    depth = torch.cat([segment_depth(part, embedding, scale) for part in (things, stuff)], dim=1)
    known = targets.depth[:, None] > 0
    # A thing counts wherever it is seen at all, stuff where it prevails: things have few pixels.
    support = torch.cat(
        [(part.masks > least) & known for part, least in ((things, 0.0), (stuff, 0.5))], dim=1
    )
    used = torch.cat([things.weight, stuff.weight], dim=1) > 0
    support = support & used[..., None, None]
    truth = targets.depth[:, None].expand_as(depth)
    return mean_over_images(depth.flatten(1), truth.flatten(1), support.flatten(1), scale.min_m)


def segment_depth(segments: Segments, embedding: Tensor, scale: DepthScale) -> Tensor:
    """Depth [B, S, h, w] that each segment's kernel gives, without limits."""
    logits = dynamic_convolution(normalized_weights(segments.depth_kernels), embedding)
    kernels = segments.depth_kernels[:, :, None, None, :]
    return scale.depth_m(logits, scale.shift_m(kernels), scale.range_m(kernels))


def instance_depth_loss(things: Segments, targets: Targets, scale: DepthScale) -> Tensor:
    """Depth error of the things' shifts: their mean depth, or their nearest point under scheme T1."""
    known = (things.masks > 0) & (targets.depth[:, None] > 0)
    count = known.sum(dim=(2, 3))
    depth = targets.depth[:, None]
    if scale.scheme == "T1":
        truth = torch.where(known, depth, torch.inf).amin(dim=(2, 3)).clamp(max=scale.max_m)
    else:
        truth = torch.where(known, depth, 0.0).sum(dim=(2, 3)) / count.clamp(min=1)
    support = (count > 0) & (things.weight > 0)
    return mean_over_images(scale.shift_m(things.depth_kernels), truth, support, scale.min_m)


def mean_over_images(prediction: Tensor, truth: Tensor, support: Tensor, min_m: float) -> Tensor:
    """Mean depth error of the images [B, ...] that have any support."""
    error = depth_error(prediction, truth, support, min_m)
    counted = support.any(dim=1)
    return torch.where(counted, error, 0.0).sum() / counted.sum().clamp(min=1)


def depth_error(prediction: Tensor, truth: Tensor, support: Tensor, min_m: float) -> Tensor:
    """Scale-invariant logarithmic error plus root mean squared relative error (equation 6), [B] from [B, n].

    Only entries with support count. A prediction below `min_m` is out of the logarithm's reach, which would
    explode there, and is pulled back by the relative term.
    """
    share = support / support.sum(dim=1, keepdim=True).clamp(min=1)
    truth = torch.where(support, truth, 1.0)
    log_ratio = truth.log() - prediction.clamp(min=min_m).log()
    variance = (log_ratio.square() * share).sum(dim=1) - (log_ratio * share).sum(dim=1).square()
    relative = ((1 - prediction / truth).square() * share).sum(dim=1)
    return SHAPE_WEIGHT * variance + relative.clamp(min=1e-12).sqrt()
