# SPDX-License-Identifier: Apache-2.0
"""Rendered streets with exact truth: image, panoptic ids, depth, camera, ego-motion and a lidar.

A street is drawn from one seed; the same seed gives the same street everywhere. What is cast is what is labeled:
ids and depth come from the ray through each pixel's center, so a segment's border is its geometry's.
Frames: world and base have x forward, y left, z up; the camera's optical frame has x right, y down, z forward.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import open3d as o3d

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.taxonomy import LABEL_DIVISOR
from panoptic_depth_training.datasets import street_shading as shading
from panoptic_depth_training.datasets.cityscapes import CITYSCAPES
from panoptic_depth_training.datasets.street_layout import lay_out
from panoptic_depth_training.datasets.street_shapes import Material, Mesh, Part, bake, pose

BASE_FROM_LIDAR = pose(-0.2, 0.0, 1.95)
OPTICAL_AXES = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])  # x forward from z forward
SKY_ID = CITYSCAPES.names.index("sky") * LABEL_DIVISOR
RENDER_THREADS = 2
SKY_REACHES = (0.8, 2.0, 4.0)  # [m] at which surroundings darken a point, one ray each
CHUNK = 1 << 15  # points shaded at once: their arrays stay in the cache
SUBPIXELS = ((-0.3, -0.2), (0.3, 0.2))  # [px] from the center, at borders only


@dataclass(frozen=True)
class Mount:
    """Where the camera sits in the base frame: angles turn the view left, down and clockwise [rad]."""

    x: float = 0.6
    y: float = 0.0
    z: float = 1.45
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0

    @property
    def base_from_camera(self) -> np.ndarray:
        """[4, 4], from the optical frame."""
        return pose(self.x, self.y, self.z, self.yaw, self.pitch, self.roll) @ OPTICAL_AXES


FRONT_MOUNT = Mount(pitch=0.03)


@dataclass(frozen=True)
class Frame:
    """An image and all that is known about it."""

    rgb: np.ndarray  # [H, W, 3] uint8
    panoptic_ids: np.ndarray  # [H, W] uint16
    depth: np.ndarray  # [H, W] float32, meters along the optical axis; 0 in the sky
    camera: PinholeCamera
    world_from_camera: np.ndarray  # [4, 4] float64
    stamp_s: float


@dataclass(frozen=True)
class Lidar:
    """A spinning lidar's forward half."""

    beams: int = 32
    lowest_deg: float = -25.0
    highest_deg: float = 10.0
    step_deg: float = 1.0
    range_m: float = 100.0
    noise_m: float = 0.015
    resolution_m: float = 1 / 256  # of coordinates; a power of two keeps recordings small

    def directions(self) -> np.ndarray:
        """Unit directions [N, 3] in the lidar's frame, from right to left."""
        azimuth = np.radians(np.arange(-90, 90, self.step_deg))
        elevation = np.radians(np.linspace(self.lowest_deg, self.highest_deg, self.beams))
        azimuth, elevation = (grid.ravel() for grid in np.meshgrid(azimuth, elevation, indexing="ij"))
        level = np.cos(elevation)
        return np.stack([level * np.cos(azimuth), level * np.sin(azimuth), np.sin(elevation)], -1)


@dataclass(frozen=True)
class Hits:
    """Where rays met the mesh; rows without a hit keep part -1 and length infinity."""

    length: np.ndarray  # [N] float32, in units of the ray's direction
    part: np.ndarray  # [N] int32
    triangle: np.ndarray  # [N] int64
    uv: np.ndarray  # [N, 2] float32
    face: np.ndarray  # [N, 3] float32, the triangle's unit normal

    def take(self, rows: slice) -> Hits:
        return Hits(self.length[rows], self.part[rows], self.triangle[rows], self.uv[rows], self.face[rows])


