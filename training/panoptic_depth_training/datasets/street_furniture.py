# SPDX-License-Identifier: Apache-2.0
"""Lamps, signs, posts and traffic lights of a rendered street (street coordinates: street_site.py)."""

from __future__ import annotations

import numpy as np

from panoptic_depth_training.datasets.street_shapes import (
    Color,
    Look,
    Material,
    Part,
    Shape,
    box,
    cylinder,
    placed,
    polygon_plate,
    tube,
)
from panoptic_depth_training.datasets.street_site import CURB, END, START, Crossing, Site
from panoptic_depth_training.datasets.street_surroundings import METAL, plant_tree

LIT, UNLIT = 1.6, 0.06  # how far a lamp outshines white
LAMP_POSTS: tuple[Color, ...] = ((0.2, 0.21, 0.22), (0.08, 0.1, 0.09), (0.35, 0.35, 0.34))
SIGNALS: tuple[Color, ...] = ((0.9, 0.05, 0.03), (0.9, 0.5, 0.03), (0.05, 0.8, 0.35))  # red, yellow, green
WHITE, RED, BLUE = (0.75, 0.75, 0.73), (0.55, 0.02, 0.02), (0.02, 0.09, 0.42)
YELLOW, GREEN = (0.65, 0.42, 0.02), (0.02, 0.22, 0.08)
SIGN_BACK = Look((0.28, 0.28, 0.29))


def build_furniture(site: Site, side: int) -> None:
    """What stands along one curb."""
    rng, section = site.rng, site.section
    curb = side * (section.edge(side) + 0.45)
    spacing = rng.uniform(20, 34)
    for s in np.arange(START + rng.uniform(0, spacing), END, spacing):
        if site.is_clear_of_crossing(s, 1.0):
            _lamp(site, s, curb, side)
    if section.sidewalk[side > 0] > 2.4 and rng.random() < 0.5:
        _avenue(site, curb + side * 0.3)
    for s in np.arange(rng.uniform(2, 16), 120, rng.uniform(9, 24)):
        if site.is_clear_of_crossing(s, 1.0):
            _sign(site, s, curb)
    if rng.random() < 0.3:
        for s in np.arange(rng.uniform(0, 20), rng.uniform(30, 70), 1.8):
            if site.is_clear_of_crossing(s, 1.0):
                site.stand([tube((0, 0, 0), (0, 0, 0.95), 0.055, METAL, "pole")], s, curb - side * 0.15, z=CURB)
    if site.crossing:
        _traffic_lights(site, site.crossing, side)


def _avenue(site: Site, left: float) -> None:
    step, height = site.rng.uniform(7, 14), site.rng.uniform(4.5, 9)
    for s in np.arange(START + site.rng.uniform(0, step), END, step):
        plant_tree(site, s, left, height * site.rng.uniform(0.85, 1.15))


def _lamp(site: Site, s: float, left: float, side: int) -> None:
    height, arm = site.rng.uniform(5, 8.5), site.rng.uniform(0.6, 2.2)
    paint = Look(site.pick(LAMP_POSTS, 0.1))
    tip = (0, -side * arm, height + 0.25)
    parts = [
        tube((0, 0, 0), (0, 0, height), 0.075, paint, "pole"),
        tube((0, 0, height - 0.1), tip, 0.045, paint, "pole"),
        placed(box(), tip, (0.28, 0.75, 0.14), paint, "pole"),
        tube((0, 0, 0), (0, 0, 1.1), 0.11, paint, "pole"),
    ]
    site.stand(parts, s, left, z=CURB)


# Signs


def _sign(site: Site, s: float, left: float) -> None:
    """A post with one or two signs; most face the ego-vehicle, some the other way."""
    rng = site.rng
    height = rng.uniform(2.1, 2.9)
    parts = [tube((0, 0, 0), (0, 0, height + 0.3), 0.035, METAL, "pole")]
    for level in range(int(rng.integers(1, 3))):
        parts += _sign_plate(rng, height - 0.75 * level)
    facing = np.pi if rng.random() < 0.75 else 0.0
    site.stand(parts, s, left, facing + rng.normal() * 0.12, z=CURB)


