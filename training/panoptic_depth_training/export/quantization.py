# SPDX-License-Identifier: Apache-2.0
"""Int8 in an exported graph: which convolutions are quantized, and by what scale.

Quantize/dequantize pairs are symmetric (TensorRT takes no others), with one scale for a map and one for each output
channel of a weight. They stand before convolutions, not behind: what a convolution sums up goes into its norm or
activation at full precision, and TensorRT fuses the two. On a residual sum the shortcut's side is quantized, which is
what lets TensorRT add in the convolution; where both sides come from convolutions, both are.

In the graph's own precision stay the layers of `KEPT`, and everything that is no convolution of the network's own
weights: norms, kernels, masks and what samples them, the merge, depth and the table.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType
from onnxruntime.quantization.calibrate import TensorsData

from panoptic_depth_ros.engines.onnxruntime import open_session

# Parts of the network, as its parameters' names begin, and why they are not quantized.
KEPT = {
    "backbone.stem.0": "sees the image itself, whose 256 levels would not all be told apart",
    "location_head.centers": "scores that are compared with thresholds and with each other",
    "location_head.regions": "scores that are compared with thresholds and with each other",
    "mask_kernel_head.kernels": "kernels, which are compared by cosine and multiply every pixel of a mask",
    "depth_kernel_head.kernels": "kernels, which hold a segment's depth and its range",
    "embedding_head.depth": "the embedding that meters are made of",
}
# Deformable convolutions stay as well: their positions are no map, and their weights go by other names.

FEATURES, COORDINATES = ".features", ".coordinates"
_PARAMETERS = "network."  # how an exported parameter's name begins
_QUANTIZED = ["Conv", "Add"]
_SETTINGS = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "QuantizeBias": False,  # TensorRT dequantizes no 32-bit integers
    "OpTypesToExcludeOutputQuantization": _QUANTIZED,
}


def quantize(model: onnx.ModelProto, batches: Iterable[dict[str, np.ndarray]]) -> onnx.ModelProto:
    """The model with int8 convolutions. Its weights must be stored in the type that it computes in.

    Args:
        model: its float32 or float16 graph; changed on the way.
        batches: what the model will see, by the name of its input. Ranges are taken from these alone.
    """
    split_coordinates(model)
    nodes = quantized_nodes(model)
    ranges = measured_ranges(model, nodes, batches)
    kind = next(iter(ranges.values())).lowest.dtype
    # Where a channel's weights are so small that the scale would be below the normal numbers of its type, ONNX Runtime
    # takes a scale of 1, and all of them become 0. In float16 that happens.
    smallest = 256 * float(np.finfo(kind).tiny)
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=ranges,
        nodes_to_quantize=[node.name for node in nodes],
        nodes_to_exclude=[],
        op_types_to_quantize=_QUANTIZED,
        extra_options={**_SETTINGS, "MinimumRealRange": smallest},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    return quantizer.model.model


def measured_ranges(
    model: onnx.ModelProto, nodes: Iterable[NodeProto], batches: Iterable[dict[str, np.ndarray]]
) -> TensorsData:
    """From where to where the maps go that some nodes read.

    A range is the mean over batches of the map's extremes: one odd picture must not coarsen the scale of all. The mean
    is taken in float32, as float16 is infinite above 65504.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    maps = list(dict.fromkeys(name for node in nodes for name in node.input if name and name not in weights))
    session = open_session(_with_extremes(model, maps).SerializeToString())
    extremes = [session.run(None, batch) for batch in batches]  # of map after map, the lowest and the highest value
    means = [np.mean(each, dtype=np.float32).astype(each[0].dtype) for each in zip(*extremes, strict=True)]
    bounds = zip(means[0::2], means[1::2], strict=True)
    return TensorsData(CalibrationMethod.MinMax, dict(zip(maps, bounds, strict=True)))


