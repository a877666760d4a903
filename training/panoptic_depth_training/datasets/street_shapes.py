# SPDX-License-Identifier: Apache-2.0
"""Shapes and parts: what the things of a rendered street are assembled from.

A `Shape` is a small triangle mesh in its own frame. A `Part` is a shape with a pose, a look and a category.
`bake` gathers labeled parts into the one mesh that rays are cast at.
World frame: x forward along the road, y left, z up, meters.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache

import numpy as np

Color = tuple[float, float, float]  # linear RGB, 0..1
Point = Sequence[float] | np.ndarray  # three numbers
FORWARD = np.array([1.0, 0.0, 0.0])


class Material(IntEnum):
    """How a part is painted; street_paint.py has one function for each."""

    PLAIN = 0
    ROAD = 1  # accent: markings; detail: half width, lane width, marking wear
    PAVING = 2  # accent: curb; detail: slab size
    GRASS = 3
    FACADE = 4  # accent: window frames; detail: window spacing, floor height, window width, glass share
    BRICK = 5  # accent: mortar; detail: brick length, brick height
    LEAVES = 6
    GREENHOUSE = 7  # a car's cabin: glass with pillars; accent: glass
    BODYWORK = 8  # varnish with a waist shadow and door gaps
    COACH = 9  # bus and tram: a band of windows; accent: stripe; detail: window spacing, low edge, high edge
    ROUND_SIGN = 10  # accent: rim; detail: rim width, symbol
    TRIANGLE_SIGN = 11
    LAMP = 12  # shines with its own color times detail[0]
    GLASS = 13
    CLOTH = 14  # accent: second color; detail: 0 plain, 1 stripes, 2 checks; their width [m]
    TILES = 15


@dataclass(frozen=True)
class Look:
    """Material and its numbers."""

    color: Color
    material: Material = Material.PLAIN
    accent: Color = (0.0, 0.0, 0.0)
    detail: tuple[float, ...] = ()  # at most DETAILS numbers, by material


DETAILS = 5


@dataclass(frozen=True, eq=False)
class Shape:
    """A triangle mesh in its own frame."""

    vertices: np.ndarray  # [V, 3] float32
    triangles: np.ndarray  # [T, 3] uint32
    normals: np.ndarray  # [T, 3, 3] float32, one for each corner: smooth where the surface is meant to be

    @classmethod
    def from_triangles(cls, vertices: np.ndarray, triangles: np.ndarray, crease_deg: float = 0.0) -> Shape:
        """Normals are shared between triangles that meet at less than the crease angle."""
        vertices = np.asarray(vertices, np.float32)
        triangles = np.asarray(triangles, np.uint32)
        return cls(vertices, triangles, _corner_normals(vertices, triangles, crease_deg))


@dataclass(frozen=True, eq=False)
class Part:
    """A shape where it stands in its owner's frame."""

    shape: Shape
    pose: np.ndarray  # owner_from_shape [4, 4], scale included
    look: Look
    category: str


@dataclass(frozen=True, eq=False)
class Mesh:
    """Baked parts: triangles for the ray caster, and tables to look up what a ray has met.

    The tables have their channels first: shading works on one channel of many points at a time.
    """

    vertices: np.ndarray  # [V, 3] float32, world
    triangles: np.ndarray  # [T, 3] uint32
    part: np.ndarray  # [T] int32, row in the parts' tables
    shape_row: np.ndarray  # [T] int32, row in the shapes' tables
    corner_points: np.ndarray  # [9, S] float32: corners (0, 1, 2) x (x, y, z) of all shapes' triangles, shape frame
    corner_normals: np.ndarray  # [9, S] float32, likewise
    normal_from_shape: np.ndarray  # [9, P] float32, row by row; its products are not of unit length
    size: np.ndarray  # [3, P] float32, meters for one unit of each shape axis
    color: np.ndarray  # [3, P] float32
    accent: np.ndarray  # [3, P] float32
    detail: np.ndarray  # [DETAILS, P] float32
    material: np.ndarray  # [P] uint8
    panoptic_id: np.ndarray  # [P] uint16


