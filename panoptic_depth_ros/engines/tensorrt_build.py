# SPDX-License-Identifier: Apache-2.0
"""Builds TensorRT engines: TensorRT 10.3 to 11, and TensorRT-RTX, whose interface is the same.

Precision is decided at export: networks are strongly typed, so a float32 graph is computed in float32 (without TF32).
TensorRT-RTX builds without a GPU for named ones. That is run and tested; TensorRT proper and its timing cache were
never run.
"""

from __future__ import annotations

import concurrent.futures
import importlib
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from panoptic_depth_ros.engines.errors import DeviceMemoryError, EngineError

Report = Callable[[str], None]

# The libraries' module goes first: it loads what the bindings need.
_MODULES = (("tensorrt",), ("tensorrt_rtx",), ("tensorrt_rtx_libs", "tensorrt_rtx_bindings"))
_REPORT_PERIOD_S = 5.0
_EARLY = 0.1  # below this share done, an estimate from it would mislead


@dataclass(frozen=True)
class BuildOptions:
    """What may be chosen when an engine is built."""

    workspace_gib: float = 0.0  # scratch memory that a layer may use; 0: as TensorRT sees fit
    targets: tuple[str, ...] = ()  # such as sm86; empty: the GPU of this machine

    def __post_init__(self) -> None:
        if not 0 <= self.workspace_gib < float("inf"):
            raise ValueError(f"workspace is {self.workspace_gib} GiB; expected a number from 0 up")


@dataclass(frozen=True)
class Built:
    """A serialized engine and what is known about it."""

    plan: bytes
    seconds: float
    layers: dict[str, int]  # "CONVOLUTION float32" -> how many, as the parser made them
    timing_cache: bytes = b""

    @property
    def plugins(self) -> int:
        return sum(count for name, count in self.layers.items() if name.startswith("PLUGIN"))


def import_tensorrt() -> Any:
    """The module of TensorRT, or of TensorRT-RTX.

    Raises:
        EngineError: neither is installed, or it does not load.
    """
    failure = ""
    for names in _MODULES:
        try:
            return [importlib.import_module(name) for name in names][-1]
        except ModuleNotFoundError as error:
            if error.name not in names:
                failure = str(error)
        except (ImportError, OSError, RuntimeError) as error:
            failure = str(error)
    if failure:
        raise EngineError(f"TensorRT is installed but does not load ({failure}); install it again")
    raise EngineError("TensorRT is not installed; pip install 'panoptic-depth[tensorrt]', on a Jetson take JetPack's")


def is_rtx(trt: Any) -> bool:
    return "rtx" in trt.__name__


def flavor(trt: Any) -> str:
    return f"TensorRT-RTX {trt.__version__}" if is_rtx(trt) else f"TensorRT {trt.__version__}"


