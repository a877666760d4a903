# SPDX-License-Identifier: Apache-2.0
"""The people of a rendered street: on foot, on bicycles and on motorcycles.

Everyone stands on z = 0 at their origin and looks along x. A body is drawn once, then posed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from panoptic_depth_training.datasets.street_shapes import Color, Kit, Look, Material, Part, ball, frustum

SKIN = ((0.58, 0.36, 0.25), (0.45, 0.26, 0.16), (0.30, 0.16, 0.09), (0.13, 0.07, 0.045), (0.66, 0.45, 0.33))
HAIR = ((0.02, 0.015, 0.012), (0.06, 0.03, 0.015), (0.16, 0.08, 0.03), (0.40, 0.28, 0.12), (0.3, 0.3, 0.3))
SHOES = ((0.02, 0.02, 0.02), (0.6, 0.6, 0.6), (0.1, 0.05, 0.02))
DENIM = (0.03, 0.045, 0.09)
AVERAGE_HEIGHT = 1.75  # [m], to which the measures below belong


def pick(rng: np.random.Generator, colors: tuple[Color, ...], jitter: float = 0.12) -> Color:
    """One of the colors, brighter or darker by the jitter."""
    color = np.array(colors[int(rng.integers(len(colors)))]) * rng.uniform(1 - jitter, 1 + jitter)
    red, green, blue = np.clip(color, 0.01, 0.9).tolist()
    return red, green, blue


def _cloth_color(rng: np.random.Generator) -> Color:
    """Mostly muted, at times bright."""
    value, saturation = rng.uniform(0.02, 0.6) ** 1.3, rng.choice([0.15, 0.45, 0.85], p=[0.45, 0.35, 0.2])
    red, green, blue = (value * (1 - saturation * rng.uniform(0, 1, 3))).tolist()
    return red, green, blue


def _patterned(color: Color) -> Look:
    """Cloth that is plain, striped or checked; the color decides, so that no other draw of the street changes."""
    rng = np.random.default_rng([round(1e6 * channel) for channel in color])
    pattern = float(rng.choice([0, 1, 2], p=[0.6, 0.25, 0.15]))
    return Look(color, Material.CLOTH, accent=_cloth_color(rng), detail=(pattern, rng.uniform(0.02, 0.07)))


@dataclass(frozen=True)
class Body:
    """A person's build and clothes."""

    height: float  # [m]
    breadth: float  # factor on widths
    skin: Look
    hair: Look
    top: Look
    legs: Look
    shoes: Look
    has_sleeves: bool
    wears_skirt: bool
    wears_hat: bool
    bag: Look | None

    @classmethod
    def random(cls, rng: np.random.Generator) -> Body:
        is_child = rng.random() < 0.12
        return cls(
            height=rng.uniform(1.1, 1.4) if is_child else rng.uniform(1.55, 1.92),
            breadth=rng.uniform(0.9, 1.25),
            skin=Look(pick(rng, SKIN)),
            hair=Look(pick(rng, HAIR)),
            top=_patterned(_cloth_color(rng)),
            legs=Look(_cloth_color(rng) if rng.random() < 0.4 else DENIM, Material.CLOTH),
            shoes=Look(pick(rng, SHOES)),
            has_sleeves=bool(rng.random() < 0.7),
            wears_skirt=bool(rng.random() < 0.18),
            wears_hat=bool(rng.random() < 0.15),
            bag=Look(_cloth_color(rng), Material.CLOTH) if rng.random() < 0.35 else None,
        )

    @property
    def tall(self) -> float:
        """Factor on heights and lengths."""
        return self.height / AVERAGE_HEIGHT

    @property
    def wide(self) -> float:
        """Factor on widths."""
        return self.breadth * self.height / AVERAGE_HEIGHT


def person(body: Body, phase: float, stride: float = 0.45) -> list[Part]:
    """Someone on foot. Phase is that of the walk [rad]; stride is the legs' swing [rad], near 0 for standing."""
    kit = Kit("person")
    k, w = body.tall, body.wide
    for side in (-1, 1):
        turn = phase + (side > 0) * np.pi
        swing = stride * np.sin(turn)
        bend = 0.15 + max(0.0, -np.cos(turn)) * stride
        _walking_leg(kit, body, side, swing, bend)
        _swinging_arm(kit, body, side, -0.8 * swing)
    if body.wears_skirt:
        kit.add(frustum(0.62, 0.62), (0, 0, 0.72 * k), (0.40 * w, 0.46 * w, 0.5 * k), body.legs)
    _upper_body(kit, body, np.array([0.0, 0.0, 0.90 * k]), lean=0.0)
    if body.bag:
        kit.blob((-0.2 * w, 0, 1.18 * k), (0.2, 0.32, 0.45 * k), body.bag, exponent=4.0)
    return kit.parts


def _walking_leg(kit: Kit, body: Body, side: int, swing: float, bend: float) -> None:
    k, w = body.tall, body.wide
    hip = np.array([0, side * 0.09 * w, 0.90 * k])
    knee = hip + 0.44 * k * _down(swing)
    ankle = knee + 0.42 * k * _down(swing - bend)
    kit.limb(hip, knee, 0.088 * w, body.legs)
    kit.limb(knee, ankle, 0.066 * w, body.skin if body.wears_skirt else body.legs)
    foot = (ankle[0] + 0.06, ankle[1], max(ankle[2] - 0.01, 0.05))
    kit.blob(foot, (0.27 * k, 0.1 * w, 0.1), body.shoes)


