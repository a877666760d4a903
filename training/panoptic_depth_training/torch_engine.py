# SPDX-License-Identifier: Apache-2.0
"""PyTorch as an engine: weights that were not exported yet go the way that images take on the vehicle.

On a GPU it can compute in half precision and launch a whole frame as one CUDA graph. No GPU has run that yet.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from panoptic_depth_model.backbones import ResNetFeatures
from panoptic_depth_model.deployable import Deployable, Outputs
from panoptic_depth_model.panoptic_depth import Maps, PanopticDepth, check_size
from panoptic_depth_model.weights import digest, load_weights
from panoptic_depth_ros.engines import Engine, Report, open_engine
from panoptic_depth_ros.manifest import OUTPUTS, Manifest, ModelError
from panoptic_depth_ros.taxonomy import Taxonomy
from panoptic_depth_training.facts import ModelFacts

WEIGHTS_SUFFIX = ".pt"
SMALLEST_DEPTH_M = 1e-3  # a manifest's range starts above zero, also where a network's own starts at zero
ANY_RANGE_M = (SMALLEST_DEPTH_M, 80.0)  # stands in the manifest of a network that gives depth to no category


@dataclass(frozen=True)
class TorchOptions:
    """How PyTorch runs a network. With any of these an engine has a copy of the network; see `prepared`."""

    half: bool = False  # maps in float16 on a GPU, in bfloat16 on a CPU; what is decided from them stays in float32
    graph: bool = False  # one CUDA graph a frame instead of a launch for each of some hundred kernels
    compile: bool = False  # by torch.compile, which takes minutes and needs a C++ compiler, on a GPU Triton


AS_TRAINED = TorchOptions()
HALF = {"cuda": torch.float16, "cpu": torch.bfloat16}  # CPUs that are fast in half precision have bfloat16
_WARM_UP_PASSES = 3  # in which libraries choose kernels and get their memory, as they must not during a capture


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


class GpuRunner:
    """Computes on a GPU what comes from page-locked memory, from which alone transfers are fast."""

    def __init__(self, run: Callable[[Tensor], Sequence[Tensor]], device: torch.device, as_graph: bool) -> None:
        self._run = run
        self._device = device
        self._as_graph = as_graph
        self._graph: torch.cuda.CUDAGraph | None = None
        self._host_images = torch.empty(0, dtype=torch.uint8)
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self, images: np.ndarray) -> Sequence[Tensor]:
        """Outputs on the GPU, which may still compute them, for images [B, h, w, 3] uint8.

        With a graph B is that of the first call, and the next call overwrites the outputs.
        """
        if self._host_images.shape != images.shape:
            if self._graph is not None:
                expected, got = list(self._host_images.shape), list(images.shape)
                raise ValueError(f"images are {got}; the CUDA graph was captured for {expected}")
            self._set_up(images.shape)
        self._end.synchronize()  # the upload before this one has left the buffer
        self._host_images.copy_(torch.from_numpy(images))
        self._images.copy_(self._host_images, non_blocking=True)
        self._start.record()
        if self._graph is None:
            outputs = self._run(self._images)
        else:
            self._graph.replay()
            outputs = self._outputs
        self._end.record()
        return outputs

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds of the last call by the GPU's clock, without transfers; waits for its end."""
        self._end.synchronize()
        return self._start.elapsed_time(self._end)

    def _set_up(self, shape: tuple[int, ...]) -> None:
        self._host_images = pinned(shape, torch.uint8)
        self._images = torch.zeros(shape, dtype=torch.uint8, device=self._device)
        if self._as_graph:
            self._capture()

    def _capture(self) -> None:
        """Record a frame's kernels. They read `_images` and write `_outputs` for good."""
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.backends.cudnn.flags(enabled=True, benchmark=True):  # the shape stays, so the search pays
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP_PASSES):
                    self._run(self._images)
            stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                self._outputs = self._run(self._images)
        self._graph = graph


class HostBuffers:
    """Outputs in page-locked memory. There are two sets, in turn: the second call after one overwrites its answer."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sets: list[list[Tensor]] = [[], []]

    def fetch(self, outputs: Sequence[Tensor]) -> list[np.ndarray]:
        self._sets.reverse()
        if [host.shape for host in self._sets[0]] != [output.shape for output in outputs]:
            self._sets[0] = [pinned(output.shape, output.dtype) for output in outputs]
        for host, output in zip(self._sets[0], outputs, strict=True):
            host.copy_(output, non_blocking=True)
        torch.cuda.current_stream(self._device).synchronize()
        return [host.numpy() for host in self._sets[0]]


def pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Page-locked host memory."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)


class HalfPanopticDepth(PanopticDepth):
    """The same network with maps computed in half precision.

    All that follows stays in float32: scores that are compared with each other, sums over a map, which outgrow
    float16 (65504), masks, and depth in meters.
    """

    def forward(self, image: Tensor) -> Maps:
        kind = image.device.type
        # Convolutions take half precision, norms float32. A cache of cast weights would be lost to a CUDA graph.
        with torch.autocast(kind, HALF[kind], cache_enabled=False):
            maps = super().forward(image)
        return maps.in_float32()


def fold_norms(network: PanopticDepth) -> None:
    """Make the batch norms of a ResNet part of its convolutions, in place. For inference alone."""
    if isinstance(network.backbone, ResNetFeatures):
        network.backbone = fuse(network.backbone)  # type: ignore[assignment]


def prepared(network: PanopticDepth, half: bool) -> PanopticDepth:
    """A copy of a network that is for inference alone, on the same device.

    Batch norms of a ResNet are part of its convolutions. Weights lie channels last, as the maps do that begin as
    image bytes. With `half`, convolutions hold their weights in half precision; see `HalfPanopticDepth`.
    """
    device = next(network.parameters()).device
    copy = (HalfPanopticDepth if half else PanopticDepth)(network.config).to(device)
    copy.load_state_dict(network.state_dict())
    copy.eval().requires_grad_(False)
    fold_norms(copy)
    if half:
        for module in copy.modules():
            if isinstance(module, nn.Conv2d):
                module.to(HALF[device.type])
    return copy.to(memory_format=torch.channels_last)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A module in evaluation mode inside the block. Behind it every part is in its own mode again: parts of a network
    that is in training may be frozen.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


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
    except (OSError, RuntimeError, TypeError, EOFError, pickle.UnpicklingError) as error:  # what torch.load may meet
        raise ModelError(f"model {path}: cannot be read as weights ({error}); give what train wrote") from error
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


def manifest_of(network: PanopticDepth, facts: ModelFacts, height: int, width: int, name: str) -> Manifest:
    """What a network that was not exported says about itself. Its version and opset are empty."""
    check_size(height, width)
    scale = network.config.depth
    nearest_m, farthest_m = (max(scale.min_m, SMALLEST_DEPTH_M), scale.max_m) if scale else ANY_RANGE_M
    return Manifest(
        name=name,
        version="",
        preset=facts.preset,
        height=height,
        width=width,
        # At another size the same view has its focal length scaled with it.
        focal_length_px=facts.focal_length_px * width / facts.width,
        min_depth_m=nearest_m,
        max_depth_m=farthest_m,
        taxonomy=facts.taxonomy if scale else without_depth(facts.taxonomy),
        opset=0,
        digest=digest(network.state_dict()),
        scores=facts.scores,
    )


def without_depth(taxonomy: Taxonomy) -> Taxonomy:
    """The same categories, none of which has a depth."""
    return Taxonomy(tuple(replace(category, has_depth=False) for category in taxonomy))


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
