# SPDX-License-Identifier: Apache-2.0
"""The exported file is the network, for every engine that a vehicle or a laptop may have."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from panoptic_depth_model.deployable import Deployable
from panoptic_depth_model.weights import digest, load_weights, save_weights
from panoptic_depth_ros.manifest import INPUT, OUTPUTS, read_manifest
from panoptic_depth_ros.taxonomy import Category, Taxonomy
from panoptic_depth_training import export as exporting
from panoptic_depth_training.facts import ModelFacts

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

BATCH, HEIGHT, WIDTH = 2, 64, 128


@pytest.fixture(scope="module")
def weights(tmp_path_factory, network):
    taxonomy = Taxonomy(tuple(Category(f"c{i}", i in network.config.thing_ids, (i, i, i)) for i in range(19)))
    path = tmp_path_factory.mktemp("weights") / "weights.pt"
    facts = ModelFacts("compact", taxonomy, HEIGHT // 2, WIDTH // 2, 50.0, {"miou": 0.5, "data": "none"})
    save_weights(path, network, facts.to_dict())
    return path


def export(weights, path):
    return exporting.export(weights, path, height=HEIGHT, width=WIDTH, batch=BATCH, name="probe", version="7")


@pytest.fixture(scope="module")
def model_path(tmp_path_factory, weights):
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    export(weights, path)
    return path


@pytest.fixture(scope="module")
def pictures():
    return exporting.probe_images(BATCH, HEIGHT, WIDTH, count=1)[0]


@pytest.fixture(scope="module")
def expected(network, pictures):
    with torch.inference_mode():
        return [output.numpy() for output in Deployable(network)(torch.from_numpy(pictures))]


def assert_same_answer(outputs, expected):
    for got, want in zip(outputs, expected, strict=True):
        assert got.dtype == want.dtype
        assert got.shape == want.shape
    same = outputs[0] == expected[0]
    # The file holds weights of half precision, the network in this test those of full precision.
    assert same.mean() > 0.99
    np.testing.assert_allclose(outputs[1][same], expected[1][same], rtol=0.02, atol=0.05)


def test_onnx_runtime_answers_as_the_network(model_path, pictures, expected):
    session = onnxruntime.InferenceSession(model_path, providers=["CPUExecutionProvider"])
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        (INPUT, "tensor(uint8)", [BATCH, HEIGHT, WIDTH, 3])
    ]
    assert tuple(o.name for o in session.get_outputs()) == OUTPUTS
    assert_same_answer(session.run(None, {INPUT: pictures}), expected)


def test_openvino_answers_as_the_network(model_path, pictures, expected):
    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(model_path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answer = compiled(pictures)
    assert_same_answer([answer[name] for name in OUTPUTS], expected)


def test_tensorrt_parses_and_builds_the_graph(model_path):
    pytest.importorskip("tensorrt_rtx_libs")
    tensorrt = pytest.importorskip("tensorrt_rtx_bindings")
    builder = tensorrt.Builder(tensorrt.Logger(tensorrt.Logger.ERROR))
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, tensorrt.Logger(tensorrt.Logger.ERROR))
    parsed = parser.parse_from_file(str(model_path))
    assert parsed, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(tensorrt.ComputeCapability.SM86, 0)
    assert builder.build_serialized_network(network, config) is not None
    assert tuple(network.get_output(i).name for i in range(network.num_outputs)) == OUTPUTS


def test_no_operator_has_a_shape_that_depends_on_the_data(model_path):
    operators = {node.op_type for node in onnx.load(model_path).graph.node}
    assert not operators & {"NonZero", "Unique", "NonMaxSuppression", "Loop", "If", "Scan", "Compress"}


def test_the_manifest_inside_the_file_names_the_model_and_its_camera(model_path, network):
    manifest = read_manifest(model_path)
    assert (manifest.name, manifest.version, manifest.preset) == ("probe", "7", "compact")
    assert (manifest.height, manifest.width) == (HEIGHT, WIDTH)
    assert manifest.focal_length_px == 100.0  # trained at half this size for 50 px
    assert manifest.digest == digest(network.state_dict())
    assert manifest.scores == {"miou": 0.5, "data": "none"}
    assert len(manifest.taxonomy) == 19


def test_large_tensors_are_stored_in_half_precision_without_loss(model_path):
    model = onnx.load(model_path)
    large = [
        t for t in model.graph.initializer if np.prod(t.dims) >= exporting.LARGE_TENSOR and len(t.dims) == 4
    ]
    assert large
    assert {t.data_type for t in large} <= {onnx.TensorProto.FLOAT16}


def test_nothing_is_written_when_the_graph_differs_from_the_network(
    tmp_path, weights, model_path, monkeypatch
):
    network, facts = load_weights(weights)
    torch.nn.init.constant_(network.location_head.regions.bias, -20.0)  # this one finds no stuff
    save_weights(tmp_path / "other.pt", network, facts)
    monkeypatch.setattr(exporting, "onnx_model", lambda *_: onnx.load(model_path))
    with pytest.raises(exporting.ExportError, match=r"not written: on image \d"):
        export(tmp_path / "other.pt", tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_the_file_does_not_tell_where_it_was_made(model_path):
    contents = model_path.read_bytes()
    assert b"panoptic_depth_model/" not in contents
    assert b"site-packages" not in contents
