# SPDX-License-Identifier: Apache-2.0
"""Losses against values worked out by hand, official values, and a slow computation one image and kernel at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from panoptic_depth_model.config import PRESETS, SOME_THING, EmbeddingConfig, PanopticDepthConfig, segmentation_only
from panoptic_depth_model.depth import RELEASED, VARIANTS, DepthScale
from panoptic_depth_model.panoptic_depth import LevelMaps, Maps, PanopticDepth
from panoptic_depth_ros.taxonomy import VOID_PANOPTIC_ID
from panoptic_depth_training.datasets.cityscapes import CITYSCAPES
from panoptic_depth_training.datasets.labeled import Supervision
from panoptic_depth_training.losses import (
    Losses,
    LossWeights,
    SupervisedKernels,
    depth_error,
    dice,
    error_sums,
    instance_errors,
    panoptic_depth_losses,
    soft_focal,
)
from panoptic_depth_training.pixel_heads import PixelHeads
from panoptic_depth_training.targets import Targets, batched, encode, region_maps, spread_over_levels

WEIGHTS = LossWeights()
OFFICIAL = Path(__file__).parents[1] / "data" / "losses" / "official_losses.npz"
SIZES = ((12, 20), (6, 10), (3, 5), (2, 3), (1, 2))  # p3..p7 of a 96x160 image
SMALL = replace(PRESETS["compact"], width=16, embedding=EmbeddingConfig(width=16, shared=True))
PARTIAL = Supervision(void_is_background=False, confusable=tuple((14, 15) if c == 13 else () for c in range(19)))
DEPTH_ONLY = Supervision(has_segments=False)


@pytest.fixture(scope="module")
def network() -> PanopticDepth:
    return network_of(SMALL)


def network_of(config: PanopticDepthConfig) -> PanopticDepth:
    torch.manual_seed(0)
    return PanopticDepth(config).train()


def street(seed: int, instances: int, supervision: Supervision | None = None, has_depth: bool = True) -> Targets:
    """A road under a sky 96x160 with boxes of cars and persons, a crowd of cars and a void corner."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((96, 160), np.uint16)
    ids[: rng.integers(20, 50)] = 10 * 1000
    ids[80:, :40] = 13000
    ids[60:, 120:] = VOID_PANOPTIC_ID
    for k in range(1, instances + 1):
        top, left, height, width = rng.integers((10, 0, 15, 15), (50, 110, 80, 90))
        ids[top : top + height, left : left + width] = rng.choice([11, 13]) * 1000 + k
    depth = rng.uniform(2, 70, ids.shape) * (rng.random(ids.shape) < 0.7) * has_depth
    return encode(ids, depth.astype(np.float32), CITYSCAPES, supervision or Supervision(), 32)


@pytest.fixture(scope="module")
def images() -> list[Targets]:
    """Fully labeled; without depth; partly labeled; without things; without segments."""
    return [
        street(0, instances=4),
        street(1, instances=2, has_depth=False),
        street(2, instances=5, supervision=PARTIAL),
        street(3, instances=0),
        street(4, instances=3, supervision=DEPTH_ONLY),
    ]


def random_maps(config: PanopticDepthConfig, count: int, seed: int = 0) -> Maps:
    """Heads' answers for 96x160 images, to be differentiated."""
    generator = torch.Generator().manual_seed(seed)

    def maps(channels: int, size: tuple[int, int], scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(count, channels, *size, generator=generator)).requires_grad_()

    width = config.embedding.width
    levels = [
        LevelMaps(
            maps(len(config.thing_ids), size),
            maps(len(config.regions), size),
            maps(width, size),
            maps(config.depth_kernel_size, size),
        )
        for size in SIZES
    ]
    return Maps(levels, maps(width, (24, 40)), maps(config.depth_embedding_size, (24, 40), 0.3))


def image_of(maps: Maps, i: int) -> Maps:
    levels = [LevelMaps(*(part[i : i + 1] for part in level)) for level in maps.levels]
    return Maps(levels, maps.mask_embedding[i : i + 1], maps.depth_embedding[i : i + 1])


