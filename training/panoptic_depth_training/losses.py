# SPDX-License-Identifier: Apache-2.0
"""The training losses of PanopticDepth: where segments are, what their masks are, how deep they lie.

Start reading at `panoptic_depth_losses`. Letters as in targets.py, where positions are L, not P; G segments an image,
each with V kernels that should all give its mask and depth: a pair has kernels at several positions, a region has one
on every level. n is a number of pixels or other places where depths are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from panoptic_depth_model.depth import T1, DepthScale
from panoptic_depth_model.kernels import dynamic_convolution, gather_positions
from panoptic_depth_model.panoptic_depth import FlatMaps, LevelMaps, Maps, PanopticDepth, flattened
from panoptic_depth_training.pixel_heads import PixelErrors, PixelHeads
from panoptic_depth_training.targets import LevelTargets, RegionMaps, Targets, region_maps, spread_over_levels

FOCAL_ALPHA = 0.25
POSITIVES = 7  # positions an instance's kernel is learned at, on each of its levels
MIN_MASK_SHARE = 0.1  # of a position that may stand for an instance
SHAPE_WEIGHT = 5.0  # of the scale-invariant term within the depth error
MIN_LOG_DEPTH_M = 1e-6  # no depth is less in a logarithm


@dataclass(frozen=True)
class LossWeights:
    """How much the terms count against the location losses; the defaults are the paper's, which has no pixel heads."""

    mask: float = 4.0
    depth: float = 5.0
    pixel: float = 0.0


class Losses(NamedTuple):
    """The terms as they are summed, weights included. A term that does not apply is 0."""

    centers: Tensor
    regions: Tensor
    things: Tensor
    stuff: Tensor
    depth: Tensor
    instance_depth: Tensor
    answer_depth: Tensor
    pixel_category: Tensor
    pixel_depth: Tensor

    @property
    def total(self) -> Tensor:
        return torch.stack(tuple(self)).sum()


class SupervisedKernels(NamedTuple):
    """Kernels of segments with the masks they should give."""

    mask_kernels: Tensor  # [B, G, V, C]
    depth_kernels: Tensor  # [B, G, V, D]
    weight: Tensor  # [B, G, V]; 0 for a kernel that stands for nothing
    masks: Tensor  # [B, G, h, w] share
    judged: Tensor  # [B, G, h, w] bool


def alone(counts: Tensor) -> Tensor:
    """The mean over processes of which there is one."""
    return counts


def panoptic_depth_losses(
    network: PanopticDepth,
    maps: Maps,
    targets: Targets,
    weights: LossWeights,
    mean: Callable[[Tensor], Tensor] = alone,
    pixel_heads: PixelHeads | None = None,
) -> Losses:
    """All losses of a batch. What the labels leave open takes no part, nor does an image without segments or depth.

    Location and mask losses are means over the batch's pairs, images or regions; depth losses are means over the
    images that have depth, so every such image weighs the same; those of the pixel heads are means over pixels.
    Computed in float32, whatever the maps are.

    Args:
        mean: takes what this process divides by, [9], to its mean over all processes that share a step, so that
            the mean of their losses is the loss of their images as one batch. Called once.
    """
    with torch.autocast(maps.mask_embedding.device.type, enabled=False):
        maps = maps.in_float32()
        flat = flattened(maps.levels)
        regions = region_maps(targets, network.config)
        goal = spread_over_levels(targets, regions, [map_size(level.centers) for level in maps.levels])
        things = thing_segments(network, flat, targets, goal)
        stuff = region_segments(network, flat, regions, goal)
        thing_dice = dice(network.embed_things(things.mask_kernels), things, maps.mask_embedding)
        stuff_dice = dice(network.embed_stuff(stuff.mask_kernels), stuff, maps.mask_embedding)
        depth, instance_depth, answer_depth = depth_errors(network, maps, things, stuff, targets)
        pixels = pixel_head_errors(network, maps, targets, pixel_heads)
        totals = Losses(
            centers=center_loss(flat.centers, goal),
            regions=region_loss(flat.regions, goal),
            things=weights.mask * (thing_dice * things.weight).sum(),
            stuff=weights.mask * (stuff_dice * stuff.weight).sum(),
            depth=weights.depth * depth.total,
            instance_depth=weights.depth * instance_depth.total,
            answer_depth=weights.depth * answer_depth.total,
            pixel_category=weights.pixel * pixels.category,
            pixel_depth=weights.pixel * pixels.depth,
        )
        pairs, depth_images = targets.pair_valid.sum(), depth.images + answer_depth.images
        counts = Losses(
            centers=pairs,
            regions=torch.full_like(pairs, sum(targets.has_segments)),
            things=pairs,
            stuff=stuff.weight.sum(),
            depth=depth_images,
            instance_depth=instance_depth.images,
            answer_depth=depth_images,
            pixel_category=pixels.labeled,
            pixel_depth=pixels.measured,
        )
        divisors = mean(torch.stack([count.float() for count in counts]))
        divisors = torch.where(divisors > 0, divisors, 1.0)
        return Losses._make((torch.stack(tuple(totals)) / divisors).unbind())


