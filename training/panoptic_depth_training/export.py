# SPDX-License-Identifier: Apache-2.0
"""From trained weights to the one ONNX file that the vehicle runs.

    python -m panoptic_depth_training.export WEIGHTS.pt MODEL.onnx --height 256 --width 512

The file is written only if ONNX Runtime answers as PyTorch does.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.fx.experimental.optimization import fuse

from panoptic_depth_model.backbones import ResNetFeatures
from panoptic_depth_model.deployable import Deployable, Outputs
from panoptic_depth_model.panoptic_depth import PanopticDepth
from panoptic_depth_model.weights import load_weights
from panoptic_depth_ros.manifest import INPUT, METADATA_KEY
from panoptic_depth_training.facts import ModelFacts
from panoptic_depth_training.torch_engine import manifest_of

OPSET = 18  # known to every TensorRT since 8.6, so to vehicles on JetPack 6 as well
LARGE_TENSOR = 4096  # elements; smaller ones stay in full precision, for they weigh nothing
MIN_EQUAL_IDS = 0.999  # share of pixels
MAX_DEPTH_ERROR = 1e-3  # relative, where the ids agree


class ExportError(RuntimeError):
    """The exported graph does not answer as the network does."""


def export(
    weights: Path, path: Path, *, height: int, width: int, batch: int, name: str, version: str
) -> list[Comparison]:
    """Write the ONNX file with its manifest inside; return how it compares with PyTorch on a few images."""
    network, facts = load_weights(weights)
    described = manifest_of(network, ModelFacts.from_dict(facts), height, width, name)
    manifest = replace(described, version=version, opset=OPSET)
    deployable = Deployable(storable(network)).eval()
    model = onnx_model(deployable, batch, height, width)
    helper.set_model_props(model, {METADATA_KEY: manifest.to_json()})
    contents = model.SerializeToString()

    comparisons = compare(deployable, contents, probe_images(batch, height, width))
    if bad := [c.image for c in comparisons if not c.agrees]:
        raise ExportError(
            f"{path} not written: on image {', '.join(map(str, bad))} ONNX Runtime differs from PyTorch "
            f"in more than {1 - MIN_EQUAL_IDS:.1%} of the ids or by more than {MAX_DEPTH_ERROR:g} in depth; "
            f"check the versions of torch and onnxscript\n{table(comparisons)}"
        )
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(contents)
    partial.replace(path)
    return comparisons


def storable(network: PanopticDepth) -> PanopticDepth:
    """The network with batch norms folded into their convolutions and large tensors in half precision.

    Rounding here, not in the file, makes what PyTorch runs and what the file holds the same numbers, so that
    the comparison of the two can be strict.
    """
    if isinstance(network.backbone, ResNetFeatures):
        network.backbone = fuse(network.backbone)  # type: ignore[assignment]
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.numel() >= LARGE_TENSOR:
                parameter.copy_(parameter.half().float())
    return network


def onnx_model(deployable: Deployable, batch: int, height: int, width: int) -> onnx.ModelProto:
    """The graph of a network for a fixed input size."""
    image = torch.zeros(batch, height, width, 3, dtype=torch.uint8)
    program = torch.onnx.export(
        deployable,
        (image,),
        dynamo=True,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=list(Outputs._fields),
        external_data=False,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    halve_storage(model)
    for node in model.graph.node:
        node.ClearField("metadata_props")  # the exporter's stack traces, with paths of the machine it ran on
        node.ClearField("doc_string")
    del model.graph.value_info[:]
    onnx.checker.check_model(model)
    return model


def halve_storage(model: onnx.ModelProto) -> None:
    """Store large tensors as float16 with a Cast to float32 behind each, where that loses nothing.

    The file shrinks by half and arithmetic stays in single precision: engines resolve the casts when they
    load.
    """
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if values.size < LARGE_TENSOR or not np.array_equal(half.astype(np.float32), values):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, name + "_half"))
        casts.append(
            helper.make_node("Cast", [tensor.name], [name], name=name + "_cast", to=TensorProto.FLOAT)
        )
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


@dataclass(frozen=True)
class Comparison:
    """ONNX Runtime against PyTorch on one image."""

    image: int
    equal_ids: float  # share of pixels
    depth_error: float  # largest relative difference where the ids agree
    segments: int

    @property
    def agrees(self) -> bool:
        return self.equal_ids >= MIN_EQUAL_IDS and self.depth_error <= MAX_DEPTH_ERROR


def compare(deployable: Deployable, model: bytes, images: np.ndarray) -> list[Comparison]:
    """Run batches of images [M, B, h, w, 3] through both."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    comparisons: list[Comparison] = []
    for batch in images:
        with torch.inference_mode():
            ours = Outputs(*(output.numpy() for output in deployable(torch.from_numpy(batch))))
        theirs = Outputs(*session.run(list(Outputs._fields), {INPUT: batch}))
        for ids, other_ids, depth, other_depth in zip(
            ours.segment_ids, theirs.segment_ids, ours.depth, theirs.depth, strict=True
        ):
            equal = ids == other_ids
            error = np.abs(other_depth - depth)[equal] / depth[equal]
            comparisons.append(
                Comparison(
                    len(comparisons), float(equal.mean()), float(error.max(initial=0)), len(np.unique(ids))
                )
            )
    return comparisons


def probe_images(batch: int, height: int, width: int, count: int = 3) -> np.ndarray:
    """Pictures [count, batch, height, width, 3] uint8 of colored shapes, the same every time."""
    generator = np.random.default_rng(0)
    pictures = np.empty((count * batch, height, width, 3), np.uint8)
    for picture in pictures:
        shade = np.linspace(230, 60, height)[:, None, None] * generator.uniform(0.6, 1.0, 3)
        picture[:] = np.clip(shade + generator.normal(0, 6, picture.shape), 0, 255)
        for _ in range(12):
            x, y = int(generator.integers(width)), int(generator.integers(height // 4, height))
            size = int(generator.integers(height // 16, height // 3))
            color = tuple(int(value) for value in generator.integers(0, 256, 3))
            cv2.rectangle(picture, (x, y - size), (x + size, y), color, -1)
    return pictures.reshape(count, batch, height, width, 3)


def table(comparisons: list[Comparison]) -> str:
    """The comparisons for a terminal."""
    lines = ["image  equal ids  largest depth error  segments"]
    lines += [
        f"{c.image:5d}  {c.equal_ids:9.4%}  {c.depth_error:19.1e}  {c.segments:8d}" for c in comparisons
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path, help="weights written by panoptic_depth_training.train")
    parser.add_argument("model", type=Path, help="ONNX file to write")
    parser.add_argument(
        "--height", type=int, required=True, help="network input height [px], a multiple of 32"
    )
    parser.add_argument("--width", type=int, required=True, help="network input width [px], a multiple of 32")
    parser.add_argument("--batch", type=int, default=1, help="images a call (default: 1)")
    parser.add_argument("--name", default="panoptic_depth", help="the model's name in its manifest")
    parser.add_argument("--version", default="1", help="the model's version in its manifest")
    options = vars(parser.parse_args())
    weights, path = options.pop("weights"), options.pop("model")
    try:
        comparisons = export(weights, path, **options)
    except (ExportError, ValueError, OSError) as error:
        sys.exit(f"export: {error}")
    print(table(comparisons))
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {options['height']}x{options['width']}")


if __name__ == "__main__":
    main()
