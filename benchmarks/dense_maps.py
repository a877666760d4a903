# SPDX-License-Identifier: Apache-2.0
"""A network without what follows its maps: what remains when no segment is chosen, merged or given a depth.

The difference to the whole is what deciding costs, which published times of panoptic networks like to leave out.
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

from panoptic_depth_model.panoptic_depth import PanopticDepth
from panoptic_depth_ros.engines.onnxruntime import open_session
from panoptic_depth_ros.manifest import INPUT
from panoptic_depth_training.gpu_runner import GpuRunner
from panoptic_depth_training.inference import prepared
from panoptic_depth_training.torch_engine import AS_TRAINED, TorchOptions

Maps = Callable[[np.ndarray], dict[str, float]]  # images [B, h, w, 3] uint8 -> milliseconds
CONVOLUTIONS = ("Conv", "DeformConv")


def cut_at_maps(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph of an exported model up to the last convolutions that no choice precedes: their outputs are its own."""
    whole = onnx.shape_inference.infer_shapes(model)  # the extractor wants to know the new outputs' types
    decided: set[str] = set()  # values that depend on a choice; convolutions of these sample between masks
    for node in whole.graph.node:  # who uses a value comes behind who makes it
        if node.op_type == "TopK" or decided.intersection(node.input):
            decided.update(node.output)
    convolutions = [n.output[0] for n in whole.graph.node if n.op_type in CONVOLUTIONS and n.output[0] not in decided]
    leading: set[str] = set()  # values from which a convolution can be reached
    for node in reversed(whole.graph.node):
        if any(name in convolutions or name in leading for name in node.output):
            leading.update(node.input)
    return Extractor(whole).extract_model([INPUT], [name for name in convolutions if name not in leading])


def onnxruntime_maps(path: Path, device: str, threads: int) -> Maps:
    """ONNX Runtime on `cpu` or `cuda`, set up as the engine of that name does."""
    session = open_session(cut_at_maps(onnx.load(path)).SerializeToString(), device, threads)

    def run(images: np.ndarray) -> dict[str, float]:
        start = time.perf_counter()
        session.run(None, {INPUT: images})
        return {"engine": (time.perf_counter() - start) * 1e3}

    return run


class _Maps(nn.Module):
    def __init__(self, network: PanopticDepth) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.network(self.network.normalized(images))
        return [*(part for level in maps.levels for part in level), maps.mask_embedding, maps.depth_embedding]


def torch_maps(network: PanopticDepth, options: TorchOptions) -> Maps:
    """PyTorch as the engine of these options sets it up; on a GPU without bringing the maps home."""
    device = next(network.parameters()).device
    module = _Maps(network if options == AS_TRAINED else prepared(network, options.half)).eval()
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
