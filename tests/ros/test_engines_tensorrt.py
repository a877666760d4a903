# SPDX-License-Identifier: Apache-2.0
"""Building with the real TensorRT-RTX, which needs no GPU for a named one; and that the code that needs one calls what
the real bindings have.
"""

from __future__ import annotations

import ast
import errno
import importlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from panoptic_depth_ros.cli import main
from panoptic_depth_ros.engines import open_engine, tensorrt, tensorrt_build
from panoptic_depth_ros.engines.cache import read_header
from panoptic_depth_ros.engines.cuda import Gpu
from panoptic_depth_ros.engines.errors import DeviceMemoryError, EngineError
from panoptic_depth_ros.engines.onnxruntime import OnnxRuntimeEngine
from panoptic_depth_ros.engines.tensorrt_build import (
    BuildOptions,
    Built,
    Progress,
    build,
    failure,
    import_tensorrt,
    is_rtx,
    open_log,
    supported_targets,
)
from panoptic_depth_ros.manifest import METADATA_KEY, Manifest, ModelError
from panoptic_depth_ros.onnx_graph import Layer, arithmetic, layers, read_graph

ROOT = Path(__file__).resolve().parents[2]
COMPACT = ROOT / "model" / "compact.onnx"
H, W = 12, 16  # of the manifest fixture
SM86 = BuildOptions(0.25, ("sm86",))

