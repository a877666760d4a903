# SPDX-License-Identifier: Apache-2.0
"""What the network should say about a labeled image (PanopticDepth after PanopticFCN), as far as the labels tell.

Letters: B images, M instances, P pairs of an instance and a level it is assigned to (both padded to the batch's
largest count), T things, K categories, R region channels, h w the stride-4 map, L positions of all pyramid levels
in a row (p3 first, each row by row). Masks are shares in 0..1, since a stride-4 pixel can lie on a border. A map
element is *judged* where the labels say what it should be; the others take no part in any loss.

Loader workers run `encode` and `batched` on the processor; `spread_over_levels` runs where the network does, in
shapes that are known beforehand, so that a GPU is never waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from panoptic_depth_model.config import EMBEDDING_STRIDE, SOME_THING, PanopticDepthConfig
from panoptic_depth_model.panoptic_depth import LEVEL_STRIDES
from panoptic_depth_ros.taxonomy import LABEL_DIVISOR, VOID_CATEGORY, VOID_PANOPTIC_ID, Taxonomy
from panoptic_depth_training.datasets.labeled import Supervision

# The square root of an instance's box area decides its levels; both ends are included.
LEVEL_SIZES_PX = ((1, 128), (64, 256), (128, 512), (256, 1024), (512, 2048))
CENTER_OVERLAP = 0.7  # what a box displaced by the center's radius still shares with the true one
MIN_REGION_SHARE = 0.5


class Targets(NamedTuple):
    """A batch of labeled images at stride 4."""

    instance_masks: Tensor  # [B, M, h, w] share of each pixel
    instance_boxes: Tensor  # [B, M, 2] height and width of its box, px of the image; 0 for a padding row
    instance_things: Tensor  # [B, M] int64, position in the taxonomy's thing_ids
    pair_instance: Tensor  # [B, P] int64, row in instance_masks
    pair_level: Tensor  # [B, P] int64
    pair_valid: Tensor  # [B, P] bool; False for padding
    regions: Tensor  # [B, K, h, w] share of each pixel; 0 where not judged
    regions_judged: Tensor  # [B, K, h, w] bool
    centers_judged: Tensor  # [B, T, h, w] bool
    depth: Tensor  # [B, h, w] m for the training's focal length; 0 = not known
    has_segments: Sequence[bool]  # [B]; False for an image whose only truth is depth. Stays on the host

    def to(self, device: torch.device | str) -> Targets:
        """The same on another device; from pinned memory the host does not wait for the copies."""
        moved = [part.to(device, non_blocking=True) if isinstance(part, Tensor) else part for part in self]
        return Targets._make(moved)

    def split(self, parts: int) -> list[Targets]:
        """At most this many smaller batches, as `Tensor.chunk` splits the images that go with them."""
        size = -(-len(self.has_segments) // parts)
        return [
            Targets._make(part[first : first + size] for part in self)
            for first in range(0, len(self.has_segments), size)
        ]


def encode(
    panoptic_ids: np.ndarray,
    depth: np.ndarray,
    taxonomy: Taxonomy,
    supervision: Supervision,
    max_instances: int,
) -> Targets:
    """Targets of one image (B = 1) from panoptic ids [H, W] uint16 and depth [H, W] float32 (m, 0 = unknown).

    A thing category with instance 0 stands for things that are not told apart: centers of the category are not
    judged there, its region is. So it goes for instances beyond the largest `max_instances`.

    Raises:
        ValueError: the size is not a multiple of the stride-4 map's.
    """
    height, width = panoptic_ids.shape
    if height % EMBEDDING_STRIDE or width % EMBEDDING_STRIDE:
        raise ValueError(
            f"labels are {height}x{width}; height and width must be multiples of {EMBEDDING_STRIDE}: "
            f"crop or pad the image to such a size"
        )
    if not supervision.has_segments:
        panoptic_ids = np.full_like(panoptic_ids, VOID_PANOPTIC_ID)
    table = supervision.judged_table(len(taxonomy))
    rows, boxes, things = find_instances(panoptic_ids, taxonomy, table, max_instances)
    ids = middle_pixels(panoptic_ids)
    category = np.where(ids == VOID_PANOPTIC_ID, VOID_CATEGORY, ids // LABEL_DIVISOR).astype(np.uint8)
    rows = middle_pixels(rows)
    regions_judged, centers_judged = judged_maps(category, rows == len(boxes), taxonomy, table)
    pairs = assign_levels(boxes).nonzero()
    return Targets(
        instance_masks=shares(rows, len(boxes))[None],
        instance_boxes=boxes[None],
        instance_things=torch.from_numpy(things)[None],
        pair_instance=pairs[None, :, 0],
        pair_level=pairs[None, :, 1],
        pair_valid=torch.ones(1, len(pairs), dtype=torch.bool),
        regions=(shares(category, len(taxonomy)) * regions_judged)[None],
        regions_judged=regions_judged[None],
        centers_judged=centers_judged[None],
        depth=torch.from_numpy(depth_at_stride(depth, keep_sparse=not supervision.has_segments))[None],
        has_segments=(supervision.has_segments,),
    )


def find_instances(
    panoptic_ids: np.ndarray, taxonomy: Taxonomy, judged_table: np.ndarray, max_instances: int
) -> tuple[np.ndarray, Tensor, np.ndarray]:
    """The largest instances that show at stride 4, largest first.

    Returns:
        Each pixel's row [H, W] among M instances (M: none of them), box heights and widths [M, 2] in px, and
        positions [M] int64 in the taxonomy's thing_ids.
    """
    # Of a label that does not even settle its own category nobody knows what its instances are.
    settled = np.array([thing for thing in taxonomy.thing_ids if judged_table[thing, thing]], np.int64)
    candidates = np.add.outer(settled * LABEL_DIVISOR, np.arange(1, LABEL_DIVISOR)).ravel()
    area = np.bincount(panoptic_ids.ravel(), minlength=VOID_PANOPTIC_ID + 1)[candidates]
    seen = np.bincount(middle_pixels(panoptic_ids).ravel(), minlength=VOID_PANOPTIC_ID + 1)[candidates]
    order = np.argsort(-area, kind="stable")[: np.count_nonzero(area)][:max_instances]
    kept = candidates[order[seen[order] > 0]]

    row_of = np.full(VOID_PANOPTIC_ID + 1, len(kept), np.int16)
    row_of[kept] = np.arange(len(kept))
    rows = row_of[panoptic_ids]
    things = np.searchsorted(taxonomy.thing_ids, kept // LABEL_DIVISOR).astype(np.int64)
    return rows, box_sizes(rows, len(kept)), things


def judged_maps(
    category: np.ndarray, in_no_instance: np.ndarray, taxonomy: Taxonomy, judged_table: np.ndarray
) -> tuple[Tensor, Tensor]:
    """Where regions [K, h, w] and centers [T, h, w] are judged: where all middle pixels [4, h, w] settle them."""
    regions = np.logical_and.reduce(np.ascontiguousarray(judged_table.T)[:, category], axis=1)
    things = np.array(taxonomy.thing_ids, np.int64)
    not_told_apart = (category == things[:, None, None, None]) & in_no_instance
    return torch.from_numpy(regions), torch.from_numpy(regions[things] & ~not_told_apart.any(axis=1))


def middle_pixels(labels: np.ndarray) -> np.ndarray:
    """The four pixels [4, h, w] around the center of every stride-4 pixel of labels [H, W].

    Bilinear interpolation to stride 4 takes the mean of just these.
    """
    height, width = labels.shape
    blocks = labels.reshape(height // 4, 4, width // 4, 4)[:, 1:3, :, 1:3]
    return blocks.transpose(1, 3, 0, 2).reshape(4, height // 4, width // 4)


def shares(labels: np.ndarray, count: int) -> Tensor:
    """How much [count, h, w] of each stride-4 pixel has the labels 0..count-1, from its middle pixels [4, h, w]."""
    values = torch.from_numpy(np.arange(count).astype(labels.dtype))[:, None, None]
    first, *others = torch.from_numpy(labels)
    total = (values == first).to(torch.uint8)
    for pixel in others:
        total += values == pixel
    return total * 0.25


def box_sizes(rows: np.ndarray, count: int) -> Tensor:
    """Height and width [count, 2] of the boxes around the rows 0..count-1 in a map [H, W] of rows 0..count."""
    extents = []
    for positions in (np.arange(rows.shape[0])[:, None], np.arange(rows.shape[1])[None, :]):
        occupied = np.zeros((count + 1, positions.size), bool)
        occupied[rows, positions] = True
        first, last = occupied.argmax(axis=1), positions.size - 1 - occupied[:, ::-1].argmax(axis=1)
        extents.append((last - first + 1)[:count])
    return torch.from_numpy(np.stack(extents, axis=1)).float()


def depth_at_stride(depth: np.ndarray, *, keep_sparse: bool) -> np.ndarray:
    """Depth [h, w] of the pixel at each stride-4 pixel's center: a mean across a border is the depth of nothing.

    With `keep_sparse` the nearest known point of all 16 pixels instead: a scan that hits one pixel in twenty
    would lose nearly all of its points.
    """
    if not keep_sparse:
        return np.ascontiguousarray(depth[2::4, 2::4])
    height, width = depth.shape
    known = np.where(depth > 0, depth, np.inf).reshape(height // 4, 4, width // 4, 4).min(axis=(1, 3))
    return np.where(np.isfinite(known), known, 0).astype(np.float32)


def collate(samples: Sequence[tuple[Tensor, Targets]]) -> tuple[Tensor, Targets]:
    """A DataLoader's batch: images [B, H, W, 3] and targets from images [H, W, 3] with targets of one image."""
    images, targets = zip(*samples, strict=True)
    return torch.stack(images), batched(targets)


