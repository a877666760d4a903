# SPDX-License-Identifier: Apache-2.0
"""CamVid in its usual 11 categories: drives with labels, but without instances, depth and calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from panoptic_depth_ros.taxonomy import LABEL_DIVISOR, VOID_CATEGORY, VOID_PANOPTIC_ID
from panoptic_depth_training.datasets.cityscapes import CITYSCAPES
from panoptic_depth_training.datasets.files import UNKNOWN, list_names, panoptic_from, read_map, read_rgb
from panoptic_depth_training.datasets.labeled import LabeledImage, Supervision

SPLITS = ("train", "val")
# CamVid's categories by their number, and the category of ours that stands for each.
CATEGORIES = (
    ("Sky", "sky"),
    ("Building", "building"),
    ("Pole", "pole"),
    ("Road", "road"),
    ("Sidewalk", "sidewalk"),
    ("Tree", "vegetation"),
    ("SignSymbol", "traffic sign"),
    ("Fence", "fence"),
    ("Car", "car"),
    ("Pedestrian", "person"),
    ("Bicyclist", "rider"),
)
# CamVid's categories are made of finer ones that Cityscapes divides in another way: grass is in Tree, traffic lights
# are in SignSymbol, garden walls in Fence, trucks and buses in Car, and a Bicyclist is a rider together with the
# bicycle, or a parked motorcycle. Where the category itself is in the list, ours is hardly more likely than the
# others, and the label only says what is not there.
POSSIBLE = {
    "building": ("wall",),
    "vegetation": ("terrain",),
    "traffic sign": ("traffic sign", "traffic light"),
    "fence": ("fence", "wall"),
    "car": ("truck", "bus"),
    "rider": ("rider", "bicycle", "motorcycle"),
}

_SUFFIXES = ("_image.jpg", "_labels.png")
_REMEDY = "copy the CamVid folder again"


def _ids(names: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(CITYSCAPES.names.index(name) for name in names)


class CamVid:
    """SPLIT/SEQUENCE_FRAME_image.jpg with SEQUENCE_FRAME_labels.png (0..10, 255 = unlabeled) beside it."""

    taxonomy = CITYSCAPES
    supervision = Supervision(
        void_is_background=False,
        confusable=tuple(_ids(POSSIBLE.get(name, ())) for name in CITYSCAPES.names),
    )

    def __init__(self, root: Path, split: str) -> None:
        self.folder = root / split
        self.names = list_names(self.folder, _SUFFIXES, _REMEDY)
        self._table = np.full(256, UNKNOWN, np.uint16)
        self._table[: len(CATEGORIES)] = np.array(_ids(tuple(ours for _, ours in CATEGORIES))) * LABEL_DIVISOR
        self._table[VOID_CATEGORY] = VOID_PANOPTIC_ID

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> LabeledImage:
        image, labels = self.files_of(index)
        rgb = read_rgb(image, _REMEDY)
        ids = panoptic_from(read_map(labels, np.uint8, rgb.shape, _REMEDY), self._table, labels, _REMEDY)
        return LabeledImage(rgb, ids, np.zeros(ids.shape, np.float32), camera=None, name=self.name_of(index))

    def name_of(self, index: int) -> str:
        return self.names[index]

    def sequence_of(self, index: int) -> str:
        return self.names[index].split("_")[0]

    def files_of(self, index: int) -> tuple[Path, ...]:
        """Image, labels."""
        return tuple(self.folder / f"{self.names[index]}{suffix}" for suffix in _SUFFIXES)
