# SPDX-License-Identifier: Apache-2.0
"""The exported file is the network, for every engine that a vehicle or a laptop may have, in every precision."""

from __future__ import annotations

import copy
import runpy
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from panoptic_depth_model.convolutions import DeformableConv
from panoptic_depth_model.deployable import Deployable
from panoptic_depth_model.kernels import side_by_side, thing_kernels
from panoptic_depth_model.panoptic_depth import PanopticDepth
from panoptic_depth_model.weights import digest, save_weights
from panoptic_depth_ros.engines import parity
from panoptic_depth_ros.manifest import INPUT, OUTPUTS, PRECISIONS, read_manifest
from panoptic_depth_ros.taxonomy import Category, Taxonomy
from panoptic_depth_training.export import agreement
from panoptic_depth_training.facts import ModelFacts

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

from panoptic_depth_ros.engines.onnxruntime import open_session  # noqa: E402
from panoptic_depth_ros.interrupt import INTERRUPTED  # noqa: E402
from panoptic_depth_training.export import file as exporting  # noqa: E402
from panoptic_depth_training.export import graph as exported_graph  # noqa: E402
from panoptic_depth_training.export.command import main  # noqa: E402
from panoptic_depth_training.export.options import ExportOptions  # noqa: E402
from panoptic_depth_training.export.quantization import COORDINATES, quantize, split_coordinates  # noqa: E402

BATCH, HEIGHT, WIDTH = 2, 64, 128
INT8 = [precision for precision in PRECISIONS if precision.startswith("int8")]
HALF = [precision for precision in PRECISIONS if precision.endswith("fp16")]


@pytest.fixture(scope="module")
def network(config, loud_network) -> PanopticDepth:
    """With one layer in every tower, so that its graph is soon made."""
    return loud_network(replace(config, head_convs=1, decisions=replace(config.decisions, merge_rounds=2)))


