# SPDX-License-Identifier: Apache-2.0
"""Targets say where segments are, as PanopticFCN defines it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from panoptic_depth_ros.taxonomy import VOID_PANOPTIC_ID
from panoptic_depth_training.datasets.cityscapes import CITYSCAPES
from panoptic_depth_training.targets import (
    Targets,
    assign_levels,
    box_sizes,
    center_radius,
    encode,
    spread_over_levels,
)

ROAD, PERSON, CAR = 0, 11, 13
SIZES = ((16, 32), (8, 16), (4, 8), (2, 4), (1, 2))  # p3..p7 of a 128x256 image


def labels(**places: tuple[int, slice, slice]) -> np.ndarray:
    """A road 128x256 with panoptic ids painted over it."""
    ids = np.full((128, 256), ROAD * 1000, np.uint16)
    for panoptic_id, rows, columns in places.values():
        ids[rows, columns] = panoptic_id
    return ids


def batch_of(ids: np.ndarray, depth: np.ndarray | None = None, max_instances: int = 4) -> Targets:
    depth = np.zeros(ids.shape, np.float32) if depth is None else depth
    return Targets(*(part[None] for part in encode(ids, depth, CITYSCAPES, max_instances)))


def test_instances_come_largest_first_and_are_padded_to_a_fixed_count():
    ids = labels(person=(11001, slice(40, 72), slice(16, 32)), car=(13002, slice(64, 104), slice(96, 176)))
    targets = batch_of(ids)
    assert targets.instance_masks.shape == (1, 4, 32, 64)
    assert targets.instance_things[0, :2].tolist() == [CAR - 11, PERSON - 11]
    assert targets.instance_boxes[0].tolist() == [[40, 80], [32, 16], [0, 0], [0, 0]]
    assert targets.instance_masks[0].sum(dim=(1, 2)).tolist() == [10 * 20, 8 * 4, 0, 0]


def test_a_border_through_a_stride_4_pixel_leaves_a_share():
    targets = batch_of(labels(car=(13001, slice(0, 128), slice(0, 130))))
    assert targets.instance_masks[0, 0, 5, 31:34].tolist() == [1.0, 0.5, 0.0]


def test_crowds_and_the_smallest_of_too_many_instances_are_unclear():
    ids = labels(
        crowd=(11000, slice(0, 32), slice(0, 32)),
        small=(13001, slice(40, 48), slice(0, 8)),
        large=(13002, slice(40, 80), slice(64, 128)),
    )
    targets = batch_of(ids, max_instances=1)
    assert targets.instance_boxes.tolist() == [[[40, 64]]]
    assert targets.unclear[0, 4, 4]  # in the crowd
    assert targets.unclear[0, 10, 0]  # in the small car, which found no place
    assert targets.unclear.sum() == 8 * 8 + 2 * 2


def test_void_is_nobodys_region():
    targets = batch_of(labels(void=(VOID_PANOPTIC_ID, slice(0, 64), slice(0, 256))))
    assert targets.regions[0, :, :16].sum() == 0
    assert (targets.regions[0, ROAD, 16:] == 1).all()


def test_depth_is_picked_not_mixed():
    depth = np.zeros((128, 256), np.float32)
    depth[:, 128:] = 20.0
    assert set(batch_of(labels(), depth).depth.unique().tolist()) == {0.0, 20.0}


@pytest.mark.parametrize(
    ("box", "levels"),
    [((0, 0), []), ((30, 30), [0]), ((64, 64), [0, 1]), ((128, 128), [0, 1, 2]), ((2048, 2048), [4])],
)
def test_an_instance_belongs_to_every_level_whose_range_holds_its_size(box, levels):
    assigned = assign_levels(torch.tensor([[box]], dtype=torch.float32))
    assert assigned[0, 0].nonzero().flatten().tolist() == levels


@pytest.mark.parametrize(
    ("box", "radius"), [((4, 4), 1), ((16, 16), 4), ((40, 12), 5), ((12, 40), 5), ((0, 0), 0)]
)
def test_center_radius_follows_cornernet(box, radius):
    assert center_radius(torch.tensor(box, dtype=torch.float32)) == radius


def test_box_sizes_span_all_pixels_of_a_mask():
    masks = torch.zeros(2, 10, 12, dtype=torch.bool)
    masks[0, 3, 4] = masks[0, 7, 2] = True
    assert box_sizes(masks).tolist() == [[5.0, 3.0], [0.0, 0.0]]


def test_a_center_is_one_at_the_center_of_mass_and_falls_off_around_it():
    targets = batch_of(labels(car=(13001, slice(32, 96), slice(64, 192))))  # center at row 63.5, column 127.5
    goal = spread_over_levels(targets, SIZES, 8)
    p3 = goal.centers[0, CAR - 11, : 16 * 32].reshape(16, 32)
    assert (p3 == 1).nonzero().tolist() == [[7, 15]]
    radius = int(center_radius(torch.tensor([64 / 8, 128 / 8])))
    sigma = (2 * radius + 1) / 3
    assert p3[7, 16] == pytest.approx(np.exp(-1 / (2 * sigma**2)))
    assert p3[7, 15 + radius + 1] == 0
    assert goal.centers[0, PERSON - 11].sum() == 0
    assert goal.assigned[0, 0].tolist() == [True, True, False, False, False]
    assert goal.centers[0, :, 16 * 32 + 8 * 16 :].sum() == 0  # not on levels it is not assigned to


def test_two_instances_of_a_category_share_the_map_without_adding_up():
    ids = labels(a=(13001, slice(0, 64), slice(0, 64)), b=(13002, slice(0, 64), slice(64, 128)))
    goal = spread_over_levels(batch_of(ids), SIZES, 8)
    assert goal.centers.max() == 1
    assert (goal.centers[0, CAR - 11, : 16 * 32] == 1).sum() == 2


def test_regions_below_half_a_position_are_left_out():
    goal = spread_over_levels(batch_of(labels(car=(13001, slice(0, 128), slice(0, 128)))), SIZES, 8)
    assert set(goal.regions.unique().tolist()) == {0.0, 1.0}
    assert goal.regions[0, CAR, : 16 * 32].sum() == 16 * 16
    assert (goal.regions[0].sum(dim=0) == 1).all()


def test_centers_are_not_judged_on_crowds():
    goal = spread_over_levels(batch_of(labels(crowd=(11000, slice(0, 128), slice(0, 128)))), SIZES, 8)
    clear = goal.clear[0, : 16 * 32].reshape(16, 32)
    assert not clear[:, :16].any()
    assert clear[:, 16:].all()
    assert goal.level.bincount().tolist() == [h * w for h, w in SIZES]
