# SPDX-License-Identifier: Apache-2.0
"""Reads what this project needs from an ONNX file without the ONNX package: metadata, tensors, nodes and their types.

An ONNX file is one protobuf message. Its fields are walked by hand, so that a vehicle needs no more than this, and the
weights are skipped in one step each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# Field numbers of the ONNX messages.
_MODEL_GRAPH, _MODEL_OPSETS, _MODEL_METADATA = 7, 8, 14
_GRAPH_NODE, _GRAPH_TENSOR, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_VALUE = 1, 5, 11, 12, 13
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OPERATOR, _NODE_ATTRIBUTE = 1, 2, 3, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_TENSOR = 1, 3, 5
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME = 1, 2, 8

# TensorProto.DataType
TYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    16: "bfloat16",
    17: "float8e4m3",
    19: "float8e5m2",
}
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Tensor:
    """A graph's input or output, or a stored constant; a symbolic dimension is its name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def size(self) -> int:
        """The number of elements; symbolic dimensions count as 1."""
        product = 1
        for dimension in self.shape:
            product *= dimension if isinstance(dimension, int) else 1
        return product


@dataclass(frozen=True)
class Node:
    """One operator; ``cast_to`` is the type that a Cast or a typed constant makes, empty for the others."""

    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    cast_to: str = ""


