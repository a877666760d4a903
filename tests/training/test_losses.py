# SPDX-License-Identifier: Apache-2.0
"""Losses against values worked out by hand, and gradients that reach every weight."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from panoptic_depth_model.depth import DepthScale
from panoptic_depth_model.panoptic_depth import PRESETS, PanopticDepth
from panoptic_depth_training.data import TrainingSamples, open_dataset
from panoptic_depth_training.losses import (
    Losses,
    LossWeights,
    Segments,
    depth_error,
    dice,
    instance_depth_loss,
    pairs,
    panoptic_depth_losses,
    region_means,
    soft_focal,
)
from panoptic_depth_training.targets import Targets

WEIGHTS = LossWeights()


@pytest.fixture(scope="module")
def network() -> PanopticDepth:
    torch.manual_seed(0)
    return PanopticDepth(replace(PRESETS["compact"], width=16)).train()


@pytest.fixture(scope="module")
def batch(frames) -> tuple[torch.Tensor, Targets]:
    images, taxonomy = open_dataset(f"synthetic:{frames}")
    samples = TrainingSamples(images, taxonomy, height=64, width=96, focal_length_px=80.0, seed=0)
    return default_collate([samples[k] for k in range(3)])


def losses_of(network: PanopticDepth, image: torch.Tensor, targets: Targets) -> Losses:
    return panoptic_depth_losses(network, network(network.normalized(image)), targets, WEIGHTS)


def test_focal_loss_of_a_certain_mistake_and_a_half_right_answer():
    logits, targets = torch.tensor([0.0, 0.0, 3.0]), torch.tensor([1.0, 0.0, 0.5])
    p = 1 / (1 + math.exp(-3))
    expected = [
        0.25 * 0.5**2 * math.log(2),
        0.75 * 0.5**2 * math.log(2),
        0.5 * (1 - 0.5) ** 2 * -(0.5 * math.log(p) + 0.5 * math.log(1 - p)),
    ]
    torch.testing.assert_close(soft_focal(logits, targets), torch.tensor(expected))


def test_dice_is_zero_for_the_mask_itself_and_one_without_overlap():
    mask = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]])
    assert dice(200 * (mask - 0.5), mask).item() == pytest.approx(0.0, abs=1e-6)
    assert dice(200 * (0.5 - mask), mask).item() == pytest.approx(1.0)
    # Probability 0.5 everywhere: 1 - 2 * (2 * 0.5) / (4 * 0.25 + 2).
    assert dice(torch.zeros_like(mask), mask).item() == pytest.approx(1 - 2 / 3)


def test_depth_error_of_a_uniform_factor_is_the_relative_error_alone():
    truth = torch.tensor([[4.0, 10.0, 50.0]])
    support = torch.ones(1, 3, dtype=torch.bool)
    assert depth_error(1.2 * truth, truth, support, 0.5).item() == pytest.approx(0.2)
    assert depth_error(truth, truth, support, 0.5).item() == pytest.approx(0.0, abs=1e-5)


def test_depth_error_counts_the_spread_of_logarithms_five_times():
    truth, support = torch.tensor([[10.0, 10.0, 99.0]]), torch.tensor([[True, True, False]])
    prediction = torch.tensor([[10.0 * math.e, 10.0 / math.e, 1.0]])  # log ratios -1 and 1: variance 1
    relative = math.sqrt(((1 - math.e) ** 2 + (1 - 1 / math.e) ** 2) / 2)
    assert depth_error(prediction, truth, support, 0.5).item() == pytest.approx(5 + relative, rel=1e-5)


def test_a_negative_depth_is_pulled_back():
    prediction = torch.tensor([[-3.0, 10.0]], requires_grad=True)
    depth_error(
        prediction, torch.full((1, 2), 10.0), torch.ones(1, 2, dtype=torch.bool), 0.5
    ).sum().backward()
    assert prediction.grad is not None
    assert prediction.grad[0, 0] < 0  # descending raises it


def test_the_shift_of_a_thing_is_compared_with_its_mean_depth():
    depth = torch.zeros(1, 2, 2)
    depth[0, 0] = torch.tensor([8.0, 12.0])  # the thing's two known pixels
    masks = torch.tensor([[[[1.0, 1.0], [1.0, 0.0]]]])
    targets = Targets(masks, torch.ones(1, 1, 2), torch.zeros(1, 1).long(), masks, depth[:, :0], depth)
    scale = DepthScale("T2", shift_limit_m=25.0)
    kernels = torch.zeros(1, 1, 6)  # sigmoid(0) = 0.5: 12.5 m against a mean of 10 m
    things = Segments(kernels, kernels, masks, torch.ones(1, 1), torch.zeros(1, 1).long())
    assert instance_depth_loss(things, targets, scale).item() == pytest.approx(0.25)
    nearest = instance_depth_loss(things, targets, DepthScale("T1", shift_limit_m=25.0))
    assert nearest.item() == pytest.approx(12.5 / 8 - 1)


def test_pairs_list_every_assignment_of_every_image():
    generator = torch.Generator().manual_seed(0)
    assigned = torch.rand(3, 6, 5, generator=generator) < 0.2
    row, level, valid = pairs(assigned)
    for image in range(3):
        listed = {
            (r, k)
            for r, k, v in zip(row[image].tolist(), level[image].tolist(), valid[image], strict=True)
            if v
        }
        assert listed == {tuple(entry) for entry in assigned[image].nonzero().tolist()}


def test_region_means_average_the_kernels_of_a_category_on_a_level():
    kernels = torch.arange(6.0).reshape(1, 1, 6)
    levels = [torch.tensor([True] * 4 + [False] * 2), torch.tensor([False] * 4 + [True] * 2)]
    regions = [
        torch.tensor([[[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]]),
        torch.tensor([[[0.0, 1.0], [0.0, 0.0]]]),
    ]
    category, level = torch.tensor([[0, 1, 0]]), torch.tensor([[0, 0, 1]])
    assert region_means(kernels, regions, levels, category, level).flatten().tolist() == [0.5, 2.5, 5.0]


def test_gradients_reach_every_parameter(network, batch):
    network.zero_grad()
    losses_of(network, *batch).total.backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


def test_the_loss_of_a_batch_does_not_depend_on_the_order_of_its_images(network, batch):
    network.eval()
    image, targets = batch
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        straight = losses_of(network, image, targets)
        shuffled = losses_of(network, image[order], Targets(*(part[order] for part in targets)))
    network.train()
    torch.testing.assert_close(
        torch.stack(tuple(straight)), torch.stack(tuple(shuffled)), rtol=1e-4, atol=1e-5
    )


def test_missing_depth_and_missing_instances_switch_their_losses_off(network, batch):
    image, targets = batch
    nothing = targets._replace(
        depth=torch.zeros_like(targets.depth),
        instance_masks=torch.zeros_like(targets.instance_masks),
        instance_boxes=torch.zeros_like(targets.instance_boxes),
        unclear=torch.ones_like(targets.unclear),
    )
    losses = losses_of(network, image, nothing)
    assert [losses.centers, losses.things, losses.depth, losses.instance_depth] == [0, 0, 0, 0]
    assert losses.regions > 0
    assert losses.stuff > 0
    losses.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_the_weights_scale_their_terms(network, batch):
    image, targets = batch
    with torch.no_grad():
        maps = network(network.normalized(image))
        once = panoptic_depth_losses(network, maps, targets, LossWeights(1.0, 1.0))
        more = panoptic_depth_losses(network, maps, targets, LossWeights(4.0, 5.0))
    factors = [float(b / a) for a, b in zip(once, more, strict=True)]
    np.testing.assert_allclose(factors, [1, 1, 4, 4, 5, 5], rtol=1e-5)
