# SPDX-License-Identifier: Apache-2.0
"""Training samples: labeled images, augmented and encoded, in an order that only the seed decides."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from panoptic_depth_training.augment import AUGMENTATIONS, augmented, depth_at_focal_length
from panoptic_depth_training.datasets.labeled import DataError, LabeledImages
from panoptic_depth_training.datasets.sources import WEIGHTED_SYNTAX, open_images, split_weight
from panoptic_depth_training.targets import Targets, collate, encode

MAX_INSTANCES = 32  # an image; the smallest ones beyond it are left out of the targets


class Mixture:
    """Several data sets of one taxonomy, each drawn from as often as its weight says."""

    def __init__(self, parts: Sequence[tuple[LabeledImages, float]]) -> None:
        """Raises DataError where the data sets have different categories."""
        self.parts = [images for images, _ in parts]
        weights = np.array([weight for _, weight in parts], np.float64)
        self._upper = np.cumsum(weights / weights.sum())  # where on 0..1 each data set's share ends
        self.taxonomy = self.parts[0].taxonomy
        for images in self.parts[1:]:
            if images.taxonomy != self.taxonomy:
                names, others = self.taxonomy.names, images.taxonomy.names
                raise DataError(
                    f"data with the categories {', '.join(others)} cannot be mixed with {', '.join(names)}; "
                    "train on one of the two"
                )

    def draw(self, rng: np.random.Generator) -> tuple[LabeledImages, int]:
        """A data set and an index into it; the state of `rng` alone decides which."""
        images = self.parts[min(int(np.searchsorted(self._upper, rng.random(), side="right")), len(self.parts) - 1)]
        return images, int(rng.integers(len(images)))


def open_mixture(texts: Sequence[str]) -> Mixture:
    """Several sources with their weights. Raises DataError where one cannot be opened, or none is given."""
    if not texts:
        raise DataError(f"no data; give at least one {WEIGHTED_SYNTAX}")
    return Mixture([(open_images(source), weight) for source, weight in map(split_weight, texts)])


class TrainingSamples(Dataset[tuple[Tensor, Targets] | DataError]):
    """Sample k is a function of k and the seed alone, so a resumed training sees what it would have seen."""

    def __init__(
        self,
        images: Mixture,
        *,
        height: int,
        width: int,
        focal_length_px: float,
        seed: int,
        view: str = "vehicle",
    ) -> None:
        self.images = images
        self.height = height
        self.width = width
        self.focal_length_px = focal_length_px
        self.seed = seed
        self.augmentation = AUGMENTATIONS[view]

    def __getitem__(self, index: int) -> tuple[Tensor, Targets] | DataError:
        """An image [H, W, 3] uint8 and its targets, or why there is none: a loader process would wrap what it raises
        in its traceback.
        """
        try:
            return self._sample(index)
        except DataError as error:
            return error

    def _sample(self, index: int) -> tuple[Tensor, Targets]:
        rng = np.random.default_rng([self.seed, index])
        images, drawn = self.images.draw(rng)
        image = augmented(images[drawn], self.height, self.width, self.augmentation, rng)
        depth = depth_at_focal_length(image, self.focal_length_px)
        targets = encode(image.panoptic_ids, depth, images.taxonomy, images.supervision, MAX_INSTANCES)
        return torch.from_numpy(image.rgb), targets


def batch_of(samples: Sequence[tuple[Tensor, Targets] | DataError]) -> tuple[Tensor, Targets] | DataError:
    """Images [B, H, W, 3] and targets, or why there are none."""
    whole: list[tuple[Tensor, Targets]] = []
    for sample in samples:
        if isinstance(sample, DataError):
            return sample
        whole.append(sample)
    return collate(whole)


def start_worker(worker: int) -> None:
    """Loader processes leave the other cores to the network, and Ctrl-C to their parent.

    torchrun ends whole process groups: a group of their own keeps them alive until their parent has saved its steps.
    """
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Not 1: that would wait for the threads that OpenCV had before the fork, which a forked process lacks.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
