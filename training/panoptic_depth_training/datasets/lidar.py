# SPDX-License-Identifier: Apache-2.0
"""From a lidar's scan to a sparse depth map of a camera: clouds, static transforms, projection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_training.datasets.labeled import DataError

_FIELD_TYPES = {7: "f4", 8: "f8"}  # sensor_msgs/PointField FLOAT32, FLOAT64
_NEAR_M = 0.5  # nearer points are the vehicle's own or the sensor's noise


def points_from_cloud(cloud: Any) -> np.ndarray:
    """The finite points [N, 3] float64 of a sensor_msgs/PointCloud2, in its frame."""
    kinds = {field.name: (field.offset, _FIELD_TYPES.get(field.datatype)) for field in cloud.fields}
    if any(kinds.get(axis, (0, None))[1] is None for axis in "xyz"):
        raise DataError(f"a cloud with fields {', '.join(kinds)}; expected x, y and z as float32 or float64")
    order = ">" if cloud.is_bigendian else "<"
    layout = np.dtype(
        {
            "names": list("xyz"),
            "formats": [order + str(kinds[axis][1]) for axis in "xyz"],
            "offsets": [kinds[axis][0] for axis in "xyz"],
            "itemsize": cloud.point_step,
        }
    )
    data = np.frombuffer(cloud.data, np.uint8)
    if len(data) < cloud.row_step * cloud.height or cloud.row_step < cloud.point_step * cloud.width:
        raise DataError(
            f"a cloud of {len(data)} bytes; {cloud.height} rows of {cloud.width} points need "
            f"{cloud.height * cloud.width * cloud.point_step}: the message was cut short"
        )
    rows = data[: cloud.row_step * cloud.height].reshape(cloud.height, cloud.row_step)
    records = np.ascontiguousarray(rows[:, : cloud.point_step * cloud.width]).view(layout)
    points = np.stack([records[axis].ravel() for axis in "xyz"], axis=-1).astype(np.float64)
    return points[np.isfinite(points).all(axis=1)]


def depth_from_points(points: np.ndarray, camera: PinholeCamera) -> np.ndarray:
    """Depth [H, W] float32 in meters of points [N, 3] in the optical frame: the nearest in each pixel, 0 for none.

    Points that the lidar sees over something that hides them from the camera stay in: 6 % of those in the sample drive,
    whose lidar is half a meter above the camera. A filter by neighborhood would take the far road with them.
    """
    points = points[points[:, 2] > _NEAR_M]
    if camera.is_distorted:
        # Far outside of the image a lens model folds back into it.
        limit = 1.1 * np.abs(camera.rays(stride=8)).max(axis=(0, 1))
        points = points[(np.abs(points[:, :2]) <= limit * points[:, 2:]).all(axis=1)]
    u, v = np.rint(camera.project(points)).T
    inside = (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
    u, v, z = u[inside].astype(np.intp), v[inside].astype(np.intp), points[inside, 2]
    depth = np.zeros((camera.height, camera.width), np.float32)
    nearest_last = np.argsort(-z, kind="stable")
    depth[v[nearest_last], u[nearest_last]] = z[nearest_last]
    return depth


class FrameTree:
    """Static transforms between coordinate frames, as /tf_static gives them."""

    def __init__(self) -> None:
        self._parents: dict[str, tuple[str, np.ndarray]] = {}  # child -> parent, parent_from_child [4, 4]

    def add(self, message: Any) -> None:
        """Learn the transforms of a tf2_msgs/TFMessage."""
        for stamped in message.transforms:
            parent, child = _bare(stamped.header.frame_id), _bare(stamped.child_frame_id)
            self._parents[child] = parent, _matrix(stamped.transform)

    def transform(self, target: str, source: str) -> np.ndarray:
        """target_from_source [4, 4]; raises DataError where the frames are not connected."""
        target, source = _bare(target), _bare(source)
        up, down = self._ancestors(source), self._ancestors(target)
        common = next((frame for frame in up if frame in down), None)
        if common is None:
            known = ", ".join(sorted({*self._parents, *(parent for parent, _ in self._parents.values())})) or "nothing"
            raise DataError(
                f"no transform from frame {source!r} to {target!r} on /tf_static, which connects {known}; "
                "record /tf_static with the calibration of both sensors"
            )
        return np.linalg.inv(down[common]) @ up[common]

    def _ancestors(self, frame: str) -> Mapping[str, np.ndarray]:
        """The frame itself and all above it -> ancestor_from_frame."""
        ancestors = {frame: np.eye(4)}
        while frame in self._parents:
            parent, parent_from_frame = self._parents[frame]
            if parent in ancestors:
                raise DataError(f"/tf_static goes round in a circle at frame {parent!r}; record it again")
            ancestors[parent] = parent_from_frame @ ancestors[frame]
            frame = parent
        return ancestors


def _bare(frame: str) -> str:
    return frame.removeprefix("/")  # ROS 1 wrote the slash


def _matrix(transform: Any) -> np.ndarray:
    """[4, 4] of a geometry_msgs/Transform."""
    q, t = transform.rotation, transform.translation
    x, y, z, w = np.array([q.x, q.y, q.z, q.w]) / max(np.linalg.norm([q.x, q.y, q.z, q.w]), 1e-12)
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, 3] = t.x, t.y, t.z
    return matrix
