# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime: the engine of machines without TensorRT, and the reference for the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from panoptic_depth_ros.engines.contract import read_contracted
from panoptic_depth_ros.manifest import INPUT, OUTPUTS, Manifest, ModelError

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
# Of int8 models it stores biases in steps of input scale times weight scale, in single or half precision as these are;
# half cannot hold steps so small.
_HARMFUL_OPTIMIZERS = ["WeightBiasQuantization"]


class OnnxRuntimeEngine:
    """Runs an exported model with ONNX Runtime on the CPU or an NVIDIA GPU."""

    def __init__(self, path: str | Path, device: str = "cpu", threads: int = 0) -> None:
        """
        Args:
            device: ``cpu`` or ``cuda``.
            threads: on the CPU; 0 takes one per core.

        Raises:
            ModelError: the file is no exported model, or the device cannot run it.
        """
        self._manifest, _, _ = read_contracted(path)
        try:
            self._session = open_session(str(path), device, threads)
        except ModelError:
            raise
        except Exception as error:  # ONNX Runtime's errors share no public base class
            raise ModelError(f"model {path}: ONNX Runtime cannot load it ({error}); export it again") from error
        if device == "cuda" and _CUDA not in self._session.get_providers():
            raise ModelError(
                "device is cuda, but ONNX Runtime could not use a GPU; see nvidia-smi and the CUDA release that "
                "this onnxruntime-gpu needs, or take device:=cpu"
            )

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


def _providers(device: str) -> list[str | tuple[str, dict[str, str]]]:
    if device == "cpu":
        return [_CPU]
    if _CUDA not in onnxruntime.get_available_providers():
        raise ModelError(
            "device is cuda, but this ONNX Runtime has no CUDA provider; pip uninstall onnxruntime, then "
            "pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )
    if hasattr(onnxruntime, "preload_dlls"):  # CUDA's and cuDNN's libraries from their own wheels
        onnxruntime.preload_dlls(msvc=False)
    # Not in TF32, its default: where segments are told apart, probabilities of 0.9997 and 0.9999 would be equal.
    return [(_CUDA, {"use_tf32": "0"}), _CPU]


def open_session(model: str | bytes, device: str = "cpu", threads: int = 0) -> onnxruntime.InferenceSession:
    """Any ONNX graph, from a file's name or its content, set up as the engine sets up its own."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that spin between two frames would take the cores from the camera driver and from our own message
    # building; within a frame it spares them falling asleep between two layers.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3  # it warns of what it leaves unfolded
    return onnxruntime.InferenceSession(
        model, options, providers=_providers(device), disabled_optimizers=_HARMFUL_OPTIMIZERS
    )
