# SPDX-License-Identifier: Apache-2.0
"""How the surfaces of a rendered street are painted: one function for each material.

N is the number of points that are painted at once; colors are linear RGB with channels first, [3, N].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from panoptic_depth_training.datasets.street_noise import billows, grain, lot, sample
from panoptic_depth_training.datasets.street_shapes import Material
from panoptic_depth_training.datasets.street_site import Centerline
from panoptic_depth_training.datasets.street_surface import Surface, blend, tinted

BLACK = (0.02, 0.02, 0.02)
DRY_GRASS = (0.16, 0.13, 0.07)
CURTAIN = (0.45, 0.42, 0.36)
DARKEST, BRIGHTEST = 0.004, 0.95  # of what paint mirrors


@dataclass(frozen=True)
class Paint:
    """What the light falls on."""

    albedo: np.ndarray  # [3, N]
    gloss: np.ndarray | float = 0.0  # [N] share of mirrored sky
    glow: np.ndarray | float = 0.0  # [N] light of its own, as a factor on albedo


def paint(surface: Surface, line: Centerline, wet: float) -> Paint:
    """Albedo, gloss and glow of points of one material; wet 0..1 is how far rain has soaked the ground."""
    match surface.material:
        case Material.ROAD:
            return _soaked(_road(surface, line), surface, line, wet)
        case Material.PAVING:
            return _soaked(_paving(surface, line), surface, line, wet)
        case Material.GRASS:
            return Paint(_grass(surface))
        case Material.FACADE:
            return _facade(surface)
        case Material.BRICK:
            return Paint(_brick(surface, line))
        case Material.LEAVES:
            return Paint(_leaves(surface))
        case Material.GREENHOUSE:
            return _greenhouse(surface)
        case Material.BODYWORK:
            return _bodywork(surface)
        case Material.COACH:
            return _coach(surface)
        case Material.ROUND_SIGN:
            return Paint(_round_sign(surface))
        case Material.TRIANGLE_SIGN:
            return Paint(_triangle_sign(surface))
        case Material.LAMP:
            return Paint(surface.color, 0.1, surface.detail[0])
        case Material.GLASS:
            return Paint(surface.color, 0.55)
        case Material.CLOTH:
            return Paint(_cloth(surface))
        case Material.TILES:
            return Paint(_tiles(surface))
        case _:
            return Paint(tinted(surface.color, 1 + 0.08 * _mottle(surface, 0.03)))


def _meters(surface: Surface) -> tuple[np.ndarray, np.ndarray]:
    """Two coordinates [m] along the surface, which stick to its shape."""
    x, y, z = surface.local * surface.size
    nx, ny, nz = np.abs(surface.local_normal)
    flat = nz > 0.7
    across = np.where(nx > ny, y, x)
    return np.where(flat, x, across), np.where(flat, y, z)


def _mottle(surface: Surface, texel: float) -> np.ndarray:
    """Noise [N] of about unit size at two scales, faded where a pixel covers more than the grain."""
    u, v = _meters(surface)
    u *= 1 / texel
    v *= 1 / texel
    fine = np.clip(1.5 - surface.footprint / (2 * texel), 0, 1)
    return 0.6 * fine * sample(grain(), u, v) + 0.6 * sample(billows(), u / 4, v / 4)


def _band(value: np.ndarray, center: np.ndarray | float, half: np.ndarray | float) -> np.ndarray:
    return np.abs(value - center) < half


def _within(value: np.ndarray, period: np.ndarray | float) -> np.ndarray:
    """The rest of a division; NumPy's own is ten times slower."""
    return value - np.floor(value / period) * period


# Ground


def _road(surface: Surface, line: Centerline) -> np.ndarray:
    s, left = line.locate(surface.position[:2].T)
    lane = surface.detail[1]
    fine = np.clip(1.6 - surface.footprint / 0.03, 0, 1)
    coarse = 0.13 * fine * sample(grain(), s / 0.012, left / 0.012)
    stains = 0.10 * sample(billows(), s / 0.25, left / 0.06) + 0.08 * sample(billows(), s / 0.05, left / 0.05)
    wheel = 0.05 * np.cos((4 * np.pi) * (left / np.maximum(lane, 1)))
    repaired = lot(np.floor(s / 7.3), np.floor(left / 2.1 + 40)) < 0.05
    asphalt = tinted(surface.color, (1 + coarse + stains - wheel) * (1 - np.float32(0.28) * repaired))
    wear = sample(billows(), s / 0.04 + 90, left / 0.04) > 1.4
    marked = _markings(s, left, surface.detail) & ~wear
    return blend(asphalt, tinted(surface.accent, 1 + 0.1 * coarse), marked)