def images_before(maps: Maps, end: int) -> Maps:
    levels = [LevelMaps(*(part[:end] for part in level)) for level in maps.levels]
    return Maps(levels, maps.mask_embedding[:end], maps.depth_embedding[:end])


def leaves(maps: Maps) -> list[Tensor]:
    return [part for level in maps.levels for part in level] + [maps.mask_embedding, maps.depth_embedding]


class Slow:
    """The losses of images, one at a time, by loops over instances, levels and kernels."""

    def __init__(self, network: PanopticDepth, maps: Maps, targets: list[Targets]) -> None:
        self.network, self.config = network, network.config
        self.centers: list[Tensor] = []  # an entry for each image
        self.regions: list[Tensor] = []
        self.thing_dice: list[Tensor] = []  # an entry for each kernel, weighted
        self.stuff_dice: list[Tensor] = []
        self.depth: list[Tensor] = []  # an entry for each image that has any
        self.instance_depth: list[Tensor] = []
        self.answer_depth: list[Tensor] = []
        self.pairs = 0
        for i, target in enumerate(targets):
            self.add_image(image_of(maps, i), batched([target]))

    def add_image(self, maps: Maps, target: Targets) -> None:
        regions = region_maps(target, self.config)
        goal = spread_over_levels(target, regions, SIZES)
        self.predictions: list[Tensor] = []  # of depth, pixel by pixel in all segments
        self.truths: list[Tensor] = []
        self.shifts: list[Tensor] = []
        self.shift_truths: list[Tensor] = []
        splits = [part.split(goal.positions, dim=2) for part in (goal.centers, goal.centers_judged, *goal.regions)]
        centers, regions_sum = torch.zeros(()), torch.zeros(())
        for level, (heat, heat_judged, share, share_judged) in enumerate(zip(*splits, strict=True)):
            answer = maps.levels[level]
            centers = centers + slow_focal(answer.centers.flatten(2), heat)[heat_judged].sum()
            focal = slow_focal(answer.regions.flatten(2), share)
            regions_sum = regions_sum + focal[share_judged].sum() / focal.shape[2]
            self.add_stuff(maps, target, regions.share[0], regions.judged[0], share[0], level)
            self.add_things(maps, target, goal.masks.split(goal.positions, dim=2)[level][0], level)
        self.centers.append(centers)
        if target.has_segments[0]:
            self.regions.append(regions_sum)
        self.add_depth(maps, target)

    def add_stuff(
        self, maps: Maps, target: Targets, masks: Tensor, judged: Tensor, share: Tensor, level: int
    ) -> None:
        for channel, category in enumerate(self.config.regions):
            inside = share[channel] > 0
            if not inside.any():
                continue
            area = inside.sum() if self.config.adaptive_fusion else inside.numel()
            kernel = maps.levels[level].mask_kernels[0].flatten(1)[:, inside].sum(dim=1) / area
            kernel = self.network.embed_stuff(kernel)
            self.stuff_dice.append(self.dice(maps, kernel, masks[channel], judged[channel]))
            if category in self.config.stuff_ids and self.config.depth_kernel_size:
                depth_kernel = maps.levels[level].depth_kernels[0].flatten(1)[:, inside].sum(dim=1) / area
                self.add_pixels(maps, target, depth_kernel, masks[channel] > 0.5)

    def add_things(self, maps: Maps, target: Targets, level_masks: Tensor, level: int) -> None:
        pairs = zip(target.pair_instance[0], target.pair_level[0], target.pair_valid[0], strict=True)
        for instance in [int(row) for row, at, valid in pairs if valid and int(at) == level]:
            self.pairs += 1
            thing, mask = int(target.instance_things[0, instance]), target.instance_masks[0, instance]
            judged = target.regions_judged[0, self.config.thing_ids[thing]]
            probability = maps.levels[level].centers[0, thing].flatten().sigmoid()
            scores = probability.tolist()
            candidates = [p for p in range(len(probability)) if level_masks[instance, p] > 0.1]
            best = sorted(candidates, key=lambda p: -scores[p])[:7]
            total = sum(probability[p] for p in best)
            for p in best:
                kernel = self.network.embed_things(maps.levels[level].mask_kernels[0].flatten(1)[:, p])
                self.thing_dice.append(probability[p] / total * self.dice(maps, kernel, mask, judged))
                if self.config.depth_kernel_size:
                    depth_kernel = maps.levels[level].depth_kernels[0].flatten(1)[:, p]
                    self.add_pixels(maps, target, depth_kernel, mask > 0)
                    self.add_shift(target, depth_kernel, mask > 0)

    def dice(self, maps: Maps, kernel: Tensor, mask: Tensor, judged: Tensor) -> Tensor:
        p = torch.einsum("c,chw->hw", kernel, maps.mask_embedding[0]).sigmoid()[judged]
        t = mask[judged]
        return 1 - 2 * (p * t).sum() / ((p * p).sum() + (t * t).sum())

    def add_pixels(self, maps: Maps, target: Targets, kernel: Tensor, mask: Tensor) -> None:
        pixels = mask & (target.depth[0] > 0)
        embedding = maps.depth_embedding[0][:, pixels]
        self.predictions.append(formula(self.config.depth, kernel, embedding))
        self.truths.append(target.depth[0][pixels])

    def add_shift(self, target: Targets, kernel: Tensor, mask: Tensor) -> None:
        depth = target.depth[0][mask & (target.depth[0] > 0)]
        if len(depth):
            self.shifts.append(self.config.depth.shift_limit_m * kernel[0].sigmoid())
            self.shift_truths.append(depth.min() if self.config.depth.scheme == "T1" else depth.mean())

    def add_depth(self, maps: Maps, target: Targets) -> None:
        scale = self.config.depth
        known = target.depth[0] > 0
        if scale is None or not known.any():
            return
        if not scale.has_kernels:
            self.predictions = [scale.range_limit_m * maps.depth_embedding[0, 0][known].sigmoid()]
            self.truths = [target.depth[0][known]]
        if self.predictions:
            self.depth.append(slow_depth_error(torch.cat(self.predictions), torch.cat(self.truths), scale.min_m))
        elif not target.has_segments[0]:
            answer = self.network.answer_depth(maps)[0][known]
            self.answer_depth.append(slow_depth_error(answer, target.depth[0][known], scale.min_m))
        if self.shifts and scale.supervise_shift:
            error = slow_depth_error(torch.stack(self.shifts), torch.stack(self.shift_truths), scale.min_m)
            self.instance_depth.append(error)

    def losses(self) -> list[Tensor]:
        pairs, images = max(1, self.pairs), max(1, len(self.depth) + len(self.answer_depth))
        return [
            total(self.centers) / pairs,
            total(self.regions) / max(1, len(self.regions)),
            4 * total(self.thing_dice) / pairs,
            4 * total(self.stuff_dice) / max(1, len(self.stuff_dice)),
            5 * total(self.depth) / images,
            5 * total(self.instance_depth) / max(1, len(self.instance_depth)),
            5 * total(self.answer_depth) / images,
        ]


