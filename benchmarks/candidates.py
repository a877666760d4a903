# SPDX-License-Identifier: Apache-2.0
"""What latency.py times: each model in each engine that runs here, whole, and where asked for without its decisions."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.engines import Engine, open_engine
from panoptic_depth_ros.engines.contract import read_contracted
from panoptic_depth_ros.manifest import Manifest, ModelError
from panoptic_depth_ros.maps import OutputMaps
from panoptic_depth_ros.onnx_graph import arithmetic
from panoptic_depth_ros.pipeline import Pipeline
from panoptic_depth_ros.preprocess import fit
from panoptic_depth_ros.timing import Stopwatch

if TYPE_CHECKING:
    from panoptic_depth_model.convolutions import Convolve
    from panoptic_depth_model.panoptic_depth import PanopticDepth
    from panoptic_depth_training.facts import ModelFacts
    from panoptic_depth_training.torch_engine import TorchOptions

DEVICES = {"tensorrt": "TensorRT", "cuda": "ONNX Runtime CUDA", "openvino": "OpenVINO", "cpu": "ONNX Runtime"}
PRESET = "preset:"
PRESET_SIZE = (512, 1024)
FOCAL_LENGTH = 1.1  # of the input's width; Cityscapes' cameras have about this
WHOLE, CUT = "whole", "before top-K"
PUBLISHED = "PyTorch CPU, deform_conv2d"
Run = Callable[[np.ndarray], dict[str, float]]  # a picture [H, W, 3] uint8 -> milliseconds by stage
GPU_STAGES = ("upload", "GPU", "download")  # by the GPU's own clock: GPU is computation alone
GpuClock = Callable[[], dict[str, float]]  # milliseconds of the last frame, of as many of them as an engine tells


@dataclass(frozen=True)
class Setting:
    """How to run whatever is timed."""

    camera: PinholeCamera
    devices: tuple[str, ...] = ()  # empty: all that run here
    threads: int = 0  # on the CPU; 0: each engine's own choice
    size: tuple[int, int] | None = None  # input of weights and presets [px]
    half: bool = False
    graph: bool = False
    compile: bool = False
    cut: bool = False  # whether what precedes the choices is timed by itself, too
    deform_conv2d: bool = False  # whether PyTorch on the CPU runs torchvision's deformable convolution, too


@dataclass(frozen=True)
class Candidate:
    """One model, or what of it precedes its choices, in one engine."""

    model: str
    preset: str
    size: tuple[int, int]  # height and width of the network's input [px]
    engine: str
    precision: str
    part: str  # WHOLE or CUT
    run: Run

    @property
    def on_gpu(self) -> bool:
        return any(word in self.engine for word in ("CUDA", "TensorRT"))


@dataclass(frozen=True)
class Attempt:
    """A candidate that may turn out not to run here."""

    model: str
    engine: str
    part: str
    open: Callable[[], Candidate]


def attempts(model: str, setting: Setting) -> list[Attempt]:
    """All ways to run a model. Raises ModelError or OSError where it is none."""
    if model.startswith(PRESET) or model.endswith(".pt"):
        return _of_weights(model, setting)
    return _of_exported(Path(model), setting)


def _of_exported(path: Path, setting: Setting) -> list[Attempt]:
    manifest, _, graph = read_contracted(path)
    computes_in = arithmetic(graph)
    if setting.cut:
        # Before both parts are opened: ONNX Runtime is faster in sessions that come after PyTorch, which this imports.
        from before_choices import in_onnxruntime
    found = []
    for device in setting.devices or filter(is_usable, DEVICES):
        for precision in ("f32", "bf16") if device == "openvino" and setting.half else ("f32",):
            form = "bfloat16" if precision == "bf16" and computes_in == "float32" else computes_in

            def whole(device: str = device, precision: str = precision, form: str = form) -> Candidate:
                engine = open_engine(path, device, setting.threads, precision, report=print)
                run = timed(engine, setting.camera, gpu_clock(engine))
                return _candidate(path.name, engine.manifest, DEVICES[device], form, WHOLE, run)

            found.append(Attempt(path.name, DEVICES[device], WHOLE, whole))
        if setting.cut and device in ("cpu", "cuda"):

            def cut(device: str = device) -> Candidate:
                run = fitted(in_onnxruntime(path, device, setting.threads), manifest)
                return _candidate(path.name, manifest, DEVICES[device], computes_in, CUT, run)

            found.append(Attempt(path.name, DEVICES[device], CUT, cut))
    return found


def is_usable(device: str) -> bool:
    """Whether an engine is installed and has what it runs on."""
    if device == "tensorrt":
        from panoptic_depth_ros.engines.tensorrt import runnable

        try:
            runnable()
        except ModelError:
            return False
    if device == "cuda":
        import onnxruntime

        return "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return device != "openvino" or importlib.util.find_spec("openvino") is not None


def _of_weights(model: str, setting: Setting) -> list[Attempt]:
    """With PyTorch: as training computes, and, where the setting asks for more, so."""
    import torch

    from panoptic_depth_model.convolutions import convolve_by_torchvision
    from panoptic_depth_training.torch_engine import AS_TRAINED, TorchOptions

    asked = TorchOptions(setting.half, setting.graph, setting.compile)
    devices = setting.devices or ("cuda" if torch.cuda.is_available() else "cpu",)
    found = []
    for device in (d for d in devices if d in ("cuda", "cpu")):
        for options in dict.fromkeys((AS_TRAINED, asked)):
            name = " ".join(["PyTorch", device.upper(), *_forms(options)])
            for part in (WHOLE, CUT) if setting.cut else (WHOLE,):
                open_it = partial(_in_pytorch, model, setting, device, options, name, part)
                found.append(Attempt(Path(model).name, name, part, open_it))
        if setting.deform_conv2d and device == "cpu":
            open_it = partial(
                _in_pytorch, model, setting, device, AS_TRAINED, PUBLISHED, WHOLE, convolve_by_torchvision
            )
            found.append(Attempt(Path(model).name, PUBLISHED, WHOLE, open_it))
    return found


def _forms(options: TorchOptions) -> list[str]:
    return [name for name, is_on in (("graph", options.graph), ("compiled", options.compile)) if is_on]


def _in_pytorch(
    model: str,
    setting: Setting,
    device: str,
    options: TorchOptions,
    name: str,
    part: str,
    convolve: Convolve | None = None,
) -> Candidate:
    """`convolve` computes deformable convolutions instead of what is fastest."""
    import torch

    from panoptic_depth_model.convolutions import use_convolution
    from panoptic_depth_training.inference import HALF
    from panoptic_depth_training.torch_engine import engine_for, torch_device

    network, facts = network_of(model, setting.size)
    network.to(torch_device(device, Path(model)))
    if convolve:
        use_convolution(network, convolve)
    if setting.threads:
        torch.set_num_threads(setting.threads)
    precision = str(HALF[device] if options.half else torch.float32).removeprefix("torch.")
    engine = engine_for(network, facts, Path(model).name, setting.size, options)
    if part == CUT:
        from before_choices import in_pytorch

        run = fitted(in_pytorch(network, options), engine.manifest)
    else:
        run = timed(engine, setting.camera, (lambda: {"GPU": engine.gpu_ms}) if device == "cuda" else None)
    return _candidate(Path(model).name, engine.manifest, name, precision, part, run)


def network_of(model: str, size: tuple[int, int] | None) -> tuple[PanopticDepth, ModelFacts]:
    """A network on the CPU: from a file, or a preset's with random weights."""
    import torch

    from panoptic_depth_model.config import PRESETS
    from panoptic_depth_model.panoptic_depth import PanopticDepth
    from panoptic_depth_model.weights import load_weights
    from panoptic_depth_training.datasets.cityscapes import CITYSCAPES
    from panoptic_depth_training.facts import ModelFacts

    if not model.startswith(PRESET):
        network, facts = load_weights(Path(model))
        return network, ModelFacts.from_dict(facts)
    name = model.removeprefix(PRESET)
    if name not in PRESETS:
        raise ModelError(f"{model}: expected {PRESET} and one of {', '.join(PRESETS)}")
    torch.manual_seed(0)
    height, width = size or PRESET_SIZE
    return PanopticDepth(PRESETS[name]).eval(), ModelFacts(name, CITYSCAPES, height, width, FOCAL_LENGTH * width)


