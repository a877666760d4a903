# SPDX-License-Identifier: Apache-2.0
"""What the network should say about a labeled image (PanopticDepth after PanopticFCN).

Letters: B images, M instances (padded), T things, K categories, h w the stride-4 map, L positions of all
pyramid levels in a row (p3 first, each row by row). Masks are shares in 0..1, since a stride-4 pixel can lie
on a border.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from panoptic_depth_model.panoptic_depth import EMBEDDING_STRIDE, LEVEL_STRIDES
from panoptic_depth_ros.taxonomy import LABEL_DIVISOR, VOID_PANOPTIC_ID, Taxonomy

# The square root of an instance's box area decides its levels; both ends are included.
LEVEL_SIZES_PX = ((1, 128), (64, 256), (128, 512), (256, 1024), (512, 2048))
CENTER_OVERLAP = 0.7  # what a box displaced by the center's radius still shares with the true one
MIN_REGION_SHARE = 0.5


class Targets(NamedTuple):
    """A labeled image at stride 4, or a batch of them."""

    instance_masks: Tensor  # [B, M, h, w] share of each pixel
    instance_boxes: Tensor  # [B, M, 2] height and width of its box, px of the image; 0 for a padding row
    instance_things: Tensor  # [B, M] int64, position in the taxonomy's thing_ids
    regions: Tensor  # [B, K, h, w] share of each pixel
    unclear: Tensor  # [B, h, w] bool: things without a known instance (crowds, or too many instances)
    depth: Tensor  # [B, h, w] m for the training's focal length; 0 = not known


def encode(panoptic_ids: np.ndarray, depth: np.ndarray, taxonomy: Taxonomy, max_instances: int) -> Targets:
    """Targets without batch axis from panoptic ids [H, W] and depth [H, W] (m, 0 = unknown).

    A thing category with instance 0 is a crowd. The largest `max_instances` instances are kept, the others
    count as unclear: they are neither centers nor background.
    """
    size = (panoptic_ids.shape[0] // EMBEDDING_STRIDE, panoptic_ids.shape[1] // EMBEDDING_STRIDE)
    ids = torch.from_numpy(panoptic_ids.astype(np.int32))
    category, instance = ids // LABEL_DIVISOR, ids % LABEL_DIVISOR
    things = torch.tensor(taxonomy.thing_ids)
    is_thing = torch.isin(category, things) & (ids != VOID_PANOPTIC_ID)

    instance_ids, areas = torch.unique(ids[is_thing & (instance > 0)], return_counts=True)
    kept = instance_ids[areas.argsort(descending=True)][:max_instances]
    masks = ids == kept[:, None, None]
    shares = at_size(masks.float(), size)
    kept, masks, shares = (part[shares.flatten(1).any(dim=1)] for part in (kept, masks, shares))
    padding = max_instances - len(kept)

    unclear = is_thing & ~masks.any(dim=0)
    return Targets(
        instance_masks=F.pad(shares, (0, 0, 0, 0, 0, padding)),
        instance_boxes=F.pad(box_sizes(masks), (0, 0, 0, padding)),
        instance_things=F.pad(torch.searchsorted(things, kept // LABEL_DIVISOR), (0, padding)),
        regions=at_size((category == torch.arange(len(taxonomy))[:, None, None]).float(), size),
        unclear=at_size(unclear[None].float(), size)[0] > 0.5,
        # Picked at the center of the stride-4 pixel: a mean across a border is the depth of nothing.
        depth=F.interpolate(torch.from_numpy(depth)[None, None], size, mode="nearest-exact")[0, 0],
    )


def at_size(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [..., H, W] bilinearly at another size."""
    if maps.numel() == 0:  # no instance in the image
        return maps.new_zeros(*maps.shape[:-2], *size)
    flat = maps.reshape(1, -1, *maps.shape[-2:])
    return F.interpolate(flat, size, mode="bilinear", align_corners=False).reshape(*maps.shape[:-2], *size)


def box_sizes(masks: Tensor) -> Tensor:
    """Height and width [M, 2] of the boxes around masks [M, H, W] bool."""
    extents = []
    for axis in (2, 1):
        occupied = masks.any(dim=axis)  # [M, length]
        position = torch.arange(occupied.shape[1])
        last = torch.where(occupied, position, -1).amax(dim=1)
        first = torch.where(occupied, position, occupied.shape[1]).amin(dim=1)
        extents.append((last - first + 1).clamp(min=0))
    return torch.stack(extents, dim=1).float()