def total(values: list[Tensor]) -> Tensor:
    return torch.stack([torch.zeros(()), *values]).sum()


def slow_focal(logits: Tensor, t: Tensor) -> Tensor:
    p = logits.sigmoid()
    alpha = 0.25 * t + 0.75 * (1 - t)
    return -alpha * (1 - p * t - (1 - p) * (1 - t)) ** 2 * (t * p.log() + (1 - t) * (1 - p).log())


def formula(scale: DepthScale, kernel: Tensor, embedding: Tensor) -> Tensor:
    """Depth of pixels whose embeddings are the columns of [E, n]."""
    if scale.scheme == "direct":
        return scale.range_limit_m * (kernel @ embedding).sigmoid()
    shift, stretch = scale.shift_limit_m * kernel[0].sigmoid(), scale.range_limit_m * kernel[1].sigmoid()
    return shift + stretch * ((kernel[2:] @ embedding).sigmoid() - (0.5 if scale.scheme == "T2" else 0.0))


def slow_depth_error(prediction: Tensor, truth: Tensor, min_m: float) -> Tensor:
    log_ratio = (truth / prediction.clamp(min=max(min_m, 1e-6))).log()
    return 5 * log_ratio.var(unbiased=False) + ((prediction - truth) / truth).square().mean().sqrt()