@dataclass(frozen=True)
class Graph:
    """A network as its file holds it; ``types`` are those that the file declares for values between nodes."""

    nodes: tuple[Node, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    constants: dict[str, Tensor]
    types: dict[str, str]
    opset: int


def metadata(model: memoryview) -> dict[str, str]:
    """The metadata properties of an ONNX file's content.

    Raises:
        ValueError, IndexError: the content is no protobuf message, is cut short, or holds no graph.
    """
    properties, has_graph = {}, False
    for number, value in _fields(model):
        has_graph = has_graph or number == _MODEL_GRAPH
        if number == _MODEL_METADATA:
            entry = dict(_fields(_bytes(value)))
            properties[_text(entry.get(1, b""))] = _text(entry.get(2, b""))
    if not has_graph:
        raise ValueError("no graph")  # a few bytes of anything may be a protobuf message
    return properties


def read_graph(model: memoryview) -> Graph:
    """The graph of an ONNX file's content; raises as `metadata` does."""
    opset, content = 0, memoryview(b"")
    for number, value in _fields(model):
        if number == _MODEL_GRAPH:
            content = _bytes(value)
        elif number == _MODEL_OPSETS:
            entry = dict(_fields(_bytes(value)))
            if not _text(entry.get(1, b"")):  # the standard operators' domain
                opset = _int(entry.get(2, 0))
    parts: dict[int, list[memoryview]] = {}
    for number, value in _fields(content):
        if not isinstance(value, int):
            parts.setdefault(number, []).append(value)
    tensors = [_tensor(value) for value in parts.get(_GRAPH_TENSOR, [])]
    values = [_value(value) for value in parts.get(_GRAPH_VALUE, [])]
    constants = {tensor.name: tensor for tensor in tensors}
    return Graph(
        nodes=tuple(_node(value) for value in parts.get(_GRAPH_NODE, [])),
        # Old files list the weights among the inputs.
        inputs=tuple(t for t in map(_value, parts.get(_GRAPH_INPUT, [])) if t.name not in constants),
        outputs=tuple(_value(value) for value in parts.get(_GRAPH_OUTPUT, [])),
        constants=constants,
        types={tensor.name: tensor.dtype for tensor in values},
        opset=opset,
    )


def value_types(graph: Graph) -> dict[str, str]:
    """The type of every value: declared, made by a Cast, or that of the operator's first input.

    The last holds for the arithmetic that this is for (convolutions, products, sums); a comparison's output, say, is
    not bool here.
    """
    types = {t.name: t.dtype for t in (*graph.constants.values(), *graph.inputs)}
    for node in graph.nodes:  # in an order in which inputs come before those who use them, as ONNX demands
        if node.operator == "Where":
            source = node.inputs[1]
        elif node.operator == "DequantizeLinear":
            source = node.inputs[1]  # its result has the type of the scale
        else:
            source = node.inputs[0] if node.inputs else ""
        dtype = node.cast_to or types.get(source, UNKNOWN)
        types.update({name: graph.types.get(name, dtype) for name in node.outputs})
    return types


# Operators whose arithmetic decides a network's speed and precision.
_LAYERS = ("Conv", "ConvTranspose", "DeformConv", "Gemm", "MatMul", "Einsum")
_PASSES_WEIGHTS_ON = ("Cast", "DequantizeLinear", "QuantizeLinear", "Reshape", "Transpose", "Identity")


@dataclass(frozen=True)
class Layer:
    """A convolution or product of a network."""

    operator: str
    part: str  # of the network, from its weights' name such as backbone.stem.0.weight; empty where none tells
    arithmetic: str  # the type that it computes in
    weights: tuple[Tensor, ...]  # as the file stores them


def layers(graph: Graph) -> list[Layer]:
    """The convolutions and products of a graph, in its order."""
    types = value_types(graph)
    makers = {name: node for node in graph.nodes for name in node.outputs}
    return [_layer(node, graph, types, makers) for node in graph.nodes if node.operator in _LAYERS]


def arithmetic(graph: Graph) -> str:
    """int8, float16 or float32: the coarsest type that convolutions and products are computed in."""
    found = {layer.arithmetic for layer in layers(graph)}
    if "int8" in found:
        return "int8"
    return "float16" if found & {"float16", "bfloat16"} else "float32"


def _layer(node: Node, graph: Graph, types: dict[str, str], makers: dict[str, Node]) -> Layer:
    weights = [tensor for name in node.inputs if (tensor := _weight(name, graph, makers))]
    quantized = [makers[name].operator == "DequantizeLinear" for name in node.inputs[:2] if name in makers]
    return Layer(
        operator=node.operator,
        part=weights[0].name.removeprefix("network.").rpartition(".")[0].split(".")[0] if weights else "",
        arithmetic="int8" if quantized == [True, True] else types.get(node.outputs[0], UNKNOWN),
        weights=tuple(weights),
    )


def _weight(name: str, graph: Graph, makers: dict[str, Node]) -> Tensor | None:
    """The stored tensor behind a layer's input, if only casts and the like lie between."""
    while name not in graph.constants:
        node = makers.get(name)
        if node is None or node.operator not in _PASSES_WEIGHTS_ON:
            return None
        name = node.inputs[0]
    return graph.constants[name]


def _node(content: memoryview) -> Node:
    inputs, outputs, name, operator, cast_to = [], [], "", "", ""
    for number, value in _fields(content):
        if number == _NODE_INPUT:
            inputs.append(_text(value))
        elif number == _NODE_OUTPUT:
            outputs.append(_text(value))
        elif number == _NODE_NAME:
            name = _text(value)
        elif number == _NODE_OPERATOR:
            operator = _text(value)
        elif number == _NODE_ATTRIBUTE:
            cast_to = _attribute_type(_bytes(value)) or cast_to
    return Node(operator, name, tuple(inputs), tuple(outputs), cast_to)


def _attribute_type(content: memoryview) -> str:
    """The type that a Cast's ``to`` or a constant's ``value`` names, empty for other attributes."""
    attribute = dict(_fields(content))
    name = _text(attribute.get(_ATTRIBUTE_NAME, b""))
    if name in ("to", "output_dtype", "dtype"):
        return TYPES.get(_int(attribute.get(_ATTRIBUTE_INT, 0)), "")
    if name == "value" and _ATTRIBUTE_TENSOR in attribute:
        return _tensor(_bytes(attribute[_ATTRIBUTE_TENSOR])).dtype
    return ""


def _tensor(content: memoryview) -> Tensor:
    shape: list[int | str] = []
    name, kind = "", 0
    for number, value in _fields(content):
        if number == _TENSOR_DIMS:
            shape += [value] if isinstance(value, int) else _packed(value)
        elif number == _TENSOR_TYPE:
            kind = _int(value)
        elif number == _TENSOR_NAME:
            name = _text(value)
    return Tensor(name, TYPES.get(kind, UNKNOWN), tuple(shape))


def _value(content: memoryview) -> Tensor:
    """A ValueInfoProto: name 1, type 2 {tensor 1 {element 1, shape 2 {dimension 1 {size 1, name 2}}}}."""
    entry = dict(_fields(content))
    tensor = dict(_fields(_bytes(dict(_fields(_bytes(entry.get(2, b"")))).get(1, b""))))
    shape: list[int | str] = []
    for number, dimension in _fields(_bytes(tensor.get(2, b""))):
        if number == 1:
            size = dict(_fields(_bytes(dimension)))
            shape.append(_int(size[1]) if 1 in size else _text(size.get(2, b"?")))
    return Tensor(_text(entry.get(1, b"")), TYPES.get(_int(tensor.get(1, 0)), UNKNOWN), tuple(shape))


_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """(field number, number or view of the content) of a serialized message's own fields."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"no protobuf field has wire type {kind}")
        if number == 0 or at + size > len(message):
            raise ValueError("field runs past the end")
        yield number, message[at : at + size]
        at += size


def _packed(content: memoryview) -> list[int]:
    numbers, at = [], 0
    while at < len(content):
        number, at = _varint(content, at)
        numbers.append(number)
    return numbers


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("number longer than 64 bits")


def _bytes(value: memoryview | bytes | int) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where content was expected")
    return memoryview(value)


def _int(value: memoryview | int) -> int:
    if not isinstance(value, int):
        raise ValueError("content where a number was expected")
    return value


def _text(value: memoryview | bytes | int) -> str:
    return str(_bytes(value), "utf-8")
