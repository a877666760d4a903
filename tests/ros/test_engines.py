# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.engines import Engine, open_engine
from panoptic_depth_ros.engines.onnxruntime import OnnxRuntimeEngine, open_session
from panoptic_depth_ros.engines.parity import measure
from panoptic_depth_ros.manifest import METADATA_KEY, OUTPUT_TYPES, OUTPUTS, Manifest, ModelError
from panoptic_depth_ros.messages import RGB_DECODERS
from panoptic_depth_ros.pipeline import Pipeline
from panoptic_depth_ros.preprocess import fit
from panoptic_depth_ros.recording import Recording
from panoptic_depth_ros.share import share_path
from panoptic_depth_ros.timing import Stopwatch

HEIGHT, WIDTH = 12, 16  # of the manifest fixture
ROWS = 3


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path, manifest: Manifest) -> Callable[..., Path]:
    """Writes a model that answers with what it sees: segment ids are the red channel, depth is the green one in
    meters, and the table is made of constants.
    """
    onnx = pytest.importorskip("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto

    def write(
        *,
        size: tuple[int, int] = (HEIGHT, WIDTH),
        properties: dict[str, str] | None = None,
        input_kind: int = kinds.UINT8,
        leave_out: str = "",
        score_kind: int = kinds.FLOAT,
        deformable: bool = False,
    ) -> Path:
        h, w = size
        table = {
            "segment_category": ([[2, 0, 0]], np.int32, kinds.INT32),
            "segment_score": ([[0.9, 0.8, 0.0]], np.float32, score_kind),
            "segment_area": ([[5, 6, 0]], np.int32, kinds.INT32),
            "segment_depth": ([[3.0, 4.0, 0.0]], np.float32, kinds.FLOAT),
        }
        constants = {"red": np.array(0), "green": np.array(1)}
        nodes = [
            helper.make_node("Gather", ["image", "red"], ["red_channel"], axis=3),
            helper.make_node("Cast", ["red_channel"], ["segment_ids"], to=kinds.UINT8),
            helper.make_node("Gather", ["image", "green"], ["green_channel"], axis=3),
            helper.make_node("Cast", ["green_channel"], ["green_float"], to=kinds.FLOAT),
        ]
        if deformable:  # a 1 x 1 convolution with weight 1 and no offset: what goes in comes out
            constants |= {"ones": np.ones((1, 1, 1, 1), np.float32), "offset": np.zeros((1, 2, h, w), np.float32)}
            constants["axis"] = np.array([1])
            nodes += [
                helper.make_node("Unsqueeze", ["green_float", "axis"], ["one_channel"]),
                helper.make_node("DeformConv", ["one_channel", "ones", "offset"], ["deformed"], kernel_shape=[1, 1]),
                helper.make_node("Squeeze", ["deformed", "axis"], ["depth"]),
            ]
        else:
            nodes.append(helper.make_node("Identity", ["green_float"], ["depth"]))
        outputs = {"segment_ids": (kinds.UINT8, ["B", h, w]), "depth": (kinds.FLOAT, ["B", h, w])}
        for name, (values, dtype, kind) in table.items():
            constants[f"{name}_values"] = np.array(values, dtype)
            nodes.append(helper.make_node("Cast", [f"{name}_values"], [name], to=kind))
            outputs[name] = (kind, [1, ROWS])
        graph = helper.make_graph(
            nodes,
            "seer",
            [helper.make_tensor_value_info("image", input_kind, ["B", h, w, 3])],
            [helper.make_tensor_value_info(name, *value) for name, value in outputs.items() if name != leave_out],
            initializer=[onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        helper.set_model_props(made, {METADATA_KEY: manifest.to_json()} if properties is None else properties)
        path = tmp_path / "seer.onnx"
        onnx.save(made, path)
        return path

    return write


def test_a_model_runs_and_its_outputs_keep_their_names(model: Callable[..., Path], manifest: Manifest) -> None:
    engine = open_engine(model(), "cpu", threads=1)
    assert engine.manifest == manifest
    assert "CPU" in engine.description
    images = np.random.default_rng(0).integers(0, 256, (1, HEIGHT, WIDTH, 3), np.uint8)
    outputs = engine.infer(images)
    assert set(outputs) == set(OUTPUTS)
    np.testing.assert_array_equal(outputs["segment_ids"], images[..., 0])
    np.testing.assert_array_equal(outputs["depth"], images[..., 1])
    np.testing.assert_allclose(outputs["segment_score"], [[0.9, 0.8, 0.0]])
    np.testing.assert_array_equal(outputs["segment_category"], [[2, 0, 0]])
    assert outputs["segment_area"].dtype == np.int32
    engine.close()


def test_threads_of_onnx_runtime_rest_between_two_frames(model: Callable[..., Path]) -> None:
    options = open_session(str(model())).get_session_options()
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_the_pipeline_turns_an_image_into_a_prediction(model: Callable[..., Path]) -> None:
    rgb = np.zeros((2 * HEIGHT, 2 * WIDTH, 3), np.uint8)
    rgb[:HEIGHT, :, 0], rgb[HEIGHT:, :, 0], rgb[..., 1] = 1, 2, 30
    pipeline, stopwatch = Pipeline(OnnxRuntimeEngine(model(), "cpu", 1)), Stopwatch()
    camera = PinholeCamera(2 * HEIGHT, 2 * WIDTH, 32.0, 32.0, 15.5, 11.5)  # 16 px at network size, learned at 8
    pipeline.warm_up()
    prediction = pipeline(rgb, camera, stopwatch)
    np.testing.assert_array_equal(prediction.segment_ids, np.repeat([1, 2], 6)[:, None].repeat(16, 1))
    np.testing.assert_allclose(prediction.depth, 60.0)  # type: ignore[arg-type]
    np.testing.assert_allclose(prediction.segments.mean_depth, [6.0, 8.0, np.nan])
    assert list(prediction.panoptic_id_of_segment[1:4]) == [2001, 0, 65535]
    assert list(stopwatch.laps_ms) == ["preprocess", "engine", "prediction"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"size": (HEIGHT, WIDTH + 2)},
            r"its inputs are image uint8 \[B, 12, 18, 3\]; its manifest says image uint8 \[B, 12, 16, 3\]",
        ),
        ({"input_kind": 1}, "its inputs are image float32 .*; its manifest says image uint8"),
        ({"leave_out": "segment_depth"}, "output segment_depth, which is missing; the contract says .* float32"),
        ({"score_kind": 7}, r"output segment_score int64 \[1, 3\]; the contract says segment_score float32"),
        ({"properties": {}}, "no manifest inside"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "openvino"])
def test_a_model_that_breaks_the_contract_is_refused(
    model: Callable[..., Path], device: str, changes: Any, text: str
) -> None:
    path = model(**changes)
    with pytest.raises(ModelError, match=rf"model .*seer\.onnx: {text}"):
        open_engine(path, device)


def test_a_damaged_network_is_refused(model: Callable[..., Path]) -> None:
    path = model()
    path.write_bytes(path.read_bytes().replace(b"Gather", b"Garble"))
    with pytest.raises(ModelError, match=r"seer\.onnx: ONNX Runtime cannot load it"):
        open_engine(path, "cpu")


def test_a_device_is_one_of_a_few(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'tpu' is unknown; expected one of auto, tensorrt, cuda, openvino, cpu"):
        open_engine(tmp_path / "m.onnx", "tpu")


def test_cuda_where_there_is_none_is_refused(model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    path = model()
    with pytest.raises(ModelError, match=r"device is cuda, but .* pip install 'onnxruntime-gpu\[cuda,cudnn\]'"):
        open_engine(path, "cuda")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_cuda_that_finds_no_gpu_is_refused_and_auto_goes_on(
    model: Callable[..., Path], only: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime may find a GPU")
    only()
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    path, reports = model(), []
    with pytest.raises(ModelError, match="device is cuda, but ONNX Runtime could not use a GPU; see nvidia-smi"):
        open_engine(path, "cuda")
    assert open_engine(path, report=reports.append).description.endswith("on CPU")
    assert any(text.startswith("ONNX Runtime's CUDA is not used: device is cuda, but") for text in reports)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets of the optional engines only the named modules be found."""
    find_spec = importlib.util.find_spec

    def keep(*modules: str) -> None:
        optional = {"tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "openvino"} - set(modules)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in optional else find_spec(name))

    return keep


def test_auto_without_other_engines_is_onnx_runtime(model: Callable[..., Path], only: Callable[..., None]) -> None:
    only()
    reports: list[str] = []
    assert re.fullmatch(r"ONNX Runtime [\d.]+ on (CPU|CUDA)", open_engine(model(), report=reports.append).description)
    assert reports == []


def test_auto_without_a_gpu_is_openvino_where_it_is_installed(
    model: Callable[..., Path], only: Callable[..., None]
) -> None:
    pytest.importorskip("openvino")
    only("openvino")
    engine = open_engine(model(), threads=1)
    assert re.fullmatch(r"OpenVINO [\d.]+ on CPU, f32", engine.description)
    engine.close()


def test_auto_takes_tensorrt_where_it_can_run(
    model: Callable[..., Path], only: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    only("tensorrt_rtx_bindings", "openvino")
    from panoptic_depth_ros.engines import tensorrt

    monkeypatch.setattr(tensorrt, "runnable", lambda: None)
    monkeypatch.setattr(tensorrt, "TensorRtEngine", lambda path, workspace_gib, report: ("TensorRT", workspace_gib))
    assert open_engine(model(), workspace_gib=1.5) == ("TensorRT", 1.5)  # type: ignore[comparison-overlap]


def test_auto_takes_a_gpu_before_the_cpu(
    model: Callable[..., Path], only: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    only("openvino")
    import onnxruntime

    from panoptic_depth_ros.engines import onnxruntime as ours

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(ours, "OnnxRuntimeEngine", lambda path, device, threads: device)
    assert open_engine(model()) == "cuda"  # type: ignore[comparison-overlap]


def test_auto_says_why_an_installed_tensorrt_is_not_used(
    model: Callable[..., Path], only: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    only("tensorrt_rtx_bindings")
    from panoptic_depth_ros.engines import tensorrt
    from panoptic_depth_ros.engines.errors import EngineError

    def refuse() -> None:
        raise EngineError("there is no GPU")

    monkeypatch.setattr(tensorrt, "runnable", refuse)
    reports: list[str] = []
    assert "ONNX Runtime" in open_engine(model(), report=reports.append).description
    assert reports == ["TensorRT is not used: there is no GPU"]


def test_a_device_that_is_not_installed_is_refused_with_the_remedy(
    model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model()
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_libs", "tensorrt_rtx_bindings", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "panoptic_depth_ros.engines.openvino", raising=False)
    with pytest.raises(ModelError, match=r"device is openvino, but .* pip install openvino"):
        open_engine(path, "openvino")
    with pytest.raises(ModelError, match=r"TensorRT .*install"):
        open_engine(path, "tensorrt")


def test_an_operator_that_openvino_lacks_sends_auto_to_onnx_runtime(
    model: Callable[..., Path], only: Callable[..., None]
) -> None:
    pytest.importorskip("openvino")
    only("openvino")
    path, reports = model(deformable=True), []
    with pytest.raises(ModelError, match=r"seer\.onnx: OpenVINO cannot run it \(.*DeformConv.*\); take device:=cpu"):
        open_engine(path, "openvino")
    engine = open_engine(path, report=reports.append)
    assert "ONNX Runtime" in engine.description
    assert any("OpenVINO is not used" in text for text in reports)
    images = np.full((1, HEIGHT, WIDTH, 3), 7, np.uint8)
    np.testing.assert_array_equal(engine.infer(images)["depth"], 7.0)


COMPACT = Path(__file__).resolve().parents[2] / "model" / "compact.onnx"


def street_images() -> np.ndarray:
    """Images [2, 1, 256, 512, 3] uint8 of the drive that comes along."""
    with Recording(share_path("samples", "street_drive")) as drive:
        topic, _ = drive.camera_topics()
        frames = list(drive.messages([topic]))[::25]
        pictures = [RGB_DECODERS[frame.type_name](drive.decode(frame)) for frame in frames]
    return np.stack([fit(rgb, 256, 512)[0][None] for rgb in pictures])


@pytest.fixture(scope="module")
def compact_onnxruntime() -> Engine:
    return open_engine(COMPACT, "cpu", threads=1)


def test_openvino_agrees_with_onnx_runtime_on_a_real_model(compact_onnxruntime: Engine) -> None:
    pytest.importorskip("openvino")
    engine = open_engine(COMPACT, "openvino", threads=1)
    images = street_images()
    parity = measure(compact_onnxruntime.infer, engine.infer, images)
    assert parity.segments >= 8
    assert parity.equal_pixels >= 0.999
    assert parity.depth_p99 <= 1e-3
    outputs = engine.infer(images[0])
    assert set(outputs) == set(OUTPUTS)
    assert {name: values.dtype for name, values in outputs.items()} == OUTPUT_TYPES
    engine.close()


def test_outputs_outlive_the_next_call(model: Callable[..., Path]) -> None:
    for device in ("cpu", "openvino"):
        engine = open_engine(model(), device, threads=1)
        first = engine.infer(np.full((1, HEIGHT, WIDTH, 3), 1, np.uint8))
        engine.infer(np.full((1, HEIGHT, WIDTH, 3), 2, np.uint8))
        np.testing.assert_array_equal(first["segment_ids"], 1)


def test_openvino_computes_in_the_precision_that_was_asked_for(model: Callable[..., Path]) -> None:
    openvino = pytest.importorskip("openvino")
    from panoptic_depth_ros.engines.openvino import the_core

    path = model()
    engine: Any = open_engine(path, "openvino", threads=1)
    compiled = engine._request.get_compiled_model()
    assert compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    if "BF16" in the_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        engine = open_engine(path, "openvino", precision="bf16")
        assert engine.description.endswith("bf16")
        compiled = engine._request.get_compiled_model()
        assert compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.bf16
    else:
        with pytest.raises(ModelError, match="this CPU has no bfloat16 instructions; take f32"):
            open_engine(path, "openvino", precision="bf16")
    with pytest.raises(ValueError, match="precision 'f8' is unknown; expected one of f32, bf16"):
        open_engine(path, "openvino", precision="f8")


def test_an_interrupt_after_openvino_engines_came_and_went_is_survived(model: Callable[..., Path]) -> None:
    pytest.importorskip("openvino")
    program = f"""
import signal
from panoptic_depth_ros.engines import open_engine
first = open_engine({str(model())!r}, "openvino", 1)
second = open_engine({str(model())!r}, "openvino", 1)
del first
del second
signal.signal(signal.SIGINT, lambda *_: print("interrupted"))
signal.raise_signal(signal.SIGINT)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "interrupted\n")


def test_openvino_keeps_the_compiled_network_where_only_its_owner_can_write(
    model: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    folder = tmp_path / "cache" / "panoptic_depth" / "openvino"
    open_engine(model(), "openvino").close()
    assert list(folder.glob("*.blob"))
    assert folder.stat().st_mode & 0o777 == 0o700
    second: Any = open_engine(model(), "openvino")
    assert second._request.get_compiled_model().get_property("LOADED_FROM_CACHE") is True
    folder.chmod(0o777)
    with pytest.raises(ModelError, match=r"openvino: others may write to it \(mode 777 .*chmod 700"):
        open_engine(model(), "openvino")
