# SPDX-License-Identifier: Apache-2.0
"""Vehicles and people of a rendered street, and their ways (street coordinates: street_site.py)."""

from __future__ import annotations

from functools import partial

import numpy as np

from panoptic_depth_training.datasets import street_people as people
from panoptic_depth_training.datasets import street_vehicles as vehicles
from panoptic_depth_training.datasets.street_shapes import Look, Material, Part
from panoptic_depth_training.datasets.street_site import CURB, END, SIDES, START, Crossing, Site, Track

FAR = 20.0  # [m] along the street, where the people about its start thin out


class Traffic:
    """Fills a site with things; vehicles come first, the others keep clear of them."""

    def __init__(self, site: Site) -> None:
        self.site, self.rng = site, site.rng
        self._occupied: list[tuple[float, float, float]] = []  # s, l and half length of vehicles

    def build(self) -> Track:
        """Place everything; returns the ego-vehicle's way."""
        ego = self._lanes()
        for side in SIDES:
            self._parked_cars(side)
            self._parked_bicycles(side)
            self._people(side)
            self._riders(side)
        self._people_on_the_road()
        return ego

    def build_crowd(self) -> None:
        """More people, riders and two-wheelers, where the ones of `build` grow few: farther along the street."""
        for side in SIDES:
            for s in self.rng.uniform(FAR, FAR + 95, self.rng.integers(0, 9)):
                self._company(side, float(s))
            for s in self.rng.uniform(FAR, FAR + 95, self.rng.integers(0, 4)):
                self._parked_group(side, float(s))
            for s in self.rng.uniform(FAR + 20, FAR + 95, self.rng.integers(0, 4)):
                self._someone_riding(side, float(s))
        if self.rng.random() < 0.6:
            self._crossing_people(float(self.rng.uniform(50, 110)))

    # Vehicles

    def _lanes(self) -> Track:
        """Queues in all lanes; what drives in one lane goes at one speed."""
        rng, section = self.rng, self.site.section
        own_lane = int(rng.integers(section.lanes // 2))
        stops = self.site.crossing is not None and not self.site.go
        speed = float(rng.uniform(0, 2) if stops else rng.uniform(3, 11))
        ego = Track(0.0, -(own_lane + 0.5) * section.lane + rng.normal() * 0.15, 0.0, speed)
        for lane in range(section.lanes // 2):
            left = (lane + 0.5) * section.lane
            density, is_own = rng.uniform(0.3, 1.6), lane == own_lane
            ahead = (rng.uniform(9, 45) if is_own else rng.uniform(-8, 20)) + 6.0
            self._queue(-left, 0.0, ahead, density, speed if is_own or stops else float(rng.uniform(3, 12)))
            first, density = rng.uniform(0, 30), rng.uniform(0.3, 1.8)
            self._queue(left, np.pi, first, density, speed if stops else float(rng.uniform(4, 12)))
        if self.site.crossing and rng.random() < 0.6:
            self._waiting_at(self.site.crossing)
        return ego

    def _queue(self, left: float, turn: float, first: float, density: float, speed: float) -> None:
        s = first
        while s < END - 15:
            vehicle = self._draw_vehicle()
            beside = left + self.rng.normal() * 0.15
            self._place(vehicle, Track(s + vehicle.length / 2, beside, turn, speed))
            s += vehicle.length + self.rng.uniform(5, 40) / density

    def _waiting_at(self, crossing: Crossing) -> None:
        """Someone on the other road who lets this one pass."""
        side = int(self.rng.choice(SIDES))
        vehicle = self._draw_vehicle()
        share = 0.25 if side > 0 else 0.75
        s = (1 - share) * crossing.start + share * crossing.end
        left = side * (self.site.section.edge(side) + 1.0 + vehicle.length / 2)
        self._place(vehicle, Track(s, left, -side * np.pi / 2))

    def _draw_vehicle(self) -> vehicles.Vehicle:
        kinds = (vehicles.car, vehicles.truck, vehicles.bus, vehicles.tram)
        return kinds[self.rng.choice(4, p=[0.80, 0.10, 0.08, 0.02])](self.rng)

    def _place(self, vehicle: vehicles.Vehicle, track: Track) -> None:
        self._occupied.append((track.s, track.left, vehicle.length / 2))
        self.site.enroll(vehicle.category, track, 0.0, partial(_still, vehicle.parts))

    def _is_free(self, track: Track) -> bool:
        """No vehicle covers the track's first point."""
        return all(abs(track.s - s) > half + 0.7 or abs(track.left - left) > 1.9 for s, left, half in self._occupied)

    def _parked_cars(self, side: int) -> None:
        rng, section = self.rng, self.site.section
        if not section.parking[side > 0]:
            return
        density = rng.uniform(0.15, 0.95)
        s = START + rng.uniform(0, 6)
        while s < 130:
            vehicle = vehicles.car(rng) if rng.random() < 0.93 else vehicles.truck(rng)
            middle = s + vehicle.length / 2
            if rng.random() < density and self.site.is_clear_of_crossing(middle, vehicle.length / 2 + 3):
                is_backward = (side > 0) != (rng.random() < 0.08)
                left = side * (section.edge(side) - vehicle.width / 2 - rng.uniform(0.1, 0.25))
                self._place(vehicle, Track(middle, left, np.pi * is_backward + rng.normal() * 0.012))
            s += vehicle.length + rng.uniform(0.7, 2.0)

    def _parked_bicycles(self, side: int) -> None:
        """Groups of bicycles or motorcycles on the sidewalk."""
        for _ in range(self.rng.integers(0, 4)):
            self._parked_group(side, self.rng.uniform(4, 60))

    def _parked_group(self, side: int, s: float) -> None:
        rng, section = self.rng, self.site.section
        along = rng.random() < 0.5
        beside = 0.55 if rng.random() < 0.6 else max(section.sidewalk[side > 0] - 0.5, 0.8)
        is_bicycle = rng.random() < 0.68
        for i in range(rng.integers(1, 5)):
            here = s + i * (2.0 if along else 0.7)
            if not self.site.is_clear_of_crossing(here, 1.5):
                continue
            turn = (0.0 if along else np.pi / 2) + np.pi * rng.integers(2) + rng.normal() * 0.1
            track = Track(here, side * (section.edge(side) + beside + (0 if along else 0.5)), turn)
            self._two_wheeler(track, is_bicycle, CURB)

    def _two_wheeler(self, track: Track, is_bicycle: bool, height: float) -> None:
        paint = Look(self.site.pick(vehicles.PAINT), Material.BODYWORK)
        if is_bicycle:
            parts = vehicles.bicycle(paint)
        else:
            parts = vehicles.motorcycle(paint, is_scooter=bool(self.rng.random() < 0.5))
        self.site.enroll("bicycle" if is_bicycle else "motorcycle", track, height, partial(_still, parts))

    # People

    def _people(self, side: int) -> None:
        """On the sidewalk: alone or in company, more of them near than far."""
        rng = self.rng
        lively = rng.uniform(1, 14) * (0.4 + self.site.urban)
        for _ in range(int(lively)):
            self._company(side, 3 + 80 * rng.random() ** 1.8)

    def _company(self, side: int, s: float) -> None:
        """One to three who walk or stand together."""
        rng, section = self.rng, self.site.section
        if not self.site.is_clear_of_crossing(s, 0.5):
            return
        left = section.edge(side) + rng.uniform(0.8, max(section.sidewalk[side > 0] - 0.4, 1.0))
        turn, standing = float(np.pi * rng.integers(2)), rng.random() < 0.2
        speed = 0.0 if standing else rng.uniform(0.8, 1.7)
        if standing:
            turn = rng.uniform(0, 2 * np.pi)
        for i in range(int(rng.choice([1, 2, 3], p=[0.68, 0.24, 0.08]))):
            beside = side * (left + 0.6 * i)
            self._person(Track(s + rng.normal() * 0.2, beside, turn + rng.normal() * 0.06, speed), CURB)

    def _people_on_the_road(self) -> None:
        """A few who cross at one place."""
        rng, crossing = self.rng, self.site.crossing
        if rng.random() < 0.35:
            return
        self._crossing_people(crossing.start - 2.0 if crossing and rng.random() < 0.7 else rng.uniform(9, 45))

    def _crossing_people(self, s: float) -> None:
        rng, section = self.rng, self.site.section
        for _ in range(rng.integers(1, 7)):
            turn = float(rng.choice([-1, 1])) * np.pi / 2
            left = rng.uniform(-section.edge(-1), section.edge(1))
            track = Track(s + rng.normal() * 0.9, left, turn, rng.uniform(0.9, 1.6))
            if self._is_free(track):
                self._person(track, 0.0)

    def _person(self, track: Track, height: float) -> None:
        body = people.Body.random(self.rng)
        pace = 2 * np.pi * track.speed / 1.4  # two steps are about 1.4 m
        walk = partial(_walking, body, float(self.rng.uniform(0, 6.3)), pace, 0.45 if track.speed else 0.06)
        self.site.enroll("person", track, height, walk)

    def _riders(self, side: int) -> None:
        """On bicycles and motorcycles, at the edge of the lanes."""
        for _ in range(int(self.rng.choice([0, 1, 2, 3], p=[0.35, 0.35, 0.2, 0.1]))):
            self._someone_riding(side)

    def _someone_riding(self, side: int, place: float | None = None) -> None:
        """Near the start of the street unless a place s is given."""
        rng = self.rng
        on_bicycle = rng.random() < 0.7
        left = side * (self.site.section.lanes_edge - rng.uniform(0.1, 0.5))
        s = rng.uniform(6, 60) if place is None else place
        track = Track(s, left, np.pi if side > 0 else 0.0, rng.uniform(2.5, 6) if on_bicycle else rng.uniform(5, 9))
        if self._is_free(track):
            self._rider(track, on_bicycle)

    def _rider(self, track: Track, on_bicycle: bool) -> None:
        """Two things on one way: who rides, and what is ridden."""
        rng = self.rng
        body = people.Body.random(rng)
        helmet = Look(self.site.pick(vehicles.PAINT)) if rng.random() < 0.5 or not on_bicycle else None
        phase, pace = float(rng.uniform(0, 6.3)), track.speed * 1.5
        if on_bicycle:
            ride = partial(_pedaling, body, phase, pace, helmet)
        else:
            ride = partial(_still, people.motorcyclist(body, helmet))
        self.site.enroll("rider", track, 0.0, ride)
        self._two_wheeler(track, on_bicycle, 0.0)


def _still(parts: list[Part], time_s: float) -> list[Part]:
    return parts


def _walking(body: people.Body, phase: float, pace: float, stride: float, time_s: float) -> list[Part]:
    return people.person(body, phase + pace * time_s, stride)


def _pedaling(body: people.Body, phase: float, pace: float, helmet: Look | None, time_s: float) -> list[Part]:
    return people.cyclist(body, phase + pace * time_s, helmet)
