# SPDX-License-Identifier: Apache-2.0
"""The vehicles of a rendered street, from bicycle to tram.

Every vehicle stands on z = 0 at its origin and looks along x; what is drawn from a generator comes with its length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from panoptic_depth_training.datasets.street_people import pick
from panoptic_depth_training.datasets.street_shapes import (
    Color,
    Kit,
    Look,
    Material,
    Part,
    car_body,
    cylinder,
    frustum,
    torus,
)

RUBBER = Look((0.02, 0.02, 0.022))
DARK = Look((0.03, 0.03, 0.033))
CHROME = Look((0.45, 0.45, 0.46), Material.BODYWORK)
GLASS = Look((0.025, 0.03, 0.035), Material.GLASS)
HEADLIGHT = Look((0.85, 0.85, 0.8), Material.GLASS)
TAILLIGHT = Look((0.55, 0.02, 0.02), Material.GLASS)
PLATE = Look((0.75, 0.75, 0.72))
LOAD = Look((0.2, 0.15, 0.1))
AMBER = Look((0.7, 0.35, 0.02), Material.LAMP, detail=(1.0,))
PRIMER: Color = (1.0, 0.0, 1.0)  # the color of parts that a car's paint replaces

PAINT = (
    *((0.60, 0.60, 0.60), (0.03, 0.03, 0.035), (0.25, 0.26, 0.27), (0.10, 0.105, 0.11)),
    *((0.38, 0.02, 0.02), (0.02, 0.06, 0.24), (0.04, 0.15, 0.32), (0.30, 0.26, 0.20), (0.02, 0.12, 0.06)),
    *((0.55, 0.30, 0.03), (0.16, 0.05, 0.03), (0.72, 0.72, 0.70), (0.05, 0.07, 0.12)),
)
CARGO = ((0.62, 0.62, 0.6), (0.5, 0.32, 0.05), (0.06, 0.16, 0.34), (0.3, 0.05, 0.04), (0.1, 0.22, 0.12))
BUSES = ((0.62, 0.62, 0.6), (0.55, 0.06, 0.04), (0.6, 0.42, 0.03), (0.05, 0.14, 0.4), (0.05, 0.25, 0.12))
TRAMS = ((0.55, 0.06, 0.04), (0.6, 0.55, 0.4), (0.05, 0.3, 0.15), (0.62, 0.62, 0.6))


@dataclass(frozen=True, eq=False)
class Vehicle:
    """A vehicle to place."""

    category: str
    parts: list[Part]
    length: float  # [m]
    width: float  # [m]


# Two wheels


def bicycle(frame: Look) -> list[Part]:
    """A city bicycle."""
    kit = Kit("bicycle")
    rear, front, crank = (-0.52, 0, 0.34), (0.55, 0, 0.34), (0.0, 0, 0.30)
    saddle, head = (-0.20, 0, 0.86), (0.36, 0, 0.86)
    for hub in (rear, front):
        kit.add(torus(0.075), hub, (0.68, 0.68, 0.68), RUBBER)
        kit.add(cylinder(8), hub, (0.06, 0.06, 0.1), CHROME, roll=np.pi / 2)
        for turn in (0, np.pi / 3, 2 * np.pi / 3):
            spoke = 0.31 * np.array([np.cos(turn), 0, np.sin(turn)])
            kit.tube(np.array(hub) - spoke, np.array(hub) + spoke, 0.006, CHROME)
    for start, end in (
        (rear, crank),
        (rear, (-0.17, 0, 0.75)),
        (crank, saddle),
        (crank, (0.37, 0, 0.72)),
        ((-0.18, 0, 0.76), head),
        (front, (0.33, 0, 0.98)),
    ):
        kit.tube(start, end, 0.022, frame)
    kit.tube((0.36, -0.29, 1.03), (0.36, 0.29, 1.03), 0.016, DARK)
    kit.tube((0.33, 0, 0.97), (0.36, 0, 1.03), 0.016, DARK)
    kit.blob((-0.22, 0, 0.90), (0.28, 0.15, 0.08), DARK)
    return kit.parts


def motorcycle(paint: Look, is_scooter: bool) -> list[Part]:
    """A motorcycle, or a scooter with its shield and footboard."""
    kit = Kit("motorcycle")
    diameter, base = (0.46, 0.62) if is_scooter else (0.62, 0.70)
    for x in (-base, base):
        hub = (x, 0, diameter / 2)
        kit.add(torus(0.2), hub, (diameter, diameter * 0.8, diameter), RUBBER)
        kit.add(cylinder(), hub, (diameter * 0.5, diameter * 0.5, 0.1), CHROME, roll=np.pi / 2)
    kit.tube((base, 0, diameter / 2), (base - 0.28, 0, 0.98), 0.05, DARK)
    kit.tube((base - 0.27, -0.34, 1.02), (base - 0.27, 0.34, 1.02), 0.02, DARK)
    kit.bulk((base - 0.2, 0, 0.9), (0.14, 0.2, 0.18), HEADLIGHT)
    kit.blob((-0.32, 0, 0.78), (0.75, 0.28, 0.14), DARK)
    kit.block((-base - 0.12, 0, 0.68), (0.06, 0.18, 0.08), TAILLIGHT)
    if is_scooter:
        kit.bulk((-0.42, 0, 0.56), (0.75, 0.36, 0.42), paint, exponent=3.0)
        kit.block((0.1, 0, 0.27), (0.6, 0.3, 0.08), DARK)
        kit.bulk((0.42, 0, 0.62), (0.1, 0.42, 0.72), paint, exponent=4.0, pitch=-0.35)
    else:
        kit.bulk((0.12, 0, 0.76), (0.55, 0.32, 0.3), paint, exponent=2.6)
        kit.bulk((0.02, 0, 0.44), (0.55, 0.34, 0.38), DARK, exponent=3.0)
        kit.blob((-0.62, 0, 0.74), (0.45, 0.22, 0.16), paint, exponent=2.6)
        kit.tube((0.1, -0.2, 0.3), (-0.75, -0.22, 0.38), 0.05, CHROME)
    return kit.parts


# Cars


@dataclass(frozen=True)
class CarStyle:
    """Proportions [m]. The cabin's x are rear and front, at the waist and at the roof."""

    length: float
    width: float
    height: float
    hood: float
    trunk: float
    hood_length: float
    trunk_length: float
    waist: tuple[float, float]
    roof: tuple[float, float]

    @property
    def waist_height(self) -> float:
        return max(self.hood, self.trunk)


