# SPDX-License-Identifier: Apache-2.0
"""OpenVINO: the faster engine on x86 CPUs, most of all with bfloat16 or int8 instructions."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import openvino

from panoptic_depth_ros.engines.cache import cache_folder
from panoptic_depth_ros.engines.contract import read_contracted
from panoptic_depth_ros.engines.errors import EngineError
from panoptic_depth_ros.manifest import INPUT, OUTPUTS, Manifest


class OpenVinoEngine:
    """Runs an exported model with OpenVINO on the CPU.

    Left alone, OpenVINO computes in bfloat16 wherever the CPU can, and results depend on the machine. So the precision
    is always said: ``f32`` computes as the graph says (float16 graphs in float32), ``bf16`` in half of the time with
    two to three significant digits. Quantized layers are computed in int8 either way.
    """

    def __init__(self, path: str | Path, threads: int = 0, precision: str = "f32", use_cache: bool = True) -> None:
        """
        Args:
            threads: 0 takes one per core.
            use_cache: keep the compiled network in the user's cache folder, where it loads faster the next time.

        Raises:
            ModelError: the file is no exported model, OpenVINO lacks one of its operators, or the CPU the precision.
        """
        self._manifest, model, _ = read_contracted(path)
        self._precision = precision
        core = the_core()
        options = _options(core, threads, precision)
        if use_cache:
            options["CACHE_DIR"] = str(cache_folder("openvino"))
        try:
            network = core.read_model(model)
            self._request = core.compile_model(network, "CPU", options).create_infer_request()
        except RuntimeError as error:
            raise EngineError(f"model {path}: OpenVINO cannot run it ({_reason(error)}); take device:=cpu") from error

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    @property
    def description(self) -> str:
        release = openvino.__version__.split("-")[0]
        return f"OpenVINO {release} on CPU, {self._precision}"

    def infer(self, images: np.ndarray) -> dict[str, np.ndarray]:
        outputs = self._request.infer({INPUT: images}, share_inputs=True)
        return {name: outputs[name] for name in OUTPUTS}

    def close(self) -> None:
        del self._request


@functools.cache
def the_core() -> openvino.Core:
    """OpenVINO's one Core of this process.

    Each Core puts up a stack for signal handlers and, when it goes, puts back the one that it found. If two go in the
    order in which they came, the stack put back last is one that is gone, and the next Ctrl-C ends in a crash.
    """
    return openvino.Core()


def _reason(error: RuntimeError) -> str:
    """OpenVINO's own words without the places in its source and its documentation."""
    lines = [line.strip(" -") for line in str(error).splitlines()]
    noise = ("Exception from", "Check ", "Summary", "To facilitate", "FrontEnd API failed")
    return "; ".join(line for line in lines if line and not line.startswith(noise)) or str(error)


def _options(core: openvino.Core, threads: int, precision: str) -> dict[str, str | int]:
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise EngineError("precision is bf16, but this CPU has no bfloat16 instructions; take f32")
    options: dict[str, str | int] = {
        "PERFORMANCE_HINT": "LATENCY",
        "EXECUTION_MODE_HINT": "ACCURACY" if precision == "f32" else "PERFORMANCE",
        "INFERENCE_PRECISION_HINT": precision,
    }
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    return options