def bake(parts: Sequence[tuple[Part, np.ndarray, int]]) -> Mesh:
    """One mesh from (part, world_from_owner [4, 4], panoptic id)."""
    poses = np.stack([owner for _, owner, _ in parts]) @ np.stack([part.pose for part, _, _ in parts])
    by_shape: dict[Shape, list[int]] = defaultdict(list)
    for index, (part, _, _) in enumerate(parts):
        by_shape[part.shape].append(index)
    linear, offset = poses[:, :3, :3].transpose(0, 2, 1).astype(np.float32), poses[:, None, :3, 3].astype(np.float32)
    vertices, triangles, rows, owners = [], [], [], []
    first_vertex = first_row = 0
    for shape, indices in by_shape.items():
        count, faces = len(indices), len(shape.triangles)
        starts = first_vertex + len(shape.vertices) * np.arange(count, dtype=np.uint32)
        vertices.append((shape.vertices @ linear[indices] + offset[indices]).reshape(-1, 3))
        triangles.append((shape.triangles + starts[:, None, None]).reshape(-1, 3))
        rows.append(np.tile(np.arange(first_row, first_row + faces, dtype=np.int32), count))
        owners.append(np.repeat(np.array(indices, np.int32), faces))
        first_vertex += len(shape.vertices) * count
        first_row += faces
    looks = [part.look for part, _, _ in parts]
    corners = np.concatenate([shape.vertices[shape.triangles] for shape in by_shape])
    x, y, z = poses[:, :3, :3].transpose(2, 0, 1)
    cofactors = np.stack([np.cross(y, z), np.cross(z, x), np.cross(x, y)], axis=-1)  # how normals turn and stretch
    return Mesh(
        vertices=np.concatenate(vertices),
        triangles=np.concatenate(triangles),
        part=np.concatenate(owners),
        shape_row=np.concatenate(rows),
        corner_points=_channels_first(corners.reshape(-1, 9)),
        corner_normals=_channels_first(np.concatenate([shape.normals for shape in by_shape]).reshape(-1, 9)),
        normal_from_shape=_channels_first(cofactors.reshape(-1, 9)),
        size=_channels_first(np.linalg.norm(poses[:, :3, :3], axis=1)),
        color=_channels_first([look.color for look in looks]),
        accent=_channels_first([look.accent for look in looks]),
        detail=_channels_first([(*look.detail, *[0.0] * (DETAILS - len(look.detail))) for look in looks]),
        material=np.array([look.material for look in looks], np.uint8),
        panoptic_id=np.array([panoptic_id for _, _, panoptic_id in parts], np.uint16),
    )


def _channels_first(rows: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(rows, np.float32).T)


def pose(x: float = 0, y: float = 0, z: float = 0, yaw: float = 0, pitch: float = 0, roll: float = 0) -> np.ndarray:
    """Rigid pose [4, 4]: turn about x by roll, then y by pitch, then z by yaw [rad]; then move [m]."""
    cy, cp, cr = math.cos(yaw), math.cos(pitch), math.cos(roll)
    sy, sp, sr = math.sin(yaw), math.sin(pitch), math.sin(roll)
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr, x],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr, y],
            [-sp, cp * sr, cp * cr, z],
            [0, 0, 0, 1],
        ]
    )


def placed(
    shape: Shape,
    center: Point,
    size: Point,
    look: Look,
    category: str,
    yaw: float = 0,
    pitch: float = 0,
    roll: float = 0,
) -> Part:
    """A shape at a center, scaled by size along its own axes, then turned."""
    x, y, z = center
    transform = pose(x, y, z, yaw, pitch, roll)
    transform[:3, :3] *= size
    return Part(shape, transform, look, category)


def tube(start: Point, end: Point, radius: float, look: Look, category: str) -> Part:
    """A cylinder between two points."""
    return Part(cylinder(), _along(start, end, radius), look, category)


def limb(start: Point, end: Point, radius: float, look: Look, category: str) -> Part:
    """A rounded cylinder between two points, as wide at the start as at the end is thin."""
    return Part(taper(), _along(start, end, radius), look, category)


