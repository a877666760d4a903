# SPDX-License-Identifier: Apache-2.0
"""What every data set gives: an image with its truth, and how far that truth may be taken at its word."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.taxonomy import VOID_CATEGORY, Taxonomy


class DataError(ValueError):
    """A file of a data set cannot be used; the text names it, says what was expected and what to do."""


@dataclass(frozen=True)
class LabeledImage:
    """An image with its truth."""

    rgb: np.ndarray  # [H, W, 3] uint8
    # [H, W] uint16: category * 1000 + instance, 65535 = void. A thing with instance 0: things not told apart.
    panoptic_ids: np.ndarray
    depth: np.ndarray  # [H, W] float32, m along the optical axis; 0 = unknown
    camera: PinholeCamera | None  # None: not calibrated, so that the depth means nothing to a network
    name: str = ""  # for reports


def is_sparse(depth: np.ndarray) -> bool:
    """Whether so few pixels of a map [H, W] have depth, less than a fifth, that it comes from a lidar."""
    return bool(np.count_nonzero(depth) < 0.2 * depth.size)


@dataclass(frozen=True)
class Supervision:
    """What the labels of a data set say, and what they leave open."""

    has_segments: bool = True  # False: the images come with depth alone
    void_is_background: bool = True  # a pixel without a label is none of the categories, or may be any of them
    # For each category the ones that a pixel labeled so may in truth be; the label denies all others. A category
    # that names itself is not confirmed either. Empty: every label is exact.
    confusable: tuple[tuple[int, ...], ...] = ()

    def judged_table(self, num_categories: int) -> np.ndarray:
        """Whether a pixel's label settles a category, [256, K] bool by label (VOID_CATEGORY: no label) and category.

        A settled category is present where it is the label and absent elsewhere; of the others nothing is known.
        """
        if self.confusable and len(self.confusable) != num_categories:
            raise ValueError(f"confusable has {len(self.confusable)} entries; expected {num_categories}, one each")
        table = np.full((256, num_categories), self.has_segments)
        if self.has_segments:
            for label, possible in enumerate(self.confusable):
                table[label, list(possible)] = False
            table[VOID_CATEGORY] = self.void_is_background
        return table

    def judged(self, category_ids: np.ndarray, num_categories: int) -> np.ndarray:
        """`judged_table` looked up for labels [...] uint8: [..., K] bool."""
        return self.judged_table(num_categories)[category_ids]


EXACT = Supervision()


class LabeledImages(Protocol):
    """A data set: images in a fixed order, read when they are asked for."""

    taxonomy: Taxonomy
    supervision: Supervision

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> LabeledImage:
        """Image `index` with its truth; DataError names a file that cannot be used."""
        ...

    def name_of(self, index: int) -> str:
        """What image `index` is called, without reading it."""
        ...

    def sequence_of(self, index: int) -> str:
        """Which sequence image `index` belongs to; a sequence's images are neighbors, in the order of time."""
        ...

    def files_of(self, index: int) -> tuple[Path, ...]:
        """The files that image `index` is read from; one that is missing makes it unreadable."""
        ...
