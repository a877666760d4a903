# SPDX-License-Identifier: Apache-2.0
"""A baked street that answers rays: what they meet, whether they are blocked, how far a point is from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import open3d as o3d

from panoptic_depth_training.datasets.street_shapes import Mesh

_FAN = np.radians(np.arange(0, 360, 15.0))
_FAN_HEIGHTS = (0.5, 1.0, 1.6)  # [m]


@dataclass(frozen=True)
class Hits:
    """Where rays met the mesh; rows without a hit keep part -1 and length infinity."""

    length: np.ndarray  # [N] float32, in units of the ray's direction
    part: np.ndarray  # [N] int32
    triangle: np.ndarray  # [N] uint32, not a row where there is no hit
    uv: np.ndarray  # [N, 2] float32
    face: np.ndarray  # [N, 3] float32, the triangle's unit normal


class Scene:
    """A mesh at one instant, ready for rays."""

    def __init__(self, mesh: Mesh, threads: int = 1) -> None:
        self.mesh = mesh
        self._threads = threads
        self._caster = o3d.t.geometry.RaycastingScene(nthreads=threads)
        self._caster.add_triangles(_tensor(mesh.vertices), _tensor(mesh.triangles))

    def cast(self, origins: np.ndarray, directions: np.ndarray) -> Hits:
        """First hits of rays from origins [N, 3] or [3] along directions [N, 3]."""
        answer = self._caster.cast_rays(_rays(origins, directions), nthreads=self._threads)
        triangle, length = answer["primitive_ids"].numpy(), answer["t_hit"].numpy()
        part = self.mesh.part.take(triangle.view(np.int32), mode="clip")
        part[np.isinf(length)] = -1
        return Hits(length, part, triangle, answer["primitive_uvs"].numpy(), answer["primitive_normals"].numpy())

    def blocked(self, origins: np.ndarray, directions: np.ndarray, reach: float) -> np.ndarray:
        """Whether [N] anything stands on the way from origins [N, 3] along directions [N, 3] or [3]."""
        return self._caster.test_occlusions(_rays(origins, directions), 0.0, reach, self._threads).numpy()

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Distance [N] in meters of points [N, 3] from the nearest surface."""
        return self._caster.compute_distance(_tensor(points.astype(np.float32))).numpy()

    def has_room(self, world_from_base: np.ndarray, around: float, ahead: float) -> bool:
        """Whether nothing stands within so many meters of a vehicle's front, to all sides and in its way."""
        directions = np.stack([np.cos(_FAN), np.sin(_FAN), np.zeros_like(_FAN)], -1)
        reach = np.where(np.cos(_FAN) > 0.93, ahead, around)
        starts = world_from_base[:3, 3] + np.outer(_FAN_HEIGHTS, world_from_base[:3, 2])
        origins = np.repeat(starts, len(_FAN), axis=0)
        hits = self.cast(origins, np.tile(directions @ world_from_base[:3, :3].T, (len(starts), 1)))
        return bool((hits.length > np.tile(reach, len(starts))).all())


def _rays(origins: np.ndarray, directions: np.ndarray) -> o3d.core.Tensor:
    rays = np.empty((np.broadcast_shapes(origins.shape, directions.shape)[0], 6), np.float32)
    rays[:, :3], rays[:, 3:] = origins, directions
    return _tensor(rays)


def _tensor(array: np.ndarray) -> o3d.core.Tensor:
    return o3d.core.Tensor.from_numpy(np.ascontiguousarray(array))