@cache
def open_log(trt: Any) -> Any:
    """The TensorRT logger, which keeps errors for our own messages and prints nothing.

    There is one as long as the process lives: TensorRT's plugins keep a pointer to the first that they were given.
    Engines, new or from the cache, find plugins only if they were registered in this process, which happens here.
    """

    class Log(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors = [*self.errors[-3:], message.strip()]

    log = Log()
    if hasattr(trt, "init_libnvinfer_plugins"):
        trt.init_libnvinfer_plugins(log, "")
    return log


def failure(log: Any, what: str, remedy: str) -> EngineError:
    """The error for a call that gave nothing back, told from what TensorRT logged."""
    text = "; ".join(log.errors) or "it gives no reason"
    log.errors = []
    if "out of memory" in text.lower() or "outofmemory" in text.lower():
        return DeviceMemoryError(f"{what}: the GPU's memory is exhausted ({text}); end other programs that use it")
    return EngineError(f"{what} ({text}); {remedy}")


class Progress:
    """TensorRT's nested phases as one share of the whole, with the time that is left.

    A phase runs inside one step of its parent. TensorRT calls from several threads.
    """

    def __init__(self, report: Report, expected_s: float | None) -> None:
        self._report = report
        self._expected_s = expected_s  # how long an earlier build of this model took
        self._lock = threading.Lock()
        self._phases: dict[str, tuple[str | None, int, int]] = {}  # name -> parent, steps done, steps in all
        self._started = self._reported = time.monotonic()
        self._highest = 0.0
        self.cancelled = False

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[name] = (parent, 0, max(steps, 1))

    def step(self, name: str, step: int) -> bool:
        """Returns whether the build shall go on."""
        with self._lock:
            if name in self._phases:
                parent, _, steps = self._phases[name]
                self._phases[name] = (parent, min(step + 1, steps), steps)
        return not self.cancelled

    def finish(self, name: str) -> None:
        with self._lock:
            self._phases.pop(name, None)

    def share(self) -> float:
        """The share done, which never falls."""
        with self._lock:
            roots = [name for name, (parent, _, _) in self._phases.items() if parent is None]
            self._highest = max([self._highest, *map(self._share, roots)])
            return self._highest

    def remaining_s(self, elapsed_s: float) -> float | None:
        """The time left; None while nothing can be said."""
        if self._expected_s is not None:
            return max(self._expected_s - elapsed_s, 0.0)
        share = self.share()
        return elapsed_s * (1 - share) / share if share >= _EARLY else None

    def _share(self, name: str) -> float:
        _, done, steps = self._phases[name]
        inner = [self._share(child) for child, (parent, _, _) in self._phases.items() if parent == name]
        return min((done + max(inner, default=0.0)) / steps, 1.0)

    def tell(self) -> None:
        """Report, unless that was a moment ago. Called by the waiting thread: some phases are silent for minutes."""
        now = time.monotonic()
        if now - self._reported < _REPORT_PERIOD_S:
            return
        self._reported = now
        elapsed = now - self._started
        left = self.remaining_s(elapsed)
        left_text = "" if left is None else f", about {left:.0f} s to go"
        with self._lock:
            phase = next(reversed(self._phases), "starting" if self._highest == 0 else "finishing")
        self._report(f"building the engine: {self.share():.0%} after {elapsed:.0f} s{left_text} ({phase})")


def build(
    trt: Any,
    model: bytes,
    options: BuildOptions,
    report: Report,
    expected_s: float | None = None,
    timing_cache: bytes | None = None,
) -> Built:
    """Build the engine of an ONNX file's content.

    Args:
        expected_s: how long an earlier build took, for the estimate.
        timing_cache: measurements of an earlier build, ``b""`` to begin some; None: keep none.

    Raises:
        EngineError: TensorRT refuses the graph or cannot build it; with its reasons.
        KeyboardInterrupt: after the build has been told to stop, and has.
    """
    log = open_log(trt)
    log.errors = []
    builder, network = _parse(trt, log, model)
    progress = Progress(report, expected_s)
    monitor = _monitor(trt, progress)
    config = _config(trt, builder, network, options)
    config.progress_monitor = monitor
    timings = None
    if timing_cache is not None:
        timings = config.create_timing_cache(timing_cache)
        if timings is not None:
            config.set_timing_cache(timings, ignore_mismatch=False)
    started = time.monotonic()
    plan = _interruptible(lambda: builder.build_serialized_network(network, config), progress)
    if plan is None:
        raise failure(log, f"{flavor(trt)} could not build the engine", "try a smaller model or device:=cpu")
    return Built(
        plan=bytes(plan),
        seconds=time.monotonic() - started,
        layers=_layers(network),
        timing_cache=bytes(timings.serialize()) if timings is not None else b"",
    )


def _parse(trt: Any, log: Any, model: bytes) -> tuple[Any, Any]:
    """A builder, or the reason why there is none, and the network in the file."""
    try:
        builder = trt.Builder(log)
    except Exception as error:  # the bindings raise TypeError where the library gives none back
        raise failure(log, f"{flavor(trt)} does not start ({error})", "is there a GPU, and a driver?") from error
    # 10 needs the flag; 11 is always strongly typed.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        reasons = "; ".join(dict.fromkeys(f"{e.node_operator()} {e.node_name()}: {e.desc()}" for e in errors))
        raise EngineError(f"{flavor(trt)} cannot run this graph ({reasons}); export it again with --portable")
    if network.num_inputs != 1:
        raise EngineError(f"the graph has {network.num_inputs} inputs, not one image; export it again")
    return builder, network


def _config(trt: Any, builder: Any, network: Any, options: BuildOptions) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # lets the inspector name layers
    config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace_gib:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace_gib * 2**30))
    if options.targets or is_rtx(trt):
        _set_targets(trt, config, options.targets)
    image = network.get_input(0)
    if image.shape[0] < 0:  # a batch axis left open: one image at a time
        profile = builder.create_optimization_profile()
        shape = (1, *image.shape[1:])
        profile.set_shape(image.name, shape, shape, shape)
        config.add_optimization_profile(profile)
    return config


def _set_targets(trt: Any, config: Any, targets: tuple[str, ...]) -> None:
    """Name the GPUs to build for; without targets this machine's."""
    if not is_rtx(trt):
        raise EngineError(
            f"{flavor(trt)} builds for the GPU of its own machine only; leave --target out, or install tensorrt-rtx"
        )
    known = supported_targets(trt)
    names = targets or ("current",)
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        if name not in (*known, "current"):
            raise EngineError(f"target {name!r} is unknown to {flavor(trt)}; expected one of {', '.join(known)}")
        config.set_compute_capability(trt.ComputeCapability.__members__[name.upper()], index)


def supported_targets(trt: Any) -> list[str]:
    """The GPU generations that TensorRT-RTX builds for, such as sm86."""
    return [name.lower() for name in trt.ComputeCapability.__members__ if name.startswith("SM")]


def _monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()


def _interruptible(work: Callable[[], Any], progress: Progress) -> Any:
    """Run in a thread of its own, so that Ctrl-C, which only this one sees, can stop it between two steps."""
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="build") as pool:
        future = pool.submit(work)
        try:
            while not concurrent.futures.wait([future], timeout=0.2).done:
                progress.tell()
        except BaseException:
            progress.cancelled = True
            raise  # after the build has ended, for which the pool waits
        return future.result()


def _layers(network: Any) -> dict[str, int]:
    layers = (network.get_layer(i) for i in range(network.num_layers))
    return dict(Counter(f"{layer.type.name} {_dtype(layer)}" for layer in layers).most_common())


def _dtype(layer: Any) -> str:
    name = layer.get_output(0).dtype.name if layer.num_outputs else "none"
    return {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "FP8": "float8"}.get(name, name.lower())
