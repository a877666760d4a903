# SPDX-License-Identifier: Apache-2.0
"""Targets say where segments are, as PanopticFCN defines it, and what the labels leave open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from panoptic_depth_model.config import PRESETS, SOME_THING
from panoptic_depth_ros.taxonomy import VOID_PANOPTIC_ID
from panoptic_depth_training.datasets.cityscapes import CITYSCAPES
from panoptic_depth_training.datasets.labeled import Supervision
from panoptic_depth_training.targets import (
    LevelTargets,
    Targets,
    assign_levels,
    batched,
    box_sizes,
    center_radius,
    collate,
    encode,
    region_maps,
    spread_over_levels,
)

ROAD, SKY, PERSON, CAR, TRUCK = 0, 10, 11, 13, 14
FIRST_THING = 11
SIZES = ((16, 32), (8, 16), (4, 8), (2, 4), (1, 2))  # p3..p7 of a 128x256 image
P3 = slice(0, 16 * 32)
OFFICIAL = Path(__file__).parents[1] / "data" / "losses" / "official_targets.npz"
PARTIAL = Supervision(void_is_background=False)


def labels(**places: tuple[int, slice, slice]) -> np.ndarray:
    """A road 128x256 with panoptic ids painted over it."""
    ids = np.full((128, 256), ROAD * 1000, np.uint16)
    for panoptic_id, rows, columns in places.values():
        ids[rows, columns] = panoptic_id
    return ids


def encoded(
    ids: np.ndarray, depth: np.ndarray | None = None, supervision: Supervision | None = None, max_instances: int = 4
) -> Targets:
    depth = np.zeros(ids.shape, np.float32) if depth is None else depth
    return encode(ids, depth, CITYSCAPES, supervision or Supervision(), max_instances)


def spread(targets: Targets) -> LevelTargets:
    targets = batched([targets])
    return spread_over_levels(targets, region_maps(targets, PRESETS["compact"]), SIZES)


def confusing(label: int, *possible: int) -> Supervision:
    """One label may in truth be other categories."""
    return Supervision(confusable=tuple(possible if c == label else () for c in range(len(CITYSCAPES))))


def test_instances_come_largest_first():
    ids = labels(person=(11001, slice(40, 72), slice(16, 32)), car=(13002, slice(64, 104), slice(96, 176)))
    targets = encoded(ids)
    assert targets.instance_masks.shape == (1, 2, 32, 64)
    assert targets.instance_things[0].tolist() == [CAR - FIRST_THING, PERSON - FIRST_THING]
    assert targets.instance_boxes[0].tolist() == [[40, 80], [32, 16]]
    assert targets.instance_masks[0].sum(dim=(1, 2)).tolist() == [10 * 20, 8 * 4]


def test_pairs_list_every_level_of_every_instance():
    ids = labels(person=(11001, slice(40, 72), slice(16, 32)), car=(13002, slice(0, 128), slice(96, 224)))
    targets = encoded(ids)  # a box of 128 px lies in three ranges, one of 23 px in the first alone
    pairs = zip(targets.pair_instance[0].tolist(), targets.pair_level[0].tolist(), strict=True)
    assert list(pairs) == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert targets.pair_valid.all()


def test_shares_are_those_of_bilinear_interpolation():
    ids = (np.random.default_rng(0).integers(0, 19, (16, 32)) * 1000).astype(np.uint16).repeat(8, 0).repeat(8, 1)
    ids = np.roll(ids, (3, 2), (0, 1))
    ids[40:60, 33:90] = 13001
    targets = encoded(ids)
    one_hot = torch.from_numpy(ids // 1000 == np.arange(19)[:, None, None])[None].float()
    expected = F.interpolate(one_hot, (32, 64), mode="bilinear")
    assert torch.equal(targets.regions, expected)
    mask = torch.from_numpy(ids == 13001)[None, None].float()
    assert torch.equal(targets.instance_masks[:, 0], F.interpolate(mask, (32, 64), mode="bilinear")[:, 0])


def test_a_border_through_a_stride_4_pixel_leaves_a_share():
    targets = encoded(labels(car=(13001, slice(0, 128), slice(0, 130))))
    assert targets.instance_masks[0, 0, 5, 31:34].tolist() == [1.0, 0.5, 0.0]


def test_an_instance_between_the_pixels_of_stride_4_is_none():
    targets = encoded(labels(car=(13001, slice(64, 65), slice(64, 65))))
    assert targets.instance_masks.shape[1] == 0
    assert targets.pair_valid.shape[1] == 0
    assert targets.centers_judged.all()


def test_centers_are_not_judged_where_things_are_not_told_apart():
    ids = labels(
        crowd=(13000, slice(0, 32), slice(0, 32)),
        small=(13001, slice(40, 48), slice(0, 8)),
        large=(13002, slice(40, 80), slice(64, 128)),
    )
    targets = encoded(ids, max_instances=1)  # the small car finds no place
    assert targets.instance_boxes.tolist() == [[[40, 64]]]
    open_cars = ~targets.centers_judged[0, CAR - FIRST_THING]
    assert open_cars[:8, :8].all()
    assert open_cars[10:12, :2].all()
    assert open_cars.sum() == 8 * 8 + 2 * 2
    others = [thing for thing in range(8) if thing != CAR - FIRST_THING]
    assert targets.centers_judged[0, others].all()  # no person has its center in a crowd of cars
    assert targets.regions_judged.all()
    assert targets.regions[0, CAR, :8, :8].eq(1).all()


def test_void_is_nobodys_region():
    targets = encoded(labels(void=(VOID_PANOPTIC_ID, slice(0, 64), slice(0, 256))))
    assert targets.regions[0, :, :16].sum() == 0
    assert targets.regions_judged.all()
    assert (targets.regions[0, ROAD, 16:] == 1).all()


def test_nothing_is_judged_on_an_unlabeled_pixel_of_partly_labeled_data():
    targets = encoded(labels(void=(VOID_PANOPTIC_ID, slice(0, 66), slice(0, 256))), supervision=PARTIAL)
    assert not targets.regions_judged[0, :, :17].any()  # row 16 is void by half
    assert not targets.centers_judged[0, :, :17].any()
    assert targets.regions_judged[0, :, 17:].all()
    assert targets.centers_judged[0, :, 17:].all()
    assert targets.regions[0, ROAD, 16].eq(0).all()  # no share where not judged


def test_confusable_categories_are_neither_confirmed_nor_denied():
    ids = labels(car=(13001, slice(0, 64), slice(0, 64)))
    targets = encoded(ids, supervision=confusing(CAR, TRUCK))
    inside = (0, slice(None), slice(0, 16), slice(0, 16))
    assert [i for i in range(19) if not targets.regions_judged[inside][i].any()] == [TRUCK]
    assert [i for i in range(8) if not targets.centers_judged[inside][i].any()] == [TRUCK - FIRST_THING]
    assert targets.regions_judged[0, :, 16:].all()
    assert targets.instance_masks.shape[1] == 1  # that it is a car, or at least labeled so, still counts


def test_a_thing_whose_own_category_is_open_is_no_instance():
    ids = labels(car=(13001, slice(0, 64), slice(0, 64)))
    targets = encoded(ids, supervision=confusing(CAR, CAR, TRUCK))
    assert targets.instance_masks.shape[1] == 0
    assert targets.regions[0, CAR].sum() == 0
    assert not targets.regions_judged[0, [CAR, TRUCK], :16, :16].any()
    assert not targets.centers_judged[0, [CAR - FIRST_THING, TRUCK - FIRST_THING], :16, :16].any()


def test_without_segments_nothing_is_judged_whatever_the_ids_say():
    ids = labels(car=(13001, slice(0, 64), slice(0, 64)))
    targets = encoded(ids, supervision=Supervision(has_segments=False))
    assert targets.has_segments == (False,)
    assert targets.instance_masks.shape[1] == 0
    assert targets.regions.sum() == 0
    assert not targets.regions_judged.any()
    assert not targets.centers_judged.any()


def test_depth_is_picked_not_mixed():
    depth = np.zeros((128, 256), np.float32)
    depth[:, 128:] = 20.0
    assert set(encoded(labels(), depth).depth.unique().tolist()) == {0.0, 20.0}
    depth = np.arange(128 * 256, dtype=np.float32).reshape(128, 256)
    assert encoded(labels(), depth).depth[0, 3, 5] == depth[14, 22]


def test_every_point_of_a_scan_finds_its_stride_4_pixel_and_the_nearest_one_wins():
    depth = np.zeros((128, 256), np.float32)
    depth[8, 15], depth[11, 12], depth[40, 41] = 9.0, 7.0, 30.0
    sparse = encoded(labels(), depth, Supervision(has_segments=False)).depth[0]
    assert {tuple(place): float(sparse[tuple(place)]) for place in sparse.nonzero().tolist()} == {
        (2, 3): 7.0,
        (10, 10): 30.0,
    }


def test_labels_of_an_odd_size_are_refused():
    with pytest.raises(ValueError, match=r"labels are 126x256; .* multiples of 4"):
        encoded(np.zeros((126, 256), np.uint16))


def test_a_batch_is_padded_to_its_largest_counts():
    two = encoded(labels(a=(13001, slice(0, 64), slice(0, 64)), b=(13002, slice(0, 32), slice(64, 96))))
    none = encoded(labels(), supervision=Supervision(has_segments=False))
    images, batch = collate([(torch.zeros(128, 256, 3), two), (torch.ones(128, 256, 3), none)])
    assert images.shape == (2, 128, 256, 3)
    assert batch.instance_masks.shape == (2, 2, 32, 64)
    assert batch.instance_boxes[1].tolist() == [[0, 0], [0, 0]]
    assert batch.pair_valid.tolist() == [[True, True, True], [False, False, False]]
    assert batch.pair_level[0].tolist() == [0, 1, 0]
    assert batch.has_segments == (True, False)
    assert torch.equal(batch.regions, torch.cat([two.regions, none.regions]))


@pytest.mark.parametrize(("parts", "counts"), [(1, [5]), (2, [3, 2]), (4, [2, 2, 1])])
def test_a_batch_splits_as_its_images_do(parts, counts):
    singles = [encoded(labels(), supervision=Supervision(has_segments=k < 3)) for k in range(5)]
    split = batched(singles).split(parts)
    assert [len(part.regions) for part in split] == counts == [len(part) for part in torch.zeros(5).chunk(parts)]
    assert [known for part in split for known in part.has_segments] == [True] * 3 + [False] * 2


def test_a_batch_without_any_instance_still_has_a_row_for_it():
    batch = batched([encoded(labels()), encoded(labels())])
    assert batch.instance_masks.shape == (2, 1, 32, 64)
    assert batch.pair_valid.tolist() == [[False], [False]]
    assert batch.to("cpu").has_segments == (True, True)


@pytest.mark.parametrize(
    ("box", "levels"),
    [((0, 0), []), ((30, 30), [0]), ((64, 64), [0, 1]), ((128, 128), [0, 1, 2]), ((2048, 2048), [4])],
)
def test_an_instance_belongs_to_every_level_whose_range_holds_its_size(box, levels):
    assert assign_levels(torch.tensor([box], dtype=torch.float32))[0].nonzero().flatten().tolist() == levels


@pytest.mark.parametrize(
    ("box", "radius"), [((4, 4), 1), ((16, 16), 4), ((40, 12), 5), ((12, 40), 5), ((0, 0), 0)]
)
def test_center_radius_follows_cornernet(box, radius):
    assert center_radius(torch.tensor(box, dtype=torch.float32)) == radius


def test_box_sizes_span_all_pixels_of_a_row():
    rows = np.full((10, 12), 2, np.int16)
    rows[3, 4] = rows[7, 2] = 0
    rows[9, 11] = 1
    assert box_sizes(rows, 2).tolist() == [[5.0, 3.0], [1.0, 1.0]]


def test_a_center_is_one_at_the_center_of_mass_and_falls_off_around_it():
    targets = encoded(labels(car=(13001, slice(32, 96), slice(64, 192))))  # center at row 63.5, column 127.5
    goal = spread(targets)
    p3 = goal.centers[0, CAR - FIRST_THING, P3].reshape(16, 32)
    assert (p3 == 1).nonzero().tolist() == [[7, 15]]
    radius = int(center_radius(torch.tensor([64 / 8, 128 / 8])))
    sigma = (2 * radius + 1) / 3
    assert p3[7, 16] == pytest.approx(np.exp(-1 / (2 * sigma**2)))
    assert p3[7, 15 + radius + 1] == 0
    assert goal.centers[0, PERSON - FIRST_THING].sum() == 0
    assert goal.centers[0, :, 16 * 32 + 8 * 16 :].sum() == 0  # not on levels it is not assigned to


def test_two_instances_of_a_category_share_the_map_without_adding_up():
    goal = spread(encoded(labels(a=(13001, slice(0, 64), slice(0, 64)), b=(13002, slice(0, 64), slice(64, 128)))))
    assert goal.centers.max() == 1
    assert (goal.centers[0, CAR - FIRST_THING, P3] == 1).sum() == 2


def test_regions_below_half_a_position_are_left_out():
    goal = spread(encoded(labels(car=(13001, slice(0, 128), slice(0, 128)))))
    assert set(goal.regions.share.unique().tolist()) == {0.0, 1.0}
    assert goal.regions.share[0, CAR, P3].sum() == 16 * 16
    assert (goal.regions.share[0].sum(dim=0) == 1).all()
    assert goal.level.bincount().tolist() == list(goal.positions) == [h * w for h, w in SIZES]


def test_a_position_is_judged_where_all_that_it_is_interpolated_from_is():
    goal = spread(encoded(labels(void=(VOID_PANOPTIC_ID, slice(0, 68), slice(0, 256))), supervision=PARTIAL))
    judged = goal.regions.judged[0, ROAD, P3].reshape(16, 32)
    assert not judged[:9].any()  # row 8 is drawn from stride-4 rows 16 and 17, and 16 is void
    assert judged[9:].all()
    assert torch.equal(goal.centers_judged[0, 0, P3].reshape(16, 32), judged)


def test_a_channel_for_all_things_together_has_all_their_regions():
    config = replace(PRESETS["compact"], region_ids=(SOME_THING, *range(FIRST_THING)))
    ids = labels(car=(13001, slice(0, 64), slice(0, 64)), person=(11001, slice(64, 128), slice(64, 128)))
    targets = encoded(ids, supervision=confusing(CAR, TRUCK))
    regions = region_maps(targets, config)
    assert regions.share.shape == (1, 12, 32, 64)
    assert regions.share[0, 0, 16:, 16:32].eq(1).all()  # the person
    assert not regions.judged[0, 0, :16, :16].any()  # which thing the car is stays open, so the channel does
    assert torch.equal(regions.share[:, 1:], targets.regions[:, :FIRST_THING])


def test_targets_are_those_of_the_official_implementation():
    with np.load(OFFICIAL) as official:
        ids = np.where(official["sem_seg"] == 255, VOID_PANOPTIC_ID, official["sem_seg"].astype(int) * 1000)
        for instance, thing in enumerate(official["instance_classes"].tolist(), start=1):
            ids[official["instance_map"] == instance] = (FIRST_THING + thing) * 1000 + instance
        sizes = [official[f"center_p{level}"].shape[1:] for level in range(3, 8)]
        targets = encode(ids.astype(np.uint16), np.zeros(ids.shape, np.float32), CITYSCAPES, Supervision(), 32)
        goal = spread_over_levels(targets, region_maps(targets, PRESETS["paper"]), sizes)
        centers = [official[f"center_p{level}"].reshape(8, -1) for level in range(3, 8)]
        regions = [official[f"region_p{level}"].reshape(19, -1) for level in range(3, 8)]
    np.testing.assert_allclose(goal.centers[0], np.concatenate(centers, axis=1), atol=1e-6)
    np.testing.assert_array_equal(goal.regions.share[0], np.concatenate(regions, axis=1))