class Scene:
    """A mesh at one instant, ready for rays."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self._caster = o3d.t.geometry.RaycastingScene(nthreads=RENDER_THREADS)
        self._caster.add_triangles(_tensor(mesh.vertices), _tensor(mesh.triangles))

    def cast(self, origins: np.ndarray, directions: np.ndarray) -> Hits:
        """First hits of rays from origins [N, 3] or [3] along directions [N, 3]."""
        answer = self._caster.cast_rays(_rays(origins, directions), nthreads=RENDER_THREADS)
        triangle = answer["primitive_ids"].numpy().astype(np.int64)
        length = answer["t_hit"].numpy()
        part = np.where(np.isfinite(length), self.mesh.part[np.minimum(triangle, len(self.mesh.part) - 1)], -1)
        return Hits(length, part, triangle, answer["primitive_uvs"].numpy(), answer["primitive_normals"].numpy())

    def blocked(self, origins: np.ndarray, directions: np.ndarray, reach: float) -> np.ndarray:
        """Whether [N] anything stands on the way."""
        return self._caster.test_occlusions(_rays(origins, directions), 0.0, reach, RENDER_THREADS).numpy()

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Distance [N] in meters of points [N, 3] from the nearest surface."""
        return self._caster.compute_distance(_tensor(points.astype(np.float32))).numpy()


def _rays(origins: np.ndarray, directions: np.ndarray) -> o3d.core.Tensor:
    rays = np.empty((len(directions), 6), np.float32)
    rays[:, :3], rays[:, 3:] = origins, directions
    return _tensor(rays)


def _tensor(array: np.ndarray) -> o3d.core.Tensor:
    return o3d.core.Tensor.from_numpy(np.ascontiguousarray(array))


class Street:
    """A street from a seed: `frame` renders it from the ego-vehicle at a time, `lidar` scans it."""

    def __init__(self, seed: int) -> None:
        layout_rng, light_rng, sensor_rng = (np.random.default_rng([seed, stream]) for stream in range(3))
        self.seed = seed
        self.layout = lay_out(layout_rng)
        self.light = shading.Light.random(light_rng)
        self.sensor = shading.Sensor.random(sensor_rng)
        self._scene: tuple[float, Scene] | None = None

    def world_from_base(self, time_s: float = 0.0) -> np.ndarray:
        """[4, 4] of the ego-vehicle."""
        return self.layout.centerline.pose(*self.layout.ego.at(time_s))

    def scene(self, time_s: float = 0.0) -> Scene:
        """The street as it stands at a time."""
        if self._scene is None or self._scene[0] != time_s:
            self._scene = time_s, Scene(bake(self._labeled_parts(time_s)))
        return self._scene[1]

    def _labeled_parts(self, time_s: float) -> list[tuple[Part, np.ndarray, int]]:
        category_id = {name: index for index, name in enumerate(CITYSCAPES.names)}
        labeled = [(part, where, category_id[part.category] * LABEL_DIVISOR) for part, where in self.layout.static]
        for thing in self.layout.things:
            where = thing.pose(self.layout.centerline, time_s)
            panoptic_id = category_id[thing.category] * LABEL_DIVISOR + thing.instance
            labeled += [(part, where, panoptic_id) for part in thing.parts(time_s)]
        return labeled

    def frame(self, camera: PinholeCamera, time_s: float = 0.0, mount: Mount = FRONT_MOUNT) -> Frame:
        """Image and truth at a time, from the ego-vehicle."""
        if camera.is_distorted:
            raise ValueError(f"camera has distortion {camera.distortion}; streets are rendered without: rectify it")
        scene = self.scene(time_s)
        world_from_camera = self.world_from_base(time_s) @ mount.base_from_camera
        rng = np.random.default_rng([self.seed, 3, round(time_s * 1e6)])
        view = _View(self, scene, camera, world_from_camera)
        light, hits = view.render(rng)
        return Frame(
            rgb=self.sensor.expose(light, rng),
            panoptic_ids=np.append(scene.mesh.panoptic_id, SKY_ID)[hits.part]
            .reshape(light.shape[:2])
            .astype(np.uint16),
            depth=np.where(hits.part < 0, 0, hits.length).reshape(light.shape[:2]).astype(np.float32),
            camera=camera,
            world_from_camera=world_from_camera,
            stamp_s=time_s,
        )

    def lidar(self, time_s: float = 0.0, lidar: Lidar = Lidar()) -> np.ndarray:
        """A scan [N, 4] float32: x, y, z, intensity 0..255 in the lidar's frame."""
        scene = self.scene(time_s)
        world_from_lidar = self.world_from_base(time_s) @ BASE_FROM_LIDAR
        local = lidar.directions()
        directions = local @ world_from_lidar[:3, :3].T
        hits = scene.cast(world_from_lidar[:3, 3], directions)
        rng = np.random.default_rng([self.seed, 4, round(time_s * 1e6)])
        measured = hits.length + rng.normal(0, lidar.noise_m, len(local))
        seen = (hits.part >= 0) & (hits.length < lidar.range_m) & (hits.length > 1.0)
        facing = np.abs((directions * hits.face).sum(1))
        bright = scene.mesh.color[hits.part].mean(1) * (0.3 + 0.7 * facing)
        intensity = np.clip(255 * np.sqrt(bright), 1, 255).round()
        points = np.round(local[seen] * measured[seen, None] / lidar.resolution_m) * lidar.resolution_m
        return np.concatenate([points, intensity[seen, None]], axis=1).astype(np.float32)


