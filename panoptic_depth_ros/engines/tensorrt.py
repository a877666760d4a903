# SPDX-License-Identifier: Apache-2.0
"""TensorRT: the engine of vehicles. Builds from the ONNX file, proves the result against ONNX Runtime, and keeps it.

TensorRT 10.3 to 11, or TensorRT-RTX. Building with TensorRT-RTX, the cache and every refusal are tested; execution,
and TensorRT proper, have not yet run on a GPU.
"""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from panoptic_depth_ros.engines.cache import (
    Fingerprint,
    RefusedError,
    cache_folder,
    differences,
    digest,
    locked,
    read_header,
    read_sealed,
    write_sealed,
)
from panoptic_depth_ros.engines.contract import read_contracted
from panoptic_depth_ros.engines.cuda import Cuda, Gpu, open_cuda
from panoptic_depth_ros.engines.errors import DeviceLostError, DeviceMemoryError, EngineError
from panoptic_depth_ros.engines.onnxruntime import OnnxRuntimeEngine
from panoptic_depth_ros.engines.parity import Outputs, Parity, check, compare, probe_images
from panoptic_depth_ros.engines.tensorrt_build import (
    BuildOptions,
    Built,
    Report,
    build,
    flavor,
    import_tensorrt,
    is_rtx,
    supported_targets,
)
from panoptic_depth_ros.engines.tensorrt_run import PlanRunner
from panoptic_depth_ros.manifest import Manifest
from panoptic_depth_ros.onnx_graph import Graph, arithmetic


class _Closable(Protocol):
    def close(self) -> None: ...


T = TypeVar("T", bound=_Closable)


