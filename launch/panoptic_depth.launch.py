# SPDX-License-Identifier: Apache-2.0
"""Starts the node for one camera, and RViz on request; `ros2 launch ... --show-args` lists what can be set."""

from __future__ import annotations

from typing import Any

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from panoptic_depth_ros import huge_pages
from panoptic_depth_ros.share import share_path


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*arguments(), OpaqueFunction(function=node), rviz()])


def arguments() -> list[DeclareLaunchArgument]:
    booleans = ["true", "false"]
    return [
        DeclareLaunchArgument(
            "image",
            default_value="/camera/image_raw",
            description="Image topic. Its compressed form is the same name with /compressed.",
        ),
        DeclareLaunchArgument(
            "camera_info",
            default_value="/camera/camera_info",
            description="Calibration topic. Without one there is no metric depth and no cloud.",
        ),
        DeclareLaunchArgument(
            "model",
            default_value="",
            description="Exported model (.onnx). Empty: the one in params_file.",
        ),
        DeclareLaunchArgument(
            "params_file",
            default_value=str(share_path("config", "panoptic_depth.yaml")),
            description="Parameters of the node (YAML).",
        ),
        DeclareLaunchArgument(
            "build_only",
            default_value="false",
            choices=booleans,
            description="Build the model's TensorRT engine, which may take minutes, and end the node.",
        ),
        DeclareLaunchArgument(
            "namespace",
            default_value="",
            description="Namespace of the node: one per camera.",
        ),
        DeclareLaunchArgument(
            "log_level",
            default_value="info",
            choices=["debug", "info", "warn", "error", "fatal"],
            description="Least severity that is logged.",
        ),
        DeclareLaunchArgument(
            "use_sim_time",
            default_value="false",
            choices=booleans,
            description="Take time from /clock, as when `ros2 bag play --clock` plays a recording.",
        ),
        DeclareLaunchArgument(
            "rviz",
            default_value="false",
            choices=booleans,
            description="Start RViz with displays for a node without a namespace.",
        ),
        DeclareLaunchArgument(
            "fixed_frame",
            default_value="camera_optical",
            description="RViz's fixed frame: the frame_id of the images, or one that TF connects with it.",
        ),
    ]


def node(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The node; what ``model`` and ``build_only`` do not say is left to the parameters file."""
    image, model = LaunchConfiguration("image"), LaunchConfiguration("model").perform(context)
    overrides: dict[str, Any] = {"use_sim_time": LaunchConfiguration("use_sim_time").perform(context) == "true"}
    if model:
        overrides["model"] = model
    if LaunchConfiguration("build_only").perform(context) == "true":
        overrides["build_only"] = True
    return [
        Node(
            package="panoptic_depth",
            executable="panoptic_depth_node",
            name="panoptic_depth",
            namespace=LaunchConfiguration("namespace"),
            parameters=[LaunchConfiguration("params_file"), overrides],
            remappings=[
                ("~/input/image", image),
                ("~/input/image/compressed", [image, "/compressed"]),
                ("~/input/camera_info", LaunchConfiguration("camera_info")),
            ],
            ros_arguments=["--log-level", LaunchConfiguration("log_level")],
            additional_env=huge_pages.environment(),
            output="screen",
        )
    ]


def rviz() -> Node:
    return Node(
        package="rviz2",
        executable="rviz2",
        arguments=["-d", str(share_path("rviz", "panoptic_depth.rviz")), "-f", LaunchConfiguration("fixed_frame")],
        parameters=[{"use_sim_time": LaunchConfiguration("use_sim_time")}],
        condition=IfCondition(LaunchConfiguration("rviz")),
    )
