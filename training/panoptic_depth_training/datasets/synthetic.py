# SPDX-License-Identifier: Apache-2.0
"""Rendered streets with exact truth: image, panoptic ids, depth, camera, ego-motion and a lidar.

A street is drawn from one seed; the same seed gives the same street everywhere. `Street.frame` drives through it;
`random_frame` takes the pictures a network is trained on, VIEWS_A_STREET of every street.
Frames: world and base have x forward, y left, z up; the camera's optical frame has x right, y down, z forward.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.taxonomy import LABEL_DIVISOR
from panoptic_depth_training.datasets.cityscapes import CITYSCAPES
from panoptic_depth_training.datasets.labeled import EXACT, LabeledImage
from panoptic_depth_training.datasets.street_layout import lay_out
from panoptic_depth_training.datasets.street_scene import Scene
from panoptic_depth_training.datasets.street_shading import Light, Sensor
from panoptic_depth_training.datasets.street_shapes import Part, bake, pose
from panoptic_depth_training.datasets.street_view import View

BASE_FROM_LIDAR = pose(-0.2, 0.0, 1.95)
OPTICAL_AXES = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])  # x forward from z forward
SKY_ID = CITYSCAPES.names.index("sky") * LABEL_DIVISOR
# Where the training frames of one street are taken: from .. to [m] along it, and whether against its direction. Its
# geometry is built once for all of them.
STRETCHES = (
    *(((0, 15), False), ((18, 38), False), ((42, 65), False)),
    *(((40, 60), True), ((62, 85), True), ((88, 115), True)),
)
VIEWS_A_STREET = len(STRETCHES)
FREE_AROUND, FREE_AHEAD = 1.1, (4.0, 14.0)  # [m] between a camera and what stands about it
STREETS_KEPT = 2  # by a process that reads frames in order


@dataclass(frozen=True)
class Mount:
    """Where the camera sits in the base frame: angles turn the view left, down and clockwise [rad]."""

    x: float = 0.6
    y: float = 0.0
    z: float = 1.45
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0

    @classmethod
    def random(cls, rng: np.random.Generator) -> Mount:
        yaw = rng.normal() * (0.08 if rng.random() < 0.75 else 0.35)
        pitch, roll = 0.02 + rng.normal() * 0.04, rng.normal() * 0.012
        return cls(y=rng.normal() * 0.2, z=rng.uniform(1.15, 2.1), yaw=yaw, pitch=pitch, roll=roll)

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
class Shot:
    """How one image is taken: when, from where, under which light, with which sensor."""

    camera: PinholeCamera
    time_s: float
    world_from_camera: np.ndarray  # [4, 4]
    light: Light
    sensor: Sensor


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


class Street:
    """A street from a seed: `frame` renders it from the ego-vehicle at a time, `lidar` scans it."""

    def __init__(self, seed: int, is_crowded: bool = False, threads: int = 1) -> None:
        layout_rng, light_rng, sensor_rng = (np.random.default_rng([seed, stream]) for stream in range(3))
        self.seed = seed
        self.layout = lay_out(layout_rng, is_crowded)
        self.light = Light.random(light_rng)
        self.sensor = Sensor.random(sensor_rng)
        self._threads = threads  # of the ray caster; they change nothing but the time
        self._scene: tuple[float, Scene] | None = None

    def world_from_base(self, time_s: float = 0.0) -> np.ndarray:
        """[4, 4] of the ego-vehicle."""
        return self.layout.centerline.pose(*self.layout.ego.at(time_s))

    def scene(self, time_s: float = 0.0) -> Scene:
        """The street as it stands at a time."""
        if self._scene is None or self._scene[0] != time_s:
            self._scene = time_s, Scene(bake(self.labeled_parts(time_s)), self._threads)
        return self._scene[1]

    def labeled_parts(self, time_s: float) -> list[tuple[Part, np.ndarray, int]]:
        """What stands there at a time: parts with world_from_owner [4, 4] and panoptic id."""
        category_id = {name: index for index, name in enumerate(CITYSCAPES.names)}
        labeled = [(part, where, category_id[part.category] * LABEL_DIVISOR) for part, where in self.layout.static]
        for thing in self.layout.things:
            where = thing.pose(self.layout.centerline, time_s)
            panoptic_id = category_id[thing.category] * LABEL_DIVISOR + thing.instance
            labeled += [(part, where, panoptic_id) for part in thing.parts(time_s)]
        return labeled

    def frame(self, camera: PinholeCamera, time_s: float = 0.0, mount: Mount = FRONT_MOUNT) -> Frame:
        """Image and truth at a time, from the ego-vehicle."""
        world_from_camera = self.world_from_base(time_s) @ mount.base_from_camera
        rng = np.random.default_rng([self.seed, 3, round(time_s * 1e6)])
        return self.take(Shot(camera, time_s, world_from_camera, self.light, self.sensor), rng)

    def take(self, shot: Shot, rng: np.random.Generator) -> Frame:
        """Image and truth of a shot.

        Raises:
            ValueError: a camera with distortion.
        """
        if shot.camera.is_distorted:
            distortion = shot.camera.distortion
            raise ValueError(f"camera has distortion {distortion}; streets are rendered without: rectify it")
        scene = self.scene(shot.time_s)
        view = View(scene, self.layout.centerline, shot.light, shot.camera, shot.world_from_camera)
        light, hits = view.render(rng)
        size = light.shape[:2]
        return Frame(
            rgb=shot.sensor.expose(light, rng),
            panoptic_ids=np.append(scene.mesh.panoptic_id, np.uint16(SKY_ID))[hits.part].reshape(size),
            depth=np.where(hits.part < 0, np.float32(0), hits.length).reshape(size),
            camera=shot.camera,
            world_from_camera=shot.world_from_camera,
            stamp_s=shot.time_s,
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
        bright = scene.mesh.color.mean(0)[hits.part] * (0.3 + 0.7 * facing)
        intensity = np.clip(255 * np.sqrt(bright), 1, 255).round()
        points = np.round(local[seen] * measured[seen, None] / lidar.resolution_m) * lidar.resolution_m
        return np.concatenate([points, intensity[seen, None]], axis=1).astype(np.float32)


# Training frames


def random_camera(number: int, height: int, width: int) -> PinholeCamera:
    """The camera of `random_frame`, without rendering."""
    focal = width * np.random.default_rng([number, 7]).uniform(0.72, 1.15)
    return PinholeCamera(height, width, focal, focal, (width - 1) / 2, (height - 1) / 2)


def random_frame(number: int, height: int, width: int) -> Frame:
    """A training frame: a view of street number // VIEWS_A_STREET, from a place and under a light of its own."""
    return _photograph(training_street(number), number, height, width)


