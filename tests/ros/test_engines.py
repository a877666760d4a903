# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.engines import open_engine
from panoptic_depth_ros.engines.onnxruntime import OnnxRuntimeEngine
from panoptic_depth_ros.manifest import METADATA_KEY, OUTPUTS, Manifest, ModelError
from panoptic_depth_ros.pipeline import Pipeline
from panoptic_depth_ros.timing import Stopwatch

HEIGHT, WIDTH = 12, 16  # of the manifest fixture
ROWS = 3


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
            helper.make_node("Cast", ["green_channel"], ["depth"], to=kinds.FLOAT),
        ]
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
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
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
        ({"size": (HEIGHT, WIDTH + 2)}, r"its inputs are .*; its manifest says one uint8 image \[B, 12, 16, 3\]"),
        ({"input_kind": 1}, "its inputs are .*float.*; its manifest says one uint8 image"),
        ({"leave_out": "segment_depth"}, "output segment_depth is missing"),
        ({"score_kind": 7}, r"output segment_score is tensor\(int64\).*the contract says tensor\(float\)"),
        ({"properties": {}}, "no manifest inside"),
    ],
)
def test_a_model_that_breaks_the_contract_is_refused(model: Callable[..., Path], changes: Any, text: str) -> None:
    path = model(**changes)
    with pytest.raises(ModelError, match=rf"model .*seer\.onnx: {text}"):
        open_engine(path, "cpu")


def test_a_damaged_network_is_refused(model: Callable[..., Path]) -> None:
    path = model()
    path.write_bytes(path.read_bytes().replace(b"Gather", b"Garble"))
    with pytest.raises(ModelError, match=r"seer\.onnx: ONNX Runtime cannot load it"):
        open_engine(path, "cpu")


def test_a_device_is_one_of_a_few(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="device 'tpu' is unknown; expected one of auto, cpu, cuda"):
        open_engine(tmp_path / "m.onnx", "tpu")


def test_cuda_where_there_is_none_is_refused(model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    path = model()
    with pytest.raises(ModelError, match=r"device is cuda, but .* pip install onnxruntime-gpu"):
        open_engine(path, "cuda")
    assert "CPU" in open_engine(path, "auto").description
