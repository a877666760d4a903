# SPDX-License-Identifier: Apache-2.0
"""Training samples: labeled images, augmented and encoded, in an order that only the seed decides."""

from __future__ import annotations

import signal
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from panoptic_depth_ros.taxonomy import Taxonomy
from panoptic_depth_training.augment import Augmentation, augmented, depth_at_focal_length
from panoptic_depth_training.datasets.cityscapes import CITYSCAPES
from panoptic_depth_training.datasets.frames import FrameFolder
from panoptic_depth_training.targets import Targets, encode

MAX_INSTANCES = 32  # an image; the smallest ones beyond it are left out of the targets


def open_dataset(source: str) -> tuple[FrameFolder, Taxonomy]:
    """The images and categories of a source written KIND:FOLDER."""
    kind, _, folder = source.partition(":")
    match kind:
        case "synthetic":
            return FrameFolder(Path(folder)), CITYSCAPES
        case _:
            raise ValueError(f"unknown data {source!r}; expected synthetic:FOLDER")


class TrainingSamples(Dataset[tuple[Tensor, Targets]]):
    """Sample k is a function of k and the seed alone, so a resumed training sees what it would have seen."""

    def __init__(
        self,
        images: FrameFolder,
        taxonomy: Taxonomy,
        *,
        height: int,
        width: int,
        focal_length_px: float,
        seed: int,
    ) -> None:
        self.images = images
        self.taxonomy = taxonomy
        self.height = height
        self.width = width
        self.focal_length_px = focal_length_px
        self.seed = seed

    def __getitem__(self, index: int) -> tuple[Tensor, Targets]:
        """An image [H, W, 3] uint8 and its targets."""
        rng = np.random.default_rng([self.seed, index])
        image = self.images[int(rng.integers(len(self.images)))]
        image = augmented(image, self.height, self.width, Augmentation(), rng)
        depth = depth_at_focal_length(image, self.focal_length_px)
        return torch.from_numpy(image.rgb), encode(image.panoptic_ids, depth, self.taxonomy, MAX_INSTANCES)


def start_worker(worker: int) -> None:
    """Loader processes leave the other cores to the network, and Ctrl-C to their parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