def training_street(number: int) -> Street:
    """The street of training frame `number`: crowded, because its views are spread along all of it."""
    return Street(number // VIEWS_A_STREET, is_crowded=True)


def _photograph(street: Street, number: int, height: int, width: int) -> Frame:
    shot = random_shot(street, number, height, width)
    frame = street.take(shot, np.random.default_rng([number, 10]))
    return replace(frame, rgb=shot.sensor.compress(frame.rgb))


def random_shot(street: Street, number: int, height: int, width: int) -> Shot:
    """How training frame `number` is taken in its street; all views of a street show the same moment."""
    rng = np.random.default_rng([number, 8])
    time_s = float(np.random.default_rng([street.seed, 9]).uniform(0, 0.7))
    world_from_base = _random_place(street, number % VIEWS_A_STREET, time_s, rng)
    camera, mount = random_camera(number, height, width), Mount.random(rng)
    return Shot(camera, time_s, world_from_base @ mount.base_from_camera, Light.random(rng), Sensor.random(rng))


def _random_place(street: Street, view: int, time_s: float, rng: np.random.Generator) -> np.ndarray:
    """world_from_base [4, 4] on the view's stretch of the road, where a vehicle has room."""
    stretch, is_backward = STRETCHES[view]
    section, line, scene = street.layout.section, street.layout.centerline, street.scene(time_s)
    for _ in range(20):
        lane = int(rng.integers(section.lanes // 2))
        left = (lane + 0.5) * section.lane * (1 if is_backward else -1) + rng.normal() * 0.25
        s = rng.uniform(*stretch)
        world_from_base = line.pose(s, left, np.pi * is_backward)
        if scene.has_room(world_from_base, FREE_AROUND, rng.uniform(*FREE_AHEAD)):
            return world_from_base
    return street.world_from_base(time_s)  # the ego-vehicle's own place is kept free


class SyntheticStreets:
    """Frames seed .. seed + count - 1 of `random_frame`, rendered when they are asked for.

    Frame by frame the same as in any other process. VIEWS_A_STREET frames in a row share a street, so that reading in
    order is about twice as fast as reading at random.
    """

    taxonomy = CITYSCAPES
    supervision = EXACT

    def __init__(self, seed: int, count: int, height: int = 256, width: int = 512) -> None:
        if seed < 0 or count < 1 or height < 2 or width < 2:
            raise ValueError(
                f"streets:{seed}:{count} at {height}x{width}: expected a seed of 0 or more, a count of 1 or more "
                "and a size of 2 px or more"
            )
        self.seed, self.count = seed, count
        self.height, self.width = height, width
        self._streets: OrderedDict[int, Street] = OrderedDict()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> LabeledImage:
        frame = self.frame(index)
        return LabeledImage(frame.rgb, frame.panoptic_ids, frame.depth, frame.camera, self.name_of(index))

    def frame(self, index: int) -> Frame:
        """Frame [0 .. count-1] with its pose and time."""
        number = self._number(index)
        return _photograph(self._street(number), number, self.height, self.width)

    def camera(self, index: int) -> PinholeCamera:
        """Of a frame, without rendering it."""
        return random_camera(self._number(index), self.height, self.width)

    def name_of(self, index: int) -> str:
        street, view = divmod(self._number(index), VIEWS_A_STREET)
        return f"street{street:06d}_view{view}"

    def sequence_of(self, index: int) -> str:
        """Every frame is a sequence of its own: the views of a street do not follow each other in time."""
        return self.name_of(index)

    def files_of(self, index: int) -> tuple[Path, ...]:
        """None."""
        return ()

    def _number(self, index: int) -> int:
        if not -self.count <= index < self.count:
            raise IndexError(f"frame {index} of {self.count}")
        return self.seed + index % self.count

    def _street(self, number: int) -> Street:
        seed = number // VIEWS_A_STREET
        if seed not in self._streets:
            self._streets[seed] = training_street(number)
        self._streets.move_to_end(seed)
        while len(self._streets) > STREETS_KEPT:
            self._streets.popitem(last=False)
        return self._streets[seed]

    def __getstate__(self) -> dict[str, Any]:
        """Without the streets: a loader's process builds its own."""
        return self.__dict__ | {"_streets": OrderedDict()}