class Kit:
    """Collects the parts of one thing."""

    def __init__(self, category: str) -> None:
        self.category = category
        self.parts: list[Part] = []

    def add(self, shape: Shape, center: Point, size: Point, look: Look, **turns: float) -> None:
        """Any shape; turns are yaw, pitch and roll."""
        self.parts.append(placed(shape, center, size, look, self.category, **turns))

    def block(self, center: Point, size: Point, look: Look, pitch: float = 0) -> None:
        self.add(box(), center, size, look, pitch=pitch)

    def blob(self, center: Point, size: Point, look: Look, exponent: float = 3.0, pitch: float = 0) -> None:
        """A small rounded block: few triangles."""
        self.add(ball(exponent, 1), center, size, look, pitch=pitch)

    def bulk(self, center: Point, size: Point, look: Look, exponent: float = 2.0, pitch: float = 0) -> None:
        """A large round body."""
        self.add(ball(exponent), center, size, look, pitch=pitch)

    def tube(self, start: Point, end: Point, radius: float, look: Look) -> None:
        self.parts.append(tube(start, end, radius, look, self.category))

    def limb(self, start: Point, end: Point, radius: float, look: Look) -> None:
        self.parts.append(limb(start, end, radius, look, self.category))


def _along(start: Point, end: Point, radius: float) -> np.ndarray:
    # Plain floats: thousands of these are made for every street, and small arrays cost ten times as much.
    ax, ay, az = (float(b) - float(a) for a, b in zip(start, end, strict=True))
    length = math.sqrt(ax * ax + ay * ay + az * az)
    zx, zy, zz = ax / length, ay / length, az / length
    # x is the unit cross product of the world's y (or of x, for a tube along y) and z
    xx, xy, xz = (zz, 0.0, -zx) if abs(zy) < 0.9 else (0.0, -zz, zy)
    scale = 2 * radius / math.sqrt(xx * xx + xy * xy + xz * xz)
    xx, xy, xz = xx * scale, xy * scale, xz * scale
    yx, yy, yz = zy * xz - zz * xy, zz * xx - zx * xz, zx * xy - zy * xx
    cx, cy, cz = ((float(a) + float(b)) / 2 for a, b in zip(start, end, strict=True))
    return np.array([[xx, yx, ax, cx], [xy, yy, ay, cy], [xz, yz, az, cz], [0.0, 0.0, 0.0, 1.0]])


def _corner_normals(vertices: np.ndarray, triangles: np.ndarray, crease_deg: float) -> np.ndarray:
    corners = vertices[triangles].astype(np.float64)
    face = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])  # length: twice the area
    unit = face / np.maximum(np.linalg.norm(face, axis=1, keepdims=True), 1e-12)
    normals = np.repeat(unit[:, None], 3, axis=1)
    if crease_deg:
        # Vertices that stand at the same place count as one, so that seams of a loft stay smooth.
        _, place = np.unique(np.round(vertices, 5), axis=0, return_inverse=True)
        place = place.ravel()  # NumPy 2.0 gives it a second axis
        around: dict[int, list[int]] = defaultdict(list)
        for index, triangle in enumerate(place[triangles].tolist()):
            for corner in triangle:
                around[corner].append(index)
        limit = np.cos(np.radians(crease_deg))
        for index, triangle in enumerate(place[triangles].tolist()):
            for slot, corner in enumerate(triangle):
                near = np.array(around[corner])
                near = near[unit[near] @ unit[index] > limit]
                normals[index, slot] = face[near].sum(0)
        normals /= np.maximum(np.linalg.norm(normals, axis=2, keepdims=True), 1e-12)
    return normals.astype(np.float32)


def loft(rings: np.ndarray, crease_deg: float = 40.0) -> Shape:
    """Skin over rings [R, K, 3] of as many points each, counterclockwise seen against the way they follow,
    closed by a fan at either end."""
    count, points = rings.shape[:2]
    index = np.arange(count * points).reshape(count, points)
    here, after = index[:-1], index[1:]
    here_next, after_next = np.roll(here, -1, axis=1), np.roll(after, -1, axis=1)
    sides = [np.stack([here, here_next, after_next], -1), np.stack([here, after_next, after], -1)]
    fan = np.stack([np.zeros(points - 2, int), np.arange(1, points - 1), np.arange(2, points)], -1)
    triangles = np.concatenate([*(side.reshape(-1, 3) for side in sides), index[0][fan[:, ::-1]], index[-1][fan]])
    return Shape.from_triangles(rings.reshape(-1, 3), triangles, crease_deg)


