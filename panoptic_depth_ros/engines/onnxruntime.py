# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime: the engine of machines without TensorRT, and the reference for the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from panoptic_depth_ros.manifest import INPUT, MAX_SEGMENTS, OUTPUTS, Manifest, ModelError, read_manifest

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_DTYPES = {
    "segment_ids": "tensor(uint8)",
    "depth": "tensor(float)",
    "segment_category": "tensor(int32)",
    "segment_score": "tensor(float)",
    "segment_area": "tensor(int32)",
    "segment_depth": "tensor(float)",
}


class OnnxRuntimeEngine:
    """Runs an exported model with ONNX Runtime on the CPU or an NVIDIA GPU."""

    def __init__(self, path: str | Path, device: str = "auto", threads: int = 0) -> None:
        self._manifest = read_manifest(path)
        self._session = _open_session(path, _providers(device), threads)
        _check_contract(path, self._session, self._manifest)

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    @property
    def description(self) -> str:
        where = "CUDA" if _CUDA in self._session.get_providers() else "CPU"
        return f"ONNX Runtime {onnxruntime.__version__} on {where}"

    def infer(self, images: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(OUTPUTS, self._session.run(OUTPUTS, {INPUT: images}), strict=True))

    def close(self) -> None:
        del self._session


def _providers(device: str) -> list[str]:
    has_cuda = _CUDA in onnxruntime.get_available_providers()
    if device == "cuda" and not has_cuda:
        raise ModelError("device is cuda, but this ONNX Runtime has no CUDA provider; pip install onnxruntime-gpu")
    return [_CUDA, _CPU] if has_cuda and device != "cpu" else [_CPU]


def _open_session(path: str | Path, providers: list[str], threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Idle threads that spin would take the cores from the camera driver and from our own message building.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # ONNX Runtime's errors share no public base class
        raise ModelError(f"model {path}: ONNX Runtime cannot load it ({error}); export it again") from error


def _check_contract(path: str | Path, session: onnxruntime.InferenceSession, manifest: Manifest) -> None:
    """The graph's own inputs and outputs must be those the manifest promises."""
    h, w = manifest.height, manifest.width
    inputs = {i.name: (i.type, i.shape) for i in session.get_inputs()}
    outputs = {o.name: (o.type, o.shape) for o in session.get_outputs()}
    kind, shape = inputs.get(INPUT, ("missing", []))
    if len(inputs) != 1 or kind != "tensor(uint8)" or len(shape) != 4 or shape[1:] != [h, w, 3]:
        raise ModelError(f"model {path}: its inputs are {inputs}; its manifest says one uint8 image [B, {h}, {w}, 3]")
    for name in OUTPUTS:
        kind, shape = outputs.get(name, ("missing", []))
        fits = shape[1:] == [h, w] if name in ("segment_ids", "depth") else len(shape) == 2 and shape[1] <= MAX_SEGMENTS
        if kind != _DTYPES[name] or not fits:
            raise ModelError(f"model {path}: output {name} is {kind} {shape}; the contract says {_DTYPES[name]}")
