# SPDX-License-Identifier: Apache-2.0
"""What an exported file is to be, and the command line that says so."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from panoptic_depth_ros.manifest import PRECISIONS

DEFAULT_PICTURES = 8  # of the drive that comes with the program


@dataclass(frozen=True)
class ExportOptions:
    """What a file is to be."""

    height: int  # of the network's input [px], a multiple of 32
    width: int
    batch: int = 1  # images a call
    name: str = "panoptic_depth"  # in the manifest
    version: str = "1"
    precision: str = "float32"
    portable: bool = False  # deformable convolutions from operators that every engine has
    output_stride: int | None = None  # pixel grid on which segments are told apart: 1, 2 or 4; None: the network's own
    images: str | None = None  # what to compare on, as `open_pictures` takes it; None: the drive that comes with us
    calibration: str | None = None  # what int8 takes its ranges from, likewise
    calibration_count: int = 100  # pictures of it

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r} is unknown; expected one of {', '.join(PRECISIONS)}")
        if self.is_int8 and not self.calibration:
            raise ValueError(
                f"precision {self.precision} needs pictures of where the model will drive, to take the range of every "
                "map from: give --calibration a folder of pictures or a recording, such as --calibration /data/drive"
            )
        if self.calibration and not self.is_int8:
            raise ValueError(f"calibration is for int8; leave it out, or choose it instead of {self.precision}")
        for option in ("batch", "calibration_count"):
            if getattr(self, option) < 1:
                raise ValueError(f"{option} is {getattr(self, option)}; expected at least 1")

    @property
    def is_int8(self) -> bool:
        return self.precision.startswith("int8")

    @property
    def is_half(self) -> bool:
        return self.precision.endswith("fp16")


def parse_arguments(arguments: list[str] | None, description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m panoptic_depth_training.export",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("weights", type=Path, help="weights written by panoptic_depth_training.train")
    add("model", type=Path, help="ONNX file to write")
    add("--height", type=int, required=True, help="network input height [px], a multiple of 32")
    add("--width", type=int, required=True, help="network input width [px], a multiple of 32")
    add("--batch", type=int, default=1, help="images a call (default %(default)s)")
    add("--name", default="panoptic_depth", help="the model's name in its manifest")
    add("--version", default="1", help="the model's version in its manifest")
    add("--precision", choices=PRECISIONS, default="float32", help="of the arithmetic (default %(default)s); see above")
    add("--portable", action="store_true", help="lower deformable convolutions to operators that every engine has")
    add(
        "--output-stride", type=int, choices=(1, 2, 4),
        help="pixel grid on which segments are told apart: less memory traffic, coarser edges (default: the network's)",
    )
    pictures = "a folder of pictures, a recording, or KIND:PATH as in --data of train and evaluate"
    add("--images", metavar="SOURCE", help=f"what to compare on: {pictures} (default: {DEFAULT_PICTURES} of our drive)")
    add("--calibration", metavar="SOURCE", help=f"what int8 takes its ranges from: {pictures}")
    add(
        "--calibration-count", type=int, default=ExportOptions.calibration_count, metavar="N",
        help="pictures to calibrate on, spread over the source (default %(default)s)",
    )
    return parser.parse_args(arguments)
