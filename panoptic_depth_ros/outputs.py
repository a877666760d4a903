# SPDX-License-Identifier: Apache-2.0
"""The topics that a prediction is published on, and the messages for them: the same on the road and offline."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
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
# What takes long comes first, so that threads that share the work end together; the cloud, which comes in small parts
# and needs depth, follows.
_BUILDING_ORDER = (DEPTH, OVERLAY, SEGMENTS, PANOPTIC_COLOR, PANOPTIC, SEMANTIC, DEPTH_CAMERA_INFO)
NEEDS_CAMERA = frozenset({DEPTH, DEPTH_CAMERA_INFO, POINTS})


Job = Callable[[], None]  # a part of the work on one frame, for any thread


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
        self._options = cloud
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
        for job in self._cloud_jobs(maps, camera):
            job()
        return self._points(header, camera)

    def build_all(
        self,
        names: Iterable[str],
        header: Any,
        maps: OutputMaps,
        camera: PinholeCamera | None,
        run: Callable[[list[Job]], None],
    ) -> dict[str, Any]:
        """The messages for some of TYPES by name, as `build` makes them.

        ``run`` does all jobs that it is given, on any threads, and returns when they are done.
        """
        messages: dict[str, Any] = {}
        wanted = computable(names, camera)

        def build(name: str) -> None:
            messages[name] = self.build(name, header, maps, camera)

        jobs: list[Job] = [partial(build, name) for name in _BUILDING_ORDER if name in wanted]
        if POINTS not in wanted or camera is None:
            run(jobs)
            return messages
        run(jobs + self._cloud_jobs(maps, camera))
        return messages | {POINTS: self._points(header, camera)}

    def _image(self, name: str, header: Any, maps: OutputMaps) -> Any:
        encoding, write = _IMAGES[name]
        buffer = self._buffers[name]
        write(maps, image_view(buffer, encoding, maps.height, maps.width))
        return image_message(self._make, header, encoding, maps.height, maps.width, buffer)

    def _cloud_memory(self, camera: PinholeCamera) -> np.ndarray:
        """The published memory as an organized cloud [height, width] of POINT."""
        grid = self._grid_for(camera)
        return self._buffers[POINTS].view((grid.height, grid.width), POINT)

    def _cloud_jobs(self, maps: OutputMaps, camera: PinholeCamera) -> list[Job]:
        grid, cloud = self._grid_for(camera), self._cloud_memory(camera)
        return [partial(grid.fill_rows, maps, cloud, rows) for rows in grid.bands()]

    def _points(self, header: Any, camera: PinholeCamera) -> Any:
        """The message of the cloud that the jobs have filled."""
        cloud = self._cloud_memory(camera)
        if self._options.organized:
            height, width = cloud.shape
            data = self._buffers[POINTS].data
            return cloud_message(self._make, header, self._point_fields, height, width, False, data)
        points = compact(cloud)
        data = array("B")
        data.frombytes(points.view("u1").data)
        return cloud_message(self._make, header, self._point_fields, 1, len(points), True, data)

    def _grid_for(self, camera: PinholeCamera) -> CloudGrid:
        if self._grid is None or self._grid.camera != camera:
            self._grid = CloudGrid(camera, self._options.stride, self._options.max_depth)
        return self._grid


def computable(names: Iterable[str], camera: PinholeCamera | None) -> list[str]:
    """Those of the names that can be built, in publishing order: without a camera nothing metric."""
    wanted = set(names) - (NEEDS_CAMERA if camera is None else frozenset())
    return [name for name in TYPES if name in wanted]


def do_on_two_threads(jobs: list[Job], helper: Executor) -> None:
    """Do all jobs, on this thread and on one of the helper's; each takes the next that is left.

    It returns when both threads are done, and raises what a job raised.
    """
    left = iter(jobs)  # the interpreter gives each item of a list's iterator to one thread only

    def work() -> None:
        for job in left:
            job()

    beside = helper.submit(work)
    try:
        work()
    finally:  # after an error, too: the next frame needs the memory that the other thread writes
        beside.result()
