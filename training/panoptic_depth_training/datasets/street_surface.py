# SPDX-License-Identifier: Apache-2.0
"""The points of a rendered street that are shaded together, with all that their mesh knows of them.

N is the number of points. Vectors have their channels first, [3, N]: NumPy is several times faster along long rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from panoptic_depth_training.datasets.street_shapes import Material, Mesh

FLAT = frozenset(
    {
        *(Material.ROAD, Material.PAVING, Material.GRASS, Material.FACADE, Material.BRICK, Material.TILES),
        *(Material.GREENHOUSE, Material.COACH, Material.ROUND_SIGN, Material.TRIANGLE_SIGN),
    }
)  # materials of shapes whose triangles are not smoothed: the triangle's own normal serves


@dataclass(frozen=True)
class Surface:
    """Points of one material. What only some materials ask for is looked up when they do."""

    mesh: Mesh
    material: Material
    part: np.ndarray  # [N] rows of the parts' tables
    row: np.ndarray  # [N] rows of the shapes' tables
    uv: np.ndarray  # [2, N] where in the triangle
    position: np.ndarray  # [3, N] world, meters
    face: np.ndarray  # [3, N] world, unit normal of the triangle, toward the viewer
    is_behind: np.ndarray  # [N] whether the triangle is seen from its back
    footprint: np.ndarray  # [N] meters that a pixel covers there

    def __len__(self) -> int:
        return len(self.part)

    @cached_property
    def size(self) -> np.ndarray:
        """Meters [3, N] for one unit of each local axis."""
        return gather(self.mesh.size, self.part)

    @cached_property
    def color(self) -> np.ndarray:
        """[3, N]"""
        return gather(self.mesh.color, self.part)

    @cached_property
    def accent(self) -> np.ndarray:
        """[3, N]"""
        return gather(self.mesh.accent, self.part)

    @cached_property
    def detail(self) -> np.ndarray:
        """[DETAILS, N]"""
        return gather(self.mesh.detail, self.part)

    @cached_property
    def local(self) -> np.ndarray:
        """[3, N] in units of the shape."""
        return self._interpolated(self.mesh.corner_points)

    @cached_property
    def local_normal(self) -> np.ndarray:
        """[3, N], about unit; of the shape's outside."""
        if self.material in FLAT:
            return gather(self.mesh.corner_normals[:3], self.row)
        return self._interpolated(self.mesh.corner_normals)

    @cached_property
    def normal(self) -> np.ndarray:
        """[3, N] world, unit, toward the viewer; leaves keep the crown's."""
        if self.material in FLAT:
            return self.face
        m, n = gather(self.mesh.normal_from_shape, self.part), self.local_normal
        normal = np.empty_like(n)
        for axis in range(3):
            np.multiply(m[3 * axis], n[0], out=normal[axis])
            normal[axis] += m[3 * axis + 1] * n[1]
            normal[axis] += m[3 * axis + 2] * n[2]
        scale = 1 / np.maximum(np.sqrt(dot(normal, normal)), 1e-9)
        if self.material != Material.LEAVES:
            scale *= np.where(self.is_behind, np.float32(-1), np.float32(1))
        normal *= scale
        return normal

    def _interpolated(self, corners: np.ndarray) -> np.ndarray:
        """[3, N] between the triangles' corners [9, S]."""
        first, second, third = (gather(corners[3 * i : 3 * i + 3], self.row) for i in range(3))
        u, v = self.uv
        first *= 1 - u - v
        first += u * second
        first += v * third
        return first


def gather(table: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Columns [C, N] of a table [C, R]."""
    found = np.empty((len(table), len(index)), table.dtype)
    for channel, out in zip(table, found, strict=True):
        channel.take(index, out=out, mode="clip")
    return found


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[N] of vectors [3, N]; either may be one vector [3]."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def blend(base: np.ndarray, other: np.ndarray | tuple[float, float, float], share: np.ndarray) -> np.ndarray:
    """Colors [3, N] on their way from base to another by a share [N], 0..1 or a condition."""
    mixed = np.empty((3, len(share)), np.float32)
    weight = share.astype(np.float32)
    for channel in range(3):
        np.subtract(other[channel], base[channel], out=mixed[channel])
        mixed[channel] *= weight
        mixed[channel] += base[channel]
    return mixed


def tinted(color: np.ndarray | tuple[float, float, float], tone: np.ndarray) -> np.ndarray:
    """Colors [3, N] (or one color [3]) times a tone [N]."""
    return np.stack([color[channel] * tone for channel in range(3)])