def batched(targets: Sequence[Targets]) -> Targets:
    """One batch out of smaller ones. Instances and pairs are padded to the largest count, and to one at least."""
    return Targets(
        instance_masks=padded([part.instance_masks for part in targets]),
        instance_boxes=padded([part.instance_boxes for part in targets]),
        instance_things=padded([part.instance_things for part in targets]),
        pair_instance=padded([part.pair_instance for part in targets]),
        pair_level=padded([part.pair_level for part in targets]),
        pair_valid=padded([part.pair_valid for part in targets]),
        regions=torch.cat([part.regions for part in targets]),
        regions_judged=torch.cat([part.regions_judged for part in targets]),
        centers_judged=torch.cat([part.centers_judged for part in targets]),
        depth=torch.cat([part.depth for part in targets]),
        has_segments=tuple(has_segments for part in targets for has_segments in part.has_segments),
    )


def padded(parts: Sequence[Tensor]) -> Tensor:
    """Tensors [b, n, ...] as one [B, N, ...], where N is the largest n but at least 1; missing rows are zero."""
    rows = max(1, *(part.shape[1] for part in parts))
    missing = [part.new_zeros(len(part), rows - part.shape[1], *part.shape[2:]) for part in parts]
    return torch.cat([torch.cat(both, dim=1) for both in zip(parts, missing, strict=True)])