def pixel_head_errors(
    network: PanopticDepth, maps: Maps, targets: Targets, heads: PixelHeads | None
) -> PixelErrors:
    """Errors of the training's own heads; none without them."""
    if heads is None:
        zero = maps.mask_embedding.new_zeros(())
        return PixelErrors(zero, zero, zero, zero)
    return heads(maps, targets, network.config.depth.max_m if network.config.depth else 0.0)


def map_size(maps: Tensor) -> tuple[int, int]:
    return maps.shape[2], maps.shape[3]


def center_loss(logits: Tensor, goal: LevelTargets) -> Tensor:
    """Sum of the focal loss over the center maps."""
    return (soft_focal(logits, goal.centers) * goal.centers_judged).sum()


def region_loss(logits: Tensor, goal: LevelTargets) -> Tensor:
    """Focal loss over the region maps: mean over a level's positions, sum over levels, regions and images."""
    focal = soft_focal(logits, goal.regions.share) * goal.regions.judged
    return torch.stack([part.sum() / part.shape[2] for part in focal.split(goal.positions, dim=2)]).sum()


def soft_focal(logits: Tensor, targets: Tensor) -> Tensor:
    """Focal loss of every element for targets t in 0..1, with the exponent 2.

    a (1 - q)^2 CE(p, t) of probabilities p, where q = p t + (1 - p)(1 - t) and a goes from 1 - alpha to alpha alike.
    """
    probability = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    right = probability * targets + (1 - probability) * (1 - targets)
    alpha = FOCAL_ALPHA * targets + (1 - FOCAL_ALPHA) * (1 - targets)
    return alpha * cross_entropy * (1 - right).square()


def thing_segments(network: PanopticDepth, flat: FlatMaps, targets: Targets, goal: LevelTargets) -> SupervisedKernels:
    """For every pair the kernels at its `POSITIVES` best positions, weighted by their center probability."""
    thing = targets.instance_things.gather(1, targets.pair_instance)  # [B, P]
    probability = select(flat.centers, thing).sigmoid()  # [B, P, L]
    share = select(goal.masks, targets.pair_instance)
    at_level = (goal.level == targets.pair_level[..., None]) & targets.pair_valid[..., None]
    guidance = torch.where((share > MIN_MASK_SHARE) & at_level, probability, 0.0)
    weight, position = guidance.topk(POSITIVES, dim=2)
    return SupervisedKernels(
        mask_kernels=gather_positions(flat.mask_kernels, position.flatten(1)).unflatten(1, position.shape[1:]),
        depth_kernels=gather_positions(flat.depth_kernels, position.flatten(1)).unflatten(1, position.shape[1:]),
        weight=weight / weight.sum(dim=2, keepdim=True).clamp(min=1e-8),
        masks=select(targets.instance_masks, targets.pair_instance),
        judged=select(targets.regions_judged, network.thing_ids[thing]),
    )


