# SPDX-License-Identifier: Apache-2.0
"""Data sets by name, as command lines give them: KIND:PATH[:SPLIT][@FIRST:LAST], and =WEIGHT where train mixes them.

    camvid:/data/camvid:train         a split
    recording:/data/drive@:-5         all but the last five images; numbers count as in Python's slices
    synthetic:frames=3                drawn three times as often as a source of weight 1
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from panoptic_depth_training.datasets import camvid, cityscapes, cityscapes_dvps, semkitti_dvps
from panoptic_depth_training.datasets.frames import FrameFolder
from panoptic_depth_training.datasets.label_clips import LabelClips
from panoptic_depth_training.datasets.labeled import DataError, LabeledImage, LabeledImages
from panoptic_depth_training.datasets.recording import RecordedDrive

KINDS = {  # kind -> what to write after it
    "streets": "SEED:COUNT or SEED:COUNT:HEIGHTxWIDTH, rendered when needed, six of a street (default 256x512)",
    "synthetic": "FOLDER of panoptic_depth_training.render frames",
    "recording": "BAG, a rosbag2 with camera, camera_info and lidar",
    "cityscapes": "ROOT:train or val",
    "cityscapes_dvps": "ROOT:train or val",
    "semkitti_dvps": "ROOT:train or val",
    "camvid": "ROOT:train or val",
    "label_clips": "FOLDER of clips with label maps",
}
SYNTAX = "KIND:PATH[:SPLIT][@FIRST:LAST]"
WEIGHTED_SYNTAX = f"{SYNTAX}[=WEIGHT]"

_WEIGHT = re.compile(r"=([^/=@:]*)$")
_STREETS = re.compile(r"(\d+):(\d+)(?::(\d+)x(\d+))?")
_RANGE = re.compile(r"@(-?\d+)?:(-?\d+)?$")


@dataclass(frozen=True)
class Source:
    """A data set as it is written on a command line."""

    kind: str
    place: str  # what stands between kind and range: a path, and a split where the kind has splits
    first: int | None = None  # of the images, as in a slice
    last: int | None = None


def split_weight(text: str) -> tuple[str, float]:
    """A source of a mixture without its weight, and the weight, 1 unless written.

    Raises DataError where it is no number above 0.
    """
    match = _WEIGHT.search(text)
    if not match:
        return text, 1.0
    try:
        weight = float(match[1])
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise DataError(
            f"data {text!r} has weight {match[1]}; expected a number above 0, "
            "or @: behind it where it belongs to the path"
        )
    return text[: match.start()], weight


def parse_source(text: str) -> Source:
    """The parts of a source. Raises DataError where the kind is unknown, or where there is a weight."""
    kind, _, rest = text.partition(":")
    if kind not in KINDS or not rest:
        kinds = "\n".join(f"  {known}:{place}" for known, place in KINDS.items())
        raise DataError(f"unknown data {text!r}; expected {SYNTAX} with one of\n{kinds}")
    if match := _WEIGHT.search(rest):
        raise DataError(
            f"data {text!r} has the weight {match[0]}, but only sources that train mixes have one; leave it out, "
            "or write @: behind it where it belongs to the path"
        )
    first = last = None
    if match := _RANGE.search(rest):
        rest = rest[: match.start()]
        first, last = (int(bound) if bound else None for bound in match.groups())
    return Source(kind, rest, first, last)


def list_images(source: Source) -> LabeledImages:
    """The images of a source, also those whose files are not all there."""
    images = _open(source)
    if source.first is source.last is None:
        return images
    part = range(len(images))[source.first : source.last]
    if not part:
        raise DataError(
            f"{source.kind}:{source.place}: none of its {len(images)} images lies in "
            f"@{_bound(source.first)}:{_bound(source.last)}; give another range"
        )
    return Part(images, part)


def open_images(text: str) -> LabeledImages:
    """The images of a source, ready to be trained on or scored. Raises DataError where a file is missing."""
    source = parse_source(text)
    images = list_images(source)
    missing = [file for index in range(len(images)) for file in images.files_of(index) if not file.exists()]
    if missing:
        raise DataError(
            f"{missing[0]}: missing, and {len(missing) - 1} more; "
            f"python -m panoptic_depth_training.check_data {text} lists all and says what to do"
        )
    return images


class Part:
    """Some images of a data set."""

    def __init__(self, images: LabeledImages, part: range) -> None:
        self.images, self.part = images, part
        self.taxonomy, self.supervision = images.taxonomy, images.supervision

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, index: int) -> LabeledImage:
        return self.images[self.part[index]]

    def name_of(self, index: int) -> str:
        return self.images.name_of(self.part[index])

    def sequence_of(self, index: int) -> str:
        return self.images.sequence_of(self.part[index])

    def files_of(self, index: int) -> tuple[Path, ...]:
        return self.images.files_of(self.part[index])


def _open(source: Source) -> LabeledImages:
    match source.kind:
        case "synthetic":
            return FrameFolder(Path(source.place))
        case "streets":
            return _streets(source.place)
        case "recording":
            return RecordedDrive(Path(source.place))
        case "label_clips":
            return LabelClips(Path(source.place))
        case "cityscapes":
            return cityscapes.CityscapesFine(*_with_split(source, cityscapes.SPLITS))
        case "cityscapes_dvps":
            return cityscapes_dvps.CityscapesDvps(*_with_split(source, cityscapes_dvps.SPLITS))
        case "semkitti_dvps":
            return semkitti_dvps.SemKittiDvps(*_with_split(source, semkitti_dvps.SPLITS))
        case "camvid":
            return camvid.CamVid(*_with_split(source, camvid.SPLITS))
        case _:
            raise AssertionError(source.kind)  # parse_source lets only KINDS through


def _streets(place: str) -> LabeledImages:
    match = _STREETS.fullmatch(place)
    if not match:
        raise DataError(f"data streets:{place}; expected streets:{KINDS['streets']}")
    from panoptic_depth_training.datasets.synthetic import SyntheticStreets  # renders with Open3D

    return SyntheticStreets(*(int(number) for number in match.groups() if number))


def _with_split(source: Source, splits: Sequence[str]) -> tuple[Path, str]:
    root, _, split = source.place.rpartition(":")
    if not root or split not in splits:
        raise DataError(
            f"data {source.kind}:{source.place} names no split; expected "
            + " or ".join(f"{source.kind}:ROOT:{split}" for split in splits)
        )
    return Path(root), split


def _bound(value: int | None) -> str:
    return "" if value is None else str(value)
