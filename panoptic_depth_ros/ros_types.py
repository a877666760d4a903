# SPDX-License-Identifier: Apache-2.0
"""ROS message classes by their names, from the ROS installation at hand."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache, partial
from typing import Any


class MissingMessageError(ImportError):
    """A message type is not installed; the text says which package brings it."""


def message_class(type_name: str) -> Any:
    """The rclpy class of a type such as ``sensor_msgs/msg/Image``."""
    package, kind, name = type_name.split("/")
    try:
        return getattr(importlib.import_module(f"{package}.{kind}"), name)
    except (ImportError, AttributeError) as error:
        remedy = "build this package with colcon and source it" if package == "panoptic_depth" else f"install {package}"
        raise MissingMessageError(f"message type {type_name} is not installed: {remedy}") from error


def make_message(type_name: str, **values: Any) -> Any:
    """A message with these fields set (see `panoptic_depth_ros.messages.MakeMessage`)."""
    message = _maker(type_name)()
    for name, value in values.items():
        setattr(message, name, value)
    return message


@cache
def _maker(type_name: str) -> Callable[[], Any]:
    """Makes an empty message that takes an array.array as it is.

    Since Iron a message copies what it is given, except when it checks its fields; before, it always checks and does
    not know the argument.
    """
    kind = message_class(type_name)
    try:
        kind(check_fields=True)
    except (AssertionError, TypeError):
        return kind
    return partial(kind, check_fields=True)