def region_segments(
    network: PanopticDepth, flat: FlatMaps, regions: RegionMaps, goal: LevelTargets
) -> SupervisedKernels:
    """For every region its kernel on all levels where it has positions: the sum over these, divided by their number.

    Without adaptive fusion it is divided by the area of the level's map, as in PanopticFCN.
    """
    inside = (goal.regions.share > 0).to(flat.mask_kernels.dtype).split(goal.positions, dim=2)
    count = torch.stack([level.sum(dim=2) for level in inside], dim=2)  # [B, R, levels]
    if network.config.adaptive_fusion:
        area = count.clamp(min=1)
    else:
        area = torch.stack([torch.full_like(level[..., 0], level.shape[2]) for level in inside], dim=2)

    def fused(kernels: Tensor) -> Tensor:
        """Of maps [B, C, L], as [B, R, levels, C]."""
        levels = zip(inside, kernels.split(goal.positions, dim=2), strict=True)
        return torch.stack([level @ here.mT for level, here in levels], dim=2) / area[..., None]

    return SupervisedKernels(
        mask_kernels=fused(flat.mask_kernels),
        depth_kernels=fused(flat.depth_kernels),
        weight=(count > 0).to(count.dtype),
        masks=regions.share,
        judged=regions.judged,
    )


def select(rows: Tensor, index: Tensor) -> Tensor:
    """Rows [B, P, ...] at index [B, P] of [B, N, ...]."""
    index = index.reshape(*index.shape, *[1] * (rows.ndim - 2))
    return rows.gather(1, index.expand(-1, -1, *rows.shape[2:]))


def dice(kernels: Tensor, segments: SupervisedKernels, embedding: Tensor) -> Tensor:
    """Dice loss [B, G, V] of the masks that embedded kernels [B, G, V, C] give on an embedding [B, C, h, w].

    1 - 2 sum(p t) / (sum(p^2) + sum(t^2)) over the judged pixels, p probability and t share.
    """
    logits = dynamic_convolution(kernels.flatten(1, 2), embedding)
    probability = logits.sigmoid().flatten(2).unflatten(1, kernels.shape[1:3])  # [B, G, V, hw]
    judged = segments.judged.flatten(2).to(probability.dtype)
    share = segments.masks.flatten(2) * judged
    size = sums(probability.square(), judged) + share.square().sum(dim=2)[..., None]
    return 1 - 2 * sums(probability, share) / size.clamp(min=1e-8)


