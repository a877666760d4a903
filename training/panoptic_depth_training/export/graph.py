# SPDX-License-Identifier: Apache-2.0
"""From a network to the content of its ONNX file."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from panoptic_depth_model.convolutions import convolve_on_grid, use_convolution
from panoptic_depth_model.deployable import Deployable, Outputs
from panoptic_depth_model.panoptic_depth import PanopticDepth
from panoptic_depth_ros.manifest import INPUT, METADATA_KEY, Manifest
from panoptic_depth_training.export.half_precision import halve
from panoptic_depth_training.export.options import ExportOptions
from panoptic_depth_training.export.pictures import batches, open_pictures, told
from panoptic_depth_training.export.quantization import quantize
from panoptic_depth_training.inference import fold_norms, with_decisions

# The first that has deformable convolution, and scales of int8 in float16. TensorRT knows it since release 10.
OPSET = 19
LARGE_TENSOR = 4096  # elements; smaller ones stay in full precision, for they weigh nothing


def model_file(
    network: PanopticDepth, manifest: Manifest, options: ExportOptions, report: Callable[[str], None]
) -> bytes:
    """The content of the ONNX file of a `storable` network, not compared with anything yet."""
    calibration = open_pictures(options.calibration, options.calibration_count) if options.calibration else None
    report(f"exporting {options.height}x{options.width} in {options.precision}")
    model = onnx_model(prepared(network, manifest.label_stride, options), options)
    if calibration:
        pictures = told(calibration, "calibrating", report)
        groups = batches(pictures, manifest.height, manifest.width, options.batch)
        model = quantize(model, ({INPUT: group.images} for group in groups))
    return finished(model, manifest)


def storable(network: PanopticDepth) -> PanopticDepth:
    """The network with batch norms folded into their convolutions and large tensors in half precision.

    Rounding here, not in the file, makes what PyTorch runs and what the file holds the same numbers, so that
    the comparison of the two can be strict.
    """
    fold_norms(network)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.numel() >= LARGE_TENSOR:
                parameter.copy_(parameter.half().float())
    return network


def with_label_stride(network: PanopticDepth, stride: int) -> PanopticDepth:
    """A copy of the network that tells segments apart on another grid."""
    return with_decisions(deepcopy(network), replace(network.config.decisions, label_stride=stride))


def prepared(network: PanopticDepth, stride: int, options: ExportOptions) -> Deployable:
    """What the exporter traces."""
    copy = with_label_stride(network, stride)
    if options.portable:
        use_convolution(copy, convolve_on_grid)
    if options.is_half:
        halve(copy)
    return Deployable(copy).eval()


def onnx_model(deployable: Deployable, options: ExportOptions) -> onnx.ModelProto:
    """The graph of a network for a fixed input size."""
    image = torch.zeros(options.batch, options.height, options.width, 3, dtype=torch.uint8)
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
    return program.model_proto


def finished(model: onnx.ModelProto, manifest: Manifest) -> bytes:
    """The file's content: large tensors in half precision, the manifest, and nothing about this machine."""
    halve_storage(model)
    for node in model.graph.node:
        node.ClearField("metadata_props")  # the exporter's stack traces, with paths of the machine it ran on
        node.ClearField("doc_string")
    del model.graph.value_info[:]
    helper.set_model_props(model, {METADATA_KEY: manifest.to_json()})
    onnx.checker.check_model(model)
    return model.SerializeToString()


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