HEADER = """<ir_version: 8, opset_import: ["" : 17]>
tiny (uint8[{batch},12,16,3] image) => (uint8[{batch},12,16] segment_ids, float[{batch},12,16] depth,
    int32[1,3] segment_category, float[1,3] segment_score, int32[1,3] segment_area, float[1,3] segment_depth)
<float[1,3,1,1] stem_weight = {{0.004, 0.004, 0.003}}, float[1] stem_bias = {{1}},
 int32[1,3] category_values = {{2, 0, 0}}, float[1,3] score_values = {{0.5, 0, 0}},
 int32[1,3] area_values = {{192, 0, 0}}, float[1,3] depth_values = {{3, 0, 0}}, int64[1] one = {{1}},
 float scale = {{0.01}}, int8 zero = {{0}}>
{{
    rgb = Cast <to = 1> (image)
    planes = Transpose <perm = [0, 3, 1, 2]> (rgb)
"""
FLOOR = """
    metres = Squeeze (plane, one)
    floored = Floor (metres)
    segment_ids = Cast <to = 2> (floored)
    depth = Identity (metres)
    segment_category = Identity (category_values)
    segment_score = Identity (score_values)
    segment_area = Identity (area_values)
    segment_depth = Identity (depth_values)
}
"""
FLOAT32 = "plane = Conv (planes, stem_weight, stem_bias)"
FLOAT16 = """
    planes_half = Cast <to = 10> (planes)
    weight_half = Cast <to = 10> (stem_weight)
    plane_half = Conv (planes_half, weight_half)
    plane = Cast <to = 1> (plane_half)
"""
INT8 = """
    q = QuantizeLinear (planes, scale, zero)
    dq = DequantizeLinear (q, scale, zero)
    wq = QuantizeLinear (stem_weight, scale, zero)
    wdq = DequantizeLinear (wq, scale, zero)
    plane = Conv (dq, wdq)
"""
UNSUPPORTED = """
    places = NonZero (planes)
    sum = ReduceSum <keepdims = 0> (places)
    many = Cast <to = 1> (sum)
    one_plane = Conv (planes, stem_weight, stem_bias)
    plane = Add (one_plane, many)
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path, manifest: Manifest) -> Callable[..., Path]:
    """Writes a network of one 1 x 1 convolution, whose result is both depth and, rounded down, segment id."""
    onnx = pytest.importorskip("onnx")

    def write(body: str = FLOAT32, batch: str = "1") -> Path:
        made = onnx.parser.parse_model(HEADER.format(batch=batch) + body + FLOOR)
        for named in [*made.graph.initializer, *made.graph.node]:  # the text's grammar knows no dots in names
            if named in made.graph.initializer:
                named.name = named.name.replace("stem_", "network.backbone.stem.")
            else:
                named.input[:] = [name.replace("stem_", "network.backbone.stem.") for name in named.input]
        onnx.checker.check_model(made)
        onnx.helper.set_model_props(made, {METADATA_KEY: manifest.to_json()})
        path = tmp_path / "tiny.onnx"
        onnx.save(made, path)
        return path

    return write


@pytest.fixture(scope="session")
def trt() -> Any:
    pytest.importorskip("tensorrt_rtx_libs")
    return import_tensorrt()


def content(model: Path) -> bytes:
    return model.read_bytes()


# ---- building ----


@pytest.mark.parametrize(("body", "convolution"), [(FLOAT32, "float32"), (FLOAT16, "float16"), (INT8, "float32")])
def test_an_engine_is_built_in_the_graphs_own_types(trt: Any, model: Any, body: str, convolution: str) -> None:
    built = build(trt, content(model(body)), SM86, report=lambda text: None)
    assert built.layers[f"CONVOLUTION {convolution}"] == 1
    assert built.plugins == 0
    assert len(built.plan) > 1000
    assert built.seconds < 60
    assert ("QUANTIZE int8" in built.layers) == (body == INT8)


def test_an_open_batch_axis_is_built_for_one_image(trt: Any, model: Any) -> None:
    assert build(trt, content(model(batch="B")), SM86, report=lambda text: None).plan


def test_settings_reach_the_builder(trt: Any, model: Any) -> None:
    builder, network = tensorrt_build._parse(trt, open_log(trt), content(model()))
    config = tensorrt_build._config(trt, builder, network, BuildOptions(0.25, ("sm86", "sm89")))
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 1 << 28
    assert config.num_compute_capabilities == 2
    assert config.get_compute_capability(1) == trt.ComputeCapability.SM89
    assert not config.get_flag(trt.BuilderFlag.TF32)
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
    assert network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def test_a_graph_that_tensorrt_lacks_an_operator_for_is_refused_by_name(trt: Any, model: Any) -> None:
    with pytest.raises(EngineError, match=r"TensorRT-RTX .* cannot run this graph \(.*NonZero.*\); export it again"):
        build(trt, content(model(UNSUPPORTED)), SM86, report=lambda text: None)


@pytest.mark.parametrize("damaged", [b"", b"no model at all"])
def test_what_is_no_graph_is_refused(trt: Any, damaged: bytes) -> None:
    with pytest.raises(EngineError, match=r"the graph has 0 inputs|cannot run this graph"):
        build(trt, damaged, SM86, report=lambda text: None)


def test_a_target_that_the_builder_does_not_know_is_refused(trt: Any, model: Any) -> None:
    assert {"sm86", "sm89", "sm120"} <= set(supported_targets(trt))
    with pytest.raises(EngineError, match=r"target 'sm61' is unknown to TensorRT-RTX .*; expected one of sm75"):
        build(trt, content(model()), BuildOptions(0, ("sm61",)), report=lambda text: None)


def test_a_workspace_below_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"workspace is -1.* GiB; expected a number from 0 up"):
        BuildOptions(-1.0)


def test_the_compact_model_builds_with_progress(trt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_build, "_REPORT_PERIOD_S", 0.1)
    reports: list[str] = []
    built = build(trt, COMPACT.read_bytes(), BuildOptions(0, ("sm86",)), reports.append, expected_s=30.0)
    assert built.plugins == 0
    assert built.layers["CONVOLUTION float32"] >= 50
    assert len(built.plan) > 10e6
    shares = [int(text.split("%")[0].rpartition(" ")[2]) for text in reports]
    assert shares == sorted(shares)
    assert shares[-1] >= 50
    assert "s to go (" in reports[0]


def test_an_interrupt_asks_the_build_to_stop_and_waits_until_it_has() -> None:
    progress, ended = Progress(print, None), threading.Event()

    def work() -> None:  # as a build between two steps
        while not progress.cancelled:
            time.sleep(0.01)
        ended.set()

    interrupt = threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupt.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            tensorrt_build._interruptible(work, progress)
    finally:
        interrupt.join()
        signal.signal(signal.SIGINT, before)
    assert ended.is_set()


def test_a_step_that_is_told_to_stop_makes_the_build_give_up(trt: Any, model: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(Progress, "step", lambda *_: False)
    with pytest.raises(EngineError, match=r"TensorRT-RTX .* could not build the engine"):
        build(trt, content(model()), SM86, report=lambda text: None)


def test_nested_phases_make_one_share_that_never_falls() -> None:
    progress = Progress(print, None)
    shares = []

    def note() -> None:
        shares.append(round(progress.share(), 3))

    progress.start("all", None, 2)
    note()
    progress.start("first", "all", 4)
    progress.step("first", 0)
    note()  # a quarter of the first half
    progress.start("inner", "first", 2)
    progress.step("inner", 0)
    note()  # half of the second quarter more
    assert progress.remaining_s(6.0) == pytest.approx(6 * (1 - 0.1875) / 0.1875)
    progress.finish("inner")
    progress.finish("first")
    note()
    progress.step("all", 0)
    note()
    assert shares == [0.0, 0.125, 0.188, 0.188, 0.5]
    assert Progress(print, 100.0).remaining_s(30.0) == 70.0
    assert Progress(print, None).remaining_s(30.0) is None


def test_exhausted_memory_is_told_apart_in_what_tensorrt_logs(trt: Any) -> None:
    log = open_log(trt)
    severity = trt.ILogger.Severity
    log.log(severity.WARNING, "a warning")
    log.log(severity.ERROR, "Error Code 2: OutOfMemory (Requested size was 8589934592 bytes.)")
    assert isinstance(failure(log, "what", "remedy"), DeviceMemoryError)
    log.log(severity.ERROR, "no kernel")
    error = failure(log, "what", "remedy")
    assert str(error) == "what (no kernel); remedy"
    assert not isinstance(error, DeviceMemoryError)
    assert str(failure(log, "what", "remedy")) == "what (it gives no reason); remedy"


# ---- without a GPU, and without TensorRT ----


def has_gpu() -> bool:
    try:
        runtime = importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        return False
    return bool(runtime.cudaGetDeviceCount()[0] == 0)


def test_tensorrt_without_a_gpu_is_refused_with_the_remedy(trt: Any, model: Any) -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    if has_gpu():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ModelError, match=r"no NVIDIA driver is running here .*; device:=cpu needs none"):
        open_engine(model(), "tensorrt")


def test_a_machine_without_cuda_bindings_is_told_to_install_them(
    trt: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cuda.bindings", "cuda.bindings.runtime", "cuda.cudart", "cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModelError, match="Python bindings are not installed; pip install cuda-bindings"):
        open_engine(model(), "tensorrt")


def test_a_tensorrt_that_does_not_load_is_told_from_one_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_libs", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineError, match="TensorRT is not installed; pip install"):
        import_tensorrt()
    monkeypatch.delitem(sys.modules, "tensorrt")
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EngineError, match=r"does not load \(libnvinfer.so.10: cannot open .*\); install it again"):
        import_tensorrt()


# ---- the whole way, with ONNX Runtime in place of the GPU ----


class StandIn:
    """Opens a plan as `PlanRunner` does, and computes with ONNX Runtime."""

    uses_graph = True
    depth_factor = 1.0
    gpu_stages_ms = {"upload": 1.0, "compute": 2.0, "download": 3.0}  # noqa: RUF012

    def __init__(self, path: Path, given: bytes) -> None:
        self.engine, self.is_closed = OnnxRuntimeEngine(path), False
        self.given = given

    def infer(self, images: np.ndarray) -> dict[str, np.ndarray]:
        outputs = self.engine.infer(images)
        return {**outputs, "depth": outputs["depth"] * np.float32(self.depth_factor)}

    def infer_each(self, batches: Iterable[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        return map(self.infer, batches)

    def layers(self) -> dict[str, int]:
        return {"gemm": 7}

    def runtime_cache(self) -> bytes:
        return b"compiled"

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def stand_ins(trt: Any, model: Any, monkeypatch: pytest.MonkeyPatch) -> list[StandIn]:
    """Every plan that is opened; engines are built by the real builder, for a GPU that is not here."""
    path, opened = model(), []
    gpu = Gpu("Some GPU", "8.6", 28, 12 << 30, "580.1")
    cuda = type("NoCuda", (), {"runtime_version": lambda self: "13.0"})()

    def open_plan(trt: Any, cuda: Any, plan: Any, report: Any, compiled: bytes) -> StandIn:
        assert len(plan) > 1000
        opened.append(StandIn(path, compiled))
        return opened[-1]

    def build_for_another(trt: Any, content: bytes, options: BuildOptions, *rest: Any) -> Any:
        return build(trt, content, BuildOptions(options.workspace_gib, ("sm86",)), *rest)

    monkeypatch.setattr(tensorrt, "runnable", lambda: (trt, cuda, gpu))
    monkeypatch.setattr(tensorrt, "PlanRunner", open_plan)
    monkeypatch.setattr(tensorrt, "build", build_for_another)
    return opened


def test_an_engine_is_built_proven_kept_and_found_again(
    model: Any, stand_ins: list[StandIn], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports: list[str] = []
    engine = open_engine(model(), "tensorrt", report=reports.append)
    assert engine.description.endswith("on Some GPU, float32")
    images = np.full((1, H, W, 3), 100, np.uint8)
    np.testing.assert_allclose(engine.infer(images)["depth"], 2.1, rtol=1e-5)
    assert engine.gpu_stages_ms == StandIn.gpu_stages_ms
    engine.close()
    assert stand_ins[0].is_closed
    folder = tmp_path / "cache" / "panoptic_depth" / "engines"
    [file] = folder.glob("made-up-*.engine")
    header = read_header(file)
    assert header["parity"]["equal_pixels"] == 1.0
    assert header["parity"]["segments"] > 0
    assert header["engine_layers"] == {"gemm": 7}
    assert header["fingerprint"]["GPU"] == "Some GPU"
    assert [text.split(" in ")[0] for text in reports[1:]] == ["engine built"]
    open_engine(model(), "tensorrt", report=reports.append)
    assert reports[2].startswith(f"engine from {file}, built in")
    open_engine(model(), "tensorrt", workspace_gib=0.5, report=reports.append)
    assert "workspace was as TensorRT sees fit and is 0.5 GiB" in reports[3]
    assert len(list(folder.glob("made-up-*.engine"))) == 2


def test_an_engine_that_is_miscompiled_is_refused_and_not_kept(
    model: Any, stand_ins: list[StandIn], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StandIn, "depth_factor", 1.05)
    with pytest.raises(ModelError, match=r"differs from ONNX Runtime .*: depth_median 0\.05 .*not kept"):
        open_engine(model(), "tensorrt")
    assert stand_ins[0].is_closed
    assert not list((tmp_path / "cache" / "panoptic_depth" / "engines").glob("*.engine"))


def test_tensorrt_proper_begins_from_the_measurements_of_earlier_builds(
    model: Any, stand_ins: list[StandIn], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def build_with_timings(trt: Any, content: bytes, options: BuildOptions, report: Any, expected_s: Any, timings: Any):
        given.append((expected_s, timings))
        return Built(bytes(2000), 7.0, {}, timings + b"more ")

    monkeypatch.setattr(tensorrt, "is_rtx", lambda trt: False)
    monkeypatch.setattr(tensorrt, "build", build_with_timings)
    for workspace_gib in (1.0, 2.0, 3.0):
        open_engine(model(), "tensorrt", workspace_gib=workspace_gib)
    assert given == [(None, b""), (7.0, b"more "), (7.0, b"more more ")]
    [file] = (tmp_path / "cache" / "panoptic_depth" / "engines").glob("timings-*")
    file.write_bytes(file.read_bytes()[:-1])
    open_engine(model(), "tensorrt", workspace_gib=4.0)
    assert given[3] == (7.0, b"")


def test_tensorrt_rtx_compiles_an_engine_once(model: Any, stand_ins: list[StandIn], tmp_path: Path) -> None:
    for _ in range(2):
        open_engine(model(), "tensorrt")
    [file] = (tmp_path / "cache" / "panoptic_depth" / "engines").glob("runtime-cache-*")
    file.write_bytes(file.read_bytes()[:-1])
    for _ in range(2):
        open_engine(model(), "tensorrt")
    open_engine(model(), "tensorrt", workspace_gib=1.0)  # another engine
    assert [runner.given for runner in stand_ins] == [b"", b"compiled", b"", b"compiled", b""]


def test_on_a_full_disk_an_engine_that_is_there_runs_and_a_new_one_is_refused(
    model: Any, stand_ins: list[StandIn], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_engine(model(), "tensorrt")
    [file] = (tmp_path / "cache" / "panoptic_depth" / "engines").glob("runtime-cache-*")
    file.unlink()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    reports: list[str] = []
    open_engine(model(), "tensorrt", report=reports.append)
    words = r"cannot be written \(No space left on device\); make room, or set XDG_CACHE_HOME to another folder"
    assert re.search(words, reports[-1])
    assert not stand_ins[-1].is_closed
    with pytest.raises(EngineError, match=words):
        open_engine(model(), "tensorrt", workspace_gib=1.0)
    assert stand_ins[-1].is_closed


@pytest.mark.usefixtures("signals_as_before", "wide")
def test_build_engine_builds_what_the_node_will_find(
    model: Any, stand_ins: list[StandIn], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build-engine", str(model())]) == 0
    assert "ready: TensorRT-RTX" in capsys.readouterr().out
    assert stand_ins[0].is_closed
    reports: list[str] = []
    open_engine(model(), "tensorrt", report=reports.append)
    assert reports[0].startswith("engine from ")


def test_a_gpu_that_tensorrt_rtx_has_no_code_for_is_refused(trt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu("H200", "9.0", 132, 139 << 30, "580.1")
    monkeypatch.setattr(tensorrt, "open_cuda", lambda: type("Cuda", (), {"gpu": lambda self: gpu})())
    with pytest.raises(EngineError, match=r"has no code for H200 \(sm90, not one of sm75.*\); install"):
        tensorrt.runnable()


# ---- the calls that only a GPU would try ----

_OWNERS = {
    "runtime": "Runtime",
    "settings": "IRuntimeConfig",
    "runtime_cache": "IRuntimeCache",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
    "builder": "Builder",
    "parser": "OnnxParser",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "timings": "ITimingCache",
}


def accessed(path: Path, base: str) -> set[str]:
    """The attributes that a module takes from a name, or from the attribute self._name."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            owner = node.value
            name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
            if name in (base, f"_{base}"):
                names.add(node.attr)
    return names