def sums(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums [B, G, V] of values [B, G, V, n] with one weight [B, G, n] for all V."""
    # Not a matrix product: a GPU may be set to round its factors, and variances are small differences of sums.
    return (values * weight[:, :, None]).sum(dim=-1)


class DepthErrors(NamedTuple):
    """The errors of all images together."""

    total: Tensor
    images: Tensor  # how many have an error


def depth_errors(
    network: PanopticDepth, maps: Maps, things: SupervisedKernels, stuff: SupervisedKernels, targets: Targets
) -> tuple[DepthErrors, DepthErrors, DepthErrors]:
    """Errors of pixels in their true segments, of things as a whole, and of pixels in segments of the network's own.

    The last are for images that have depth but no segments to tell whose it is.
    """
    scale = network.config.depth
    none = DepthErrors(maps.mask_embedding.new_zeros(()), maps.mask_embedding.new_zeros(()))
    if scale is None:
        return none, none, none
    # The network cannot answer with more than its range: what lies beyond would only pull on what it can say.
    targets = targets._replace(depth=torch.where(targets.depth <= scale.max_m, targets.depth, 0.0))
    if not scale.has_kernels:
        pixels = pixel_errors(scale.pixel_depth(maps.depth_embedding), targets.depth, scale)
        return depth_error(pixels), none, none

    # The region of a thing category spans many things, so it has no depth of its own.
    stuff_rows = network.stuff_first[: len(network.config.stuff_ids)]
    amorphous = SupervisedKernels(*(part.index_select(1, stuff_rows) for part in stuff))
    thing_sums = segment_errors(things, 0.0, maps.depth_embedding, targets.depth, scale)
    stuff_sums = segment_errors(amorphous, 0.5, maps.depth_embedding, targets.depth, scale)
    return (
        depth_error(ErrorSums(*(a + b for a, b in zip(thing_sums, stuff_sums, strict=True)))),
        instance_errors(things, targets.depth, scale) if scale.supervise_shift else none,
        none if all(targets.has_segments) else depth_error(answer_errors(network, maps, targets)),
    )


def segment_errors(
    segments: SupervisedKernels, min_share: float, embedding: Tensor, depth: Tensor, scale: DepthScale
) -> ErrorSums:
    """Errors over the pixels of all segments, by each of their kernels.

    A thing counts wherever it is seen at all, stuff where it prevails: things have few pixels.
    """
    predicted = scale.segment_depth(segments.depth_kernels.flatten(1, 2), embedding)
    return error_sums(
        predicted.flatten(2).unflatten(1, segments.weight.shape[1:]),
        depth.flatten(1)[:, None],
        ((segments.masks > min_share) & (depth[:, None] > 0)).flatten(2),
        segments.weight > 0,
        scale.min_m,
    )


def answer_errors(network: PanopticDepth, maps: Maps, targets: Targets) -> ErrorSums:
    """Errors of the network's own answer, of the images without segments."""
    images = [i for i, has_segments in enumerate(targets.has_segments) if not has_segments]

    def chosen(part: Tensor) -> Tensor:
        return torch.stack([part[i] for i in images])

    own = Maps(
        [LevelMaps(*(chosen(part) for part in level)) for level in maps.levels],
        chosen(maps.mask_embedding),
        chosen(maps.depth_embedding),
    )
    assert network.config.depth is not None
    return pixel_errors(network.answer_depth(own), chosen(targets.depth), network.config.depth)


def pixel_errors(predicted: Tensor, depth: Tensor, scale: DepthScale) -> ErrorSums:
    """Errors over all pixels of maps [B, h, w] of one depth a pixel."""
    predicted, depth = predicted.flatten(1)[:, None], depth.flatten(1)[:, None]
    used = torch.ones_like(depth[..., :1], dtype=torch.bool)
    return error_sums(predicted[:, :, None], depth, depth > 0, used, scale.min_m)


def instance_errors(things: SupervisedKernels, depth: Tensor, scale: DepthScale) -> DepthErrors:
    """Errors of the things' shifts: their mean depth, or their nearest point under scheme T1."""
    depth = depth[:, None]
    known = (things.masks > 0) & (depth > 0)
    count = known.sum(dim=(2, 3))  # [B, P]
    if scale.scheme == T1:
        truth = torch.where(known, depth, torch.inf).amin(dim=(2, 3))
    else:
        truth = torch.where(known, depth, 0.0).sum(dim=(2, 3)) / count.clamp(min=1)
    truth = torch.where(count > 0, truth, 0.0)[..., None]
    shift = scale.shift_m(things.depth_kernels)[..., None]  # [B, P, V, 1]
    return depth_error(error_sums(shift, truth, truth > 0, things.weight > 0, scale.min_m))


class ErrorSums(NamedTuple):
    """What an image's depth error is made of, summed over the places where depths are compared, [B] each."""

    places: Tensor
    log: Tensor  # of ln(truth / prediction)
    log_squared: Tensor
    relative_squared: Tensor  # of (1 - prediction / truth)^2


def error_sums(prediction: Tensor, truth: Tensor, support: Tensor, used: Tensor, min_m: float) -> ErrorSums:
    """Sums over the supported places of all used kernels.

    A prediction below `min_m` is out of the logarithm's reach, which would explode there, and is pulled back by
    the relative term.

    Args:
        prediction: [B, G, V, n] m, without limits.
        truth: [B, G, n] or [B, 1, n] m, above 0 where supported.
        support: [B, G, n] bool.
        used: [B, G, V] bool.
    """
    truth = torch.where(truth > 0, truth, 1.0)[:, :, None]
    weight, used = support.to(truth.dtype), used.to(truth.dtype)

    def total(per_kernel: Tensor) -> Tensor:
        return (per_kernel * used).sum(dim=(1, 2))

    log_ratio = truth.log() - prediction.clamp(min=max(min_m, MIN_LOG_DEPTH_M)).log()
    return ErrorSums(
        places=total(weight.sum(dim=2)[..., None]),
        log=total(sums(log_ratio, weight)),
        log_squared=total(sums(log_ratio.square(), weight)),
        relative_squared=total(sums((1 - prediction / truth).square(), weight)),
    )


def depth_error(over: ErrorSums) -> DepthErrors:
    """Scale-invariant logarithmic error plus root mean squared relative error (equation 6), summed over images."""
    counted = over.places > 0
    places = over.places.clamp(min=1)
    variance = over.log_squared / places - (over.log / places).square()
    relative = over.relative_squared / places
    error = SHAPE_WEIGHT * variance + relative.clamp(min=1e-12).sqrt()
    return DepthErrors(torch.where(counted, error, 0.0).sum(), counted.sum())
