# SPDX-License-Identifier: Apache-2.0
"""What an exported model says about itself: the contract between training and vehicle, kept inside the ONNX file."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from panoptic_depth_ros.onnx_graph import metadata
from panoptic_depth_ros.taxonomy import Taxonomy

METADATA_KEY = "panoptic_depth"  # the ONNX metadata property that holds the manifest as JSON

INPUT = "image"  # uint8 [B, h, w, 3] RGB
MAX_SEGMENTS = 255  # segment ids are 8 bit, 0 is void
OUTPUT_TYPES = {
    "segment_ids": "uint8",
    "depth": "float32",
    "segment_category": "int32",
    "segment_score": "float32",
    "segment_area": "int32",
    "segment_depth": "float32",
}
OUTPUTS = tuple(OUTPUT_TYPES)

PRECISIONS = ("float32", "fp16", "int8", "int8-fp16")  # of a graph's arithmetic; the last is int8 with fp16 around it


class ModelError(ValueError):
    """A model file cannot be used; the message names the file, what was expected and the remedy."""


@dataclass(frozen=True)
class Manifest:
    """A model's identity, geometry and vocabulary.

    ``focal_length_px`` is the one at network size that the model's depth is metric for; ``digest`` is that of the
    weights; ``scores`` holds what was measured, on the data that the keys name; ``label_stride`` is the pixel grid on
    which segments are told apart, 0 in files that do not say.
    """

    name: str
    version: str
    preset: str
    height: int
    width: int
    focal_length_px: float
    min_depth_m: float
    max_depth_m: float
    taxonomy: Taxonomy
    opset: int
    digest: str
    scores: dict[str, float | str] = field(default_factory=dict)
    precision: str = "float32"
    label_stride: int = 0

    def __post_init__(self) -> None:
        if self.height <= 0 or self.width <= 0:
            raise ValueError(f"network size {self.height}x{self.width}; expected positive height and width")
        if not (math.isfinite(self.focal_length_px) and self.focal_length_px > 0):
            raise ValueError(f"focal_length_px is {self.focal_length_px}; expected a positive number of pixels")
        if not 0 < self.min_depth_m < self.max_depth_m:
            raise ValueError(f"depth range {self.min_depth_m}..{self.max_depth_m} m; expected 0 < minimum < maximum")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; expected one of {', '.join(PRECISIONS)}")
        if self.label_stride < 0:
            raise ValueError(f"label_stride is {self.label_stride} px; expected 0 (unknown) or more")

    def to_json(self) -> str:
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        return json.dumps({**values, "taxonomy": self.taxonomy.to_json()})

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The inverse of `to_json`; raises ValueError when a field is missing, unknown or impossible."""
        try:
            values = json.loads(text)
            return cls(**{**values, "taxonomy": Taxonomy.from_json(values["taxonomy"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"manifest fields do not fit: {error}") from error


def read_manifest(path: str | Path) -> Manifest:
    """The manifest inside an ONNX file, without loading the network; raises as `read_model` does."""
    return read_model(path)[0]


def read_model(path: str | Path) -> tuple[Manifest, bytes]:
    """An ONNX file's manifest and its whole content, read once, so that one cannot change behind the other.

    Raises:
        ModelError: the file is missing, is no ONNX file, or was not exported by panoptic_depth_training.export.
    """
    path = Path(path)
    try:
        model = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"model {path}: cannot be read ({error.strerror}); give the path of an exported .onnx"
        ) from error
    if not model:
        raise ModelError(f"model {path}: the file is empty; export it again")
    try:
        properties = metadata(memoryview(model))
    except (IndexError, ValueError) as error:
        raise ModelError(f"model {path}: not ONNX, or cut short ({len(model)} bytes); export it again") from error
    if METADATA_KEY not in properties:
        raise ModelError(f"model {path}: no manifest inside; export it with python -m panoptic_depth_training.export")
    try:
        return Manifest.from_json(properties[METADATA_KEY]), model
    except ValueError as error:
        raise ModelError(f"model {path}: its manifest does not fit this version ({error}); export it again") from error
