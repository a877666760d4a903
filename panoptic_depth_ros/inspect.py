# SPDX-License-Identifier: Apache-2.0
"""What a model or a built engine is, in plain words. Nothing is loaded or executed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from rich.table import Table

from panoptic_depth_ros.engines.cache import RefusedError, is_sealed, read_header
from panoptic_depth_ros.engines.contract import read_contracted
from panoptic_depth_ros.engines.parity import Parity
from panoptic_depth_ros.manifest import Manifest, ModelError
from panoptic_depth_ros.onnx_graph import Graph, Layer, Tensor, arithmetic, layers

_SHOWN_LAYERS = 12


def inspect(path: Path) -> list[Table]:
    """Tables about an exported .onnx file or a built engine.

    Raises:
        ModelError: the file is neither.
        OSError: it cannot be read.
    """
    if path.is_file() and is_sealed(path):
        return inspect_engine(path)
    manifest, model, graph = read_contracted(path)
    return [_about_model(path, manifest, model, graph), _about_tensors(graph), _about_layers(graph)]


def _about_model(path: Path, manifest: Manifest, model: bytes, graph: Graph) -> Table:
    m = manifest
    things = [category.name for category in m.taxonomy if category.is_thing]
    stuff = [category.name for category in m.taxonomy if not category.is_thing]
    table = _table(str(path), "", "")
    table.add_row("model", f"{m.name} {m.version}, preset {m.preset}")
    table.add_row("network size", f"{m.width} x {m.height} px, focal length {m.focal_length_px:g} px")
    table.add_row("depth", f"{m.min_depth_m:g} to {m.max_depth_m:g} m")
    grid = f", segments told apart every {m.label_stride} px" if m.label_stride else ""
    table.add_row("precision", f"{m.precision}{grid}")
    table.add_row(f"{len(things)} thing categories", ", ".join(things))
    table.add_row(f"{len(stuff)} stuff categories", ", ".join(stuff))
    for name, score in m.scores.items():
        table.add_row(name, f"{score:.4g}" if isinstance(score, float) else str(score))
    table.add_row("weights' digest", m.digest)
    table.add_row("file", f"{len(model) / 1e6:.1f} MB, ONNX opset {graph.opset}, {len(graph.nodes)} operators")
    table.add_row("SHA-256", hashlib.sha256(model).hexdigest())
    return table


def _about_tensors(graph: Graph) -> Table:
    table = _table("inputs and outputs", "name", "type", "shape")
    for tensor in graph.inputs:
        table.add_row(f"{tensor.name} (in)", tensor.dtype, _shape(tensor))
    for tensor in graph.outputs:
        table.add_row(tensor.name, tensor.dtype, _shape(tensor))
    return table


def _about_layers(graph: Graph) -> Table:
    """By part of the network: how many convolutions and products, what they compute in, what is stored."""
    parts: dict[str, list[Layer]] = {}
    for layer in layers(graph):
        parts.setdefault(layer.part or "the rest", []).append(layer)
    columns = ("part", "layers", "computed in", "parameters", "tensors stored as")
    table = _table(f"arithmetic: {arithmetic(graph)}", *columns)
    for part, members in parts.items():
        weights = {weight.name: weight for layer in members for weight in layer.weights}  # levels share theirs
        table.add_row(
            part,
            str(len(members)),
            _counts([layer.arithmetic for layer in members]),
            f"{sum(weight.size for weight in weights.values()):,}",
            _counts([weight.dtype for weight in weights.values()]),
        )
    table.caption = "layers are convolutions and matrix products"
    return table


def inspect_engine(path: Path) -> list[Table]:
    """What a built engine's header says; the engine itself, which is code, is not touched.

    Raises:
        ModelError: the header is damaged.
    """
    try:
        header = read_header(path)
    except (RefusedError, ValueError) as error:
        raise ModelError(f"engine {path}: {error}; build it again with panoptic-depth build-engine") from error
    return [about_engine(str(path), header), *about_engine_layers(header)]


def about_engine(title: str, header: dict[str, Any]) -> Table:
    """Where an engine comes from, and how it was proven."""
    table = _table(title, "", "")
    for key, value in header.get("fingerprint", {}).items():
        table.add_row(key, str(value))
    table.add_row("built in", f"{header.get('seconds', 0):.0f} s")
    table.add_row("size", f"{header.get('size', 0) / 1e6:.1f} MB")
    if "parity" in header:
        p = Parity(**header["parity"])
        table.add_row(
            "against ONNX Runtime",
            f"{p.equal_pixels:.2%} of pixels in the same of {p.segments} segments; depth differs by "
            f"{p.depth_median:.2g} (median) and {p.depth_p99:.2g} (99 %), relative; scores by {p.score_difference:.2g}",
        )
    else:
        table.add_row("against ONNX Runtime", "not compared: it was built for another machine")
    return table


def about_engine_layers(header: dict[str, Any]) -> list[Table]:
    """The layers that the parser made and, if it was built where it runs, those of the optimized engine."""
    tables = []
    for key, title in (("network_layers", "layers of the network"), ("engine_layers", "layers of the engine")):
        kinds: dict[str, int] = header.get(key) or {}
        if not kinds:
            continue
        plugins = sum(count for name, count in kinds.items() if "plugin" in name.lower())
        table = _table(f"{title}: {sum(kinds.values())}, of which plugins: {plugins or 'none'}", "kind", "layers")
        ordered = sorted(kinds.items(), key=lambda item: -item[1])
        for name, count in ordered[:_SHOWN_LAYERS]:
            table.add_row(name.lower(), str(count))
        if rest := ordered[_SHOWN_LAYERS:]:
            table.add_row(f"{len(rest)} other kinds", str(sum(count for _, count in rest)))
        tables.append(table)
    return tables


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=any(columns), min_width=len(title))
    for column in columns:
        table.add_column(column, overflow="fold")  # digests are of use whole
    return table


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


def _counts(names: list[str]) -> str:
    """``float32`` where all are, ``90 int8, 18 float32`` where they differ."""
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    if len(counts) < 2:
        return "".join(counts)
    return ", ".join(f"{count} {name}" for name, count in counts.items())