CAR_STYLES = (
    CarStyle(4.65, 1.82, 1.45, 0.92, 0.98, 1.25, 0.95, (-1.95, 1.15), (-1.05, 0.30)),  # sedan
    CarStyle(4.05, 1.76, 1.47, 0.92, 0.98, 1.00, 0.30, (-1.95, 1.10), (-1.50, 0.30)),  # hatchback
    CarStyle(4.70, 1.82, 1.50, 0.92, 0.98, 1.25, 0.30, (-2.28, 1.15), (-1.95, 0.30)),  # estate
    CarStyle(4.60, 1.90, 1.72, 1.08, 1.10, 1.10, 0.30, (-2.20, 1.25), (-1.90, 0.45)),  # sport utility
    CarStyle(3.60, 1.65, 1.52, 0.95, 0.98, 0.75, 0.30, (-1.72, 1.10), (-1.45, 0.35)),  # city car
    CarStyle(4.95, 1.98, 1.95, 1.10, 1.12, 0.80, 0.30, (-2.42, 1.85), (-2.32, 0.95)),  # van
    CarStyle(4.35, 1.85, 1.28, 0.80, 0.90, 1.40, 0.80, (-1.70, 0.85), (-0.85, 0.10)),  # coupe
)
STYLE_SHARES = (0.2, 0.22, 0.16, 0.18, 0.1, 0.09, 0.05)


def car(rng: np.random.Generator) -> Vehicle:
    style = CAR_STYLES[rng.choice(len(CAR_STYLES), p=STYLE_SHARES)]
    paint = pick(rng, PAINT, 0.25)
    stretch = rng.uniform(0.96, 1.05, 3)
    unpainted = _unpainted_car(style)
    stretched = np.diag([*stretch, 1.0]) @ np.stack([part.pose for part in unpainted])
    parts = [
        Part(part.shape, pose, replace(part.look, color=paint) if part.look.color == PRIMER else part.look, "car")
        for part, pose in zip(unpainted, stretched, strict=True)
    ]
    return Vehicle("car", parts, style.length * stretch[0], style.width * stretch[1])