def test_the_real_bindings_have_every_name_that_the_code_takes(trt: Any) -> None:
    engines = ROOT / "panoptic_depth_ros" / "engines"
    run, made = engines / "tensorrt_run.py", engines / "tensorrt_build.py"
    names = accessed(run, "trt") | accessed(made, "trt")
    assert {"Runtime", "Builder", "OnnxParser", "nptype"} <= names
    assert [name for name in names if not hasattr(trt, name)] == []
    for base, owner in _OWNERS.items():
        attributes = accessed(run, base) | accessed(made, base)
        assert attributes, base
        assert [name for name in attributes if not hasattr(getattr(trt, owner), name)] == [], owner
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    calls = accessed(engines / "cuda.py", "rt")
    assert len(calls) > 25
    assert [name for name in calls if not hasattr(runtime, name)] == []


def test_types_of_tensors_have_their_numpy_names(trt: Any) -> None:
    expected = {"UINT8": np.uint8, "INT32": np.int32, "FLOAT": np.float32}
    assert {name: trt.nptype(getattr(trt.DataType, name)) for name in expected} == expected


# ---- what a file says: the graph by hand, and the two subcommands ----


@pytest.mark.parametrize(
    ("body", "expected"), [(FLOAT32, "float32"), (FLOAT16, "float16"), (INT8, "int8"), (UNSUPPORTED, "float32")]
)
def test_the_arithmetic_is_that_of_the_convolutions(model: Any, body: str, expected: str) -> None:
    graph = read_graph(memoryview(content(model(body))))
    assert arithmetic(graph) == expected
    [layer] = layers(graph)
    assert (layer.operator, layer.part, layer.arithmetic) == ("Conv", "backbone", expected)
    assert layer.weights[0].shape == (1, 3, 1, 1)