@cache
def box() -> Shape:
    """The cube -0.5 .. 0.5."""
    return frustum(1.0, 1.0)


@cache
def frustum(top_x: float, top_y: float, shift_x: float = 0.0) -> Shape:
    """A cube whose top is narrower (or wider) by these factors, and moved forward."""
    bottom = np.array([(-0.5, -0.5, -0.5), (0.5, -0.5, -0.5), (0.5, 0.5, -0.5), (-0.5, 0.5, -0.5)])
    top = bottom * (top_x, top_y, -1) + (shift_x, 0, 0)
    return loft(np.stack([bottom, top]), crease_deg=0.0)


@cache
def polygon_plate(corners: int) -> Shape:
    """A regular polygon of diameter 1 that faces x, 1 thick; its first corner points up."""
    angle = 2 * np.pi * np.arange(corners) / corners
    ring = np.stack([np.zeros(corners), -0.5 * np.sin(angle), 0.5 * np.cos(angle)], -1)
    return loft(np.stack([ring - FORWARD / 2, ring + FORWARD / 2]), crease_deg=0.0)


@cache
def cylinder(sides: int = 10) -> Shape:
    """Diameter and height 1, along z."""
    angle = 2 * np.pi * np.arange(sides) / sides
    ring = np.stack([0.5 * np.cos(angle), 0.5 * np.sin(angle), np.full(sides, -0.5)], -1)
    return loft(np.stack([ring, ring * (1, 1, -1)]), crease_deg=50.0)


@cache
def taper() -> Shape:
    """A limb along z: diameter 1 at the start, two thirds at the end, round at both."""
    profile = [(-0.56, 0.30), (-0.5, 0.46), (-0.2, 0.5), (0.25, 0.40), (0.5, 0.33), (0.55, 0.2)]
    angle = 2 * np.pi * np.arange(8) / 8
    rings = [np.stack([r * np.cos(angle), r * np.sin(angle), np.full(8, z)], -1) for z, r in profile]
    return loft(np.stack(rings), crease_deg=70.0)


@cache
def torus(thickness: float = 0.09) -> Shape:
    """A tire of outer diameter 1 that rolls about y."""
    around, across = 2 * np.pi * np.arange(17) / 16, 2 * np.pi * np.arange(6) / 6
    radius = 0.5 - thickness / 2 * (1 - np.cos(across))
    rings = np.stack(
        [
            radius * np.cos(around)[:, None],
            np.broadcast_to(thickness / 2 * np.sin(across), (17, 6)),
            radius * np.sin(around)[:, None],
        ],
        -1,
    )
    return loft(rings, crease_deg=70.0)


@cache
def gable() -> Shape:
    """A roof: base -0.5 .. 0.5, ridge along x at height 1 (base at 0)."""
    ring = np.array([(0, -0.5, 0.0), (0, 0.5, 0.0), (0, 0.0, 1.0)])
    return loft(np.stack([ring - FORWARD / 2, ring + FORWARD / 2]), crease_deg=0.0)


@cache
def ball(exponent: float = 2.0, level: int = 2) -> Shape:
    """Diameter 1; exponent 2 is a sphere, more is a cube with rounder or sharper edges."""
    directions, triangles = _icosphere(level)
    norm = (np.abs(directions) ** exponent).sum(1, keepdims=True) ** (1 / exponent)
    return Shape.from_triangles(0.5 * directions / norm, triangles, crease_deg=80.0)


@cache
def _icosphere(level: int) -> tuple[np.ndarray, np.ndarray]:
    golden = (1 + 5**0.5) / 2
    corners = [(s * a, t * b, 0.0) for a, b in ((1, golden),) for s in (-1, 1) for t in (-1, 1)]
    vertices = np.array([np.roll(corner, turn) for turn in range(3) for corner in corners])
    vertices /= np.linalg.norm(vertices, axis=1, keepdims=True)
    edge = min(np.linalg.norm(vertices[0] - other) for other in vertices[1:])
    close = np.linalg.norm(vertices[:, None] - vertices[None], axis=2) < edge * 1.01
    faces = [
        (i, j, k) for i in range(12) for j in range(i) for k in range(j) if close[i, j] and close[j, k] and close[i, k]
    ]
    triangles = np.array(faces)
    normal = np.cross(
        vertices[triangles[:, 1]] - vertices[triangles[:, 0]], vertices[triangles[:, 2]] - vertices[triangles[:, 0]]
    )
    inward = (normal * vertices[triangles[:, 0]]).sum(1) < 0
    triangles[inward] = triangles[inward, ::-1]
    for _ in range(level):
        vertices, triangles = _subdivide(vertices, triangles)
    return vertices, triangles