class _View:
    """One image of a scene in the making."""

    def __init__(self, street: Street, scene: Scene, camera: PinholeCamera, world_from_camera: np.ndarray) -> None:
        self.street, self.scene, self.camera = street, scene, camera
        self.rotation = world_from_camera[:3, :3].astype(np.float32)
        self.origin = world_from_camera[:3, 3].astype(np.float32)
        rays = camera.rays().reshape(-1, 2)
        self.pixel_rays = np.concatenate([rays, np.ones((len(rays), 1), np.float32)], axis=1)

    def render(self, rng: np.random.Generator) -> tuple[np.ndarray, Hits]:
        """Linear light [H, W, 3] and the hits [H*W] of the pixels' centers."""
        height, width = self.camera.height, self.camera.width
        directions = self._directions(self.pixel_rays)
        hits = self.scene.cast(self.origin, directions)
        open_sky = self._open_sky(hits, directions, rng)
        light = self._shade(hits, directions, open_sky.ravel())
        borders = np.flatnonzero(_borders(light.reshape(height, width, 3), hits.part.reshape(height, width)))
        light[borders] = light[borders] / 3 + 2 / 3 * self._finer(borders, open_sky.ravel())
        return light.reshape(height, width, 3), hits

    def _finer(self, pixels: np.ndarray, open_sky: np.ndarray) -> np.ndarray:
        """Mean light [N, 3] of the pixels [N] over points beside their centers."""
        offsets = np.array([(du / self.camera.fx, dv / self.camera.fy, 0) for du, dv in SUBPIXELS], np.float32)
        directions = self._directions((self.pixel_rays[pixels] + offsets[:, None]).reshape(-1, 3))
        hits = self.scene.cast(self.origin, directions)
        light = self._shade(hits, directions, np.tile(open_sky[pixels], len(offsets)))
        return light.reshape(len(offsets), -1, 3).mean(0)

    def _directions(self, rays: np.ndarray) -> np.ndarray:
        """World directions whose length counts depth along the optical axis."""
        return rays @ self.rotation.T

    def _open_sky(self, hits: Hits, directions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Share [H, W] of a point's surroundings that is free within a few meters; seen at half size, smoothed."""
        height, width = self.camera.height, self.camera.width
        rows = np.arange(height * width).reshape(height, width)[::2, ::2]
        shape, rows = rows.shape, rows.ravel()
        solid = rows[hits.part[rows] >= 0]
        face = _toward_viewer(hits.face[solid], directions[solid])
        points = self.origin + hits.length[solid, None] * directions[solid] + 0.02 * face
        free = np.zeros(len(solid), np.float32)
        for reach in SKY_REACHES:
            around = rng.standard_normal((len(solid), 3), dtype=np.float32)
            around = face + 0.9 * around / np.linalg.norm(around, axis=1, keepdims=True)
            free += ~self.scene.blocked(points, around, reach) / len(SKY_REACHES)
        share = np.ones(height * width, np.float32)
        share[solid] = free
        smooth = cv2.blur(share[rows].reshape(shape), (5, 5))
        return cv2.resize(smooth, (width, height), interpolation=cv2.INTER_LINEAR)

    def _shade(self, hits: Hits, directions: np.ndarray, open_sky: np.ndarray) -> np.ndarray:
        """Linear light [N, 3] that comes back along rays."""
        color = np.empty((len(directions), 3), np.float32)
        for start in range(0, len(directions), CHUNK):
            rows = slice(start, start + CHUNK)
            color[rows] = self._shade_chunk(hits.take(rows), directions[rows], open_sky[rows])
        return color

    def _shade_chunk(self, hits: Hits, directions: np.ndarray, open_sky: np.ndarray) -> np.ndarray:
        length = np.linalg.norm(directions, axis=1)
        view = directions / length[:, None]
        light = self.street.light
        color = np.empty((len(directions), 3), np.float32)
        solid, sky = np.flatnonzero(hits.part >= 0), np.flatnonzero(hits.part < 0)
        color[sky] = light.sky(view[sky])
        if not len(solid):
            return color
        solid = solid[np.argsort(self.scene.mesh.material[hits.part[solid]], kind="stable")]
        surface = self._surface(hits, directions, solid)
        sunlit = np.zeros(len(solid), np.float32)
        if light.sun.max() > 0.05:
            facing = np.flatnonzero(surface.normal @ light.to_sun > 0.0)
            start = surface.position[facing] + 0.015 * _toward_viewer(
                hits.face[solid[facing]], directions[solid[facing]]
            )
            to_sun = np.broadcast_to(light.to_sun.astype(np.float32), start.shape)
            sunlit[facing] = ~self.scene.blocked(start, to_sun, 150.0)
        painted = shading.paint(surface, self.street.layout.centerline)
        lit = shading.light_up(surface, painted, view[solid], light, sunlit, open_sky[solid])
        color[solid] = shading.through_air(lit, hits.length[solid] * length[solid], light)
        return color

    def _surface(self, hits: Hits, directions: np.ndarray, rows: np.ndarray) -> shading.Surface:
        mesh = self.scene.mesh
        part, triangle, uv = hits.part[rows], hits.triangle[rows], hits.uv[rows]
        position = self.origin + hits.length[rows, None] * directions[rows]
        corners = mesh.normals[mesh.normal_row[triangle]]
        u, v = uv[:, :1], uv[:, 1:]
        local_normal = (1 - u - v) * corners[:, 0] + u * corners[:, 1] + v * corners[:, 2]
        to_shape = np.take(mesh.shape_from_world, part, axis=2)  # [3, 4, N]
        local = (to_shape[:, :3] * position.T).sum(1) + to_shape[:, 3]
        normal = (to_shape[:, :3] * local_normal.T[:, None]).sum(0)
        normal = (normal / np.maximum(np.sqrt((normal * normal).sum(0)), 1e-9)).T
        seen_from_behind = (hits.face[rows] * directions[rows]).sum(1) > 0
        seen_from_behind &= mesh.material[part] != Material.LEAVES
        normal[seen_from_behind] *= -1
        return shading.Surface(
            mesh=mesh,
            part=part,
            position=position,
            normal=normal,
            local=local.T,
            local_normal=local_normal,
            footprint=hits.length[rows] / self.camera.fx,
        )


def _toward_viewer(normals: np.ndarray, directions: np.ndarray) -> np.ndarray:
    return np.where((normals * directions).sum(1, keepdims=True) > 0, -normals, normals)


def _borders(light: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Pixels [H, W] whose neighbors show another part or another color, where one ray is too few."""
    tone = light.sum(2) / (light.sum(2) + 1.0)
    edges = np.zeros(part.shape, bool)
    for axis in (0, 1):
        step = (np.diff(part, axis=axis) != 0) | (np.abs(np.diff(tone, axis=axis)) > 0.1)
        edges[1:, :] |= step if axis == 0 else False
        edges[:-1, :] |= step if axis == 0 else False
        edges[:, 1:] |= step if axis == 1 else False
        edges[:, :-1] |= step if axis == 1 else False
    return edges


def random_camera(seed: int, height: int, width: int) -> PinholeCamera:
    """The camera of `random_frame`, without rendering."""
    focal = width * np.random.default_rng([seed, 5]).uniform(0.72, 1.15)
    return PinholeCamera(height, width, focal, focal, (width - 1) / 2, (height - 1) / 2)


def random_frame(seed: int, height: int, width: int) -> Frame:
    """A training sample: a street, a camera and a moment of their own."""
    rng = np.random.default_rng([seed, 6])
    yaw = rng.normal() * (0.08 if rng.random() < 0.75 else 0.35)
    pitch, roll = 0.02 + rng.normal() * 0.04, rng.normal() * 0.012
    mount = Mount(y=rng.normal() * 0.2, z=rng.uniform(1.15, 2.1), yaw=yaw, pitch=pitch, roll=roll)
    return Street(seed).frame(random_camera(seed, height, width), float(rng.uniform(0, 0.7)), mount)