def _with_extremes(model: onnx.ModelProto, maps: Iterable[str]) -> onnx.ModelProto:
    """The model with the lowest and the highest value of each map for its outputs."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    for name in maps:
        for reduction in ("ReduceMin", "ReduceMax"):
            output = f"{name}.{reduction}"
            probe.graph.node.append(helper.make_node(reduction, [name], [output], keepdims=0))
            probe.graph.output.append(onnx.ValueInfoProto(name=output))  # the engine finds its type
    return probe


def quantized_nodes(model: onnx.ModelProto) -> list[NodeProto]:
    """The convolutions that are quantized, and the sums of two of them."""
    weights = {tensor.name for tensor in model.graph.initializer if tensor.name.startswith(_PARAMETERS)}
    maps, nodes = set(), []
    for node in model.graph.node:
        is_convolution = node.op_type == "Conv" and node.input[1] in weights and not _is_kept(node.input[1])
        if is_convolution:
            maps.update(node.output)
        if is_convolution or (node.op_type == "Add" and maps.issuperset(node.input)):
            nodes.append(node)
    return nodes


def _is_kept(weight: str) -> bool:
    part = weight.removeprefix(_PARAMETERS).removesuffix(".weight")
    return part in KEPT or part.endswith((COORDINATES, ".offsets"))


def split_coordinates(model: onnx.ModelProto) -> None:
    """Convolve features and coordinates apart, and add: the same numbers, for convolution is linear.

    Coordinates run from -1 to 1. On one scale with features they would keep some twenty steps over the whole image.
    Apart they are constants, which an engine may compute once, and the features have a width again that integer
    kernels are made for. OpenVINO, for one, takes the joined map to float32 and is off three times as far in depth.
    """
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    nodes: list[NodeProto] = []
    for node in graph.node:
        concat = makers.get(node.input[0]) if node.op_type == "Conv" and node.input[1] in tensors else None
        if concat is None or not _appends_coordinates(concat, makers, tensors):
            nodes.append(node)
            continue
        _split_weight(graph, tensors, node.input[1])
        nodes += _split_convolution(node, concat)
    del graph.node[:]
    graph.node.extend(nodes)
    _remove_unused(graph)


def _appends_coordinates(
    concat: NodeProto, makers: dict[str, NodeProto], tensors: dict[str, TensorProto]
) -> bool:
    """Whether a node joins a map and something that does not depend on the image."""
    if concat.op_type != "Concat" or len(concat.input) != 2:
        return False

    def is_constant(name: str) -> bool:
        if name in tensors or not name:
            return True
        return name in makers and all(map(is_constant, makers[name].input))

    return is_constant(concat.input[1]) and not is_constant(concat.input[0])


def _split_weight(graph: onnx.GraphProto, tensors: dict[str, TensorProto], name: str) -> None:
    """Store the last two input channels of a weight [O, C + 2, 3, 3] apart; levels of the pyramid share one weight."""
    if name + FEATURES in tensors:
        return
    weight = numpy_helper.to_array(tensors[name])
    for end, part in ((FEATURES, weight[:, :-2]), (COORDINATES, weight[:, -2:])):
        tensors[name + end] = numpy_helper.from_array(np.ascontiguousarray(part), name + end)
        graph.initializer.append(tensors[name + end])


def _split_convolution(node: NodeProto, concat: NodeProto) -> list[NodeProto]:
    parts = []
    for end, source in zip((FEATURES, COORDINATES), concat.input, strict=True):
        part = NodeProto()
        part.CopyFrom(node)
        part.name += end
        part.input[0], part.input[1], part.output[0] = source, node.input[1] + end, node.output[0] + end
        parts.append(part)
    del parts[1].input[2:]  # the bias counts once
    total = helper.make_node("Add", [part.output[0] for part in parts], node.output, name=node.name + ".sum")
    return [*parts, total]


def _remove_unused(graph: onnx.GraphProto) -> None:
    """Drop the joined maps and weights that nothing reads any more."""
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    nodes = [node for node in graph.node if used.intersection(node.output)]
    tensors = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)
