# SPDX-License-Identifier: Apache-2.0
"""What an exported file is to be."""

from __future__ import annotations

from dataclasses import dataclass

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