def _markings(s: np.ndarray, left: np.ndarray, detail: np.ndarray) -> np.ndarray:
    """Where paint is [N]: middle line, lane lines, edge lines, stop lines and zebra stripes at the crossing."""
    half, lane, style, start, end = detail
    beside = np.abs(left)
    dashed = _within(s, 9.0) < 3.2
    middle = (beside < 0.07) & (dashed | (style == 1))
    middle |= (style == 2) & _band(beside, 0.14, 0.06)
    # Numbers of the table hold for whole parts: a road without lanes has half 0.
    between = (np.abs(_within(left, np.maximum(lane, 1))) < 0.06) & (beside < half - 1) & (beside > 1) & dashed
    edges = _band(beside, half - 0.08, 0.06) & (style != 3)
    lines = (middle | between | edges) & ((s < start - 4.5) | (s > end + 4.5))
    zebra = (_band(s, start - 2.0, 1.3) | _band(s, end + 2.0, 1.3)) & (_within(beside, 1.0) < 0.5)
    stop = (_band(s, start - 4.0, 0.18) & (left < 0) & (left > -half)) | (
        _band(s, end + 4.0, 0.18) & (left > 0) & (left < half)
    )
    return (lines | zebra | stop) & (half > 0)


def _paving(surface: Surface, line: Centerline) -> np.ndarray:
    s, left = line.locate(surface.position[:2].T)
    slab = surface.detail[0]
    joint = np.minimum(_within(s, slab), _within(left, slab)) < 0.012 + 0.3 * surface.footprint
    visible = np.clip(1.2 - surface.footprint / 0.08, 0, 1)
    each = lot(np.floor(s / slab), np.floor(left / slab)) - 0.5
    stains = 0.07 * sample(billows(), s / 0.04, left / 0.04)
    tone = 1 + (0.16 * each - np.float32(0.4) * joint) * visible + stains
    curb = surface.normal[2] < 0.5
    return blend(tinted(surface.color, tone), tinted(surface.accent, 1 + stains), curb)


def _soaked(albedo: np.ndarray, surface: Surface, line: Centerline, wet: float) -> Paint:
    """Wet ground is darker, and mirrors where puddles stand."""
    if wet == 0:
        return Paint(albedo)
    s, left = line.locate(surface.position[:2].T)
    puddle = np.clip(0.45 + 0.5 * sample(billows(), s / 0.12 + 33, left / 0.06), 0.15, 1)
    level = surface.normal[2] > 0.5
    return Paint(tinted(albedo, 1 - 0.45 * wet * puddle), (0.5 * wet) * puddle * level)


def _grass(surface: Surface) -> np.ndarray:
    x, y = surface.position[:2]
    fine = np.clip(1.8 - surface.footprint / 0.05, 0, 1)
    blades = 0.3 * fine * sample(grain(), x / 0.02, y / 0.02)
    patches = 0.16 * sample(billows(), x / 0.08, y / 0.08)
    dry = np.clip(sample(billows(), x / 0.15 + 77, y / 0.15) - 0.9, 0, 1)
    return tinted(blend(surface.color, DRY_GRASS, 0.6 * dry), 1 + blades + patches)


# Buildings