def _swinging_arm(kit: Kit, body: Body, side: int, swing: float) -> None:
    k, w = body.tall, body.wide
    shoulder = np.array([0, side * 0.215 * w, 1.42 * k - 0.03])
    elbow = shoulder + 0.30 * k * (_down(swing) + np.array([0, side * 0.15, 0]))
    hand = elbow + 0.27 * k * _down(swing + 0.35)
    kit.limb(shoulder, elbow, 0.062 * w, body.top)
    kit.limb(elbow, hand, 0.047 * w, body.top if body.has_sleeves else body.skin)
    kit.blob(hand, (0.09, 0.08, 0.11), body.skin, exponent=2.0)


def _down(swing: float) -> np.ndarray:
    """The direction of a limb that hangs, turned forward by swing [rad]."""
    return np.array([np.sin(swing), 0, -np.cos(swing)])


def _upper_body(kit: Kit, body: Body, hips: np.ndarray, lean: float) -> None:
    """Pelvis, trunk, neck, head; lean [rad] is forward from upright."""
    k, w = body.tall, body.wide
    up, forward = np.array([np.sin(lean), 0, np.cos(lean)]), np.array([np.cos(lean), 0, -np.sin(lean)])
    trunk, head = hips + 0.29 * k * up, hips + 0.74 * k * up + 0.02 * forward
    hair = head + 0.03 * k * up - 0.025 * forward
    kit.blob(hips + 0.04 * up, (0.26 * w, 0.35 * w, 0.24 * k), body.legs, pitch=lean)
    kit.bulk(trunk, (0.25 * w, 0.43 * w, 0.58 * k), body.top, exponent=3.2, pitch=lean)
    kit.tube(hips + 0.54 * k * up, head, 0.055 * k, body.skin)
    kit.bulk(head, (0.20 * k, 0.165 * k, 0.25 * k), body.skin, pitch=lean)
    kit.bulk(hair, (0.215 * k, 0.185 * k, 0.23 * k), body.hair, pitch=lean)
    if body.wears_hat:
        kit.blob(head + 0.1 * k * up, (0.27 * k, 0.2 * k, 0.12 * k), body.top)


def cyclist(body: Body, phase: float, helmet: Look | None) -> list[Part]:
    """Someone on the saddle of a `bicycle`; phase is the pedals' [rad]."""
    hips, lean = np.array([-0.22, 0.0, 0.96]), 0.45
    kit = Kit("rider")
    _upper_body(kit, body, hips, lean)
    for side in (-1, 1):
        turn = phase + (side > 0) * np.pi
        foot = np.array([0.02 + 0.17 * np.sin(turn), side * 0.12, 0.30 + 0.17 * np.cos(turn)])
        _riding_leg(kit, body, hips, foot, side)
        _riding_arm(kit, body, _shoulder(body, hips, lean, side), np.array([0.42, side * 0.27, 1.05]), side)
    _helmet(kit, body, hips, lean, helmet, height=0.22)
    return kit.parts


def motorcyclist(body: Body, helmet: Look | None) -> list[Part]:
    """Someone on the seat of a `motorcycle`."""
    hips, lean = np.array([-0.25, 0.0, 0.86]), 0.3
    kit = Kit("rider")
    _upper_body(kit, body, hips, lean)
    for side in (-1, 1):
        _riding_leg(kit, body, hips, np.array([0.05, side * 0.22, 0.36]), side)
        _riding_arm(kit, body, _shoulder(body, hips, lean, side), np.array([0.40, side * 0.27, 1.03]), side)
    _helmet(kit, body, hips, lean, helmet, height=0.3)
    return kit.parts


def _shoulder(body: Body, hips: np.ndarray, lean: float, side: int) -> np.ndarray:
    middle = hips + 0.52 * body.tall * np.array([np.sin(lean), 0, np.cos(lean)])
    return middle + np.array([0, side * 0.19 * body.wide, 0])


def _riding_leg(kit: Kit, body: Body, hips: np.ndarray, foot: np.ndarray, side: int) -> None:
    k, w = body.tall, body.wide
    hip = hips + np.array([0.02, side * 0.1 * w, 0])
    knee = _joint(hip, foot, 0.44 * k, 0.44 * k)
    kit.limb(hip, knee, 0.085 * w, body.legs)
    kit.limb(knee, foot, 0.062 * w, body.legs)
    kit.blob(foot + np.array([0.05, 0, -0.03]), (0.26, 0.1, 0.1), body.shoes)


def _riding_arm(kit: Kit, body: Body, shoulder: np.ndarray, grip: np.ndarray, side: int) -> None:
    elbow = (shoulder + grip) / 2 + np.array([0, side * 0.05, -0.08])
    kit.limb(shoulder, elbow, 0.06 * body.wide, body.top)
    kit.limb(elbow, grip, 0.046 * body.wide, body.top)
    kit.blob(grip, (0.1, 0.09, 0.09), body.skin, exponent=2.0)


def _helmet(kit: Kit, body: Body, hips: np.ndarray, lean: float, helmet: Look | None, height: float) -> None:
    if helmet is None:
        return
    head = hips + 0.80 * body.tall * np.array([np.sin(lean), 0, np.cos(lean)])
    kit.add(ball(2.4), head, (0.29, 0.24, height), helmet)


def _joint(start: np.ndarray, end: np.ndarray, first: float, second: float) -> np.ndarray:
    """Where a leg of two lengths bends between two points: forward."""
    axis = end - start
    length = float(np.linalg.norm(axis))
    along = (length**2 + first**2 - second**2) / (2 * length)
    out = np.sqrt(max(first**2 - along**2, 0.0))
    forward = np.cross(axis / length, (0, 1, 0))
    forward *= 1 if forward[0] > 0 else -1
    return start + axis / length * along + forward * out