@cache
def _unpainted_car(style: CarStyle) -> tuple[Part, ...]:
    kit = Kit("car")
    half, wide = style.length / 2, style.width / 2
    shell = Look(PRIMER, Material.BODYWORK)
    body = car_body(style.length, style.width, style.hood, style.trunk, style.hood_length, style.trunk_length)
    kit.add(body, (0, 0, 0), (1, 1, 1), shell)
    _cabin(kit, style)
    for x in (half - 0.82, -half + 0.80):
        _wheels(kit, x, wide, radius=0.32)
    for side in (-1, 1):
        tail = 0.30 if style.height > 1.6 else 0.16
        kit.blob((half - 0.12, side * (wide - 0.28), style.hood - 0.30), (0.26, 0.38, 0.15), HEADLIGHT, exponent=4.0)
        kit.block((-half + 0.06, side * (wide - 0.22), style.trunk - 0.22), (0.14, 0.26, tail), TAILLIGHT)
        kit.blob((style.waist[1] - 0.35, side * (wide + 0.06), style.waist_height + 0.08), (0.12, 0.2, 0.14), shell)
    kit.block((half - 0.03, 0, style.hood - 0.42), (0.08, 0.9, 0.16), DARK)  # grille
    kit.block((half - 0.08, 0, 0.36), (0.2, 1.3, 0.16), DARK)  # bumpers
    kit.block((-half + 0.06, 0, 0.36), (0.2, 1.3, 0.18), DARK)
    kit.block((-half, 0, style.trunk - 0.36), (0.05, 0.5, 0.12), PLATE)
    kit.block((half, 0, 0.44), (0.06, 0.5, 0.11), PLATE)
    return tuple(kit.parts)


def _cabin(kit: Kit, style: CarStyle) -> None:
    base, roof = style.waist[1] - style.waist[0], style.roof[1] - style.roof[0]
    shift = (sum(style.roof) - sum(style.waist)) / 2 / base
    height = style.height - style.waist_height + 0.04
    look = Look(PRIMER, Material.GREENHOUSE, accent=(0.02, 0.024, 0.028), detail=(roof / base, 0.78, shift))
    center = (sum(style.waist) / 2, 0, style.waist_height - 0.04 + height / 2)
    kit.add(frustum(roof / base, 0.78, shift), center, (base, style.width * 0.90, height), look)


def _wheels(kit: Kit, x: float, half_width: float, radius: float) -> None:
    """A pair, each of arch, tire, rim and hub, one farther out than the other."""
    for side in (-1, 1):
        for size, out, look in ((1.2, 0.005, DARK), (1.0, 0.02, RUBBER), (0.66, 0.03, CHROME), (0.2, 0.04, DARK)):
            center = (x, side * (half_width - 0.12 + out), radius * (size * 0.96 if size > 1 else 1.0))
            diameter = 2 * radius * size
            kit.add(cylinder(14), center, (diameter, diameter, 0.24), look, roll=np.pi / 2)


# Trucks, buses, trams


def truck(rng: np.random.Generator) -> Vehicle:
    """A lorry with a box or an open bed."""
    kit = Kit("truck")
    paint, cargo = Look(pick(rng, PAINT, 0.25), Material.BODYWORK), Look(pick(rng, CARGO))
    length, width, height = rng.uniform(6.0, 9.5), rng.uniform(2.2, 2.5), rng.uniform(2.8, 3.6)
    half, cab = length / 2, (1.9, width, min(height - 0.3, 2.75))
    bed = length - cab[0] - 0.2
    kit.block((-0.1, 0, 0.72), (length - 0.3, width * 0.8, 0.34), DARK)
    _cab(kit, half, cab, paint)
    if rng.random() < 0.75:
        _box_bed(kit, -half, (bed, width, height - 0.9), cargo, Look(pick(rng, PAINT)))
    else:
        _open_bed(kit, -half, (bed, width), cargo)
    for side in (-1, 1):
        kit.block((-half - 0.02, side * (width / 2 - 0.25), 0.75), (0.08, 0.4, 0.16), TAILLIGHT)
    for x in (half - 1.1, -half + 1.3, *([-half + 2.4] if length > 8 else [])):
        _wheels(kit, x, width / 2, radius=0.48)
    return Vehicle("truck", kit.parts, length, width)


def _cab(kit: Kit, front: float, size: tuple[float, float, float], paint: Look) -> None:
    length, width, height = size
    middle, glass_z, glass_height = front - length / 2, 0.45 + height * 0.68, height * 0.32
    kit.add(frustum(0.93, 0.94, -0.03), (middle, 0, 0.45 + height / 2), size, paint)
    kit.block((front - 0.05, 0, 0.60), (0.2, width, 0.34), DARK)
    kit.block((front - 0.075, 0, glass_z), (0.12, width * 0.84, glass_height), GLASS, pitch=-0.05)
    for side in (-1, 1):
        kit.block((middle + 0.15, side * width * 0.475, glass_z), (0.9, 0.1, glass_height), GLASS)
        kit.block((front + 0.03, side * (width / 2 - 0.3), 0.72), (0.1, 0.36, 0.2), HEADLIGHT)
        kit.block((front - 0.1, side * (width / 2 + 0.15), glass_z), (0.1, 0.18, 0.4), DARK)