def _subdivide(vertices: np.ndarray, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    edges = np.sort(np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]), axis=1)
    unique, which = np.unique(edges, axis=0, return_inverse=True)
    middle = vertices[unique].sum(1)
    middle /= np.linalg.norm(middle, axis=1, keepdims=True)
    ab, bc, ca = (which.ravel() + len(vertices)).reshape(3, -1)
    a, b, c = triangles.T
    finer = [np.stack(t, -1) for t in ((a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca))]
    return np.concatenate([vertices, middle]), np.concatenate(finer)


CROWN_KINDS = 5


@cache
def crown(kind: int, is_far: bool = False) -> Shape:
    """A broad tree's crown of about diameter 1: lumps, and leaves that fray its outline; fewer for the distance."""
    rng = np.random.default_rng([kind, 101])
    centers = rng.normal(size=(7, 3))
    centers *= 0.27 * rng.uniform(0.5, 1.0, (7, 1)) / np.linalg.norm(centers, axis=1, keepdims=True)
    centers, radii = np.concatenate([[(0, 0, 0)], centers]), rng.uniform(0.19, 0.27, 8)
    if is_far:
        return _foliage(rng, centers, radii, leaves=60, leaf=0.12)
    return _foliage(rng, centers, radii, leaves=260, leaf=0.08)


@cache
def conifer(kind: int) -> Shape:
    """A fir: lumps that grow smaller upward; height 1, about 0.5 wide."""
    rng = np.random.default_rng([kind, 102])
    height = np.linspace(-0.42, 0.42, 9)
    centers = np.stack([*(0.03 * rng.normal(size=(2, 9))), height], -1)
    return _foliage(rng, centers, 0.045 + 0.2 * (0.5 - height), leaves=200, leaf=0.07, flatten=0.6)


@cache
def hedge(kind: int) -> Shape:
    """A clipped hedge: the box -0.5 .. 0.5 with frayed faces."""
    rng = np.random.default_rng([kind, 103])
    solid = ball(8.0, 1)
    vertices = solid.vertices * (1 + 0.05 * rng.normal(size=(len(solid.vertices), 1)).astype(np.float32)) * 0.94
    points = rng.uniform(-0.5, 0.5, (180, 3))
    face = rng.integers(0, 3, 180)
    points[np.arange(180), face] = rng.choice([-0.49, 0.49], 180)
    points[:, 2] = np.abs(points[:, 2]) * rng.choice([1, 1, -1], 180)
    return _with_leaves(rng, vertices, solid.triangles, points, leaf=0.08)


def _foliage(
    rng: np.random.Generator,
    centers: np.ndarray,
    radii: np.ndarray,
    leaves: int,
    leaf: float,
    flatten: float = 1.0,
) -> Shape:
    directions, faces = _icosphere(0)
    lumps = []
    for center, radius in zip(centers, radii, strict=True):
        rough = radius * rng.uniform(0.75, 1.1, (len(directions), 1))
        lumps.append(center + rough * directions * (1, 1, flatten))
    triangles = np.concatenate([faces + i * len(directions) for i in range(len(centers))])
    which = rng.choice(len(centers), leaves, p=radii**2 / (radii**2).sum())
    out = rng.normal(size=(leaves, 3))
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    points = centers[which] + radii[which, None] * out * rng.uniform(0.95, 1.15, (leaves, 1)) * (1, 1, flatten)
    return _with_leaves(rng, np.concatenate(lumps), triangles, points, leaf)


