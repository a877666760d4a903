# SPDX-License-Identifier: Apache-2.0
"""From trained weights to a file that is written only if it answers as the network does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from panoptic_depth_model.panoptic_depth import PanopticDepth
from panoptic_depth_model.weights import load_weights
from panoptic_depth_ros.engines.onnxruntime import open_session
from panoptic_depth_ros.manifest import INPUT, OUTPUTS, Manifest
from panoptic_depth_ros.share import share_path
from panoptic_depth_training.export.agreement import Comparison, Infer, compare, faults, labels_fit, table
from panoptic_depth_training.export.graph import OPSET, model_file, storable, with_label_stride
from panoptic_depth_training.export.options import DEFAULT_PICTURES, ExportOptions
from panoptic_depth_training.export.pictures import Pictures, open_pictures, told
from panoptic_depth_training.facts import ModelFacts
from panoptic_depth_training.network_manifest import manifest_of
from panoptic_depth_training.output_files import write_whole
from panoptic_depth_training.torch_engine import TorchEngine

Report = Callable[[str], None]

_CALIBRATE = "Calibrate on more pictures, of where the model will drive; or take fp16"
REMEDIES = {
    "float32": "Check the versions of torch and onnxscript",
    "fp16": "Take float32",
    "int8": _CALIBRATE,
    "int8-fp16": _CALIBRATE,
}


class ExportError(RuntimeError):
    """The exported graph does not answer as the network does."""


def export(weights: Path, path: Path, options: ExportOptions, report: Report = lambda text: None) -> Comparison:
    """Write the ONNX file with its manifest inside; return how it compares with PyTorch.

    Raises:
        ExportError: they differ by more than the precision explains; nothing was written.
        ValueError: the size, the weights, the pictures or the path cannot be used.
    """
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}; make it first")
    if path.suffix != ".onnx":
        raise ValueError(f"{path}: the model is an ONNX file; name it {path.with_suffix('.onnx').name}")
    network, facts = load_weights(weights)
    pictures = comparison_pictures(options)
    manifest = export_manifest(network, ModelFacts.from_dict(facts), options)
    network = storable(network)
    contents = model_file(network, manifest, options, report)
    comparison = compared(network, contents, pictures, manifest, options.batch, report)
    if found := faults(comparison, options.precision):
        raise ExportError(
            f"{path} not written: ONNX Runtime differs from PyTorch by more than {options.precision} explains: "
            f"{', '.join(found)}. {REMEDIES[options.precision]}\n{table(comparison)}"
        )
    write_whole(path, contents)
    return comparison


def comparison_pictures(options: ExportOptions) -> Pictures:
    if options.images:
        return open_pictures(options.images)
    return open_pictures(f"recording:{share_path('samples', 'street_drive')}", DEFAULT_PICTURES)


def export_manifest(network: PanopticDepth, facts: ModelFacts, options: ExportOptions) -> Manifest:
    """What the file says about itself. Raises ValueError for a size that the network does not take."""
    return replace(
        manifest_of(network, facts, options.height, options.width, options.name),
        version=options.version,
        opset=OPSET,
        precision=options.precision,
        label_stride=options.output_stride or network.config.decisions.label_stride,
    )


def compared(
    network: PanopticDepth, contents: bytes, pictures: Pictures, manifest: Manifest, batch: int, report: Report
) -> Comparison:
    """The file's answers beside those of its network, first of all at the network's own stride."""
    own, stride = network.config.decisions.label_stride, manifest.label_stride
    answers: dict[str, Infer] = {
        f"PyTorch, float32, stride {each}": TorchEngine(with_label_stride(network, each), manifest).infer
        for each in dict.fromkeys((own, stride))
    }
    answers[f"ONNX Runtime, {manifest.precision}, stride {stride}"] = onnxruntime_answers(contents)
    pictured = told(pictures, "comparing", report)
    return compare(pictured, answers, manifest, batch, labels_fit(pictures, manifest))


def onnxruntime_answers(model: bytes) -> Infer:
    """What ONNX Runtime makes of a model, set up as on a vehicle."""
    session = open_session(model)
    return lambda images: dict(zip(OUTPUTS, session.run(OUTPUTS, {INPUT: images}), strict=True))