def _candidate(model: str, manifest: Manifest, engine: str, precision: str, part: str, run: Run) -> Candidate:
    return Candidate(model, manifest.preset, (manifest.height, manifest.width), engine, precision, part, run)


def gpu_clock(engine: Engine) -> GpuClock | None:
    """What reads the GPU's clock for an exported model; None for engines that do not tell it, which is all but one."""
    from panoptic_depth_ros.engines.tensorrt import TensorRtEngine

    if not isinstance(engine, TensorRtEngine):
        return None

    def read() -> dict[str, float]:
        ms = engine.gpu_stages_ms
        return {"upload": ms["upload"], "GPU": ms["compute"], "download": ms["download"]}

    return read


def timed(engine: Engine, camera: PinholeCamera, clock: GpuClock | None = None) -> Run:
    """A frame from a picture to maps of the camera's size; a GPU's clock is read when the frame has ended."""
    pipeline = Pipeline(engine)
    categories = np.empty((camera.height, camera.width), np.uint8)
    panoptic = np.empty((camera.height, camera.width), np.uint16)

    def run(rgb: np.ndarray) -> dict[str, float]:
        stopwatch = Stopwatch()
        with stopwatch.lap("frame"):
            prediction = pipeline(rgb, camera, stopwatch)
            with stopwatch.lap("maps"):
                maps = OutputMaps(prediction, rgb, camera.height, camera.width)
                maps.category_ids(categories)
                maps.panoptic_ids(panoptic)
                _ = maps.depth
        return stopwatch.laps_ms if clock is None else {**stopwatch.laps_ms, **clock()}

    return run


def fitted(run: Run, manifest: Manifest) -> Run:
    """A run on pictures of any size from one on images of the network's [1, h, w, 3]."""
    return lambda rgb: run(fit(rgb, manifest.height, manifest.width)[0][None])
