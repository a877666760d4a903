# SPDX-License-Identifier: Apache-2.0
"""Engines run an exported model; they differ in hardware, never in what goes in and out.

``infer`` takes images uint8 [B, h, w, 3] RGB and returns the manifest's OUTPUTS, each with the batch axis B first:
segment_ids uint8 [B, h, w], depth float32 [B, h, w] m, and per row of the segment table (N rows) segment_category
int32, segment_score float32, segment_area int32 px, segment_depth float32 m.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from panoptic_depth_ros.manifest import Manifest, ModelError, read_manifest

DEVICES = ("auto", "tensorrt", "cuda", "openvino", "cpu")
CPU_PRECISIONS = ("f32", "bf16")

Report = Callable[[str], None]


class Engine(Protocol):
    """A loaded model. Calls come from one thread at a time."""

    @property
    def manifest(self) -> Manifest: ...

    @property
    def description(self) -> str:
        """What runs the model and where, for a log line."""
        ...

    def infer(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs; the second call after this one may overwrite them."""
        ...

    def close(self) -> None: ...


def open_engine(
    path: str | Path,
    device: str = "auto",
    threads: int = 0,
    precision: str = "f32",
    workspace_gib: float = 0.0,
    report: Report = lambda text: None,
) -> Engine:
    """The engine for an exported .onnx file.

    Args:
        device: ``tensorrt`` on an NVIDIA GPU, built when first used; ``cuda``, ONNX Runtime on such a GPU; ``openvino``
            on the CPU; ``cpu``, ONNX Runtime there. ``auto`` is the first of these four that can run here.
        threads: CPU threads; 0 takes one per core.
        precision: OpenVINO's, f32 or bf16.
        workspace_gib: scratch memory that a layer of TensorRT's may use; 0 as TensorRT sees fit.
        report: is told what is chosen and why, and how a build goes on.

    Raises:
        ModelError: the file is no exported model, or the device cannot run it.
        ValueError: an unknown device or precision.
    """
    if device not in DEVICES:
        raise ValueError(f"device {device!r} is unknown; expected one of {', '.join(DEVICES)}")
    if precision not in CPU_PRECISIONS:
        raise ValueError(f"precision {precision!r} is unknown; expected one of {', '.join(CPU_PRECISIONS)}")
    if device == "auto":
        return _open_best(path, threads, precision, workspace_gib, report)
    if device == "tensorrt":
        from panoptic_depth_ros.engines.tensorrt import TensorRtEngine

        return TensorRtEngine(path, workspace_gib, report)
    if device == "openvino":
        return _open_openvino(path, threads, precision)
    from panoptic_depth_ros.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(path, device, threads)


def _open_best(path: str | Path, threads: int, precision: str, workspace_gib: float, report: Report) -> Engine:
    """What is there decides. A TensorRT that is there and fails is an error: whoever installed it counts on its speed.
    CUDA that finds no GPU and OpenVINO that lacks an operator are passed over, with a report.
    """
    read_manifest(path)  # a file that is no model is no engine's fault
    if (problem := _tensorrt_problem()) is None:
        return open_engine(path, "tensorrt", threads, precision, workspace_gib, report)
    if problem:
        report(f"TensorRT is not used: {problem}")
    if _onnxruntime_has_cuda():
        try:
            return open_engine(path, "cuda", threads)
        except ModelError as error:
            report(f"ONNX Runtime's CUDA is not used: {error}")
    if importlib.util.find_spec("openvino") is not None:
        try:
            return _open_openvino(path, threads, precision)
        except ModelError as error:
            report(f"OpenVINO is not used: {error}")
    return open_engine(path, "cpu", threads)


def _open_openvino(path: str | Path, threads: int, precision: str) -> Engine:
    try:
        from panoptic_depth_ros.engines.openvino import OpenVinoEngine
    except ImportError as error:
        raise ModelError(f"device is openvino, but OpenVINO does not load ({error}); pip install openvino") from error
    return OpenVinoEngine(path, threads, precision)


def _tensorrt_problem() -> str | None:
    """None where TensorRT can run; otherwise why not, empty where it is not even installed."""
    if not any(importlib.util.find_spec(name) for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")):
        return ""
    from panoptic_depth_ros.engines.tensorrt import runnable

    try:
        runnable()
    except ModelError as error:
        return str(error)
    return None


def _onnxruntime_has_cuda() -> bool:
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()