def _with_leaves(
    rng: np.random.Generator, vertices: np.ndarray, triangles: np.ndarray, points: np.ndarray, leaf: float
) -> Shape:
    """Two-sided leaf quads are scattered at the points. Normals look away from the middle, as a crown is shaded."""
    u, v = rng.normal(size=(2, len(points), 3))
    u *= leaf * rng.uniform(0.5, 1.0, (len(points), 1)) / np.linalg.norm(u, axis=1, keepdims=True)
    v -= u * (u * v).sum(1, keepdims=True) / (u * u).sum(1, keepdims=True)
    v *= leaf * rng.uniform(0.4, 0.9, (len(points), 1)) / np.linalg.norm(v, axis=1, keepdims=True)
    corners = np.stack([points - u, points + v, points + u, points - v], axis=1).reshape(-1, 3)
    first = len(vertices) + 4 * np.arange(len(points))[:, None]
    quads = np.concatenate([first + np.array([0, 1, 2]), first + np.array([0, 2, 3])])
    vertices = np.concatenate([vertices, corners]).astype(np.float32)
    triangles = np.concatenate([triangles, quads])
    outward = vertices / np.maximum(np.linalg.norm(vertices, axis=1, keepdims=True), 1e-6)
    flat = _corner_normals(vertices, triangles, 0.0)
    flat *= np.sign((flat * outward[triangles]).sum(2, keepdims=True)) + 1e-9
    normals = outward[triangles] + 0.7 * flat
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    return Shape(vertices, triangles.astype(np.uint32), normals.astype(np.float32))


FENCE_KINDS = 3


@cache
def fence_panel(kind: int) -> Shape:
    """Length 1 along x, height 1 from z = 0: boards, rails between posts, or a railing of bars."""
    boxes: list[tuple[tuple[float, float, float], tuple[float, float, float]]] = []  # center, size
    boxes += [((x, 0, 0.5), (0.04, 1.0, 1.0)) for x in (-0.5, 0.5)]
    if kind == 0:
        boxes += [((-0.5 + (i + 0.5) / 12, 0, 0.5), (0.068, 0.4, 0.9)) for i in range(12)]
    elif kind == 1:
        boxes += [((0, 0, z), (1.0, 0.5, 0.17)) for z in (0.3, 0.56, 0.82)]
    else:
        boxes += [((-0.5 + (i + 0.5) / 16, 0, 0.5), (0.014, 0.3, 0.9)) for i in range(16)]
        boxes += [((0, 0, z), (1.0, 0.5, 0.05)) for z in (0.1, 0.92)]
    return _union(box().vertices * size + np.array(center) for center, size in boxes)


def _union(pieces: Iterable[np.ndarray]) -> Shape:
    pieces = list(pieces)
    cube = box()
    triangles = np.concatenate([cube.triangles + i * len(cube.vertices) for i in range(len(pieces))])
    return Shape.from_triangles(np.concatenate(pieces), triangles)


@cache
def car_body(length: float, width: float, hood: float, trunk: float, hood_length: float, trunk_length: float) -> Shape:
    """A car without its cabin, wheels at z = 0; hood and trunk are heights [m] at the ends of the waist line."""
    waist = max(hood, trunk) + 0.04
    half = length / 2
    stations = [  # x, low, high, half width as a share
        (-half, 0.38, trunk - 0.16, 0.80),
        (-half + 0.10, 0.26, trunk - 0.02, 0.93),
        (-half + max(trunk_length, 0.3), 0.22, trunk + 0.02, 1.0),
        (-0.15 * length, 0.20, waist, 1.0),
        (half - hood_length, 0.20, hood + 0.02, 1.0),
        (half - 0.35 * hood_length, 0.22, hood - 0.06, 0.97),
        (half - 0.12, 0.24, hood - 0.16, 0.90),
        (half, 0.34, hood - 0.32, 0.76),
    ]
    rings = []
    for x, low, high, share in stations:
        w, rise = share * width / 2, high - low
        side = [(0.80 * w, low), (w * 0.97, low + 0.12), (w, low + 0.45 * rise), (0.96 * w, low + 0.86 * rise)]
        side += [(0.86 * w, high - 0.01), (0.4 * w, high + 0.015)]
        ring = side + [(-y, z) for y, z in reversed(side)]
        rings.append([(x, y, z) for y, z in ring])
    return loft(np.array(rings), crease_deg=42.0)
