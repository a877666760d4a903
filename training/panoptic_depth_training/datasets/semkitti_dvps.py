# SPDX-License-Identifier: Apache-2.0
"""SemKITTI-DVPS: KITTI odometry images with labels and depth where a lidar point fell (Qiao et al., CVPR 2021)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.taxonomy import LABEL_DIVISOR, VOID_CATEGORY, VOID_PANOPTIC_ID, Category, Taxonomy
from panoptic_depth_training.datasets.files import (
    UNKNOWN,
    list_names,
    make_camera,
    panoptic_from,
    read_depth,
    read_map,
    read_rgb,
)
from panoptic_depth_training.datasets.labeled import DataError, LabeledImage, Supervision

SEMANTIC_KITTI = Taxonomy(
    (
        Category("car", True, (100, 150, 245)),
        Category("bicycle", True, (100, 230, 245)),
        Category("motorcycle", True, (30, 60, 150)),
        Category("truck", True, (80, 30, 180)),
        Category("other-vehicle", True, (0, 0, 255)),
        Category("person", True, (255, 30, 30)),
        Category("bicyclist", True, (255, 40, 200)),
        Category("motorcyclist", True, (150, 30, 90)),
        Category("road", False, (255, 0, 255)),
        Category("parking", False, (255, 150, 255)),
        Category("sidewalk", False, (75, 0, 75)),
        Category("other-ground", False, (175, 0, 75)),
        Category("building", False, (255, 200, 0)),
        Category("fence", False, (255, 120, 50)),
        Category("vegetation", False, (0, 175, 0)),
        Category("trunk", False, (135, 60, 0)),
        Category("terrain", False, (150, 240, 80)),
        Category("pole", False, (255, 240, 150)),
        Category("traffic-sign", False, (255, 0, 0)),
    )
)
SPLITS = ("train", "val")
# KITTI's calibrations of camera 2, which the focal length in a file's name tells apart: fx -> cx, cy [px].
PRINCIPAL_POINTS = {718.856: (607.1928, 185.2157), 707.0912: (601.8873, 183.1104), 721.5377: (609.5593, 172.854)}

_SUFFIXES = ("_leftImg8bit.png", "_gtFine_class.png", "_gtFine_instance.png")
_DEPTH_NAME = re.compile(r"(.+)_depth_(\d+(?:\.\d+)?)\.png")
_REMEDY = "extract SemKITTI-DVPS again"


class SemKittiDvps:
    """video_sequence/SPLIT/SSSSSS_FFFFFF_{leftImg8bit,gtFine_class,gtFine_instance,depth_FOCAL}.png.

    Most pixels have no label, and that says nothing about them. Instance numbers above 999 do not fit a panoptic id;
    they are made small (`small_numbers`), and change along a sequence only where two instances claim one number.
    """

    taxonomy = SEMANTIC_KITTI
    supervision = Supervision(void_is_background=False)

    def __init__(self, root: Path, split: str) -> None:
        self.folder = root / "video_sequence" / split
        self.names = list_names(self.folder, _SUFFIXES, _REMEDY)
        depths = (_DEPTH_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        self._focal_length = {match[1]: match[2] for match in depths if match}  # as the file's name spells it
        self._table = np.full(256, UNKNOWN, np.uint16)
        self._table[: len(SEMANTIC_KITTI)] = np.arange(len(SEMANTIC_KITTI)) * LABEL_DIVISOR
        self._table[VOID_CATEGORY] = VOID_PANOPTIC_ID

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> LabeledImage:
        image, categories, instances, depth = self.files_of(index)
        rgb = read_rgb(image, _REMEDY)
        labels = read_map(categories, np.uint8, rgb.shape, _REMEDY)
        numbers = read_map(instances, np.uint16, rgb.shape, _REMEDY)
        ids = panoptic_from(labels, self._table, categories, _REMEDY)
        is_thing = labels < len(SEMANTIC_KITTI.thing_ids)
        ids[is_thing] += small_numbers(numbers[is_thing], instances)
        depth_map = read_depth(depth, rgb.shape, _REMEDY)
        return LabeledImage(rgb, ids, depth_map, self._camera(index, *rgb.shape[:2]), name=self.name_of(index))

    def _camera(self, index: int, height: int, width: int) -> PinholeCamera:
        """From the file's name; the principal point of KITTI's calibrations, or the image's center for others."""
        focal = float(self._focal_length[self.names[index]])
        known = (point for fx, point in PRINCIPAL_POINTS.items() if abs(fx - focal) < 0.01)
        cx, cy = next(known, ((width - 1) / 2, (height - 1) / 2))
        values = {"fx": focal, "fy": focal, "cx": cx, "cy": cy}
        return make_camera(self.files_of(index)[-1], height, width, values, _REMEDY)

    def name_of(self, index: int) -> str:
        return self.names[index]

    def sequence_of(self, index: int) -> str:
        return self.names[index].split("_")[0]

    def files_of(self, index: int) -> tuple[Path, ...]:
        """Image, categories, instances, depth."""
        name = self.names[index]
        suffixes = (*_SUFFIXES, f"_depth_{self._focal_length.get(name, 'FOCAL')}.png")
        return tuple(self.folder / f"{name}{suffix}" for suffix in suffixes)


def small_numbers(numbers: np.ndarray, path: Path) -> np.ndarray:
    """The instance numbers [N] uint16 with those above 999 replaced by free ones, each by the same in every image.

    It is the number modulo 999; only where somebody else in the image has that, the next free one.
    """
    present = np.unique(numbers)
    if (count := np.count_nonzero(present)) >= LABEL_DIVISOR:
        raise DataError(f"{path}: {count} instances; expected fewer than {LABEL_DIVISOR} in an image: {_REMEDY}")
    taken = set(present[present < LABEL_DIVISOR].tolist())
    table = np.arange(VOID_PANOPTIC_ID + 1, dtype=np.uint16)
    for number in present[present >= LABEL_DIVISOR].tolist():
        small = number % (LABEL_DIVISOR - 1)
        while small == 0 or small in taken:
            small = (small + 1) % LABEL_DIVISOR
        table[number] = small
        taken.add(small)
    return table[numbers]
