# SPDX-License-Identifier: Apache-2.0
"""The topics that a prediction is published on, and the messages for them: the same on the road and offline."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.cloud import POINT, CloudGrid, compact
from panoptic_depth_ros.maps import OutputMaps
from panoptic_depth_ros.messages import (
    CAMERA_INFO,
    IMAGE,
    PANOPTIC_SEGMENTS,
    POINT_CLOUD,
    Buffer,
    MakeMessage,
    camera_info_message,
    cloud_message,
    image_message,
    image_view,
    point_fields,
    segments_message,
)
from panoptic_depth_ros.segments import summarize

SEMANTIC, PANOPTIC = "semantic", "panoptic"
PANOPTIC_COLOR, OVERLAY = "panoptic_color", "overlay"
DEPTH, DEPTH_CAMERA_INFO = "depth/image", "depth/camera_info"
POINTS, SEGMENTS = "points", "segments"

# In the order in which they are published: what a vehicle reacts to first, what people look at last.
TYPES: dict[str, str] = {
    SEGMENTS: PANOPTIC_SEGMENTS,
    SEMANTIC: IMAGE,
    PANOPTIC: IMAGE,
    DEPTH: IMAGE,
    DEPTH_CAMERA_INFO: CAMERA_INFO,
    POINTS: POINT_CLOUD,
    PANOPTIC_COLOR: IMAGE,
    OVERLAY: IMAGE,
}
# Image outputs: the encoding, and what writes their pixels.
_IMAGES: dict[str, tuple[str, Callable[[OutputMaps, np.ndarray], np.ndarray]]] = {
    SEMANTIC: ("mono8", OutputMaps.category_ids),
    PANOPTIC: ("mono16", OutputMaps.panoptic_ids),
    DEPTH: ("32FC1", OutputMaps.depth_into),
    PANOPTIC_COLOR: ("rgb8", OutputMaps.panoptic_color),
    OVERLAY: ("rgb8", OutputMaps.overlay),
}
NEEDS_CAMERA = frozenset({DEPTH, DEPTH_CAMERA_INFO, POINTS})


@dataclass(frozen=True)
class CloudOptions:
    """Which points the cloud holds: every stride-th pixel up to max_depth meters, with or without empty ones."""

    stride: int = 2
    max_depth: float = 80.0
    organized: bool = True


class OutputMessages:
    """Builds the messages of one camera's predictions; keeps their memory and the camera's rays between frames."""

    def __init__(self, make: MakeMessage, cloud: CloudOptions) -> None:
        self._make = make
        self._cloud = cloud
        self._buffers = {name: Buffer() for name in TYPES}
        self._point_fields = point_fields(make)
        self._grid: CloudGrid | None = None

    def build(self, name: str, header: Any, maps: OutputMaps, camera: PinholeCamera | None) -> Any:
        """The message for one of TYPES. ``camera`` is that of the published grid; NEEDS_CAMERA outputs need it."""
        if name in _IMAGES:
            return self._image(name, header, maps)
        if name == SEGMENTS:
            return segments_message(self._make, header, summarize(maps, camera))
        if camera is None:
            raise ValueError(f"output {name} needs a camera")
        if name == DEPTH_CAMERA_INFO:
            return camera_info_message(self._make, header, camera)
        return self._points(header, maps, camera)

    def _image(self, name: str, header: Any, maps: OutputMaps) -> Any:
        encoding, write = _IMAGES[name]
        buffer = self._buffers[name]
        write(maps, image_view(buffer, encoding, maps.height, maps.width))
        return image_message(self._make, header, encoding, maps.height, maps.width, buffer)

    def _points(self, header: Any, maps: OutputMaps, camera: PinholeCamera) -> Any:
        grid = self._grid_for(camera)
        buffer = self._buffers[POINTS]
        cloud = grid.fill(maps, buffer.view((grid.height, grid.width), POINT))
        if self._cloud.organized:
            return cloud_message(self._make, header, self._point_fields, grid.height, grid.width, False, buffer.data)
        points = compact(cloud)
        data = array("B")
        data.frombytes(points.view("u1").data)
        return cloud_message(self._make, header, self._point_fields, 1, len(points), True, data)

    def _grid_for(self, camera: PinholeCamera) -> CloudGrid:
        if self._grid is None or self._grid.camera != camera:
            self._grid = CloudGrid(camera, self._cloud.stride, self._cloud.max_depth)
        return self._grid


def computable(names: Iterable[str], camera: PinholeCamera | None) -> list[str]:
    """Those of the names that can be built, in publishing order: without a camera nothing metric."""
    wanted = set(names) - (NEEDS_CAMERA if camera is None else frozenset())
    return [name for name in TYPES if name in wanted]
