# SPDX-License-Identifier: Apache-2.0
"""The Cityscapes taxonomy (19 evaluated categories in the order of their training ids), and its fine annotations.

Folders as they are published: leftImg8bit, gtFine, and where there shall be depth disparity and camera, each with
SPLIT/CITY/CITY_SEQUENCE_FRAME_*.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.taxonomy import LABEL_DIVISOR, VOID_PANOPTIC_ID, Category, Taxonomy
from panoptic_depth_training.datasets.files import (
    UNKNOWN,
    list_names,
    make_camera,
    panoptic_from,
    read_json,
    read_map,
    read_rgb,
)
from panoptic_depth_training.datasets.labeled import EXACT, DataError, LabeledImage

CITYSCAPES = Taxonomy(
    (
        Category("road", False, (128, 64, 128)),
        Category("sidewalk", False, (244, 35, 232)),
        Category("building", False, (70, 70, 70)),
        Category("wall", False, (102, 102, 156)),
        Category("fence", False, (190, 153, 153)),
        Category("pole", False, (153, 153, 153)),
        Category("traffic light", False, (250, 170, 30)),
        Category("traffic sign", False, (220, 220, 0)),
        Category("vegetation", False, (107, 142, 35)),
        Category("terrain", False, (152, 251, 152)),
        Category("sky", False, (70, 130, 180), has_depth=False),
        Category("person", True, (220, 20, 60)),
        Category("rider", True, (255, 0, 0)),
        Category("car", True, (0, 0, 142)),
        Category("truck", True, (0, 0, 70)),
        Category("bus", True, (0, 60, 100)),
        Category("train", True, (0, 80, 100)),
        Category("motorcycle", True, (0, 0, 230)),
        Category("bicycle", True, (119, 11, 32)),
    )
)

# The names of the raw label ids 0..33; those that are none of the 19 categories are void.
RAW_LABELS = (
    *("unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground"),
    *("road", "sidewalk", "parking", "rail track"),
    *("building", "wall", "fence", "guard rail", "bridge", "tunnel"),
    *("pole", "polegroup", "traffic light", "traffic sign", "vegetation", "terrain", "sky"),
    *("person", "rider", "car", "truck", "bus", "caravan", "trailer", "train", "motorcycle", "bicycle"),
)
_WITH_INSTANCES = range(RAW_LABELS.index("person"), len(RAW_LABELS))
_NOT_THE_SCENE = range(1, 4)  # ego vehicle, rectification border, out of roi: stereo finds no depth there

_REMEDY = "extract the Cityscapes archives again"
SPLITS = ("train", "val")


def raw_label_table() -> np.ndarray:
    """Panoptic ids [256] uint16 of raw label ids, things with instance 0; UNKNOWN for what is no label id."""
    table = np.full(256, UNKNOWN, np.uint16)
    for raw, name in enumerate(RAW_LABELS):
        known = name in CITYSCAPES.names
        table[raw] = CITYSCAPES.names.index(name) * LABEL_DIVISOR if known else VOID_PANOPTIC_ID
    return table


def raw_instance_table() -> np.ndarray:
    """Panoptic ids [65536] uint16 of the numbers in *_instanceIds.png.

    There a label id alone is stuff or a group of things, and label id * 1000 + n is the n-th thing, counted from 0.
    """
    labels = raw_label_table()
    table = np.full(VOID_PANOPTIC_ID + 1, UNKNOWN, np.uint16)
    table[: len(labels)] = labels
    counts = np.arange(LABEL_DIVISOR - 1)
    for raw in _WITH_INSTANCES:
        is_void = labels[raw] == VOID_PANOPTIC_ID
        table[raw * LABEL_DIVISOR + counts] = VOID_PANOPTIC_ID if is_void else labels[raw] + 1 + counts
    return table


class CityscapesFine:
    """The finely annotated images of a split, with stereo depth where the folders disparity and camera are there."""

    taxonomy = CITYSCAPES
    supervision = EXACT

    def __init__(self, root: Path, split: str) -> None:
        self.root, self.split = root, split
        images = root / "leftImg8bit" / split
        if not images.is_dir():
            raise DataError(f"{images}: there is no such folder; {_REMEDY} into {root}")
        self._has_depth = (root / "disparity" / split).is_dir() and (root / "camera" / split).is_dir()
        cities = sorted({path.name for top in self._tops for path in (root / top / split).glob("*") if path.is_dir()})
        self.names = [f"{city}/{name}" for city in cities for name in self._names_of(city)]
        if not self.names:
            raise DataError(f"{images}: no images; {_REMEDY}")

    @property
    def _tops(self) -> dict[str, str]:
        """Folder -> how the names of its files end."""
        tops = {"leftImg8bit": "_leftImg8bit.png", "gtFine": "_gtFine_instanceIds.png"}
        return tops | ({"disparity": "_disparity.png", "camera": "_camera.json"} if self._has_depth else {})

    def _names_of(self, city: str) -> list[str]:
        # What only depth exists for is no fault: the disparity archive comes with more splits than one unpacks.
        folders = (self.root / top / self.split / city for top in ("leftImg8bit", "gtFine"))
        suffixes = ("_leftImg8bit.png", "_gtFine_instanceIds.png")
        return sorted({name for folder in folders if folder.is_dir() for name in list_names(folder, suffixes, _REMEDY)})

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> LabeledImage:
        image, labels, *stereo = self.files_of(index)
        rgb = read_rgb(image, _REMEDY)
        raw = read_map(labels, np.uint16, rgb.shape, _REMEDY)
        depth, camera = np.zeros(raw.shape, np.float32), None
        if stereo:
            camera, baseline_m = read_stereo_camera(stereo[1], *raw.shape)
            disparity = read_map(stereo[0], np.uint16, rgb.shape, _REMEDY)
            depth = stereo_depth(disparity, baseline_m * camera.fx)
            depth[(raw >= _NOT_THE_SCENE.start) & (raw < _NOT_THE_SCENE.stop)] = 0
        return LabeledImage(
            rgb, panoptic_from(raw, self._table, labels, _REMEDY), depth, camera, name=self.name_of(index)
        )

    @cached_property
    def _table(self) -> np.ndarray:
        return raw_instance_table()

    def name_of(self, index: int) -> str:
        return self.names[index].rsplit("/")[-1]

    def sequence_of(self, index: int) -> str:
        """City and number of the drive's part."""
        return self.name_of(index).rpartition("_")[0]

    def files_of(self, index: int) -> tuple[Path, ...]:
        """Image and instance ids, then disparity and camera where there is depth."""
        name = self.names[index]
        return tuple(self.root / top / self.split / f"{name}{suffix}" for top, suffix in self._tops.items())