def _facade(surface: Surface) -> Paint:
    """Windows in a grid of cells, larger ones on the ground floor of shops."""
    spacing, storey, share, seed, shop = surface.detail
    sideways = np.abs(surface.local_normal[0]) > 0.5
    width = np.where(sideways, surface.size[1], surface.size[0])
    u = (np.where(sideways, surface.local[1], surface.local[0]) + 0.5) * width
    v = (surface.local[2] + 0.5) * surface.size[2]
    cell = width / np.maximum(np.round(width / spacing), 1)
    across, up = u / cell, v / storey
    column, floor = np.floor(across), np.floor(up)
    aside, up = np.abs(across - column - 0.5), up - floor
    ground = (floor == 0) & (shop > 0)
    half, low, high = np.where(ground, 0.44, share / 2), np.where(ground, 0.12, 0.30), np.where(ground, 0.85, 0.80)
    wall = (np.abs(surface.local_normal[2]) < 0.5) & (floor < np.floor(surface.size[2] / storey))
    upper = wall & ~ground
    window = wall & (aside < half) & (up > low) & (up < high)
    thick = 0.05 + 0.25 * surface.footprint
    frame = (half - aside < thick / cell) | (np.minimum(up - low, high - up) < thick / storey)
    frame |= ~ground & (aside < 0.6 * thick / cell)
    glass, frame = window & ~frame, window & frame
    frame |= upper & (aside < half + 0.04) & _band(up, low - 0.02, 0.022)  # the sill
    shade = (1 - np.float32(0.28) * (wall & (v < 0.6))) * (1 - np.float32(0.15) * (wall & (up < 0.04) & (floor > 0)))
    base = tinted(surface.color, (1 + 0.05 * _mottle(surface, 0.06)) * shade)
    pane = _pane(lot(column + 31 * floor, np.floor(seed * 997) + floor), up, low, high, ground)
    albedo = blend(blend(base, pane, glass), surface.accent, frame)
    return Paint(albedo, np.float32(0.5) * glass)


