# SPDX-License-Identifier: Apache-2.0
"""What an exported model says about itself: the contract between training and vehicle, kept inside the ONNX file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from panoptic_depth_ros.taxonomy import Taxonomy

METADATA_KEY = "panoptic_depth"  # the ONNX metadata property that holds the manifest as JSON

INPUT = "image"  # uint8 [B, h, w, 3] RGB
MAX_SEGMENTS = 255  # segment ids are 8 bit, 0 is void
OUTPUTS = ("segment_ids", "depth", "segment_category", "segment_score", "segment_area", "segment_depth")


class ModelError(ValueError):
    """A model file cannot be used; the message names the file, what was expected and the remedy."""


@dataclass(frozen=True)
class Manifest:
    """A model's identity, geometry and vocabulary.

    ``focal_length_px`` is the one at network size that the model's depth is metric for; ``digest`` is that of the
    weights; ``scores`` holds what was measured, on the data that the keys name.
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

    def __post_init__(self) -> None:
        if self.height <= 0 or self.width <= 0:
            raise ValueError(f"network size {self.height}x{self.width}; expected positive height and width")
        if not (math.isfinite(self.focal_length_px) and self.focal_length_px > 0):
            raise ValueError(f"focal_length_px is {self.focal_length_px}; expected a positive number of pixels")
        if not 0 < self.min_depth_m < self.max_depth_m:
            raise ValueError(f"depth range {self.min_depth_m}..{self.max_depth_m} m; expected 0 < minimum < maximum")

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
    """The manifest inside an ONNX file, without loading the network.

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
    try:
        properties = dict(_metadata_properties(memoryview(model)))
    except (IndexError, ValueError) as error:
        raise ModelError(f"model {path}: not ONNX, or cut short ({len(model)} bytes); export it again") from error
    if METADATA_KEY not in properties:
        raise ModelError(f"model {path}: no manifest inside; export it with python -m panoptic_depth_training.export")
    try:
        return Manifest.from_json(properties[METADATA_KEY])
    except ValueError as error:
        raise ModelError(f"model {path}: its manifest does not fit this version ({error}); export it again") from error


# An ONNX file is one protobuf message. Its metadata is found by walking the outermost fields, which needs no
# ONNX package on the vehicle and skips the weights in one step.
_MODEL_METADATA_FIELD = 14  # ModelProto.metadata_props, entries of (key = 1, value = 2)
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def _metadata_properties(model: memoryview) -> Iterator[tuple[str, str]]:
    for number, value in _protobuf_fields(model):
        if number == _MODEL_METADATA_FIELD:
            entry = dict(_protobuf_fields(value))
            yield str(entry.get(1, b""), "utf-8"), str(entry.get(2, b""), "utf-8")


def _protobuf_fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(field number, content, a view) of a serialized message's own fields; numbers come back as empty content."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            _, at = _varint(message, at)
            yield number, message[:0]
            continue
        if kind == _BYTES:
            size, at = _varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"no protobuf field has wire type {kind}")
        if number == 0 or at + size > len(message):
            raise ValueError("field runs past the end")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("number longer than 64 bits")