def assign_levels(boxes: Tensor) -> Tensor:
    """The levels [M, levels] whose range of sizes holds the instance; ranges overlap."""
    size = boxes.prod(dim=-1).sqrt()[..., None]
    low, high = torch.tensor(LEVEL_SIZES_PX, dtype=boxes.dtype).T
    return (size >= low) & (size <= high)


class RegionMaps(NamedTuple):
    """What the network's region channels should say."""

    share: Tensor  # [B, R, h, w] or [B, R, L]
    judged: Tensor  # of the same shape, bool


def region_maps(targets: Targets, config: PanopticDepthConfig) -> RegionMaps:
    """Targets of the region channels at stride 4: a category each, or all things together."""
    if config.regions == tuple(range(config.num_categories)):
        return RegionMaps(targets.regions, targets.regions_judged)
    things = list(config.thing_ids)
    share, judged = [], []
    for category in config.regions:
        if category == SOME_THING:
            judged.append(torch.stack([targets.regions_judged[:, thing] for thing in things]).all(dim=0))
            share.append(sum(targets.regions[:, thing] for thing in things) * judged[-1])
        else:
            judged.append(targets.regions_judged[:, category])
            share.append(targets.regions[:, category])
    return RegionMaps(torch.stack(share, dim=1), torch.stack(judged, dim=1))