def _sign_plate(rng: np.random.Generator, z: float) -> list[Part]:
    """A plate that faces x, and its gray back."""
    size, symbol = rng.uniform(0.55, 0.8), float(rng.integers(1, 5))
    width, height, roll = size, size, 0.0
    kind = rng.choice(7, p=[0.25, 0.2, 0.15, 0.1, 0.1, 0.12, 0.08])
    shape, look = _sign_face(kind, symbol)
    match kind:
        case 1:  # a triangle stands on its side or on its tip
            roll = float(rng.choice([0, np.pi], p=[0.75, 0.25]))
            width, height = 1.25 * size, 1.25 * size
        case 4:  # a square on its corner
            width, height, roll = 0.8 * size, 0.8 * size, np.pi / 4
        case 5 | 6:  # a board
            width = size * rng.uniform(1.0, 2.2)
    return [
        placed(shape, (0.06, 0, z), (0.015, width, height), look, "traffic sign", roll=roll),
        placed(shape, (0.047, 0, z), (0.008, width, height), SIGN_BACK, "traffic sign", roll=roll),
    ]


def _sign_face(kind: int, symbol: float) -> tuple[Shape, Look]:
    match kind:
        case 0:  # prohibition
            return polygon_plate(20), Look(WHITE, Material.ROUND_SIGN, accent=RED, detail=(0.36, symbol))
        case 1:  # warning
            return polygon_plate(3), Look(WHITE, Material.TRIANGLE_SIGN, accent=RED, detail=(0.15, symbol))
        case 2:  # instruction
            return polygon_plate(20), Look(BLUE, Material.ROUND_SIGN, accent=WHITE, detail=(0.46, symbol))
        case 3:  # stop
            return polygon_plate(8), Look(RED, Material.ROUND_SIGN, accent=WHITE, detail=(0.45, 1.0))
        case 4:  # priority
            return box(), Look(YELLOW, Material.ROUND_SIGN, accent=WHITE, detail=(0.48, 0.0))
        case 5:  # information
            return box(), Look(BLUE, Material.ROUND_SIGN, accent=WHITE, detail=(0.6, symbol))
        case _:  # direction
            return box(), Look(GREEN, Material.ROUND_SIGN, accent=WHITE, detail=(0.7, 1.0))


# Traffic lights


def _traffic_lights(site: Site, crossing: Crossing, side: int) -> None:
    """On the near side of the crossing toward the ego-vehicle; on the far side toward who comes from there."""
    rng, section = site.rng, site.section
    if rng.random() < 0.3:
        return
    lit = 2 if site.go else int(rng.integers(2))
    for s, facing in ((crossing.start - 0.8, np.pi), (crossing.end + 0.8, 0.0 if side > 0 else np.pi)):
        arm = section.lane * rng.uniform(0.8, 1.3) if rng.random() < 0.4 else 0.0
        inward = -side if facing == 0.0 else side  # the owner may look back along the road
        site.stand(_signal(arm, inward, lit), s, side * (section.edge(side) + 0.4), facing, z=CURB)


def _signal(arm: float, inward: int, lit: int) -> list[Part]:
    """A post that looks along x, with a second head over the road if it has an arm [m]."""
    parts = [tube((0, 0, 0), (0, 0, 5.4 if arm else 3.3), 0.07, METAL, "pole"), *_signal_head((0.12, 0.0, 2.6), lit)]
    if arm:
        parts.append(tube((0, 0, 5.2), (0, inward * arm, 5.4), 0.05, METAL, "pole"))
        parts += _signal_head((0.12, inward * arm, 5.2), lit)
    return parts


def _signal_head(center: tuple[float, float, float], lit: int) -> list[Part]:
    """Three lamps in a box; lit counts from red down."""
    x, y, z = center
    parts = [placed(box(), center, (0.2, 0.32, 0.92), Look((0.015, 0.02, 0.018)), "traffic light")]
    for index, color in enumerate(SIGNALS):
        lamp = Look(color, Material.LAMP, detail=(LIT if index == lit else UNLIT,))
        where = (x + 0.11, y, z + 0.28 * (1 - index))
        parts.append(placed(cylinder(), where, (0.2, 0.2, 0.04), lamp, "traffic light", pitch=np.pi / 2))
    return parts
