# SPDX-License-Identifier: Apache-2.0
"""The plot of a rendered street: its coordinates, its cross section, and what has been placed on it so far.

Street coordinates: s runs along the middle of the road, l to its left [m]. The ego-vehicle starts at s = 0 and
drives toward larger s, on the right. Side -1 is the right of the road, 1 its left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from panoptic_depth_training.datasets.street_shapes import Color, Look, Part, loft, pose

START, END = -24.0, 180.0  # the street's reach in s
REACH = 65.0  # and in l
CURB = 0.13  # height of the sidewalk
SLAB = 0.6  # ribbons reach this far below their face
SIDES = (-1, 1)


@dataclass(frozen=True)
class Centerline:
    """The middle of the road: an arc of constant curvature [1/m], positive to the left, through the origin."""

    curvature: float

    def pose(self, s: float, left: float, turn: float = 0.0, z: float = 0.0) -> np.ndarray:
        """world_from_object [4, 4] of what stands at (s, l) and looks along the road, turned by turn [rad]."""
        x, y = self.points(np.array([s]), np.array([left]))[0]
        return pose(x, y, z, yaw=self.curvature * s + turn)

    def points(self, s: np.ndarray, left: np.ndarray) -> np.ndarray:
        """World x, y [N, 2] of (s, l)."""
        if self.curvature == 0.0:
            return np.stack([s, left], -1)
        heading = self.curvature * s
        radius = 1 / self.curvature - left
        return np.stack([radius * np.sin(heading), 1 / self.curvature - radius * np.cos(heading)], -1)

    def locate(self, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(s, l) of world x, y [N, 2]; the inverse of `points`."""
        if self.curvature == 0.0:
            return xy[:, 0], xy[:, 1]
        radius = 1 / self.curvature
        sign = np.sign(self.curvature)
        x, y = sign * xy[:, 0], sign * (radius - xy[:, 1])
        return np.arctan2(x, y) / self.curvature, radius - sign * np.hypot(x, y)


@dataclass(frozen=True)
class Section:
    """The road's cross section [m]."""

    lane: float
    lanes: int  # an even number, half of them each way
    parking: tuple[float, float]  # parking lane's width, right and left; 0 = none
    sidewalk: tuple[float, float]  # right and left

    @classmethod
    def random(cls, rng: np.random.Generator) -> Section:
        right_parking, left_parking = (float(rng.choice([0.0, 2.1], p=[0.5, 0.5])) for _ in SIDES)
        right_walk, left_walk = (float(rng.uniform(1.8, 4.5)) for _ in SIDES)
        return cls(
            lane=float(rng.uniform(3.0, 3.7)),
            lanes=int(rng.choice([2, 4], p=[0.75, 0.25])),
            parking=(right_parking, left_parking),
            sidewalk=(right_walk, left_walk),
        )

    @property
    def lanes_edge(self) -> float:
        """Distance of the outermost lane's edge from the middle."""
        return self.lane * self.lanes / 2

    def edge(self, side: int) -> float:
        """Distance of the curb from the middle."""
        return self.lanes_edge + self.parking[side > 0]

    def outer(self, side: int) -> float:
        """Distance of the sidewalk's far edge from the middle."""
        return self.edge(side) + self.sidewalk[side > 0]


@dataclass(frozen=True)
class Crossing:
    """The stretch of s where another road crosses, from curb to curb."""

    start: float
    end: float

    def is_near(self, s: float, margin: float) -> bool:
        return self.start - margin < s < self.end + margin


@dataclass(frozen=True)
class Track:
    """A straight way in street coordinates; turn is the heading against the road's [rad]."""

    s: float
    left: float
    turn: float
    speed: float = 0.0  # [m/s]

    def at(self, time_s: float) -> tuple[float, float]:
        way = self.speed * time_s
        return self.s + way * np.cos(self.turn), self.left + way * np.sin(self.turn)


@dataclass(frozen=True)
class Thing:
    """One countable object with its number for life, its way, and its parts at a time."""

    category: str
    instance: int
    track: Track
    height: float  # of the ground it stands on
    parts: Callable[[float], list[Part]]

    def pose(self, centerline: Centerline, time_s: float) -> np.ndarray:
        """world_from_thing [4, 4]."""
        return centerline.pose(*self.track.at(time_s), turn=self.track.turn, z=self.height)


class Site:
    """A street under construction: draws what holds for all of it, and collects what is placed."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        is_curved = rng.random() < 0.55
        self.line = Centerline(float(rng.choice([-1, 1]) / rng.uniform(110, 400)) if is_curved else 0.0)
        self.section = Section.random(rng)
        self.crossing = self._draw_crossing()
        self.go = bool(rng.random() < 0.7)  # what the traffic lights say to the ego-vehicle's road
        self.urban = float(rng.uniform(0, 1))  # 1: closed rows of houses, 0: countryside
        self.static: list[tuple[Part, np.ndarray]] = []  # with world_from_owner
        self.things: list[Thing] = []
        self._counts: Counter[str] = Counter()

    def _draw_crossing(self) -> Crossing | None:
        if self.rng.random() < 0.45:
            return None
        start = self.rng.uniform(9, 70)
        return Crossing(start, start + self.rng.uniform(6.5, 11))

    def stand(self, parts: Sequence[Part], s: float, left: float, turn: float = 0.0, z: float = 0.0) -> None:
        """Place parts of one owner for good."""
        where = self.line.pose(s, left, turn, z)
        self.static += [(part, where) for part in parts]

    def enroll(self, category: str, track: Track, height: float, parts: Callable[[float], list[Part]]) -> None:
        """Place a thing and give it the category's next number."""
        self._counts[category] += 1
        self.things.append(Thing(category, self._counts[category], track, height, parts))

    def ribbon(
        self, profile: Sequence[tuple[float, float]], stretch: tuple[float, float], look: Look, category: str
    ) -> None:
        """A closed profile of (l, z) swept along a stretch of the road."""
        start, end = stretch
        step = 4.0 if self.line.curvature else 40.0
        s = np.linspace(start, end, max(2, int((end - start) / step) + 1))
        rings = []
        for left, z in profile:
            xy = self.line.points(s, np.full_like(s, left))
            rings.append(np.concatenate([xy, np.full((len(s), 1), z)], axis=1))
        swept = loft(np.stack(rings, axis=1), crease_deg=0.0)
        self.static.append((Part(swept, np.eye(4), look, category), np.eye(4)))

    def strip(
        self, sides: tuple[float, float], top: float, stretch: tuple[float, float], look: Look, category: str
    ) -> None:
        """Ground between two l, its face at height top."""
        near, far = sides
        self.ribbon([(near, top), (far, top), (far, top - SLAB), (near, top - SLAB)], stretch, look, category)

    def is_clear_of_crossing(self, s: float, margin: float) -> bool:
        return self.crossing is None or not self.crossing.is_near(s, margin)

    def stretches(self) -> list[tuple[float, float]]:
        """The street without its crossing."""
        if self.crossing is None:
            return [(START, END)]
        return [(START, self.crossing.start), (self.crossing.end, END)]

    def pick(self, colors: Sequence[Color], jitter: float = 0.2) -> Color:
        """One of the colors, a little changed."""
        color = np.array(colors[int(self.rng.integers(len(colors)))]) * self.rng.uniform(1 - jitter, 1 + jitter)
        red, green, blue = np.clip(color * self.rng.uniform(0.93, 1.07, 3), 0.01, 0.9).tolist()
        return red, green, blue
