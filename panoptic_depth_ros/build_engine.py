# SPDX-License-Identifier: Apache-2.0
"""panoptic-depth build-engine: the minutes that a TensorRT build takes, spent before the vehicle starts."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from rich.console import Console

from panoptic_depth_ros.engines.cache import write_sealed
from panoptic_depth_ros.engines.contract import read_contracted
from panoptic_depth_ros.engines.tensorrt import TensorRtEngine
from panoptic_depth_ros.engines.tensorrt_build import BuildOptions, build, flavor, import_tensorrt
from panoptic_depth_ros.inspect import about_engine, about_engine_layers


def build_engine(model: Path, workspace_gib: float, console: Console) -> None:
    """Build, prove and keep the engine that the node with ``device:=tensorrt`` takes on this machine."""
    engine = TensorRtEngine(model, workspace_gib, report=lambda text: console.print(text, highlight=False))
    try:
        console.print(f"ready: {engine.description}", highlight=False)
    finally:
        engine.close()


def build_for_targets(
    model: Path, targets: tuple[str, ...], workspace_gib: float, out: Path | None, console: Console
) -> None:
    """Build an engine for GPUs that need not be here: proof that NVIDIA's builder takes the model.

    It is not compared with ONNX Runtime, since it cannot run here, and no node loads it: each builds its own.

    Raises:
        ModelError: the model is none, TensorRT-RTX is not installed, or it refuses the graph or a target.
    """
    trt = import_tensorrt()
    _, content, _ = read_contracted(model)
    options = BuildOptions(workspace_gib, targets)
    built = build(trt, content, options, report=lambda text: console.print(text, highlight=False))
    fingerprint = {
        "model": hashlib.sha256(content).hexdigest(),
        "builder": flavor(trt),
        "targets": ", ".join(targets),
        "workspace": f"{workspace_gib:g} GiB" if workspace_gib else "as TensorRT sees fit",
    }
    header: dict[str, Any] = {"fingerprint": fingerprint, "seconds": built.seconds, "network_layers": built.layers}
    if out is not None:
        write_sealed(out, header, built.plan)
    console.print(about_engine(str(out or model), {**header, "size": len(built.plan)}))
    for table in about_engine_layers(header):
        console.print(table)
