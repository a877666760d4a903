# SPDX-License-Identifier: Apache-2.0
"""Clips with label maps in Cityscapes' raw ids and loose instance maps, as a network predicts them for a video."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from panoptic_depth_ros.taxonomy import LABEL_DIVISOR, VOID_PANOPTIC_ID
from panoptic_depth_training.datasets.cityscapes import CITYSCAPES, raw_label_table
from panoptic_depth_training.datasets.files import list_names, panoptic_from, read_map, read_rgb
from panoptic_depth_training.datasets.labeled import DataError, LabeledImage, Supervision

NO_INSTANCE = 255
MIN_AGREEMENT = 0.5  # of a segment's pixels must have its category, or it is none

_ROW = len(CITYSCAPES) + 1  # categories, and void
_CATEGORY_OF = np.minimum(np.arange(VOID_PANOPTIC_ID + 1) // LABEL_DIVISOR, len(CITYSCAPES)).astype(np.int32)
EGO_MASK = "ego_mask.png"
_SUFFIXES = ("_image.jpg", "_label_ids.png", "_instance_ids.png")
_REMEDY = "copy the clips again"


class LabelClips:
    """CLIP/NN_image.jpg with NN_label_ids.png (raw label ids) and NN_instance_ids.png (16 bits, 255 = no instance).

    A segment's category is its most frequent thing label. Its pixels with other labels are its loose border: they keep
    their label, as do things outside of all segments, and count as things that are not told apart. Instance numbers
    hold for one image only. There is neither depth nor calibration. Where ego_mask.png beside the clips (8 bits) is
    not 0, the image shows the recording vehicle, of which networks say anything: that is void.
    """

    taxonomy = CITYSCAPES
    supervision = Supervision(void_is_background=False)  # a network's blank is not a statement

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise DataError(f"{root}: there is no such folder; expected one with a folder for each clip")
        clips = sorted(path for path in root.iterdir() if path.is_dir())
        self.root = root
        self.names = [f"{clip.name}/{name}" for clip in clips for name in list_names(clip, _SUFFIXES, _REMEDY)]
        if not self.names:
            raise DataError(f"{root}: no clips; expected CLIP/NN_image.jpg and its label maps")
        self._table = raw_label_table()
        self._ego_mask = root / EGO_MASK if (root / EGO_MASK).exists() else None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> LabeledImage:
        image, labels, instances = self.files_of(index)
        rgb = read_rgb(image, _REMEDY)
        ids = panoptic_from(read_map(labels, np.uint8, rgb.shape, _REMEDY), self._table, labels, _REMEDY)
        segments = read_map(instances, np.uint16, rgb.shape, _REMEDY)
        ids = with_instances(ids, segments, instances)
        if self._ego_mask:
            ids[read_map(self._ego_mask, np.uint8, rgb.shape, _REMEDY) > 0] = VOID_PANOPTIC_ID
        return LabeledImage(rgb, ids, np.zeros(ids.shape, np.float32), camera=None, name=self.name_of(index))

    def name_of(self, index: int) -> str:
        return self.names[index]

    def sequence_of(self, index: int) -> str:
        return self.names[index].split("/")[0]

    def files_of(self, index: int) -> tuple[Path, ...]:
        """Image, labels, instances."""
        return tuple(self.root / f"{self.names[index]}{suffix}" for suffix in _SUFFIXES)


def with_instances(ids: np.ndarray, segments: np.ndarray, path: Path) -> np.ndarray:
    """Panoptic ids [H, W] without instances, with those numbered that segments [H, W] (255: none) tell apart."""
    numbers = np.flatnonzero(np.bincount(segments.ravel()))
    position_of = np.zeros(VOID_PANOPTIC_ID + 1, np.int32)
    position_of[numbers] = np.arange(len(numbers))
    position, category = position_of.take(segments), _CATEGORY_OF.take(ids)
    votes = np.bincount((position * _ROW + category).ravel(), minlength=len(numbers) * _ROW).reshape(-1, _ROW)
    things = np.array(CITYSCAPES.thing_ids)
    winner = things[votes[:, things].argmax(axis=1)]
    agreeing = votes[np.arange(len(numbers)), winner]
    is_thing = (numbers != NO_INSTANCE) & (agreeing > 0) & (agreeing >= MIN_AGREEMENT * votes.sum(axis=1))
    instance = np.where(is_thing, np.cumsum(is_thing), 0)
    if instance.max(initial=0) >= LABEL_DIVISOR:
        raise DataError(f"{path}: {instance.max()} instances; expected fewer than {LABEL_DIVISOR}: {_REMEDY}")
    numbered = (winner * LABEL_DIVISOR + instance).astype(np.uint16)
    # Of a segment that is none no pixel has this category.
    wanted = np.where(is_thing, winner, _ROW)
    return np.where(category == wanted.take(position), numbered.take(position), ids)