class LevelTargets(NamedTuple):
    """Targets on the positions of all pyramid levels."""

    centers: Tensor  # [B, T, L] 0..1, 1 at centers
    regions: Tensor  # [B, K, L] share; 0 where the category does not prevail
    masks: Tensor  # [B, M, L] share
    clear: Tensor  # [B, L] bool: where centers may be judged
    assigned: Tensor  # [B, M, levels] bool: on which levels an instance is to be found
    level: Tensor  # [L] int64


def spread_over_levels(targets: Targets, sizes: Sequence[tuple[int, int]], num_things: int) -> LevelTargets:
    """Resize the targets to pyramid levels of these sizes and draw the centers."""
    assigned = assign_levels(targets.instance_boxes)
    centers, regions, masks, clear = [], [], [], []
    for level, (size, stride) in enumerate(zip(sizes, LEVEL_STRIDES, strict=True)):
        peaks = draw_centers(targets, size, stride) * assigned[:, :, level, None, None]
        centers.append(highest_per_thing(peaks, targets.instance_things, num_things).flatten(2))
        shares = at_size(targets.regions, size).flatten(2)
        regions.append(torch.where(shares < MIN_REGION_SHARE, 0.0, shares))
        masks.append(at_size(targets.instance_masks, size).flatten(2))
        clear.append(at_size(targets.unclear[:, None].float(), size).flatten(1) < 0.5)
    positions = torch.tensor([height * width for height, width in sizes], device=assigned.device)
    return LevelTargets(
        centers=torch.cat(centers, dim=2),
        regions=torch.cat(regions, dim=2),
        masks=torch.cat(masks, dim=2),
        clear=torch.cat(clear, dim=1),
        assigned=assigned,
        level=torch.repeat_interleave(torch.arange(len(sizes), device=assigned.device), positions),
    )


def assign_levels(boxes: Tensor) -> Tensor:
    """The levels [B, M, levels] whose range of sizes holds the instance; ranges overlap."""
    size = boxes.prod(dim=-1).sqrt()[..., None]
    low, high = boxes.new_tensor(LEVEL_SIZES_PX).T
    return (size >= low) & (size <= high)


def draw_centers(targets: Targets, size: tuple[int, int], stride: int) -> Tensor:
    """A Gaussian peak [B, M, *size] at the center of mass of every instance, as wide as its box allows."""
    row, column = (
        coordinate.clamp(max=limit - 1)
        for coordinate, limit in zip(centers_of_mass(targets.instance_masks, size), size, strict=True)
    )
    radius = center_radius(targets.instance_boxes / stride)[..., None]
    sigma = (2 * radius + 1) / 3
    dy = torch.arange(size[0], device=row.device) - row[..., None]  # [B, M, size[0]]
    dx = torch.arange(size[1], device=row.device) - column[..., None]
    fy = torch.where(dy.abs() <= radius, torch.exp(-dy.square() / (2 * sigma.square())), 0.0)
    fx = torch.where(dx.abs() <= radius, torch.exp(-dx.square() / (2 * sigma.square())), 0.0)
    return fy[..., :, None] * fx[..., None, :]


def centers_of_mass(masks: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Whole row and column [B, M] of masks [B, M, h, w] on a map of another size."""
    inside = (masks > 0).float()
    area = inside.sum(dim=(2, 3)).clamp(min=1)
    rows = torch.arange(masks.shape[2], device=masks.device, dtype=masks.dtype)
    columns = torch.arange(masks.shape[3], device=masks.device, dtype=masks.dtype)
    row = (inside.sum(dim=3) * rows).sum(dim=2) / area
    column = (inside.sum(dim=2) * columns).sum(dim=2) / area
    return (row * (size[0] / masks.shape[2])).floor(), (column * (size[1] / masks.shape[3])).floor()


def center_radius(boxes: Tensor) -> Tensor:
    """How far [px of the map] a center may be off, from heights and widths [..., 2] of boxes on the map.

    The largest whole r for which a box shrunk by r on every side keeps the overlap, as CornerNet writes it
    (without the division by the quadratic's leading coefficient, which everybody after it kept).
    """
    height, width = boxes.unbind(dim=-1)
    b = 2 * CENTER_OVERLAP * (height + width)
    c = (CENTER_OVERLAP - 1) * width * height
    return ((-b + (b.square() - 16 * CENTER_OVERLAP * c).sqrt()) / 2).floor()


def highest_per_thing(peaks: Tensor, things: Tensor, num_things: int) -> Tensor:
    """The highest of the instances' peaks [B, M, h, w] for each thing category, [B, T, h, w]."""
    index = things[..., None, None].expand_as(peaks)
    heat = peaks.new_zeros(len(peaks), num_things, *peaks.shape[2:])
    return heat.scatter_reduce(1, index, peaks, "amax")
