# SPDX-License-Identifier: Apache-2.0
"""Engines run an exported model; they differ in hardware, never in what goes in and out.

``infer`` takes images uint8 [B, h, w, 3] RGB and returns the manifest's OUTPUTS, each with the batch axis B first:
segment_ids uint8 [B, h, w], depth float32 [B, h, w] m, and per row of the segment table (N rows) segment_category
int32, segment_score float32, segment_area int32 px, segment_depth float32 m.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from panoptic_depth_ros.manifest import Manifest

DEVICES = ("auto", "cpu", "cuda")


class Engine(Protocol):
    """A loaded model. Calls come from one thread at a time."""

    @property
    def manifest(self) -> Manifest: ...

    @property
    def description(self) -> str:
        """What runs the model and where, for a log line."""
        ...

    def infer(self, images: np.ndarray) -> dict[str, np.ndarray]: ...

    def close(self) -> None: ...


def open_engine(path: str | Path, device: str = "auto", threads: int = 0) -> Engine:
    """The engine for an exported .onnx file.

    Args:
        device: ``auto`` takes the GPU if ONNX Runtime can use one, otherwise the CPU; ``cpu``; ``cuda``.
        threads: CPU threads; 0 takes one per core.

    Raises:
        ModelError: the file is no exported model, or the device cannot run it.
        ValueError: an unknown device.
    """
    if device not in DEVICES:
        raise ValueError(f"device {device!r} is unknown; expected one of {', '.join(DEVICES)}")
    from panoptic_depth_ros.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(path, device, threads)