def test_a_graph_is_read_as_the_onnx_package_reads_it() -> None:
    onnx = pytest.importorskip("onnx")
    theirs = onnx.load(COMPACT).graph
    ours = read_graph(memoryview(COMPACT.read_bytes()))
    assert [(n.operator, n.name, n.inputs, n.outputs) for n in ours.nodes] == [
        (n.op_type, n.name, tuple(n.input), tuple(n.output)) for n in theirs.node
    ]
    for mine, other in zip((*ours.inputs, *ours.outputs), (*theirs.input, *theirs.output), strict=True):
        tensor = other.type.tensor_type
        assert (mine.name, mine.shape) == (other.name, tuple(d.dim_value for d in tensor.shape.dim))
        assert mine.dtype == onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    for stored in theirs.initializer:
        mine = ours.constants[stored.name]
        assert mine.shape == tuple(stored.dims)
        assert mine.dtype == onnx.helper.tensor_dtype_to_np_dtype(stored.data_type).name
    assert len(ours.constants) == len(theirs.initializer)


def test_inferred_types_are_those_of_the_onnx_package() -> None:
    onnx = pytest.importorskip("onnx")
    inferred = onnx.shape_inference.infer_shapes(onnx.load(COMPACT)).graph
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.value_info}
    found: list[Layer] = layers(read_graph(memoryview(COMPACT.read_bytes())))
    nodes = [node for node in inferred.node if node.op_type in ("Conv", "MatMul")]
    assert len(found) == len(nodes) > 50
    for layer, node in zip(found, nodes, strict=True):
        assert layer.arithmetic == onnx.helper.tensor_dtype_to_np_dtype(types[node.output[0]]).name


