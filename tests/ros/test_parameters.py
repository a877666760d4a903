# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import pytest

from panoptic_depth_ros.outputs import CloudOptions
from panoptic_depth_ros.parameters import NodeParameters, declare


@contextmanager
def node(*assignments: str) -> Iterator[Any]:
    """A node that was started with these parameters on its command line."""
    rclpy = pytest.importorskip("rclpy")
    arguments = [word for assignment in assignments for word in ("-p", assignment)]
    context = rclpy.Context()
    rclpy.init(args=["--ros-args", *arguments] if arguments else [], context=context)
    try:
        made = rclpy.create_node("parameters_test", context=context, start_parameter_services=False)
        yield made
        made.destroy_node()
    finally:
        rclpy.shutdown(context=context)


def test_a_node_without_parameters_takes_the_defaults() -> None:
    with node() as made:
        assert declare(made) == NodeParameters()


def test_values_of_the_command_line_are_in_force() -> None:
    with node("cloud_stride:=4", "cloud_max_depth:=35.5", "output_size:=network", "cloud_organized:=false") as made:
        parameters = declare(made)
    assert parameters.cloud == CloudOptions(stride=4, max_depth=35.5, organized=False)
    assert parameters.output_size == "network"
    assert parameters.device == "auto"


@pytest.mark.parametrize(
    ("assignment", "text"),
    [
        ("cloud_stride:=0", "cloud_stride: expected int from 1 to 64"),
        ("cloud_stride:=65", "cloud_stride: expected int from 1 to 64"),
        ("cloud_stride:=2.5", "cloud_stride: expected int"),
        ("engine_threads:=-1", "engine_threads: expected int from 0 to 256"),
        ("cloud_max_depth:=0.0", "cloud_max_depth: expected float from 0.1"),
        ("cloud_max_depth:=far", "cloud_max_depth: expected float"),
        ("cloud_organized:=3", "cloud_organized: expected bool"),
        ("device:=gpu", "device is 'gpu'; expected one of auto, tensorrt, cuda, openvino, cpu"),
        ("image_transport:=h264", "image_transport is 'h264'; expected one of auto, raw, compressed"),
        ("output_size:=huge", "output_size is 'huge'; expected one of image, network"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(assignment: str, text: str) -> None:
    with node(assignment) as made, pytest.raises(ValueError, match=f"parameter {text}"):
        declare(made)


def test_every_parameter_is_described_and_its_limits_hold_its_default() -> None:
    with node() as made:
        declare(made)
        for field in fields(NodeParameters):
            descriptor = made.describe_parameter(field.name)
            assert len(descriptor.description) > 20
            for limits in [*descriptor.integer_range, *descriptor.floating_point_range]:
                assert limits.from_value <= field.default <= limits.to_value
            assert all(choice in descriptor.additional_constraints for choice in field.metadata["choices"])