def stereo_depth(disparity: np.ndarray, baseline_times_focal: float) -> np.ndarray:
    """Depth [H, W] float32 in meters from a disparity PNG [H, W] uint16 and baseline [m] times focal length [px].

    A value p > 0 is (p - 1) / 256 px; 0 says unknown, and 1 would be infinitely far: both give depth 0.
    """
    pixels = (disparity.astype(np.float32) - 1) * np.float32(1 / 256)
    depth = np.zeros(disparity.shape, np.float32)
    return np.divide(np.float32(baseline_times_focal), pixels, out=depth, where=disparity > 1)


def read_stereo_camera(path: Path, height: int, width: int) -> tuple[PinholeCamera, float]:
    """The left camera and the baseline [m] in a *_camera.json."""
    values = read_json(path, _REMEDY)
    try:
        intrinsic, baseline_m = values["intrinsic"], float(values["extrinsic"]["baseline"])
        named = {"fx": intrinsic["fx"], "fy": intrinsic["fy"], "cx": intrinsic["u0"], "cy": intrinsic["v0"]}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: expected intrinsic fx, fy, u0, v0 and extrinsic baseline; {_REMEDY}") from error
    if not (np.isfinite(baseline_m) and baseline_m > 0):
        raise DataError(f"{path}: baseline {baseline_m} m; expected a finite number above 0: {_REMEDY}")
    return make_camera(path, height, width, named, _REMEDY), baseline_m