def plain(text: str) -> str:
    return " ".join("".join(c if c not in "│┃┌┐└┘├┤─━┏┓┗┛┡┩╇┳┬┴" else " " for c in text).split())


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.usefixtures("wide", "signals_as_before")
def test_inspect_says_what_a_model_is(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(model(INT8))]) == 0
    text = plain(capsys.readouterr().out)
    assert "model made-up 1.2.3, preset compact" in text
    assert "network size 16 x 12 px, focal length 8 px" in text
    assert "precision float32 2 thing categories" in text  # of an older file, which does not say the grid of segments
    assert "2 thing categories car, person" in text
    assert "pq on nothing 0.25" in text
    assert "image (in) uint8 1 x 12 x 16 x 3" in text
    assert "arithmetic: int8" in text
    assert "backbone 1 int8 3 float32" in text
    assert "ONNX opset 17" in text


@pytest.mark.usefixtures("wide", "signals_as_before")
def test_inspect_says_the_precision_and_the_grid_of_segments(
    model: Any, manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx = pytest.importorskip("onnx")
    path = model(INT8)
    loaded = onnx.load(path)
    precise = replace(manifest, precision="int8", label_stride=2)
    onnx.helper.set_model_props(loaded, {METADATA_KEY: precise.to_json()})
    onnx.save(loaded, path)
    assert main(["inspect", str(path)]) == 0
    assert "precision int8, segments told apart every 2 px" in plain(capsys.readouterr().out)


@pytest.mark.usefixtures("wide", "signals_as_before", "trt")
def test_build_engine_for_a_named_gpu_writes_a_file_that_inspect_explains(
    model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tiny.engine"
    command = ["build-engine", str(model()), "--target", "SM86", "--workspace-gib", "0.5", "--out", str(out)]
    assert main(command) == 0
    built = plain(capsys.readouterr().out)
    assert out.stat().st_mode & 0o777 == 0o600
    assert main(["inspect", str(out)]) == 0
    text = plain(capsys.readouterr().out)
    for part in ("builder TensorRT-RTX", "targets sm86", "workspace 0.5 GiB", "not compared", "plugins: none"):
        assert part in built
        assert part in text
    out.write_bytes(out.read_bytes()[:60])
    assert main(["inspect", str(out)]) == 1
    assert "is cut short (60 bytes); build it again with panoptic-depth build-engine" in capsys.readouterr().err


@pytest.mark.usefixtures("signals_as_before", "trt")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["inspect", "{tmp}/absent"], "absent: cannot be read"),
        (["inspect", "{tmp}"], "cannot be read"),
        (["build-engine", "{tmp}/absent", "--target", "sm86"], "absent: cannot be read"),
        (["build-engine", "{model}", "--target", "sm1"], "target 'sm1' is unknown to TensorRT-RTX"),
        (["build-engine", "{model}", "--out", "{tmp}/x"], "--out goes with --target"),
    ],
)
def test_what_cannot_be_built_or_inspected_is_one_sentence(
    model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    values = {"tmp": str(tmp_path), "model": str(model())}
    assert main([argument.format(**values) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("panoptic-depth: ")
    assert error.count("\n") == 1
    assert sentence in error


@pytest.fixture
def signals_as_before() -> Any:
    """The command line takes Ctrl-C over; give it back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_targets_are_for_tensorrt_rtx_alone(trt: Any) -> None:
    assert is_rtx(trt)
    proper = type("Module", (), {"__name__": "tensorrt", "__version__": "10.3.0"})()
    with pytest.raises(EngineError, match=r"TensorRT 10.3.0 builds for the GPU of its own machine only"):
        tensorrt_build._set_targets(proper, None, ("sm86",))
