# SPDX-License-Identifier: Apache-2.0
"""Int8 in an exported graph: which convolutions are quantized, and by what scale.

Quantize/dequantize pairs are symmetric (TensorRT takes no others), with one scale for a map and one for each output
channel of a weight. They stand before convolutions, not behind: what a convolution sums up goes into its norm or
activation at full precision, and TensorRT fuses the two. On a residual sum the shortcut's side is quantized, which is
what lets TensorRT add in the convolution; where both sides come from convolutions, both are.

In the graph's own precision stay the layers of `KEPT`, and everything that is no convolution: norms, kernels, masks,
the merge, depth and the table.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    MinMaxCalibrater,
    QuantFormat,
    QuantType,
    quantize_static,
)

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
_SETTINGS = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "QuantizeBias": False,  # TensorRT dequantizes no 32-bit integers
    "OpTypesToExcludeOutputQuantization": ["Conv", "Add"],
    # A map's range is the mean over pictures of its extremes: one odd picture must not coarsen the scale of all.
    "CalibMovingAverage": True,
}


def quantize(model: onnx.ModelProto, batches: Iterator[dict[str, np.ndarray]]) -> onnx.ModelProto:
    """The model with int8 convolutions. Its weights must be stored in the type that it computes in.

    Args:
        model: its float32 or float16 graph; changed on the way.
        batches: what the model will see, by the name of its input. Ranges are taken from these alone.
    """
    split_coordinates(model)
    # Says that shapes are known and nothing is left to fold, which the exporter has seen to.
    helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    in_folder = tempfile.TemporaryDirectory(prefix="panoptic_depth_int8_")
    with in_folder as folder, patch.object(MinMaxCalibrater, "compute_data", _mean_ranges):
        path = Path(folder, "model.onnx")
        quantize_static(
            model,
            path,
            _Batches(batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Add"],
            nodes_to_quantize=quantized_nodes(model),
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options=_SETTINGS,
        )
        return onnx.load(path)


_ranges = MinMaxCalibrater.compute_data


def _mean_ranges(calibrater: Any) -> Any:
    """The ranges of all maps, from extremes that are added up in float32.

    ONNX Runtime adds them in the graph's own type, and of 32 pictures a mean above 2047 is infinite in float16.
    """
    if not calibrater.intermediate_outputs:  # asked again
        return _ranges(calibrater)
    names = [output.name for output in calibrater.infer_session.get_outputs()]
    first = dict(zip(names, calibrater.intermediate_outputs[0], strict=True))
    kinds = {name.rpartition("_")[0]: value.dtype for name, value in first.items() if value is not None}
    calibrater.intermediate_outputs = [
        [value if value is None else value.astype(np.float32) for value in values]
        for values in calibrater.intermediate_outputs
    ]
    ranges = _ranges(calibrater)
    for name, found in ranges.items():
        found.lowest, found.highest = (bound.astype(kinds[name]) for bound in (found.lowest, found.highest))
    return ranges


class _Batches(CalibrationDataReader):
    def __init__(self, batches: Iterator[dict[str, np.ndarray]]) -> None:
        self._batches = batches

    def get_next(self) -> Any:
        return next(self._batches, None)


def quantized_nodes(model: onnx.ModelProto) -> list[str]:
    """The names of the convolutions that are quantized, and of the sums of two of them."""
    weights = {tensor.name for tensor in model.graph.initializer if tensor.name.startswith(_PARAMETERS)}
    maps, names = set(), []
    for node in model.graph.node:
        is_convolution = node.op_type == "Conv" and node.input[1] in weights and not _is_kept(node.input[1])
        if is_convolution:
            maps.update(node.output)
        if is_convolution or (node.op_type == "Add" and maps.issuperset(node.input)):
            names.append(node.name)
    return names


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