@pytest.fixture(scope="module")
def facts(network) -> ModelFacts:
    taxonomy = Taxonomy(tuple(Category(f"c{i}", i in network.config.thing_ids, (i, i, i)) for i in range(19)))
    return ModelFacts("compact", taxonomy, HEIGHT // 2, WIDTH // 2, 50.0, {"miou": 0.5, "data": "none"})


@pytest.fixture(scope="module")
def weights(tmp_path_factory, network, facts) -> Path:
    path = tmp_path_factory.mktemp("weights") / "weights.pt"
    save_weights(path, network, facts.to_dict())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory, images) -> Path:
    """Three pictures, the third between the others in color and twice as large."""
    path = tmp_path_factory.mktemp("pictures")
    first, second = images.numpy()
    mixed = cv2.resize(first // 2 + second // 2, (2 * WIDTH, 2 * HEIGHT))
    for name, picture in (("a.png", first), ("b.png", second), ("c.PNG", mixed)):
        cv2.imwrite(str(path / name), picture[..., ::-1])
    return path


@pytest.fixture(scope="module")
def graphs() -> Callable:
    """As `onnx_model`, which takes seconds, but once for every kind of graph."""
    known, make = {}, exported_graph.onnx_model

    def remembered(deployable, options):
        key = options.is_half, options.batch
        if key not in known:
            known[key] = make(deployable, options)
        return copy.deepcopy(known[key])

    return remembered


@pytest.fixture
def soon_made(monkeypatch, graphs) -> None:
    monkeypatch.setattr(exported_graph, "onnx_model", graphs)


def options_for(precision: str, folder: Path | None, **others) -> ExportOptions:
    calibration = str(folder) if precision in INT8 else None
    images = str(folder) if folder else None
    return ExportOptions(
        HEIGHT, WIDTH, BATCH, "probe", "7", precision, images=images, calibration=calibration, **others
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory, network, facts, folder, graphs) -> Callable[[str], Path]:
    """The file of a precision, whatever it answers: untrained networks decide by hairs, which int8 moves."""
    path = tmp_path_factory.mktemp("exported")

    def file(precision: str) -> Path:
        file = path / f"{precision}.onnx"
        if not file.exists():
            options = options_for(precision, folder)
            storable = exporting.storable(copy.deepcopy(network))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(exported_graph, "onnx_model", graphs)
                manifest = exporting.export_manifest(network, facts, options)
                file.write_bytes(exporting.model_file(storable, manifest, options, print))
        return file

    return file


@pytest.fixture(scope="module")
def expected(network, images) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        outputs = Deployable(exporting.storable(copy.deepcopy(network)))(images)
    return {name: output.numpy() for name, output in zip(OUTPUTS, outputs, strict=True)}


def openvino_answers(path: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answer = compiled(images)
    return {name: answer[name].copy() for name in OUTPUTS}


def test_a_float32_file_is_written_with_its_comparison_on_the_drive_that_comes_along(tmp_path, weights, soon_made):
    comparison = exporting.export(weights, tmp_path / "model.onnx", options_for("float32", None))
    assert len(comparison.agreements) == 8
    assert all(each.picture.startswith("street_drive") for each in comparison.agreements)
    assert agreement.faults(comparison, "float32") == []
    assert [quality.by_network for quality in comparison.qualities] == [100, pytest.approx(100, abs=5)]
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_onnx_runtime_and_openvino_answer_as_the_network(precision, exported, images, expected):
    path = exported(precision)
    for answer in (exporting.onnxruntime_answers(path.read_bytes()), lambda pictures: openvino_answers(path, pictures)):
        outputs = answer(images.numpy())
        for name in OUTPUTS:
            assert outputs[name].dtype == expected[name].dtype
            assert outputs[name].shape == expected[name].shape
        found = parity.compare([expected], [outputs])
        assert found.segments > 5
        # Of an untrained network, which decides by hairs; a segment more or less is some percent of such small images.
        assert found.equal_pixels > {"float32": 0.999, "fp16": 0.9}[precision]
        assert found.depth_median < {"float32": 1e-4, "fp16": 5e-3}[precision]


WATCHED = ("location_head.regions", "embedding_head.depth", "mask_kernel_head.kernels")


def maps_of(path: Path, images: np.ndarray, run: Callable) -> list[np.ndarray]:
    """The largest map that each of the WATCHED parts computes."""
    model = onnx.load(path)
    makers = {name: node for node in model.graph.node for name in node.output}
    names: dict[str, list[str]] = {part: [] for part in WATCHED}
    for node in (node for node in list(model.graph.node) if node.op_type == "Conv"):
        weight = makers[node.input[1]].input[0] if node.input[1] in makers else node.input[1]
        for part in (part for part in WATCHED if weight.startswith(f"network.{part}.weight")):
            name = f"{part} {len(names[part])}"
            names[part].append(name)
            model.graph.node.append(onnx.helper.make_node("Cast", node.output, [name], to=onnx.TensorProto.FLOAT))
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    answer = run(model.SerializeToString(), {INPUT: images}, [name for part in WATCHED for name in names[part]])
    return [max((answer[name] for name in names[part]), key=np.size) for part in WATCHED]


def with_onnxruntime(model: bytes, feeds: dict[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
    return dict(zip(names, open_session(model).run(names, feeds), strict=True))


def with_openvino(model: bytes, feeds: dict[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    answer = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(feeds)
    return {name: answer[name].copy() for name in names}


@pytest.fixture(scope="module")
def whole_maps(exported, images) -> list[np.ndarray]:
    return maps_of(exported("float32"), images.numpy(), with_onnxruntime)


def quantized_convolution(weight: np.ndarray, pictures: list[np.ndarray]) -> onnx.ModelProto:
    """A 1x1 convolution [O, 1, 1, 1] in int8, calibrated on pictures [1, 1, h, w] of the same type."""
    helper, element = onnx.helper, onnx.helper.np_dtype_to_tensor_dtype(weight.dtype)
    shape = pictures[0].shape
    graph = helper.make_graph(
        [helper.make_node("Conv", [INPUT, "network.a.weight"], ["map"], name="a")],
        "one convolution",
        [helper.make_tensor_value_info(INPUT, element, shape)],
        [helper.make_tensor_value_info("map", element, [1, len(weight), *shape[2:]])],
        [onnx.numpy_helper.from_array(weight, "network.a.weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", exported_graph.OPSET)], ir_version=9)
    return quantize(model, ({INPUT: picture} for picture in pictures))


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_a_range_is_the_mean_over_any_number_of_pictures(kind):
    """Whose sum may be more than float16 can hold."""
    pictures = [np.full((1, 1, 4, 4), 2000 + 100 * number, kind) for number in range(40)]
    quantized = quantized_convolution(np.full((1, 1, 1, 1), 0.01, kind), pictures)
    (pair,) = [node for node in quantized.graph.node if node.op_type == "QuantizeLinear"]
    (scale,) = [tensor for tensor in quantized.graph.initializer if tensor.name == pair.input[1]]
    assert onnx.numpy_helper.to_array(scale) == pytest.approx((2000 + 100 * 19.5) / 127, rel=1e-2)


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_channels_with_small_weights_are_not_lost(kind):
    """Their scale would be no normal number of float16."""
    weight = np.array([0.5, 5e-3, 1e-3], kind).reshape(3, 1, 1, 1)
    picture = np.full((1, 1, 4, 4), 100, kind)
    model = quantized_convolution(weight, [picture])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {INPUT: picture})[0][0, :, 0, 0]
    assert found == pytest.approx([50, 0.5, 0.1], rel=0.1 if kind == np.float16 else 0.01)


@pytest.mark.parametrize("precision", INT8)
@pytest.mark.parametrize("run", [with_onnxruntime, with_openvino])
def test_maps_of_an_int8_file_are_near_the_networks(precision, run, exported, images, whole_maps):
    coarse_maps = maps_of(exported(precision), images.numpy(), run)
    for part, whole, coarse in zip(WATCHED, whole_maps, coarse_maps, strict=True):
        error = np.linalg.norm(coarse - whole) / np.linalg.norm(whole - whole.mean())
        assert 1e-4 < error < 0.25, part


class _Centers(torch.nn.Module):
    """Things of a pyramid whose kernels say level and number of their position."""

    def forward(self, *centers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kernels = [
            (10_000 * level + torch.arange(maps.shape[2] * maps.shape[3])).view(1, 1, *maps.shape[2:]).float()
            for level, maps in enumerate(centers)
        ]
        things = torch.arange(centers[0].shape[1])
        maps, limits = side_by_side(kernels), {"per_level": 50, "count": 100}
        found = thing_kernels(centers, maps, maps, things, windows=(3, 3), min_score=0.05, **limits)
        return found.category.to(torch.int32), found.mask[..., 0]


@pytest.mark.parametrize("run", [with_onnxruntime, with_openvino])
def test_a_center_in_the_first_pixel_of_its_channel_is_of_that_channel(run):
    """Where an engine that divides integers as floats would take it for the last one of the channel before."""
    centers = [torch.full((1, 8, *size), -9.0) for size in ((44, 80), (22, 40))]
    centers[0][0, :, 0, 0] = torch.linspace(4.0, 2.0, 8)
    names = ["category", "position"]
    feeds = {"p3": centers[0].numpy(), "p4": centers[1].numpy()}
    options = {"opset_version": exported_graph.OPSET, "input_names": list(feeds), "output_names": names}
    program = torch.onnx.export(_Centers().eval(), tuple(centers), dynamo=True, **options)
    found = run(program.model_proto.SerializeToString(), feeds, names)
    assert found["category"][0, :8].tolist() == list(range(8))
    assert not found["position"][0, :8].any()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tensorrt_parses_and_builds_the_graph_without_plugins(precision, exported):
    pytest.importorskip("tensorrt_rtx_libs")
    tensorrt = pytest.importorskip("tensorrt_rtx_bindings")
    builder = tensorrt.Builder(tensorrt.Logger(tensorrt.Logger.ERROR))
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, tensorrt.Logger(tensorrt.Logger.ERROR))
    parsed = parser.parse_from_file(str(exported(precision)))
    assert parsed, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    assert not [layer for layer in map(network.get_layer, range(network.num_layers)) if "PLUGIN" in str(layer.type)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(tensorrt.ComputeCapability.SM86, 0)
    assert builder.build_serialized_network(network, config) is not None
    assert tuple(network.get_output(i).name for i in range(network.num_outputs)) == OUTPUTS


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_operator_has_a_shape_that_depends_on_the_data(precision, exported):
    model = onnx.load(exported(precision))
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"NonZero", "Unique", "NonMaxSuppression", "Loop", "If", "Scan", "Compress"}
    dimensions = [size for tensor in (*model.graph.input, *model.graph.output) for size in shape_of(tensor)]
    assert all(dimensions)


def shape_of(value) -> list[int]:
    return [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_manifest_inside_the_file_names_the_model_and_its_camera(precision, exported, network):
    manifest = read_manifest(exported(precision))
    assert (manifest.name, manifest.version, manifest.preset) == ("probe", "7", "compact")
    assert (manifest.height, manifest.width) == (HEIGHT, WIDTH)
    assert manifest.focal_length_px == 100.0  # trained at half this size for 50 px
    assert manifest.digest == digest(network.state_dict())
    assert manifest.scores == {"miou": 0.5, "data": "none"}
    assert len(manifest.taxonomy) == 19
    assert (manifest.precision, manifest.label_stride) == (precision, network.config.decisions.label_stride)
    assert manifest.opset == onnx.load(exported(precision)).opset_import[0].version


@pytest.mark.parametrize("precision", PRECISIONS)
def test_large_tensors_take_two_bytes_a_number_at_most(precision, exported):
    model = onnx.load(exported(precision))
    large = [t for t in model.graph.initializer if np.prod(t.dims) >= exported_graph.LARGE_TENSOR and len(t.dims) == 4]
    assert len(large) > 10
    assert {t.data_type for t in large} <= {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_file_does_not_tell_where_it_was_made(precision, exported):
    contents = exported(precision).read_bytes()
    for trace in (b"panoptic_depth_model/", b"site-packages", b"name_scopes"):
        assert trace not in contents


# Half precision


@pytest.mark.parametrize("precision", HALF)
def test_maps_are_in_float16_and_norms_and_decisions_in_float32(precision, exported):
    model = onnx.shape_inference.infer_shapes(onnx.load(exported(precision)), strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    of, half, single = {}, onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    deciding = set()  # values that depend on a score
    for node in model.graph.node:
        found = {types.get(name) for name in node.output} & {half, single}
        if node.op_type == "Sigmoid" or deciding.intersection(node.input):
            deciding.update(node.output)
        where = "deciding" if node.output[0] in deciding else "before"
        of.setdefault((node.op_type, where), set()).update(found)
    assert of["Conv", "before"] == of["Relu", "before"] == {half}
    assert of["Conv", "deciding"] == of["Relu", "deciding"] == {single}
    for operator in ("InstanceNormalization", "Sigmoid", "MatMul", "ReduceSum", "ReduceL2", "CumSum"):
        assert set().union(*(of.get((operator, where), ()) for where in ("before", "deciding"))) == {single}, operator
    scores = {types[node.output[0]] for node in model.graph.node if node.op_type == "TopK"}
    assert scores == {single}


def test_the_network_itself_is_not_halved(network, images):
    copied = exported_graph.prepared(network, 2, ExportOptions(HEIGHT, WIDTH, precision="fp16"))
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in copied.network.backbone.parameters()} == {torch.float16}
    with torch.inference_mode():
        assert network(network.normalized(images)).mask_embedding.dtype == torch.float32


# Int8


def quantized_graph(path: Path) -> tuple[list, dict, dict, dict]:
    """Nodes, and by the name of a value: its maker, its readers, its constant."""
    graph = onnx.load(path).graph
    makers = {name: node for node in graph.node for name in node.output}
    readers = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return list(graph.node), makers, readers, {tensor.name: tensor for tensor in graph.initializer}


@pytest.mark.parametrize("precision", INT8)
def test_quantization_is_symmetric(precision, exported):
    nodes, _, _, constants = quantized_graph(exported(precision))
    pairs = [node for node in nodes if node.op_type.endswith("Linear")]
    assert {node.op_type for node in pairs} == {"QuantizeLinear", "DequantizeLinear"}
    scale_type = onnx.TensorProto.FLOAT16 if precision in HALF else onnx.TensorProto.FLOAT
    for node in pairs:
        scale, zero = (constants[name] for name in node.input[1:])
        assert scale.data_type == scale_type
        assert (onnx.numpy_helper.to_array(scale) > 0).all()
        assert zero.data_type == onnx.TensorProto.INT8
        assert not onnx.numpy_helper.to_array(zero).any()


@pytest.mark.parametrize("precision", INT8)
def test_all_convolutions_but_those_that_are_kept_have_int8_maps_and_weights(precision, exported):
    nodes, makers, _, constants = quantized_graph(exported(precision))
    kept, quantized = set(), set()
    for node in (node for node in nodes if node.op_type == "Conv"):
        came = [makers[name].op_type if name in makers else "" for name in node.input[:2]]
        stored = makers[node.input[1]].input[0] if came[1] in ("DequantizeLinear", "Cast") else node.input[1]
        if not stored.startswith("network."):
            assert "DequantizeLinear" not in came  # it samples between masks
            continue
        part = stored.removeprefix("network.").removesuffix("_half").removesuffix("_quantized")
        if came == ["DequantizeLinear"] * 2:
            quantized.add(part)
            assert constants[stored].data_type == onnx.TensorProto.INT8
            scales = constants[makers[node.input[1]].input[1]].dims
            assert list(scales) == [constants[stored].dims[0]]  # one for each output channel
        else:
            kept.add(part)
            assert "DequantizeLinear" not in came, part
    coordinates = {part for part in kept if part.endswith(COORDINATES)}
    assert kept - coordinates == {
        f"{part}.weight"
        for part in (
            "backbone.stem.0",
            "location_head.centers", "location_head.regions",
            "mask_kernel_head.kernels", "depth_kernel_head.kernels", "embedding_head.depth",
        )
    }
    assert coordinates == {
        f"{head}.tower.0.0.weight{COORDINATES}" for head in ("mask_kernel_head", "depth_kernel_head")
    } | {f"embedding_head.mask.0.0.weight{COORDINATES}"}
    assert {part.split(".")[0] for part in quantized} == {
        "backbone", "pyramid", "semantic_pyramid",
        "location_head", "mask_kernel_head", "depth_kernel_head", "embedding_head",
    }


@pytest.mark.parametrize("precision", INT8)
def test_sums_of_convolutions_go_into_norms_unquantized(precision, exported):
    nodes, makers, _, _ = quantized_graph(exported(precision))
    norms = [node for node in nodes if node.op_type == "InstanceNormalization"]
    assert len(norms) > 10
    for node in norms:
        while node.op_type in ("InstanceNormalization", "Reshape", "Cast"):
            node = makers[node.input[0]]
        assert node.op_type == "Conv" or node.name.endswith(".sum")


@pytest.mark.parametrize("precision", INT8)
def test_a_shortcut_is_quantized_before_it_is_added(precision, exported):
    nodes, makers, _, _ = quantized_graph(exported(precision))
    sums = [{makers[name].op_type for name in node.input if name in makers} for node in nodes if node.op_type == "Add"]
    assert sums.count({"DequantizeLinear"}) == 3  # of two convolutions, where a stage of the ResNet halves the map
    assert sums.count({"Conv", "DequantizeLinear"}) >= 5  # of a convolution and what came in


def test_coordinates_convolved_apart_give_the_same_numbers():
    """Two maps share a weight, as levels of the pyramid do; a bias counts once; what joins two maps is left alone."""
    generator = np.random.default_rng(0)
    arrays = {
        "w": generator.normal(size=(4, 5, 3, 3)), "bias": generator.normal(size=4),
        "coordinates": generator.normal(size=(2, 6, 7)), "half_coordinates": generator.normal(size=(1, 2, 3, 7)),
        "v": generator.normal(size=(4, 6, 1, 1)),
    }
    text = """<ir_version: 8, opset_import: ["" : 18]>
        apart (float[1, 3, 6, 7] x, float[1, 3, 3, 7] y)
            => (float[1, 4, 6, 7] a, float[1, 4, 3, 7] b, float[1, 4, 6, 7] c)
        {
            shape = Constant <value = int64[4] {1, 2, 6, 7}> ()
            grid = Expand (coordinates, shape)
            xs = Concat <axis = 1> (x, grid)
            ys = Concat <axis = 1> (y, half_coordinates)
            xx = Concat <axis = 1> (x, x)
            [first] a = Conv <pads = [1, 1, 1, 1]> (xs, w, bias)
            [second] b = Conv <pads = [1, 1, 1, 1]> (ys, w, bias)
            [third] c = Conv (xx, v)
        }"""
    model = onnx.parser.parse_model(text)
    for name, values in arrays.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    maps = {name: generator.normal(size=(1, 3, h, 7)).astype(np.float32) for name, h in (("x", 6), ("y", 3))}
    before = onnxruntime.InferenceSession(model.SerializeToString()).run(None, maps)
    split_coordinates(model)
    onnx.checker.check_model(model, full_check=True)
    after = onnxruntime.InferenceSession(model.SerializeToString()).run(None, maps)
    for ours, theirs in zip(before, after, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=1e-5)
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    assert convolutions == [
        "first.features", "first.coordinates", "second.features", "second.coordinates", "third"
    ]
    assert {tensor.name for tensor in model.graph.initializer} == {
        "w.features", "w.coordinates", "bias", "coordinates", "half_coordinates", "v"
    }


# What is refused


@pytest.fixture
def int8_made(monkeypatch, exported) -> None:
    monkeypatch.setattr(exporting, "model_file", lambda *_: exported("int8").read_bytes())


def test_an_answer_that_is_too_coarse_is_refused_and_nothing_is_written(tmp_path, weights, folder, int8_made):
    """Untrained networks decide by hairs, which int8 moves."""
    path = tmp_path / "model.onnx"
    with pytest.raises(exporting.ExportError) as refusal:
        exporting.export(weights, path, options_for("int8", folder))
    message = str(refusal.value)
    assert f"{path} not written: ONNX Runtime differs from PyTorch by more than int8 explains: equal pixels" in message
    assert "(limit 0.93)" in message
    assert "Calibrate on more pictures" in message
    assert "panoptic quality by" in message
    assert list(tmp_path.iterdir()) == []


def test_a_graph_of_another_network_is_refused(tmp_path, weights, network, facts, folder, soon_made):
    other = copy.deepcopy(network)
    torch.nn.init.constant_(other.location_head.regions.bias, -20.0)  # this one finds no stuff
    save_weights(tmp_path / "other.pt", other, facts.to_dict())
    with pytest.raises(exporting.ExportError, match="more than float32 explains: equal pixels"):
        exporting.export(tmp_path / "other.pt", tmp_path / "model.onnx", options_for("float32", folder))
    assert not (tmp_path / "model.onnx").exists()


def test_an_int8_file_within_the_tolerance_is_written(tmp_path, weights, folder, int8_made, monkeypatch):
    anything = agreement.Agreement("", 0, 0.0, 0.0, np.inf, np.inf, np.inf, np.inf)
    monkeypatch.setitem(agreement.LIMITS, "int8", anything)
    comparison = exporting.export(weights, tmp_path / "model.onnx", options_for("int8", folder))
    assert [each.picture for each in comparison.agreements] == ["a.png", "b.png", "c.PNG"]
    assert read_manifest(tmp_path / "model.onnx").precision == "int8"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "fp8"}, "precision 'fp8' is unknown; expected one of float32, fp16, int8, int8-fp16"),
        ({"precision": "int8"}, "such as --calibration /data/drive"),
        ({"calibration": "x"}, "calibration is for int8; leave it out"),
        ({"batch": 0}, "batch is 0; expected at least 1"),
        ({"precision": "int8", "calibration": "x", "calibration_count": 0}, "calibration_count is 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        ExportOptions(**{"height": HEIGHT, "width": WIDTH, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": "nowhere"}, "nowhere: neither a folder of pictures nor a recording"),
        ({"precision": "int8", "calibration": "nowhere"}, "nowhere: neither a folder of pictures nor a recording"),
        ({"height": 65}, "65x128; height and width must be positive"),
        ({"output_stride": 3}, "label_stride is 3; expected 1, 2 or 4"),
    ],
)
def test_what_cannot_be_used_is_refused_before_the_long_work(tmp_path, weights, folder, change, message, monkeypatch):
    monkeypatch.setattr(exported_graph, "onnx_model", lambda *_: pytest.fail("the graph was made"))
    options = ExportOptions(**{"height": HEIGHT, "width": WIDTH, "images": str(folder), **change})
    with pytest.raises(ValueError, match=message):
        exporting.export(weights, tmp_path / "model.onnx", options)
    with pytest.raises(ValueError, match=r"weights\.pt: the model is an ONNX file; name it weights\.onnx"):
        exporting.export(weights, weights, options)
    with pytest.raises(ValueError, match="there is no folder"):
        exporting.export(weights, tmp_path / "absent" / "model.onnx", options)


# The command line


@pytest.fixture
def signals_as_before():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals_as_before", "soon_made")
def test_the_command_prints_the_comparison_and_the_file(tmp_path, weights, folder, capsys):
    path = tmp_path / "model.onnx"
    command = [str(weights), str(path), "--height", str(HEIGHT), "--width", str(WIDTH), "--batch", str(BATCH)]
    assert main([*command, "--images", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "ONNX Runtime, float32, stride 2" in out
    assert f"{path}: {path.stat().st_size / 1e6:.1f} MB, {HEIGHT}x{WIDTH}, float32" in out


@pytest.mark.usefixtures("signals_as_before", "soon_made")
def test_an_interrupt_leaves_nothing_behind(tmp_path, weights, folder, capsys, monkeypatch):
    def interrupted(*_):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(exporting, "compare", interrupted)
    path = tmp_path / "model.onnx"
    command = [str(weights), str(path), "--height", str(HEIGHT), "--width", str(WIDTH), "--batch", str(BATCH)]
    assert main([*command, "--images", str(folder)]) == INTERRUPTED
    assert capsys.readouterr().err.endswith(f"export: stopped; {path} was not written\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("signals_as_before")
def test_the_command_says_what_is_wrong_in_a_sentence(tmp_path, weights, capsys):
    command = [str(weights), str(tmp_path / "m.onnx"), "--height", "64", "--width", "128", "--precision", "int8"]
    assert main(command) == 1
    assert capsys.readouterr().err.startswith("export: precision int8 needs pictures")


@pytest.mark.parametrize("command", ["export", "evaluate"])
def test_a_package_is_its_command(command, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["__main__.py", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(f"panoptic_depth_training.{command}", run_name="__main__")
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m panoptic_depth_training.{command} ")


# Output stride and portable operators


@pytest.mark.parametrize("stride", [1, 4])
def test_the_output_stride_is_the_grid_on_which_segments_are_told_apart(network, images, stride):
    options = ExportOptions(HEIGHT, WIDTH, output_stride=stride)
    with torch.inference_mode():
        ids = exported_graph.prepared(network, stride, options)(images).segment_ids
    assert ids.shape == (2, HEIGHT, WIDTH)
    blocks = ids.unflatten(1, (-1, 4)).unflatten(3, (-1, 4))
    in_blocks_of_four = bool((blocks == blocks[:, :, :1, :, :1]).all())
    assert in_blocks_of_four == (stride == 4)
    assert network.config.decisions.label_stride == 2  # its own


def test_the_cost_of_a_coarser_output_is_told_beside_that_of_the_precision(network, facts, folder, exported):
    own = exported_graph.with_label_stride(exporting.storable(copy.deepcopy(network)), 1)
    manifest = exporting.export_manifest(own, facts, options_for("float32", folder, output_stride=2))
    assert manifest.label_stride == 2
    pictures = exporting.open_pictures(str(folder))
    comparison = exporting.compared(own, exported("float32").read_bytes(), pictures, manifest, BATCH, print)
    assert [quality.what for quality in comparison.qualities] == [
        "PyTorch, float32, stride 1", "PyTorch, float32, stride 2", "ONNX Runtime, float32, stride 2",
    ]
    best, coarse, exported_file = (quality.by_network for quality in comparison.qualities)
    assert best == 100
    assert coarse < 99
    assert exported_file == pytest.approx(coarse, abs=1)
    assert agreement.faults(comparison, "float32") == []  # the file is compared at its own stride


@pytest.mark.parametrize("portable", [True, False])
def test_portable_graphs_have_no_deformable_convolution(config, portable):
    deformable = PanopticDepth(replace(config, deformable_heads=True)).eval()
    head = exported_graph.prepared(deformable, 2, ExportOptions(HEIGHT, WIDTH, portable=portable)).network.location_head
    graph = torch.export.export(head, (torch.zeros(1, config.width, 4, 8),)).graph
    operators = " ".join(str(node.target) for node in graph.nodes)
    assert ("deform_conv2d" in operators) == (not portable)
    assert ("grid_sampler" in operators) == portable
    assert not any(module.convolve for module in deformable.modules() if isinstance(module, DeformableConv))


def test_graphs_with_deformable_convolution_are_of_an_opset_that_has_it():
    assert onnx.defs.get_schema("DeformConv", exported_graph.OPSET).since_version <= exported_graph.OPSET