def _box_bed(kit: Kit, rear: float, size: tuple[float, float, float], cargo: Look, stripe: Look) -> None:
    length, width, height = size
    middle, z = rear + length / 2, 0.9 + height / 2
    kit.block((middle, 0, z), size, cargo)
    kit.block((middle, 0, z), (length * 0.7, width + 0.02, 0.35), stripe)
    kit.block((rear, 0, z), (0.03, 0.05, height - 0.1), DARK)


def _open_bed(kit: Kit, rear: float, size: tuple[float, float], cargo: Look) -> None:
    length, width = size
    middle = rear + length / 2
    for y in (-width / 2, width / 2):
        kit.block((middle, y, 1.25), (length, 0.06, 0.7), cargo)
    for x in (rear, rear + length):
        kit.block((x, 0, 1.25), (0.06, width, 0.7), cargo)
    kit.bulk((middle, 0, 1.2), (length * 0.9, width * 0.9, 1.2), LOAD, exponent=2.5)


def bus(rng: np.random.Generator) -> Vehicle:
    """A city bus."""
    kit = Kit("bus")
    size = (rng.uniform(10.0, 12.5), 2.5, rng.uniform(2.9, 3.2))
    _coach(kit, rng, size, pick(rng, BUSES), floor=0.32)
    for x in (size[0] / 2 - 2.6, -size[0] / 2 + 3.0):
        _wheels(kit, x, size[1] / 2, radius=0.48)
    return Vehicle("bus", kit.parts, size[0], size[1])


def tram(rng: np.random.Generator) -> Vehicle:
    """A tram of three cars: one thing, of category train."""
    length, width, height = size = (9.0, 2.4, 3.3)
    coach, kit = Kit("train"), Kit("train")
    _coach(coach, rng, size, pick(rng, TRAMS), floor=0.25)
    for shift in (-length - 0.5, 0.0, length + 0.5):
        kit.parts += [Part(part.shape, _moved(part.pose, shift), part.look, "train") for part in coach.parts]
    for shift in (-length / 2 - 0.25, length / 2 + 0.25):
        kit.block((shift, 0, 1.8), (0.6, width * 0.85, height - 0.6), DARK)
    kit.block((0, 0, height + 0.2), (2.0, 1.2, 0.3), DARK)
    return Vehicle("train", kit.parts, 3 * length + 1, width)


def _moved(pose: np.ndarray, x: float) -> np.ndarray:
    pose = pose.copy()
    pose[0, 3] += x
    return pose


def _coach(kit: Kit, rng: np.random.Generator, size: tuple[float, float, float], paint: Color, floor: float) -> None:
    """A long box with a band of windows, glass at both ends, doors on the right, lights."""
    length, width, height = size
    tall, half, right = height - floor, length / 2, -width / 2
    stripe = pick(rng, PAINT)
    wall = Look(paint, Material.COACH, accent=stripe, detail=(rng.uniform(1.2, 1.7), 0.40, 0.84))
    kit.add(frustum(0.985, 0.95), (0, 0, floor + tall / 2), (length, width, tall), wall)
    kit.block((half - 0.03, 0, floor + 0.58 * tall), (0.12, width * 0.9, 0.48 * tall), GLASS)
    kit.block((-half + 0.03, 0, floor + 0.62 * tall), (0.12, width * 0.7, 0.34 * tall), GLASS)
    kit.block((half, 0, floor + 0.90 * tall), (0.06, width * 0.6, 0.22), DARK)  # where it goes
    kit.block((half + 0.02, 0, floor + 0.90 * tall), (0.06, width * 0.4, 0.1), AMBER)
    kit.block((0, 0, floor + tall + 0.1), (length * 0.5, width * 0.6, 0.22), Look(paint))
    for side in (-1, 1):
        kit.block((half + 0.02, side * 0.95, floor + 0.2 * tall), (0.06, 0.35, 0.2), HEADLIGHT)
        kit.block((-half - 0.02, side * 1.05, floor + 0.2 * tall), (0.06, 0.2, 0.5), TAILLIGHT)
        kit.block((half + 0.15, side * (width / 2 + 0.05), floor + 0.62 * tall), (0.12, 0.2, 0.45), DARK)
    for x in (0.36 * length, -0.05 * length):
        kit.block((x, right + 0.02, floor + 0.42 * tall), (1.25, 0.1, 0.78 * tall), GLASS)
        kit.block((x, right + 0.01, floor + 0.42 * tall), (0.06, 0.16, 0.78 * tall), DARK)