CONFIGS = {
    **{f"variant {letter}": replace(SMALL, depth=scale) for letter, scale in VARIANTS.items()},
    "released": replace(SMALL, depth=RELEASED),
    "segmentation only": segmentation_only(SMALL),
    "one channel for all things": replace(SMALL, region_ids=(SOME_THING, *range(11)), adaptive_fusion=False),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_losses_and_gradients_of_a_mixed_batch_are_those_of_a_slow_computation(config, images):
    network = network_of(config)
    maps = random_maps(config, len(images))
    losses = panoptic_depth_losses(network, maps, batched(images), WEIGHTS)
    slow = Slow(network, maps, images).losses()
    torch.testing.assert_close(torch.stack(losses[:-2]), torch.stack(slow), rtol=1e-5, atol=1e-6)
    assert losses.pixel_category == losses.pixel_depth == 0  # there are no such heads
    answered = config.depth is not None and config.depth.has_kernels
    assert (losses.answer_depth > 0) == answered
    fast = torch.autograd.grad(losses.total, leaves(maps), allow_unused=True, materialize_grads=True)
    expected = torch.autograd.grad(total(slow), leaves(maps), allow_unused=True, materialize_grads=True)
    # Without a minimum, depths next to 0 make any rounding large.
    tolerance = 1e-3 if config.depth == RELEASED else 2e-5
    for ours, reference in zip(fast, expected, strict=True):
        assert (ours - reference).norm() <= tolerance * reference.norm()


def test_a_batch_gives_the_weighted_means_of_its_images(network, images):
    maps = random_maps(SMALL, len(images))
    with torch.no_grad():
        whole = panoptic_depth_losses(network, maps, batched(images), WEIGHTS)
        single = [
            panoptic_depth_losses(network, image_of(maps, i), batched([images[i]]), WEIGHTS)
            for i in range(len(images))
        ]
    pairs = [max(1, int(target.pair_valid.sum())) for target in images]
    per_pair = sum(loss.things * count for loss, count in zip(single, pairs, strict=True))
    num_pairs = sum(int(target.pair_valid.sum()) for target in images)
    assert whole.things.item() == pytest.approx(per_pair.item() / num_pairs, rel=1e-5)
    assert whole.regions.item() == pytest.approx(sum(loss.regions.item() for loss in single) / 4, rel=1e-5)
    # Four images have depth, one of them without segments.
    assert whole.depth.item() == pytest.approx(sum(loss.depth.item() for loss in single) / 4, rel=1e-5)
    assert whole.answer_depth.item() == pytest.approx(single[4].answer_depth.item() / 4, rel=1e-5)
    # Two images have things with depth.
    expected = sum(loss.instance_depth.item() for loss in single) / 2
    assert whole.instance_depth.item() == pytest.approx(expected, rel=1e-5)


def test_processes_that_share_a_step_have_the_mean_loss_of_their_images_as_one_batch(network, images):
    maps = random_maps(SMALL, len(images))
    # The first has no segments at all, the second all the instances.
    shares = [(image_of(maps, 4), batched(images[4:])), (images_before(maps, 4), batched(images[:4]))]
    divisors: list[Tensor] = []

    def recorded(counts: Tensor) -> Tensor:
        divisors.append(counts)
        return counts

    heads, weights = PixelHeads(SMALL), LossWeights(pixel=1.0)
    for part, target in shares:
        panoptic_depth_losses(network, part, target, weights, recorded, heads)
    assert len(divisors) == 2  # each process asks once, so they wait for each other once
    with torch.no_grad():
        whole = panoptic_depth_losses(network, maps, batched(images), weights, pixel_heads=heads)
        parts = [
            panoptic_depth_losses(network, part, target, weights, lambda _: sum(divisors) / 2, heads)
            for part, target in shares
        ]
    mean = torch.stack([torch.stack(tuple(part)) for part in parts]).mean(dim=0)
    torch.testing.assert_close(mean, torch.stack(tuple(whole)), rtol=1e-5, atol=1e-6)


def test_what_is_not_judged_has_no_gradient(network):
    targets = batched([street(2, instances=5, supervision=PARTIAL)])
    maps = random_maps(SMALL, 1)
    losses = panoptic_depth_losses(network, maps, targets, WEIGHTS)
    centers, regions = torch.autograd.grad(losses.regions + losses.centers, [*maps.levels[0][:2]])
    goal = spread_over_levels(targets, region_maps(targets, SMALL), SIZES)
    for gradient, judged in ((centers, goal.centers_judged), (regions, goal.regions.judged)):
        judged = judged[:, :, : 12 * 20].unflatten(2, SIZES[0])
        assert not judged.all()
        assert gradient[~judged].eq(0).all()
        assert gradient[judged].ne(0).all()


def test_masks_are_free_where_they_are_not_judged(network):
    """The mask embedding on a void pixel matters to data where void is background, and not where it is open."""
    gradients = []
    for supervision in (Supervision(), PARTIAL):
        maps = random_maps(SMALL, 1)
        losses = panoptic_depth_losses(network, maps, batched([street(2, 5, supervision)]), WEIGHTS)
        (gradient,) = torch.autograd.grad(losses.things + losses.stuff, [maps.mask_embedding])
        gradients.append(gradient[0, :, 23, 39])
    assert gradients[0].abs().sum() > 0
    assert gradients[1].abs().sum() == 0


def test_only_images_without_segments_are_asked_for_their_own_answer(network, images, monkeypatch):
    asked = []

    def answer_depth(maps: Maps) -> Tensor:
        asked.append(maps)
        return torch.full((1, 24, 40), 10.0)

    monkeypatch.setattr(network, "answer_depth", answer_depth)
    maps = random_maps(SMALL, len(images))
    panoptic_depth_losses(network, image_of(maps, 0), batched(images[:1]), WEIGHTS)
    assert not asked
    losses = panoptic_depth_losses(network, maps, batched(images), WEIGHTS)
    assert torch.equal(asked[0].mask_embedding, maps.mask_embedding[4:])
    truth = images[4].depth[images[4].depth > 0]
    expected = 5 * slow_depth_error(torch.full_like(truth, 10.0), truth, 0.5) / 4
    assert losses.answer_depth.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_batch_without_any_truth_costs_nothing_and_has_finite_gradients(network):
    targets = batched([street(0, 3, DEPTH_ONLY, has_depth=False)])
    maps = random_maps(SMALL, 1)
    losses = panoptic_depth_losses(network, maps, targets, WEIGHTS)
    assert [term.item() for term in losses] == [0] * len(losses)
    gradients = torch.autograd.grad(losses.total, leaves(maps), allow_unused=True, materialize_grads=True)
    assert all(gradient.eq(0).all() for gradient in gradients)


def test_maps_in_half_precision_lose_nothing_in_the_losses(network, images):
    coarse = random_maps(SMALL, len(images))
    coarse = Maps(
        [LevelMaps(*(part.bfloat16() for part in level)) for level in coarse.levels],
        coarse.mask_embedding.bfloat16(),
        coarse.depth_embedding.bfloat16(),
    )
    fine = Maps(
        [LevelMaps(*(part.float() for part in level)) for level in coarse.levels],
        coarse.mask_embedding.float(),
        coarse.depth_embedding.float(),
    )
    with torch.autocast("cpu", torch.bfloat16):
        losses = panoptic_depth_losses(network, coarse, batched(images), WEIGHTS)
    expected = panoptic_depth_losses(network, fine, batched(images), WEIGHTS)
    assert losses.total.dtype == torch.float32
    assert torch.equal(torch.stack(tuple(losses)), torch.stack(tuple(expected)))


class HostConstants(TorchDispatchMode):
    """Counts tensors that are made from numbers of the host, each of which a GPU has to wait for."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.lift_fresh.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("letter", VARIANTS)
def test_a_gpu_is_never_waited_for(letter, images):
    """Pretended CUDA tensors have shapes but no values: whatever reads one, or mixes devices, fails."""
    config = replace(SMALL, depth=VARIANTS[letter])
    batch = batched(images[:4])
    with FakeTensorMode() as mode, torch.device("cuda"):
        network = PanopticDepth(config)
        maps = network(torch.empty(4, 3, 96, 160))
        parts = [mode.from_tensor(part) if isinstance(part, Tensor) else part for part in batch]
        targets = Targets._make(parts).to("cuda")
        with HostConstants() as constants:
            losses = panoptic_depth_losses(network, maps, targets, WEIGHTS)
    assert losses.total.device.type == "cuda"
    assert constants.count == 0


def test_gradients_reach_every_parameter(network):
    network.zero_grad()
    image = torch.randint(0, 256, (2, 96, 160, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    maps = network(network.normalized(image))
    panoptic_depth_losses(network, maps, batched([street(0, 4), street(2, 5)]), WEIGHTS).total.backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


def test_depth_without_segments_teaches_kernels_and_embedding(network):
    network.zero_grad()
    image = torch.randint(0, 256, (1, 96, 160, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    maps = network(network.normalized(image))
    losses: Losses = panoptic_depth_losses(network, maps, batched([street(0, 4, DEPTH_ONLY)]), WEIGHTS)
    assert losses.answer_depth == losses.total > 0
    losses.total.backward()
    for head in (network.depth_kernel_head, network.embedding_head.depth):
        assert head is not None
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())
    assert all(p.grad is None or p.grad.eq(0).all() for p in network.location_head.regions.parameters())


def test_the_weights_scale_their_terms(network, images):
    maps, heads = random_maps(SMALL, len(images)), PixelHeads(SMALL)
    with torch.no_grad():
        once = panoptic_depth_losses(network, maps, batched(images), LossWeights(1.0, 1.0, 1.0), pixel_heads=heads)
        more = panoptic_depth_losses(network, maps, batched(images), LossWeights(4.0, 5.0, 2.0), pixel_heads=heads)
    factors = [float(b / a) for a, b in zip(once, more, strict=True)]
    np.testing.assert_allclose(factors, [1, 1, 4, 4, 5, 5, 5, 2, 2], rtol=1e-5)


def test_pixel_heads_are_held_against_every_pixel_that_has_a_category_or_a_depth(network, images):
    maps, heads, targets = random_maps(SMALL, len(images)), PixelHeads(SMALL), batched(images)
    weights = LossWeights(pixel=1.0)
    logits = heads.category(maps.mask_embedding).double()
    assert heads.log_depth is not None
    log_depth = heads.log_depth(maps.depth_embedding)[:, 0].double()
    entropy, labeled, errors = 0.0, 0.0, []
    for i, v, u in np.ndindex(len(images), 24, 40):
        probability = logits[i, :, v, u].softmax(dim=0)
        for category, share in enumerate(targets.regions[i, :, v, u].tolist()):
            entropy -= share * math.log(probability[category].item())
            labeled += share
        if 0 < targets.depth[i, v, u] <= 40:
            errors.append(abs(math.log(targets.depth[i, v, u]) - log_depth[i, v, u].item()))
    near = network_of(replace(SMALL, depth=replace(SMALL.depth, max_m=40.0)))
    losses = panoptic_depth_losses(near, maps, targets, weights, pixel_heads=heads)
    assert losses.pixel_category.item() == pytest.approx(entropy / labeled, rel=1e-5)
    assert losses.pixel_depth.item() == pytest.approx(np.mean(errors), rel=1e-5)
    (losses.pixel_category + losses.pixel_depth).backward()
    for learned in (*heads.parameters(), maps.mask_embedding, maps.depth_embedding):
        assert learned.grad is not None
        assert learned.grad.abs().sum() > 0


def test_pixel_heads_of_a_network_without_depth_know_categories_alone(images):
    config = segmentation_only(SMALL)
    maps, heads = random_maps(config, len(images)), PixelHeads(config)
    weights = LossWeights(pixel=1.0)
    losses = panoptic_depth_losses(network_of(config), maps, batched(images), weights, pixel_heads=heads)
    assert heads.log_depth is None
    assert losses.pixel_category > 0
    assert losses.pixel_depth == 0


def test_focal_loss_of_a_certain_mistake_and_a_half_right_answer():
    logits, targets = torch.tensor([0.0, 0.0, 3.0]), torch.tensor([1.0, 0.0, 0.5])
    p = 1 / (1 + math.exp(-3))
    expected = [
        0.25 * 0.5**2 * math.log(2),
        0.75 * 0.5**2 * math.log(2),
        0.5 * (1 - 0.5) ** 2 * -(0.5 * math.log(p) + 0.5 * math.log(1 - p)),
    ]
    torch.testing.assert_close(soft_focal(logits, targets), torch.tensor(expected))


def one_kernel(masks: Tensor, judged: Tensor | None = None, depth_kernels: Tensor | None = None) -> SupervisedKernels:
    """Segments of one kernel each, for masks [B, G, h, w]."""
    weight = torch.ones(*masks.shape[:2], 1)
    judged = torch.ones_like(masks, dtype=torch.bool) if judged is None else judged
    depth_kernels = weight if depth_kernels is None else depth_kernels
    return SupervisedKernels(weight[..., None], depth_kernels, weight, masks, judged)


def dice_of(logits: Tensor, segments: SupervisedKernels) -> Tensor:
    """With an embedding that is the logits and a kernel of 1."""
    return dice(torch.ones(1, 1, 1, 1), segments, logits)


def test_dice_is_zero_for_the_mask_itself_and_one_without_overlap():
    mask = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]])
    assert dice_of(200 * (mask - 0.5), one_kernel(mask)).item() == pytest.approx(0.0, abs=1e-6)
    assert dice_of(200 * (0.5 - mask), one_kernel(mask)).item() == pytest.approx(1.0)
    # Probability 0.5 everywhere: 1 - 2 * (2 * 0.5) / (4 * 0.25 + 2).
    assert dice_of(torch.zeros_like(mask), one_kernel(mask)).item() == pytest.approx(1 - 2 / 3)


def test_pixels_that_are_not_judged_leave_both_sides_of_dice():
    mask = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]])
    judged = torch.tensor([[[[True, False, True, False]]]])
    # Probability 0.5 on one pixel inside and one outside: 1 - 2 * 0.5 / (2 * 0.25 + 1).
    assert dice_of(torch.zeros_like(mask), one_kernel(mask, judged)).item() == pytest.approx(1 - 1 / 1.5)


def error_of(prediction: Tensor, truth: Tensor, support: Tensor, min_m: float = 0.5) -> Tensor:
    """The depth error of places [1, n]."""
    used = torch.ones(len(prediction), 1, 1, dtype=torch.bool)
    return depth_error(error_sums(prediction[:, None, None], truth[:, None], support[:, None], used, min_m)).total


def test_depth_error_of_a_uniform_factor_is_the_relative_error_alone():
    truth = torch.tensor([[4.0, 10.0, 50.0]])
    support = torch.ones(1, 3, dtype=torch.bool)
    assert error_of(1.2 * truth, truth, support).item() == pytest.approx(0.2)
    assert error_of(truth, truth, support).item() == pytest.approx(0.0, abs=1e-5)


def test_depth_error_counts_the_spread_of_logarithms_five_times():
    truth, support = torch.tensor([[10.0, 10.0, 99.0]]), torch.tensor([[True, True, False]])
    prediction = torch.tensor([[10.0 * math.e, 10.0 / math.e, 1.0]])  # log ratios -1 and 1: variance 1
    relative = math.sqrt(((1 - math.e) ** 2 + (1 - 1 / math.e) ** 2) / 2)
    assert error_of(prediction, truth, support).item() == pytest.approx(5 + relative, rel=1e-5)


def test_a_negative_depth_is_pulled_back():
    prediction = torch.tensor([[-3.0, 10.0]], requires_grad=True)
    error_of(prediction, torch.full((1, 2), 10.0), torch.ones(1, 2, dtype=torch.bool)).sum().backward()
    assert prediction.grad is not None
    assert prediction.grad[0, 0] < 0  # descending raises it


def test_the_shift_of_a_thing_is_compared_with_its_mean_depth_or_its_nearest_point():
    depth = torch.zeros(1, 2, 2)
    depth[0, 0] = torch.tensor([8.0, 12.0])  # the thing's two known pixels
    masks = torch.tensor([[[[1.0, 1.0], [1.0, 0.0]]]])
    things = one_kernel(masks, depth_kernels=torch.zeros(1, 1, 1, 6))  # sigmoid(0) = 0.5: 12.5 m
    mean = instance_errors(things, depth, DepthScale("T2", shift_limit_m=25.0))
    assert mean.total.item() == pytest.approx(0.25)  # 12.5 m against a mean of 10 m
    assert mean.images == 1
    nearest = instance_errors(things, depth, DepthScale("T1", shift_limit_m=25.0))
    assert nearest.total.item() == pytest.approx(12.5 / 8 - 1)


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    """Inputs and values of the official PanopticDepth (commit 1a0a1d9), in float32."""
    with np.load(OFFICIAL) as values:
        return {name: torch.from_numpy(values[name]) for name in values.files}


def test_focal_loss_is_the_official_one(official):
    logits = official["focal_logits"].requires_grad_()
    loss = soft_focal(logits, official["focal_targets"]).sum()
    assert loss.item() == pytest.approx(official["focal_sum"].item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, official["focal_grad"], rtol=1e-4, atol=1e-6)


def test_dice_loss_is_the_official_one(official):
    logits, masks = official["dice_logits"], official["dice_targets"][None]
    kernels = torch.eye(28).unflatten(0, (4, 7))[None]  # each picks its own map of logits
    judged = torch.ones_like(masks, dtype=torch.bool)
    segments = SupervisedKernels(kernels, kernels, official["dice_weights"][None], masks, judged)
    weight = segments.weight / segments.weight.sum(dim=2, keepdim=True)
    loss = (dice(kernels, segments, logits.flatten(0, 1)[None]) * weight * official["dice_used"][:, None]).sum()
    assert loss.item() == pytest.approx(official["dice_sum"].item(), rel=1e-5)


@pytest.mark.parametrize("case", [0, 2])
def test_depth_error_is_the_official_one(official, case):
    truth, expected = official[f"depth_pixel_{case}_gt"], official[f"depth_pixel_{case}_grad"]
    prediction = official[f"depth_pixel_{case}_pred"].requires_grad_()
    assert (prediction == 0).any()
    loss = error_of(prediction.flatten()[None], truth.flatten()[None], (truth > 0).flatten()[None], min_m=0.0)
    assert loss.item() == pytest.approx(official[f"depth_pixel_{case}_loss"].item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss.sum(), prediction)
    # At 0 the official loss has no gradient at all; ours leaves the relative term's, which pulls it back.
    positive = prediction > 0
    torch.testing.assert_close(gradient[positive], expected[positive], rtol=1e-4, atol=1e-7)


def test_depth_error_of_instances_is_the_official_one(official):
    gt, pred, valid = (official[f"depth_instance_{part}"][None] for part in ("gt", "pred", "valid"))
    loss = error_of(pred, gt, valid & (gt > 0), min_m=0.0)
    assert loss.item() == pytest.approx(official["depth_instance_loss"].item(), rel=1e-5)


def test_depth_maps_are_the_official_ones(official):
    depth = RELEASED.segment_depth(official["depth_map_kernels"][None], official["depth_map_embedding"][None])
    torch.testing.assert_close(depth[0].clamp(min=0), official["depth_map_out"], rtol=1e-5, atol=1e-4)