class TensorRtEngine:
    """Runs an exported model with TensorRT on the first NVIDIA GPU."""

    def __init__(self, path: str | Path, workspace_gib: float = 0.0, report: Report = lambda text: None) -> None:
        """Take the engine from the cache, or build it, which takes minutes.

        Raises:
            ModelError: the model is no exported one, there is no TensorRT or GPU, the build or the comparison failed.
        """
        self._manifest, model, graph = read_contracted(path)
        trt, cuda, gpu = runnable()
        options = BuildOptions(workspace_gib)
        fingerprint = make_fingerprint(model, flavor(trt), gpu, cuda.runtime_version(), options)
        folder = cache_folder("engines")
        file = folder / file_name(self._manifest, fingerprint)

        def make() -> Built:
            timings = _timings(folder, fingerprint, report)
            built = build(trt, model, options, report, earlier_seconds(file), None if is_rtx(trt) else timings.read())
            if built.timing_cache:
                timings.write(built.timing_cache)
            return built

        runtime_cache = _runtime_cache(folder, fingerprint, report)
        compiled = runtime_cache.read() if is_rtx(trt) else b""

        def open_plan(plan: bytes | memoryview) -> PlanRunner:
            return PlanRunner(trt, cuda, plan, report, compiled)

        def prove(runner: PlanRunner) -> dict[str, Any]:
            parity = compare_with_onnxruntime(path, graph, self._manifest, runner.infer_each)
            return {"parity": asdict(parity), "engine_layers": runner.layers()}

        with locked(file, report):
            self._runner = load_or_build(file, fingerprint, make, open_plan, prove, report)
            if (now_compiled := self._runner.runtime_cache()) not in (b"", compiled):
                runtime_cache.write(now_compiled)
        launches = "" if self._runner.uses_graph else ", without CUDA graph"
        self._description = f"{flavor(trt)} on {gpu.name}, {arithmetic(graph)}{launches}"

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    @property
    def description(self) -> str:
        return self._description

    @property
    def gpu_stages_ms(self) -> dict[str, float]:
        """Milliseconds of the last answer's upload, compute and download by the GPU's clock.

        Empty before the first answer and after a frame that failed. Where the host was slow to hand over work, the gap
        is part of the stage, and where copies share a way with others, so is that. Raises EngineError where the GPU
        is lost.
        """
        return self._runner.gpu_stages_ms

    def infer(self, images: np.ndarray) -> dict[str, np.ndarray]:
        return self._runner.infer(images)

    def infer_each(self, batches: Iterable[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """As `infer` for many batches, transfers beside computation; each answer holds until the next is asked for."""
        return self._runner.infer_each(batches)

    def close(self) -> None:
        self._runner.close()


def runnable() -> tuple[Any, Cuda, Gpu]:
    """TensorRT's module, CUDA and the GPU.

    Raises:
        EngineError: one of them is missing, or they do not fit; with the remedy.
    """
    trt = import_tensorrt()
    cuda = open_cuda()
    gpu = cuda.gpu()
    generation = f"sm{gpu.compute_capability.replace('.', '')}"
    if is_rtx(trt) and generation not in supported_targets(trt):
        raise EngineError(
            f"{flavor(trt)} has no code for {gpu.name} ({generation}, not one of {', '.join(supported_targets(trt))}); "
            "install TensorRT instead"
        )
    return trt, cuda, gpu


def make_fingerprint(model: bytes, builder: str, gpu: Gpu, cuda_version: str, options: BuildOptions) -> Fingerprint:
    """All that an engine depends on; where one value changes, it is built again."""
    return {
        "model": hashlib.sha256(model).hexdigest(),
        "builder": builder,
        "GPU": gpu.name,
        "compute capability": gpu.compute_capability,
        "multiprocessors": str(gpu.multiprocessors),
        "driver": gpu.driver,
        "CUDA": cuda_version,
        "machine": platform.machine(),
        "workspace": f"{options.workspace_gib:g} GiB" if options.workspace_gib else "as TensorRT sees fit",
    }


def file_name(manifest: Manifest, fingerprint: Fingerprint) -> str:
    name = re.sub(r"[^\w.-]+", "_", manifest.name)[:40]
    return f"{name}-{fingerprint['model'][:12]}-{digest(fingerprint)}.engine"


def load_or_build(
    file: Path,
    fingerprint: Fingerprint,
    make: Callable[[], Built],
    open_plan: Callable[[bytes | memoryview], T],
    prove: Callable[[T], dict[str, Any]],
    report: Report,
) -> T:
    """The opened engine: from the cache if it may be used, otherwise built, proven, and only then kept.

    ``prove`` raises EngineError where the engine is wrong, and returns notes for the file's header.
    """
    try:
        header, plan = read_sealed(file, fingerprint)
        opened = open_plan(plan)
        report(f"engine from {file}, built in {header.get('seconds', 0):.0f} s")
        return opened
    except FileNotFoundError:
        report(f"no engine for this model here yet{_changes(file, fingerprint)}; building one, which can take minutes")
    except RefusedError as error:
        report(f"the engine {file} is refused: {error}; building it again")
    except (DeviceLostError, DeviceMemoryError):
        raise
    except EngineError as error:
        report(f"the engine {file} cannot be opened: {error}; building it again")
    built = make()
    opened = open_plan(built.plan)
    try:
        notes = prove(opened)
        header = {"fingerprint": fingerprint, "seconds": built.seconds, "network_layers": built.layers, **notes}
        write_sealed(file, header, built.plan)
    except BaseException:
        opened.close()
        raise
    report(f"engine built in {built.seconds:.0f} s: {file}")
    return opened


def compare_with_onnxruntime(
    path: str | Path,
    graph: Graph,
    manifest: Manifest,
    infer_each: Callable[[Iterable[np.ndarray]], Iterator[Outputs]],
) -> Parity:
    """Hold an engine against ONNX Runtime on the CPU; raises EngineError where they differ by more than rounding."""
    batch = graph.inputs[0].shape[0]
    images = probe_images(batch if isinstance(batch, int) else 1, manifest.height, manifest.width)
    reference = OnnxRuntimeEngine(path, "cpu")
    try:
        parity = compare(map(reference.infer, images), infer_each(images))
    finally:
        reference.close()
    check(parity, arithmetic(graph))
    return parity


def earlier_seconds(file: Path) -> float | None:
    """How long the last build of the same model took here, whatever it was for; None without one."""
    for sibling in _siblings(file):
        with suppress(OSError, RefusedError, TypeError, ValueError):
            return float(read_header(sibling)["seconds"])
    return None


def _siblings(file: Path) -> list[Path]:
    """Other engines of the same model, the newest first."""
    found = file.parent.glob(f"{file.stem.rpartition('-')[0]}-*.engine")
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def _changes(file: Path, fingerprint: Fingerprint) -> str:
    """What changed since the last engine of this model, for the log."""
    for sibling in _siblings(file):
        with suppress(OSError, RefusedError, ValueError):
            return f" ({differences(read_header(sibling).get('fingerprint', {}), fingerprint)})"
    return ""


@dataclass(frozen=True)
class _Shortcut:
    """A file beside the engines that makes a later build or start quicker, and that everything works without."""

    folder: Path
    fingerprint: Fingerprint
    report: Report

    @property
    def _file(self) -> Path:
        return self.folder / f"{self.fingerprint['content']}-{digest(self.fingerprint)}"

    def read(self) -> bytes:
        """Empty where there is nothing that may be used."""
        with suppress(FileNotFoundError, RefusedError):
            return bytes(read_sealed(self._file, self.fingerprint)[1])
        return b""

    def write(self, content: bytes) -> None:
        try:
            write_sealed(self._file, {"fingerprint": self.fingerprint}, content)
        except EngineError as error:
            self.report(str(error))


def _timings(folder: Path, fingerprint: Fingerprint, report: Report) -> _Shortcut:
    """TensorRT's measurements of layers, which hold for all models on one machine."""
    machine = {k: v for k, v in fingerprint.items() if k not in ("model", "workspace")}
    return _Shortcut(folder, {"content": "timings", **machine}, report)


def _runtime_cache(folder: Path, fingerprint: Fingerprint, report: Report) -> _Shortcut:
    """What TensorRT-RTX compiles for the GPU when an engine is opened, which takes seconds."""
    return _Shortcut(folder, {"content": "runtime-cache", **fingerprint}, report)
