# SPDX-License-Identifier: Apache-2.0
"""A network up to its first choice: maps and scores of centers, of which no segment is chosen, merged or given a depth.

The difference to the whole is what choosing, fusing and merging cost, which published times of panoptic networks like
to leave out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx.utils import Extractor
from torch import Tensor, nn

from panoptic_depth_model.kernels import center_peaks
from panoptic_depth_model.panoptic_depth import CENTER_WINDOWS, PanopticDepth
from panoptic_depth_ros.engines.onnxruntime import open_session
from panoptic_depth_ros.manifest import INPUT
from panoptic_depth_training.gpu_runner import GpuRunner
from panoptic_depth_training.inference import prepared
from panoptic_depth_training.torch_engine import AS_TRAINED, TorchOptions

Run = Callable[[np.ndarray], dict[str, float]]  # images [B, h, w, 3] uint8 -> milliseconds
CONVOLUTIONS = ("Conv", "DeformConv")


def cut_before_choices(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph of an exported model up to its first top-K: the scores to choose from, and the maps of the others.

    Maps are what the last convolutions make that no choice precedes.
    """
    whole = onnx.shape_inference.infer_shapes(model)  # the extractor wants to know the new outputs' types
    decided: set[str] = set()  # values that depend on a choice; convolutions of these sample between masks
    ends = []
    for node in whole.graph.node:  # who uses a value comes behind who makes it
        if decided.intersection(node.input):
            decided.update(node.output)
        elif node.op_type == "TopK":
            decided.update(node.output)
            ends.append(node.input[0])
        elif node.op_type in CONVOLUTIONS:
            ends.append(node.output[0])
    leading: set[str] = set()  # values from which an end can be reached
    for node in reversed(whole.graph.node):
        if any(name in ends or name in leading for name in node.output):
            leading.update(node.input)
    return Extractor(whole).extract_model([INPUT], [name for name in ends if name not in leading])


def in_onnxruntime(path: Path, device: str, threads: int) -> Run:
    """ONNX Runtime on `cpu` or `cuda`, set up as the engine of that name does."""
    session = open_session(cut_before_choices(onnx.load(path)).SerializeToString(), device, threads)

    def run(images: np.ndarray) -> dict[str, float]:
        start = time.perf_counter()
        session.run(None, {INPUT: images})
        return {"engine": (time.perf_counter() - start) * 1e3}

    return run


class _BeforeChoices(nn.Module):
    def __init__(self, network: PanopticDepth) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.network(self.network.normalized(images))
        peaks = [center_peaks(level.centers, window) for level, window in zip(maps.levels, CENTER_WINDOWS, strict=True)]
        others = [part for level in maps.levels for part in level[1:]]
        return [*peaks, *others, maps.mask_embedding, maps.depth_embedding]


def in_pytorch(network: PanopticDepth, options: TorchOptions) -> Run:
    """PyTorch as the engine of these options sets it up; on a GPU without bringing the answer home."""
    device = next(network.parameters()).device
    module = _BeforeChoices(network if options == AS_TRAINED else prepared(network, options.half)).eval()
    compute = torch.compile(module, fullgraph=True, dynamic=False) if options.compile else module
    gpu = GpuRunner(compute, device, options.graph) if device.type == "cuda" else None

    def run(images: np.ndarray) -> dict[str, float]:
        start = time.perf_counter()
        with torch.inference_mode():
            if gpu is None:
                compute(torch.from_numpy(images))
                return {"engine": (time.perf_counter() - start) * 1e3}
            gpu(images)
            on_gpu_ms = gpu.elapsed_ms
        return {"engine": (time.perf_counter() - start) * 1e3, "GPU": on_gpu_ms}

    return run
