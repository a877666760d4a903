# SPDX-License-Identifier: Apache-2.0
"""One image of a street: rays through the pixels, what they meet, and the light that comes back along them.

N is the number of rays. What is cast is what is labeled: ids and depth come from the ray through each pixel's center.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_training.datasets.street_paint import paint
from panoptic_depth_training.datasets.street_scene import Hits, Scene
from panoptic_depth_training.datasets.street_shading import Light, light_up, through_air
from panoptic_depth_training.datasets.street_shapes import Material
from panoptic_depth_training.datasets.street_site import Centerline
from panoptic_depth_training.datasets.street_surface import Surface, dot, gather

SKY_REACHES = (0.8, 2.0, 4.0)  # [m] at which surroundings darken a point, one ray each
SKY_DISTANCE = 60.0  # [m] from which they do not show
SKY_STRIDE = 3  # [px] between the points whose surroundings are probed
SUN_REACH = 150.0  # [m] at which something throws a shadow
OFF_SURFACE = 0.015  # [m] from which shadow rays start
SUBPIXELS = ((-0.3, -0.2), (0.3, 0.2))  # [px] from the center, at borders only


@dataclass(frozen=True)
class View:
    """A scene seen by a camera under a light."""

    scene: Scene
    line: Centerline
    light: Light
    camera: PinholeCamera
    world_from_camera: np.ndarray  # [4, 4]

    def render(self, rng: np.random.Generator) -> tuple[np.ndarray, Hits]:
        """Linear light [H, W, 3] and the hits [H*W] of the pixels' centers."""
        height, width = self.camera.height, self.camera.width
        directions = self.directions(np.arange(height)[:, None], np.arange(width)).reshape(3, -1)
        hits = self.cast(directions)
        open_sky = self.open_sky(hits, directions, rng)
        light = self.shade(hits, directions, open_sky)
        rough = np.flatnonzero(borders(light.reshape(3, height, width), hits.part.reshape(height, width)))
        _scatter(light, rough, gather(light, rough) / 3 + self.finer(rough, open_sky) * (2 / 3))
        return cv2.merge(list(light.reshape(3, height, width))), hits

    def directions(self, v: np.ndarray, u: np.ndarray) -> np.ndarray:
        """World directions [3, ...] through pixels; their length counts depth along the optical axis."""
        rotation = self.world_from_camera[:3, :3].astype(np.float32)
        x = ((u - self.camera.cx) / self.camera.fx).astype(np.float32)
        y = ((v - self.camera.cy) / self.camera.fy).astype(np.float32)
        return np.stack([row[0] * x + (row[1] * y + row[2]) for row in rotation])

    def cast(self, directions: np.ndarray) -> Hits:
        """What rays along directions [3, N] from the camera meet."""
        return self.scene.cast(self._origin, directions.T)

    def finer(self, pixels: np.ndarray, open_sky: np.ndarray) -> np.ndarray:
        """Mean light [3, N] of the pixels [N] over points beside their centers."""
        v, u = np.divmod(pixels, self.camera.width)
        offsets = np.array(SUBPIXELS)[..., None]
        directions = self.directions((v + offsets[:, 1]).ravel(), (u + offsets[:, 0]).ravel())
        light = self.shade(self.cast(directions), directions, np.tile(open_sky.take(pixels), len(offsets)))
        return light.reshape(3, len(offsets), -1).mean(1)

    def open_sky(self, hits: Hits, directions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Share [H*W] of a point's surroundings that is free within a few meters; probed at some pixels, smoothed."""
        height, width = self.camera.height, self.camera.width
        rows = np.arange(height * width).reshape(height, width)[::SKY_STRIDE, ::SKY_STRIDE]
        shape, rows = rows.shape, rows.ravel()
        solid = rows[hits.length[rows] < SKY_DISTANCE]
        face, toward = np.ascontiguousarray(hits.face[solid].T), gather(directions, solid)
        face *= np.where(dot(face, toward) > 0, np.float32(-1), np.float32(1))
        points = self._origin + (hits.length[solid] * toward + 0.02 * face).T
        free = np.zeros(len(solid), np.float32)
        for reach in SKY_REACHES:
            around = rng.standard_normal((3, len(solid)), dtype=np.float32)
            around *= 0.9 / np.sqrt(dot(around, around))
            free += ~self.scene.blocked(points, (face + around).T, reach)
        share = np.ones(height * width, np.float32)
        share[solid] = free / len(SKY_REACHES)
        smooth = cv2.GaussianBlur(share[rows].reshape(shape), (5, 5), 0)
        return cv2.resize(smooth, (width, height), interpolation=cv2.INTER_LINEAR).ravel()

    def shade(self, hits: Hits, directions: np.ndarray, open_sky: np.ndarray) -> np.ndarray:
        """Linear light [3, N] that comes back along rays."""
        stretch = np.sqrt(dot(directions, directions))
        view = directions / stretch
        color = np.empty_like(directions)
        sky = np.flatnonzero(hits.part < 0)
        _scatter(color, sky, self.light.sky(gather(view, sky)))
        for surface, rows in self.surfaces(hits, directions):
            painted, sunlit = paint(surface, self.line, self.light.wet), self.sunlit(surface)
            lit = light_up(painted, surface.normal, gather(view, rows), self.light, sunlit, open_sky.take(rows))
            through_air(lit, hits.length.take(rows) * stretch.take(rows), self.light)
            _scatter(color, rows, lit)
        return color

    def surfaces(self, hits: Hits, directions: np.ndarray) -> Iterator[tuple[Surface, np.ndarray]]:
        """What the rays meet, one material at a time, with the rays' rows."""
        mesh = self.scene.mesh
        solid = np.flatnonzero(hits.part >= 0)
        part = hits.part.take(solid)
        material = mesh.material.take(part)
        order = np.argsort(material, kind="stable")
        part, row = part.take(order), mesh.shape_row.take(hits.triangle.take(solid.take(order)))
        face, uv = channels(hits.face), channels(hits.uv)
        ends = np.cumsum(np.bincount(material, minlength=len(Material)))
        for kind, start, end in zip(Material, (0, *ends[:-1]), ends, strict=True):
            if end > start:
                rows, here = solid.take(order[start:end]), slice(start, end)
                reached = gather(directions, rows), hits.length.take(rows)
                yield self._surface(kind, part[here], row[here], gather(face, rows), gather(uv, rows), *reached), rows

    def _surface(
        self,
        material: Material,
        part: np.ndarray,
        row: np.ndarray,
        face: np.ndarray,
        uv: np.ndarray,
        directions: np.ndarray,
        length: np.ndarray,
    ) -> Surface:
        is_behind = dot(face, directions) > 0
        face *= np.where(is_behind, np.float32(-1), np.float32(1))
        return Surface(
            mesh=self.scene.mesh,
            material=material,
            part=part,
            row=row,
            uv=uv,
            position=directions * length + self._origin[:, None],
            face=face,
            is_behind=is_behind,
            footprint=length * np.float32(1 / self.camera.fx),
        )

    def sunlit(self, surface: Surface) -> np.ndarray:
        """Share [N] of the sun that reaches points: 0 in shadow, 1 in the open."""
        reached = np.zeros(len(surface), np.float32)
        if self.light.has_sun:
            facing = np.flatnonzero(dot(self.light.to_sun, surface.normal) > 0)
            starts = gather(surface.position, facing) + OFF_SURFACE * gather(surface.face, facing)
            reached[facing] = ~self.scene.blocked(starts.T, self.light.to_sun, SUN_REACH)
        return reached

    @property
    def _origin(self) -> np.ndarray:
        return self.world_from_camera[:3, 3].astype(np.float32)


def channels(rows: np.ndarray) -> np.ndarray:
    """[C, N] of rows [N, C]; OpenCV does so much faster than NumPy's transposition."""
    return np.stack(cv2.split(rows[:, None]))[..., 0]


def _scatter(target: np.ndarray, columns: np.ndarray, values: np.ndarray) -> None:
    for channel, value in zip(target, values, strict=True):
        channel[columns] = value


def borders(light: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Pixels [H, W] whose neighbors show another part or another tone, where one ray is too few; light is [3, H, W]."""
    brightness = light[0] + light[1] + light[2]
    tone = brightness / (brightness + 1.0)
    edges = np.zeros(part.shape, bool)
    for here, after in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        step = (part[here] != part[after]) | (np.abs(tone[here] - tone[after]) > 0.1)
        edges[here] |= step
        edges[after] |= step
    return edges
