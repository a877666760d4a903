# SPDX-License-Identifier: Apache-2.0
"""The node's parameters: one dataclass, from which declaration, ranges, descriptions and documents follow."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from panoptic_depth_ros.engines import CPU_PRECISIONS, DEVICES
from panoptic_depth_ros.outputs import CloudOptions

if TYPE_CHECKING:
    from rcl_interfaces.msg import ParameterDescriptor
    from rclpy.node import Node

TRANSPORTS = ("auto", "raw", "compressed")
OUTPUT_SIZES = ("image", "network")

T = TypeVar("T")


def parameter(
    default: T, description: str, *, choices: tuple[str, ...] = (), at_least: Any = None, at_most: Any = None
) -> T:
    """A dataclass field that carries its ROS descriptor's texts and limits."""
    metadata = {"description": description, "choices": choices, "at_least": at_least, "at_most": at_most}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class NodeParameters:
    """What a vehicle decides; what the model decides stands in its manifest."""

    model: str = parameter("", "Path of the exported model (.onnx). Empty: the compact model that comes along.")
    device: str = parameter(
        "auto",
        "What runs the model: TensorRT, ONNX Runtime on the GPU (cuda), OpenVINO, ONNX Runtime on the CPU (cpu). auto: "
        "the first of these four that can run here.",
        choices=DEVICES,
    )
    engine_threads: int = parameter(0, "CPU threads of the engine. 0: one per core.", at_least=0, at_most=256)
    engine_precision: str = parameter(
        "f32",
        "OpenVINO's arithmetic. bf16: twice as fast on CPUs that have it, two to three significant digits.",
        choices=CPU_PRECISIONS,
    )
    tensorrt_workspace_gib: float = parameter(
        0.0,
        "Scratch memory that one layer of a TensorRT engine may use [GiB]. 0: as TensorRT sees fit.",
        at_least=0.0,
        at_most=1024.0,
    )
    build_only: bool = parameter(
        False,
        "Build the model's TensorRT engine if it is not there yet, whatever device says, and end.",
    )
    image_transport: str = parameter(
        "auto",
        "Which image topic is read: ~/input/image (raw) or ~/input/image/compressed. auto: raw if both are published.",
        choices=TRANSPORTS,
    )
    image_is_rectified: bool = parameter(
        False,
        "Images are rectified: take P of camera_info, not K and D. Implied by a topic called image_rect*.",
    )
    output_size: str = parameter(
        "image",
        "Size of the published images and of the grid that the cloud samples: the camera image's or the network's.",
        choices=OUTPUT_SIZES,
    )
    cloud_stride: int = parameter(
        CloudOptions.stride, "Every how many pixels of the depth image a point is taken.", at_least=1, at_most=64
    )
    cloud_max_depth: float = parameter(
        CloudOptions.max_depth, "Points farther than this are left out [m].", at_least=0.1, at_most=1e4
    )
    cloud_organized: bool = parameter(
        CloudOptions.organized,
        "true: one point per sampled pixel, NaN where there is none. false: a list of the finite points.",
    )

    def __post_init__(self) -> None:
        for f in fields(self):
            value, choices = getattr(self, f.name), f.metadata["choices"]
            if choices and value not in choices:
                raise ValueError(f"parameter {f.name} is {value!r}; expected one of {', '.join(choices)}")

    @property
    def cloud(self) -> CloudOptions:
        return CloudOptions(self.cloud_stride, self.cloud_max_depth, self.cloud_organized)


def declare(node: Node) -> NodeParameters:
    """Declare every field on the node and return the values in force.

    Raises:
        ValueError: a value that is out of range or of another type; the text names the parameter.
    """
    from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException

    defaults = NodeParameters()
    values = {}
    for f in fields(defaults):
        default = getattr(defaults, f.name)
        try:
            values[f.name] = node.declare_parameter(f.name, default, _descriptor(f.metadata, default)).value
        except (InvalidParameterTypeException, InvalidParameterValueException) as error:
            low, high = f.metadata["at_least"], f.metadata["at_most"]
            limits = "" if low is None else f" from {low} to {high}"
            raise ValueError(f"parameter {f.name}: expected {type(default).__name__}{limits}; {error}") from error
    return replace(defaults, **values)


def _descriptor(metadata: Any, default: Any) -> ParameterDescriptor:
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

    descriptor = ParameterDescriptor(description=metadata["description"], read_only=True)
    if metadata["choices"]:
        descriptor.additional_constraints = "one of " + ", ".join(metadata["choices"])
    if isinstance(default, float):
        limits = FloatingPointRange(from_value=float(metadata["at_least"]), to_value=float(metadata["at_most"]))
        descriptor.floating_point_range = [limits]
    elif metadata["at_least"] is not None:
        descriptor.integer_range = [IntegerRange(from_value=metadata["at_least"], to_value=metadata["at_most"], step=1)]
    return descriptor
