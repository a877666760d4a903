# SPDX-License-Identifier: Apache-2.0
"""Files of data sets, read so that a bad one is noticed: it is named, with what was expected and what to do.

OpenCV alone would fill the missing part of a cut file with gray and turn 16 bits into 8 without a word.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.taxonomy import LABEL_DIVISOR, VOID_PANOPTIC_ID, Taxonomy
from panoptic_depth_training.datasets.labeled import DataError

DEPTH_STEPS = 256  # of a meter, in the depth PNGs of every data set that has them
UNKNOWN = 65534  # in tables of panoptic ids: the data set has no such label

_ENDS = {b"\x89PNG": b"IEND", b"\xff\xd8": b"\xff\xd9"}  # how a PNG and a JPEG begin and end
_BITS = {np.dtype(np.uint8): 8, np.dtype(np.uint16): 16}


def list_names(folder: Path, suffixes: Collection[str], remedy: str) -> list[str]:
    """What files in the folder are called before one of these suffixes, sorted; a name needs one file to be listed."""
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; {remedy}")
    files = [path.name for path in folder.iterdir()]
    names = sorted({file.removesuffix(end) for file in files for end in suffixes if file.endswith(end)})
    if not names:
        raise DataError(f"{folder}: no file *{' or *'.join(suffixes)}; {remedy}")
    return names


def read_rgb(path: Path, remedy: str) -> np.ndarray:
    """A picture [H, W, 3] uint8. Orientation tags are ignored, because label maps have none."""
    return cv2.cvtColor(_decoded(path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION, remedy), cv2.COLOR_BGR2RGB)


def read_map(path: Path, dtype: Any, shape: Sequence[int], remedy: str) -> np.ndarray:
    """A map [H, W] of numbers, with the type and the height and width that it must have."""
    values = _decoded(path, cv2.IMREAD_UNCHANGED, remedy)
    if values.ndim != 2:
        raise DataError(
            f"{path}: a picture with {values.shape[2]} channels; expected one channel of numbers (no colors): {remedy}"
        )
    if values.dtype != dtype:
        raise DataError(
            f"{path}: has {_BITS.get(values.dtype, values.dtype)} bits a pixel; expected {_BITS[np.dtype(dtype)]}, "
            f"so a program that changes the depth of pixels has saved it: {remedy}"
        )
    if values.shape != tuple(shape[:2]):
        raise DataError(
            f"{path}: {values.shape[1]}x{values.shape[0]} px; expected its image's "
            f"{shape[1]}x{shape[0]}, so one of the two was resized or belongs to another: {remedy}"
        )
    return values


def read_depth(path: Path, shape: Sequence[int], remedy: str) -> np.ndarray:
    """Depth [H, W] float32 in meters from a 16-bit PNG of 1/256 m; 0 = unknown."""
    return read_map(path, np.uint16, shape, remedy) * np.float32(1 / DEPTH_STEPS)


def read_json(path: Path, remedy: str) -> Any:
    """The values in a JSON file."""
    try:
        return json.loads(_bytes(path, remedy))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); {remedy}") from error


def read_cameras(path: Path, remedy: str) -> dict[str, dict[str, Any]]:
    """What a cameras.json says of each frame: the seed, the size, fx, fy, cx and cy."""
    cameras = read_json(path, remedy)
    if not isinstance(cameras, dict):
        raise DataError(f"{path}: expected an object with a camera for each frame; {remedy}")
    for name, camera in cameras.items():
        if not isinstance(camera, dict):
            raise DataError(f"{path}: the camera of {name} is {camera!r}; expected an object with fx; {remedy}")
    return cameras


def make_camera(source: Path, height: int, width: int, values: Mapping[str, Any], remedy: str) -> PinholeCamera:
    """The camera of an image from the fx, fy, cx and cy [px] that a file gives."""
    try:
        fx, fy, cx, cy = (float(values[key]) for key in ("fx", "fy", "cx", "cy"))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{source}: camera {values} lacks a number for fx, fy, cx or cy; {remedy}") from error
    if not all(map(math.isfinite, (fx, fy, cx, cy))) or fx <= 0 or fy <= 0:
        raise DataError(
            f"{source}: camera with fx={fx}, fy={fy}, cx={cx}, cy={cy}; "
            f"expected finite numbers, fx and fy above 0: {remedy}"
        )
    return PinholeCamera(height, width, fx, fy, cx, cy)


def panoptic_from(labels: np.ndarray, table: np.ndarray, path: Path, remedy: str) -> np.ndarray:
    """Panoptic ids [H, W] uint16 of the labels [H, W] in a file, by a table [256 or 65536] uint16 that has UNKNOWNs."""
    ids = table.take(labels)
    unknown = ids == UNKNOWN
    if unknown.any():
        values = ", ".join(map(str, np.unique(labels[unknown])[:8]))
        raise DataError(f"{path}: {unknown.sum()} pixels have unknown labels ({values}); {remedy}")
    return ids


def own_ids_table(taxonomy: Taxonomy) -> np.ndarray:
    """The table [65536] that keeps panoptic ids of this taxonomy and knows no others."""
    table = np.full(VOID_PANOPTIC_ID + 1, UNKNOWN, np.uint16)
    table[VOID_PANOPTIC_ID] = VOID_PANOPTIC_ID
    for category, entry in enumerate(taxonomy):
        first = category * LABEL_DIVISOR
        ids = np.arange(first, first + (LABEL_DIVISOR if entry.is_thing else 1))
        table[ids] = ids
    return table


def _bytes(path: Path, remedy: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: missing; {remedy}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error


def _decoded(path: Path, flags: int, remedy: str) -> np.ndarray:
    data = _bytes(path, remedy)
    end = next((end for start, end in _ENDS.items() if data.startswith(start)), b"")
    if end not in data[-64:]:
        raise DataError(f"{path}: cut short after {len(data)} bytes; {remedy}")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error:  # a header of more pixels than OpenCV is willing to allocate
        image = None
    if image is None:
        raise DataError(f"{path}: not a readable image ({len(data)} bytes); {remedy}")
    return image
