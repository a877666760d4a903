# SPDX-License-Identifier: Apache-2.0
"""PyTorch as an engine: weights that were not exported yet go the way that images take on the vehicle.

On a GPU it can compute in half precision and launch a whole frame as one CUDA graph. No GPU has run that yet.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from panoptic_depth_model.deployable import Deployable, Outputs
from panoptic_depth_model.panoptic_depth import PanopticDepth
from panoptic_depth_model.weights import load_weights
from panoptic_depth_ros.engines import Engine, Report, open_engine
from panoptic_depth_ros.manifest import OUTPUTS, Manifest, ModelError
from panoptic_depth_training.facts import ModelFacts
from panoptic_depth_training.gpu_runner import GpuRunner, HostBuffers
from panoptic_depth_training.inference import HALF, evaluating, prepared
from panoptic_depth_training.network_manifest import manifest_of

WEIGHTS_SUFFIX = ".pt"


@dataclass(frozen=True)
class TorchOptions:
    """How PyTorch runs a network. With any of these an engine has a copy of the network; see `prepared`."""

    half: bool = False  # maps in float16 on a GPU, in bfloat16 on a CPU; what is decided from them stays in float32
    graph: bool = False  # one CUDA graph a frame instead of a launch for each of some hundred kernels
    compile: bool = False  # by torch.compile, which takes minutes and needs a C++ compiler, on a GPU Triton


AS_TRAINED = TorchOptions()


class TorchEngine:
    """Runs a network with PyTorch. The network stays its owner's: its mode is put back after every call."""

    def __init__(self, network: PanopticDepth, manifest: Manifest, options: TorchOptions = AS_TRAINED) -> None:
        """Runs where the network's parameters are. Raises ModelError for a CUDA graph on a CPU."""
        self._manifest = manifest
        self._options = options
        self._device = next(network.parameters()).device
        if options.graph and self._device.type != "cuda":
            raise ModelError(f"a CUDA graph was asked for, but the network is on {self._device.type}; take device cuda")
        self._deployable = Deployable(network if options == AS_TRAINED else prepared(network, options.half))
        run: Callable[[Tensor], Outputs] = self._deployable
        if options.compile:
            run = torch.compile(self._deployable, fullgraph=True, dynamic=False)
        self._run = run
        self._gpu = GpuRunner(run, self._device, options.graph) if self._device.type == "cuda" else None
        self._buffers = HostBuffers(self._device)

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    @property
    def description(self) -> str:
        forms = [str(HALF[self._device.type]).removeprefix("torch.")] if self._options.half else []
        forms += [name for name in ("graph", "compile") if getattr(self._options, name)]
        return ", ".join([f"PyTorch {torch.__version__} on {self._device.type.upper()}", *forms])

    @property
    def gpu_ms(self) -> float:
        """Milliseconds of the last call on the GPU without transfers, by its own clock; NaN on a CPU."""
        return float("nan") if self._gpu is None else self._gpu.elapsed_ms

    def infer(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs of the contract for RGB images [B, h, w, 3] uint8."""
        mode = evaluating(self._deployable) if self._options == AS_TRAINED else nullcontext()
        with mode, torch.inference_mode():
            if self._gpu is None:
                outputs = [output.numpy() for output in self._run(torch.from_numpy(images))]
            else:
                outputs = self._buffers.fetch(self._gpu(images))
        return dict(zip(OUTPUTS, outputs, strict=True))

    def close(self) -> None:
        del self._deployable, self._run, self._gpu, self._buffers


def open_model(
    path: Path,
    device: str = "auto",
    threads: int = 0,
    size: tuple[int, int] | None = None,
    report: Report = print,
    options: TorchOptions = AS_TRAINED,
) -> Engine:
    """The engine for weights (.pt) or for an exported model.

    Args:
        device: for weights auto, cpu or cuda; else as `open_engine` has it.
        threads: on the CPU; 0 takes one per core.
        size: height and width [px] of the network's input; None: the training's. An exported model has its own.
        options: for weights.

    Raises:
        ModelError: the file is neither, or the device cannot run it.
        ValueError: the size is none that a network takes.
    """
    if path.suffix != WEIGHTS_SUFFIX:
        if size is not None:
            raise ModelError(f"model {path}: its input size is fixed; leave the size out, or export it with another")
        if options != AS_TRAINED:
            raise ModelError(f"model {path}: how it computes was decided at export; {options} is for weights")
        return open_engine(path, device, threads, report=report)
    if threads:
        torch.set_num_threads(threads)
    try:
        network, facts = load_weights(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"model {error}; give weights that train wrote") from error
    network.to(torch_device(device, path))
    return engine_for(network, ModelFacts.from_dict(facts), path.stem, size, options)


def engine_for(
    network: PanopticDepth,
    facts: ModelFacts,
    name: str,
    size: tuple[int, int] | None = None,
    options: TorchOptions = AS_TRAINED,
) -> TorchEngine:
    """An engine around a network where it is; `size` and `options` as in `open_model`."""
    height, width = size or (facts.height, facts.width)
    return TorchEngine(network, manifest_of(network, facts, height, width, name), options)


def torch_device(device: str, path: Path) -> torch.device:
    """Where to run weights. Raises ModelError for a device that needs an exported model, or that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda"):
        raise ModelError(
            f"model {path}: weights run on cpu or cuda, not on {device}; export them first with "
            "python -m panoptic_depth_training.export"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("device is cuda, but PyTorch finds no GPU; see nvidia-smi, or take --device cpu")
    return torch.device(device)
