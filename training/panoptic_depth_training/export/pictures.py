# SPDX-License-Identifier: Apache-2.0
"""Pictures to look at a model with: of a folder, of any recording, or of a data set, which has labels as well."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from panoptic_depth_ros.messages import RGB_DECODERS
from panoptic_depth_ros.preprocess import Placement, fit
from panoptic_depth_ros.recording import Recording
from panoptic_depth_ros.report import spread
from panoptic_depth_ros.taxonomy import Taxonomy
from panoptic_depth_training.datasets.files import read_rgb
from panoptic_depth_training.datasets.labeled import DataError
from panoptic_depth_training.datasets.recording import LEAVE_OUT
from panoptic_depth_training.datasets.sources import KINDS, SYNTAX, open_images

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_RECORDING_SUFFIXES = (".mcap", ".db3")
_TELL_EVERY_S = 5.0


@dataclass(frozen=True)
class Picture:
    """One image, with its labels where they are known and exact."""

    name: str
    rgb: np.ndarray  # [H, W, 3] uint8
    panoptic_ids: np.ndarray | None = None  # [H, W] uint16


@dataclass(frozen=True)
class Pictures:
    """Some pictures of a source, read one at a time while they are iterated over."""

    source: str
    count: int
    taxonomy: Taxonomy | None  # of the labels; None without labels
    _read: Callable[[], Iterator[Picture]]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Picture]:
        return self._read()


def open_pictures(source: str, count: int | None = None) -> Pictures:
    """Pictures of a folder, of a recording (its folder or file), or of a data set in the syntax of `sources`.

    Args:
        count: how many, evenly spread over the source; None: all.

    Raises:
        DataError: there is no such source, or no picture in it.
    """
    if source.partition(":")[0] in KINDS:
        return _of_data_set(source, count)
    path = Path(source)
    if (path / "metadata.yaml").is_file() or (path.is_file() and path.suffix in _RECORDING_SUFFIXES):
        return _of_recording(path, count)
    if path.is_dir():
        return _of_folder(path, count)
    raise DataError(
        f"{source}: neither a folder of pictures nor a recording; expected one of these, or {SYNTAX} with one of "
        + ", ".join(KINDS)
    )


def told(pictures: Pictures, what: str, report: Callable[[str], None]) -> Iterator[Picture]:
    """The pictures; `report` is told every few seconds how many of them are done and how long the others will take."""
    started = spoken = time.monotonic()
    for done, picture in enumerate(pictures):
        now = time.monotonic()
        if done and now - spoken >= _TELL_EVERY_S:
            left_s = (now - started) / done * (len(pictures) - done)
            report(f"{what}: {done} of {len(pictures)} pictures, {left_s:.0f} s left")
            spoken = now
        yield picture


@dataclass(frozen=True)
class Batch:
    """Pictures as a network takes them."""

    pictures: list[Picture]
    images: np.ndarray  # [B, h, w, 3] uint8; where there are fewer pictures the last one is repeated
    placements: list[Placement]


def batches(pictures: Iterable[Picture], height: int, width: int, size: int) -> Iterator[Batch]:
    """All pictures, so many at a time, fitted as on the vehicle."""
    group: list[Picture] = []
    for picture in pictures:
        group.append(picture)
        if len(group) == size:
            yield _batch(group, height, width, size)
            group = []
    if group:
        yield _batch(group, height, width, size)


def _batch(group: list[Picture], height: int, width: int, size: int) -> Batch:
    pairs = [fit(picture.rgb, height, width) for picture in group]
    images = [image for image, _ in pairs]
    images += images[-1:] * (size - len(images))
    return Batch(group, np.stack(images), [placement for _, placement in pairs])


def _of_folder(folder: Path, count: int | None) -> Pictures:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"{folder}: no picture in this folder; expected files *{', *'.join(SUFFIXES)}")
    chosen = [files[index] for index in spread(len(files), count)]
    remedy = "save it again, or take it out of the folder"
    return Pictures(str(folder), len(chosen), None, lambda: (Picture(f.name, read_rgb(f, remedy)) for f in chosen))


def _of_recording(path: Path, count: int | None) -> Pictures:
    """The camera's images. They need neither calibration nor truth."""
    with Recording(path) as recording:
        topic = recording.camera_topics(remedy=f"expected one camera: {LEAVE_OUT}")[0]
        total = recording.counts[topic]
    if not total:
        raise DataError(f"{path}: no picture on {topic}; give another recording")
    chosen = set(spread(total, count))

    def read() -> Iterator[Picture]:
        with Recording(path) as recording:
            for index, recorded in enumerate(recording.messages([topic])):
                if index in chosen:
                    rgb = RGB_DECODERS[recorded.type_name](recording.decode(recorded))
                    yield Picture(f"{path.name} {index}", rgb)

    return Pictures(str(path), len(chosen), None, read)


def _of_data_set(source: str, count: int | None) -> Pictures:
    images = open_images(source)
    chosen = spread(len(images), count)
    has_labels = images.supervision.has_segments and not any(images.supervision.confusable)

    def read() -> Iterator[Picture]:
        for index in chosen:
            image = images[index]
            yield Picture(images.name_of(index), image.rgb, image.panoptic_ids if has_labels else None)

    return Pictures(source, len(chosen), images.taxonomy if has_labels else None, read)