class LevelTargets(NamedTuple):
    """Targets on the positions of all pyramid levels."""

    centers: Tensor  # [B, T, L] 0..1, 1 at centers
    centers_judged: Tensor  # [B, T, L] bool
    regions: RegionMaps  # [B, R, L]; share is 0 where the region does not prevail
    masks: Tensor  # [B, M, L] share
    level: Tensor  # [L] int64
    positions: tuple[int, ...]  # of each level


def spread_over_levels(
    targets: Targets, regions: RegionMaps, sizes: Sequence[tuple[int, int]]
) -> LevelTargets:
    """Resize the targets to pyramid levels of these sizes and draw the centers."""
    share = over_levels(regions.share, sizes)
    positions = tuple(height * width for height, width in sizes)
    device = share.device
    return LevelTargets(
        centers=torch.cat([draw_centers(targets, level, size).flatten(2) for level, size in enumerate(sizes)], dim=2),
        centers_judged=wholly(targets.centers_judged, sizes),
        regions=RegionMaps(torch.where(share < MIN_REGION_SHARE, 0.0, share), wholly(regions.judged, sizes)),
        masks=over_levels(targets.instance_masks, sizes),
        level=torch.cat([torch.full((count,), level, device=device) for level, count in enumerate(positions)]),
        positions=positions,
    )


def over_levels(maps: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Maps [B, N, h, w] bilinearly on all levels, [B, N, L]."""
    return torch.cat([F.interpolate(maps, size, mode="bilinear").flatten(2) for size in sizes], dim=2)


def wholly(flags: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Where on the levels [B, N, L] no unset flag of [B, N, h, w] takes part in the interpolation."""
    return over_levels((~flags).float(), sizes) == 0


def draw_centers(targets: Targets, level: int, size: tuple[int, int]) -> Tensor:
    """The center map [B, T, *size] of one level: a Gaussian peak for every instance assigned to it.

    A peak stands at the instance's center of mass and is as wide as its box allows; of peaks of one category the
    higher one counts.
    """
    masks = targets.instance_masks
    here = (targets.pair_level == level) & targets.pair_valid
    assigned = torch.zeros_like(targets.instance_things).scatter_add(1, targets.pair_instance, here.long()) > 0
    row, column = (
        coordinate.clamp(max=limit - 1)[..., None]
        for coordinate, limit in zip(centers_of_mass(masks, size), size, strict=True)
    )
    radius = center_radius(targets.instance_boxes / LEVEL_STRIDES[level])[..., None]
    vertical = gaussian(torch.arange(size[0], device=row.device) - row, radius)  # [B, M, size[0]]
    horizontal = gaussian(torch.arange(size[1], device=row.device) - column, radius) * assigned[..., None]
    peaks = vertical[..., :, None] * horizontal[..., None, :]
    heat = peaks.new_zeros(len(peaks), targets.centers_judged.shape[1], *size)
    return heat.scatter_reduce(1, targets.instance_things[..., None, None].expand_as(peaks), peaks, "amax")


def gaussian(distance: Tensor, radius: Tensor) -> Tensor:
    """exp(-d^2 / 2 sigma^2) up to `radius`, 0 beyond; sigma is a third of the peak's whole width."""
    sigma = (2 * radius + 1) / 3
    return torch.where(distance.abs() <= radius, torch.exp(-distance.square() / (2 * sigma.square())), 0.0)


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
