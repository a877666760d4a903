# SPDX-License-Identifier: Apache-2.0
"""A model file must hold what its manifest promises, whichever engine runs it."""

from __future__ import annotations

from pathlib import Path

from panoptic_depth_ros.manifest import INPUT, MAX_SEGMENTS, OUTPUT_TYPES, Manifest, ModelError, read_model
from panoptic_depth_ros.onnx_graph import UNKNOWN, Graph, Tensor, read_graph


def read_contracted(path: str | Path) -> tuple[Manifest, bytes, Graph]:
    """Manifest, content and graph of an exported model.

    Raises:
        ModelError: it is none, or its graph's inputs and outputs are not those of the contract.
    """
    manifest, model = read_model(path)
    try:
        graph = read_graph(memoryview(model))
    except (IndexError, ValueError) as error:
        raise ModelError(f"model {path}: its graph is damaged ({error}); export it again") from error
    h, w = manifest.height, manifest.width
    image = graph.inputs[0] if len(graph.inputs) == 1 else Tensor("", UNKNOWN, ())
    if (image.name, image.dtype, image.shape[1:]) != (INPUT, "uint8", (h, w, 3)):
        found = ", ".join(map(_text, graph.inputs)) or "none"
        raise ModelError(
            f"model {path}: its inputs are {found}; its manifest says {_text(Tensor(INPUT, 'uint8', ('B', h, w, 3)))}"
        )
    outputs = {output.name: output for output in graph.outputs}
    for name, dtype in OUTPUT_TYPES.items():
        output = outputs.get(name)
        is_map = name in ("segment_ids", "depth")
        if output is None or output.dtype != dtype or not (_is_map(output, h, w) if is_map else _is_table(output)):
            found = _text(output) if output else f"{name}, which is missing"
            expected = Tensor(name, dtype, ("B", h, w) if is_map else ("B", f"N <= {MAX_SEGMENTS}"))
            raise ModelError(f"model {path}: output {found}; the contract says {_text(expected)}; export it again")
    return manifest, model, graph


def _is_map(output: Tensor, h: int, w: int) -> bool:
    return output.shape[1:] == (h, w)


def _is_table(output: Tensor) -> bool:
    return len(output.shape) == 2 and isinstance(rows := output.shape[1], int) and rows <= MAX_SEGMENTS


def _text(tensor: Tensor) -> str:
    return f"{tensor.name} {tensor.dtype} [{', '.join(map(str, tensor.shape))}]"