def _pane(chance: np.ndarray, up: np.ndarray, low: np.ndarray, high: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Dark rooms [3, N], some behind curtains drawn to different heights, with the reveal's shadow on top."""
    curtain = ~ground & (chance < 0.30) & (up > low + (high - low) * 2 * chance)
    dark = blend(tinted((1.0, 1.0, 1.05), 0.02 + 0.05 * chance), tinted(CURTAIN, 0.6 + chance), curtain)
    return tinted(dark, 1 - np.float32(0.6) * (high - up < 0.07))


def _brick(surface: Surface, line: Centerline) -> np.ndarray:
    s, _ = line.locate(surface.position[:2].T)
    v = surface.position[2]
    length, height = surface.detail[0], surface.detail[1]
    row = np.floor(v / height)
    u = s + 0.5 * length * _within(row, 2)
    column = np.floor(u / length)
    joint = (u - column * length < 0.012) | (v - row * height < 0.012)
    visible = np.clip(1.3 - surface.footprint / (0.25 * height), 0, 1)
    each = (lot(column, row) - 0.5) * (length < 1)
    stains = 0.12 * sample(billows(), s / 0.05, v / 0.05)
    return tinted(surface.color, (1 + 0.35 * each * visible + stains) * (1 - 0.35 * joint * visible))


def _tiles(surface: Surface) -> np.ndarray:
    v = surface.local[2] * surface.size[2]
    visible = np.clip(1.3 - surface.footprint / 0.12, 0, 1)
    rows = 0.25 * (_within(v, 0.2) < 0.04) * visible
    return tinted(surface.color, 1 - rows + 0.12 * _mottle(surface, 0.1))


def _leaves(surface: Surface) -> np.ndarray:
    u, v = _meters(surface)
    x, y, z = surface.local
    slant = x * surface.size[0] * 0.7
    fine = np.clip(1.4 - surface.footprint / 0.12, 0.2, 1)
    leaf = sample(grain(), (u + slant) / 0.05, (v - slant) / 0.05) * fine
    clump = sample(billows(), (u + slant) / 0.06, v / 0.06)
    depth = np.clip(0.45 + 1.5 * (x * x + y * y + z * z), 0.4, 1.05)  # the inside of a crown is dark
    tone = np.clip(1 + 0.42 * leaf + 0.22 * clump, 0.2, 2.2) * depth
    red, green, blue = tinted(surface.color, tone)
    return np.stack([red * (1 + 0.12 * clump), green, blue * (1 - 0.1 * clump)])


# People and vehicles


def _cloth(surface: Surface) -> np.ndarray:
    """One color, stripes across or a check, with folds; detail: pattern, width of a stripe [m]."""
    tone = 1 + 0.18 * _mottle(surface, 0.05)
    pattern, width = surface.detail[0], np.maximum(surface.detail[1], 0.01)
    if not pattern.any():
        return tinted(surface.color, tone)
    x, y, z = surface.local * surface.size
    visible = np.clip(1.5 - surface.footprint / width, 0, 1)
    across = _within(z / width, 2) < 1
    check = across ^ (_within((x + y) / width, 2) < 1)
    marked = np.where(pattern == 1, across, check) * visible + np.float32(0.5) * (1 - visible)  # far ones run together
    return tinted(blend(surface.color, surface.accent, marked * (pattern > 0)), tone)


def _greenhouse(surface: Surface) -> Paint:
    """Glass between pillars under a painted roof, on a frustum whose top is narrower by detail 0 and 1."""
    top_x, top_y, shift = surface.detail[:3]
    x, y, z = surface.local
    up = np.clip(z + 0.5, 0, 1)
    along = (x - shift * up) / (1 + (top_x - 1) * up)  # -0.5 rear .. 0.5 front at every height
    across = np.abs(y / (1 + (top_y - 1) * up))
    ends = np.abs(np.abs(along) - 0.5) < np.abs(across - 0.5)  # windshield or rear window
    pillar = np.where(ends, across > 0.455, (np.abs(along) > 0.45) | _band(along, 0.03, 0.018))
    glass = (surface.local_normal[2] <= 0.85) & ~pillar & (up > 0.12) & (up < 0.90)
    return Paint(blend(surface.color, surface.accent, glass), 0.35 + np.float32(0.25) * glass)


def _bodywork(surface: Surface) -> Paint:
    """Varnish with dirt toward the ground, door gaps and a dark sill."""
    x, _, z = surface.local * surface.size
    side = (np.abs(surface.local_normal[1]) > 0.7) & (surface.size[2] > 0.9)
    gap = (z > 0.35) & (_band(x, 0.85, 0.012) | _band(x, -0.15, 0.012) | _band(x, -1.1, 0.012))
    dark = 1 - np.float32(0.65) * (side & (gap | (z < 0.32)))
    return Paint(tinted(surface.color, dark), 0.42)


def _coach(surface: Surface) -> Paint:
    spacing, low, high = surface.detail[:3]
    along = surface.local[0]
    up = surface.local[2] + 0.5
    side = np.abs(surface.local_normal[1]) > 0.7
    pane = side & (up > low) & (up < high) & (np.abs(along) < 0.48)
    pane &= _within(along * surface.size[0], spacing) > 0.08
    stripe = side & _band(up, low - 0.12, 0.04)
    albedo = blend(blend(surface.color, surface.accent, stripe), (0.025, 0.025, 0.025), pane | (up < 0.08))
    return Paint(albedo, 0.3 + np.float32(0.35) * pane)


# Signs


def _symbol(kind: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Where a sign's inner figure is [N]: none, bar, upright, arrow, digits."""
    beside = np.abs(y)
    bar = _band(z, 0, 0.07) & (beside < 0.27)
    upright = (beside < 0.06) & _band(z, 0, 0.22)
    arrow = upright | (_band(z + beside, 0.2, 0.06) & (beside < 0.2))
    digits = (_band(beside, 0.11, 0.075) & _band(z, 0, 0.16)) & ~(
        _band(beside, 0.11, 0.03) & _band(np.abs(z), 0.06, 0.035)
    )
    return np.select([kind == 1, kind == 2, kind == 3, kind == 4], [bar, upright, arrow, digits], False)


def _round_sign(surface: Surface) -> np.ndarray:
    _, y, z = surface.local
    front = np.abs(surface.local_normal[0]) > 0.7
    rim = np.sqrt(y * y + z * z) > surface.detail[0]
    is_light = surface.color.sum(0) > 1.5
    figure = _symbol(surface.detail[1], y, z) & ~rim
    inked = blend(surface.color, blend(surface.accent, BLACK, is_light), figure & front)
    return blend(inked, surface.accent, rim & front)


def _triangle_sign(surface: Surface) -> np.ndarray:
    _, y, z = surface.local
    inset = np.minimum(z + 0.25, 0.25 - 0.5 * z - 0.866 * np.abs(y))
    rim = inset < 0.075
    figure = _symbol(surface.detail[1], y * 2, (z + 0.02) * 2) & ~rim
    return blend(blend(surface.color, BLACK, figure), surface.accent, rim)
