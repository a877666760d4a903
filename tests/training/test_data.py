# SPDX-License-Identifier: Apache-2.0
"""Samples are drawn by weight, and sample k is the same one whenever it is asked for."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.taxonomy import Taxonomy
from panoptic_depth_training.data import Mixture, TrainingSamples, open_mixture, start_worker
from panoptic_depth_training.datasets.cityscapes import CITYSCAPES
from panoptic_depth_training.datasets.labeled import EXACT, DataError, LabeledImage, Supervision
from panoptic_depth_training.datasets.semkitti_dvps import SEMANTIC_KITTI
from panoptic_depth_training.targets import collate


class Painted:
    """Images of one color, one category, one depth and one focal length."""

    def __init__(
        self,
        count: int,
        gray: int,
        category: int = 0,
        supervision: Supervision = EXACT,
        taxonomy: Taxonomy = CITYSCAPES,
        focal_length_px: float | None = 64.0,
    ) -> None:
        self.count, self.gray, self.category = count, gray, category
        self.supervision, self.taxonomy, self.focal_length_px = supervision, taxonomy, focal_length_px

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> LabeledImage:
        focal = self.focal_length_px
        return LabeledImage(
            np.full((64, 128, 3), self.gray + index, np.uint8),
            np.full((64, 128), self.category * 1000, np.uint16),
            np.full((64, 128), 8.0, np.float32),
            PinholeCamera(64, 128, focal, focal, 63.5, 31.5) if focal else None,
            self.name_of(index),
        )

    def name_of(self, index: int) -> str:
        return f"{self.gray}/{index}"

    def sequence_of(self, index: int) -> str:
        return str(self.gray)

    def files_of(self, index: int) -> tuple[Path, ...]:
        return ()


def samples_of(mixture: Mixture, seed: int = 0, view: str = "full_frame") -> TrainingSamples:
    return TrainingSamples(mixture, height=64, width=128, focal_length_px=32.0, seed=seed, view=view)


def test_weights_decide_how_often_each_source_is_drawn():
    first, second, third = Painted(3, 0), Painted(50, 100), Painted(7, 200)
    mixture = Mixture([(first, 3.0), (second, 1.0), (third, 0.5)])
    drawn = [mixture.draw(np.random.default_rng([0, k])) for k in range(4000)]
    shares = [sum(images is source for images, _ in drawn) / 4000 for source in (first, second, third)]
    np.testing.assert_allclose(shares, np.array([3, 1, 0.5]) / 4.5, atol=0.03)
    assert {index for images, index in drawn if images is second} == set(range(50))  # each of its images


def test_a_draw_depends_on_seed_and_number_alone():
    mixture = Mixture([(Painted(20, 0), 1.0), (Painted(20, 100), 1.0)])
    samples, again, other = samples_of(mixture), samples_of(mixture), samples_of(mixture, seed=1)
    forward = [samples[k][0] for k in range(8)]
    backward = [again[k][0] for k in reversed(range(8))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert any(not torch.equal(a, other[k][0]) for k, a in enumerate(forward))


def test_loader_processes_draw_what_one_process_draws():
    cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (31, 31), 0)  # from here on OpenCV has threads
    samples = samples_of(Mixture([(Painted(20, 0), 1.0), (Painted(20, 100), 2.0)]), view="vehicle")
    given = {"sampler": range(3, 9), "collate_fn": collate, "worker_init_fn": start_worker}
    loaders = [DataLoader(samples, 2, **given), DataLoader(samples, 2, num_workers=2, timeout=60, **given)]
    for (image, targets), (same_image, same_targets) in zip(*loaders, strict=True):
        assert torch.equal(image, same_image)
        assert torch.equal(targets.regions, same_targets.regions)


def test_depth_is_that_of_the_trainings_focal_length():
    _, targets = samples_of(Mixture([(Painted(1, 0), 1.0)]))[0]
    np.testing.assert_allclose(targets.depth, 8.0 * 32 / 64)


def test_images_without_calibration_teach_no_depth():
    _, targets = samples_of(Mixture([(Painted(1, 0, focal_length_px=None), 1.0)]))[0]
    assert not targets.depth.any()


def test_every_source_keeps_its_own_supervision():
    vague = Supervision(void_is_background=False, confusable=((), (0,), *((),) * 17))
    mixture = Mixture([(Painted(1, 0, category=1), 1.0), (Painted(1, 200, category=1, supervision=vague), 1.0)])
    samples = samples_of(mixture)
    seen = set()
    for k in range(12):
        image, targets = samples[k]
        is_vague = bool(image.float().mean() > 110)  # color jitter cannot move 0 that far, nor 200
        assert bool(targets.regions_judged[0, 0].any()) != is_vague
        assert bool(targets.regions_judged[0, 2].all())
        seen.add(is_vague)
    assert seen == {False, True}


def test_data_of_different_categories_cannot_be_mixed():
    with pytest.raises(DataError, match=r"categories car, bicycle, .* cannot be mixed with road, sidewalk"):
        Mixture([(Painted(1, 0), 1.0), (Painted(1, 0, taxonomy=SEMANTIC_KITTI), 1.0)])


def test_sources_are_mixed_by_the_weights_they_are_written_with(frames):
    mixture = open_mixture([f"synthetic:{frames}@:2=3", f"synthetic:{frames}@2:"])
    assert [len(part) for part in mixture.parts] == [2, 4]
    drawn = [mixture.draw(np.random.default_rng([5, k]))[0] for k in range(1000)]
    assert sum(images is mixture.parts[0] for images in drawn) / 1000 == pytest.approx(0.75, abs=0.05)


def test_no_data_at_all_is_refused():
    with pytest.raises(DataError, match=r"no data; give at least one KIND:PATH"):
        open_mixture([])


def test_what_lies_beyond_an_image_has_no_label():
    wide = samples_of(Mixture([(Painted(1, 0), 1.0)]))
    tall = TrainingSamples(wide.images, height=128, width=128, focal_length_px=32.0, seed=0, view="full_frame")
    _, targets = tall[0]
    assert not targets.regions[0, :, :8].any()
    assert (targets.regions[0, 0, 8:24] == 1).all()
