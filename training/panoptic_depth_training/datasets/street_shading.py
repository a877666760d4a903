# SPDX-License-Identifier: Apache-2.0
"""How a rendered street looks: materials, light, sky, haze, and the sensor's own marks.

N is the number of points that are painted at once; colors are linear RGB until `expose`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from panoptic_depth_training.datasets.street_shapes import Material, Mesh
from panoptic_depth_training.datasets.street_site import Centerline

NOISE_SIZE = 512  # a power of two: noise repeats


@dataclass(frozen=True)
class Surface:
    """Points to paint. What their parts' tables say is looked up when a material asks for it."""

    mesh: Mesh
    part: np.ndarray  # [N] rows of the mesh's tables
    position: np.ndarray  # [N, 3] world, meters
    normal: np.ndarray  # [N, 3] world, unit, toward the viewer
    local: np.ndarray  # [N, 3] in units of the shape
    local_normal: np.ndarray  # [N, 3]
    footprint: np.ndarray  # [N] meters that a pixel covers there

    def take(self, rows: slice) -> Surface:
        local, local_normal = self.local[rows], self.local_normal[rows]
        position, normal, footprint = self.position[rows], self.normal[rows], self.footprint[rows]
        return Surface(self.mesh, self.part[rows], position, normal, local, local_normal, footprint)

    def __len__(self) -> int:
        return len(self.part)

    @property
    def size(self) -> np.ndarray:
        """Meters [N, 3] for one unit of each local axis."""
        return self.mesh.size[self.part]

    @property
    def color(self) -> np.ndarray:
        return self.mesh.color[self.part]

    @property
    def accent(self) -> np.ndarray:
        return self.mesh.accent[self.part]

    @property
    def detail(self) -> np.ndarray:
        return self.mesh.detail[self.part]


@dataclass(frozen=True)
class Paint:
    """What the light falls on."""

    albedo: np.ndarray  # [N, 3]
    gloss: np.ndarray  # [N] share of mirrored sky
    glow: np.ndarray  # [N] light of its own, as a factor on albedo


@dataclass(frozen=True)
class Light:
    """Sun, sky and air."""

    to_sun: np.ndarray  # [3] unit
    sun: np.ndarray  # [3]
    zenith: np.ndarray  # [3]
    horizon: np.ndarray  # [3]
    clouds: float  # 0 clear .. 1 overcast
    haze: float  # share lost in a meter
    cloud_shift: np.ndarray  # [2] where in the noise the clouds are cut from

    @classmethod
    def random(cls, rng: np.random.Generator) -> Light:
        clouds = float(rng.choice([rng.uniform(0, 0.5), rng.uniform(0.8, 1.0)], p=[0.6, 0.4]))
        elevation, azimuth = np.radians(rng.uniform(14, 62)), rng.uniform(0, 2 * np.pi)
        to_sun = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
        warm = np.clip(1.3 - np.degrees(elevation) / 45, 0, 1)
        sun = np.array([1.0, 0.95 - 0.15 * warm, 0.88 - 0.35 * warm]) * rng.uniform(2.2, 3.2)
        overcast = np.clip((clouds - 0.6) / 0.3, 0, 1)
        blue, gray = np.array([0.22, 0.42, 0.85]), np.full(3, 0.85) * rng.uniform(0.8, 1.1)
        pale = np.array([0.75, 0.85, 0.98]) * rng.uniform(0.85, 1.1)
        return cls(
            to_sun=to_sun.astype(np.float32),
            sun=(sun * (1 - 0.96 * overcast)).astype(np.float32),
            zenith=(blue * (1 - overcast) + gray * overcast).astype(np.float32),
            horizon=(pale * (1 - overcast) + gray * 1.1 * overcast).astype(np.float32),
            clouds=clouds,
            haze=float(rng.choice([rng.uniform(0.0003, 0.0015), rng.uniform(0.002, 0.007)], p=[0.75, 0.25])),
            cloud_shift=rng.uniform(0, NOISE_SIZE, 2).astype(np.float32),
        )

    def sky(self, directions: np.ndarray) -> np.ndarray:
        """Color [N, 3] of the sky in unit directions [N, 3]."""
        up = np.clip(directions[:, 2], 0.0, 1.0)[:, None]
        color = self.horizon + (self.zenith - self.horizon) * up**0.45
        plane = directions[:, :2] / (up + 0.12) * 28 + self.cloud_shift
        amount = 0.5 + 0.5 * _sample(_billows(), plane[:, 0], plane[:, 1])
        cover = np.clip((amount - 0.75 + 0.75 * self.clouds) * 2.2, 0, 1)[:, None] * np.clip(up * 5 + 0.2, 0, 1)
        cloud = self.horizon * (1.15 - 0.35 * amount[:, None])
        color = color * (1 - cover) + cloud * cover
        near_sun = np.clip(directions @ self.to_sun, 0, 1)[:, None]
        return color + self.sun * (0.12 * near_sun**16 + 2.0 * near_sun**900) * (1 - 0.7 * cover)

    def mirrored(self, directions: np.ndarray) -> np.ndarray:
        """What a varnished surface mirrors: sky above, street below."""
        up = directions[:, 2:3]
        above = self.horizon + (self.zenith - self.horizon) * np.clip(up, 0, 1)
        share = np.clip(up * 6 + 0.3, 0, 1)
        glint = np.clip(directions @ self.to_sun, 0, 1)[:, None] ** 200
        return 0.9 * above * share + 0.12 * self.horizon * (1 - share) + 1.5 * self.sun * glint


def light_up(
    surface: Surface, paint: Paint, view: np.ndarray, light: Light, sunlit: np.ndarray, open_sky: np.ndarray
) -> np.ndarray:
    """Color [N, 3] that leaves the points. View [N, 3] is the unit direction of sight; sunlit [N] is 0 in shadow;
    open_sky [N] is the share of the sky that a point sees."""
    normal = surface.normal
    direct = (np.clip(normal @ light.to_sun, 0, 1) * sunlit)[:, None] * light.sun
    upward = 0.5 + 0.5 * normal[:, 2:3]
    ambient = (0.55 * light.zenith + 0.45 * light.horizon) * upward + 0.22 * light.horizon * (1 - upward)
    color = paint.albedo * (direct + 1.15 * ambient * open_sky[:, None])
    glossy = np.flatnonzero(paint.gloss)
    color[glossy] = _varnished(
        color[glossy], normal[glossy], paint.gloss[glossy], view[glossy], light, open_sky[glossy]
    )
    return color + paint.albedo * paint.glow[:, None]


def _varnished(
    color: np.ndarray, normal: np.ndarray, gloss: np.ndarray, view: np.ndarray, light: Light, open_sky: np.ndarray
) -> np.ndarray:
    cosine = np.clip(-(normal * view).sum(1), 0, 1)[:, None]
    mirror = gloss[:, None] * (0.25 + 0.75 * (1 - cosine) ** 4)
    mirrored = light.mirrored(view + 2 * cosine * normal) * (0.3 + 0.7 * open_sky[:, None])
    return color * (1 - mirror) + mirrored * mirror


def through_air(color: np.ndarray, distance: np.ndarray, light: Light) -> np.ndarray:
    """Haze takes the color [N, 3] of far points toward the horizon's."""
    clear = np.exp(-light.haze * distance)[:, None]
    return color * clear + light.horizon * (1 - clear)


def paint(surface: Surface, centerline: Centerline) -> Paint:
    """Albedo and gloss of every point by its material; points come sorted by material."""
    count = len(surface)
    result = Paint(np.empty((count, 3), np.float32), np.zeros(count, np.float32), np.zeros(count, np.float32))
    materials, starts = np.unique(surface.mesh.material[surface.part], return_index=True)
    for material, start, end in zip(materials, starts, [*starts[1:], count], strict=True):
        rows = slice(start, end)
        part = _paint(Material(material), surface.take(rows), centerline)
        result.albedo[rows], result.gloss[rows], result.glow[rows] = part.albedo, part.gloss, part.glow
    return result


def _paint(material: Material, surface: Surface, line: Centerline) -> Paint:
    match material:
        case Material.ROAD:
            return _matte(_road(surface, line))
        case Material.PAVING:
            return _matte(_paving(surface, line))
        case Material.GRASS:
            return _matte(_grass(surface))
        case Material.FACADE:
            return _facade(surface)
        case Material.BRICK:
            return _matte(_brick(surface, line))
        case Material.LEAVES:
            return _matte(_leaves(surface))
        case Material.GREENHOUSE:
            return _greenhouse(surface)
        case Material.BODYWORK:
            return _bodywork(surface)
        case Material.COACH:
            return _coach(surface)
        case Material.ROUND_SIGN:
            return _matte(_round_sign(surface))
        case Material.TRIANGLE_SIGN:
            return _matte(_triangle_sign(surface))
        case Material.LAMP:
            return Paint(surface.color, _constant(surface, 0.1), surface.detail[:, 0])
        case Material.GLASS:
            return Paint(surface.color, _constant(surface, 0.55), _constant(surface, 0.0))
        case Material.CLOTH:
            return _matte(surface.color * (1 + 0.18 * _mottle(surface, 0.05))[:, None])
        case Material.TILES:
            return _matte(_tiles(surface))
        case _:
            return _matte(surface.color * (1 + 0.08 * _mottle(surface, 0.03))[:, None])


def _constant(surface: Surface, value: float) -> np.ndarray:
    return np.full(len(surface), value, np.float32)


def _matte(albedo: np.ndarray) -> Paint:
    zero = np.zeros(len(albedo), np.float32)
    return Paint(np.clip(albedo, 0.004, 0.95), zero, zero)


# Noise


@cache
def _grain() -> np.ndarray:
    """Tileable noise [S, S] of standard deviation 1, smooth over about three texels."""
    noise = np.random.default_rng(7).normal(size=(NOISE_SIZE, NOISE_SIZE)).astype(np.float32)
    return _normalized(_blurred(noise, 1.0))


@cache
def _billows() -> np.ndarray:
    """Tileable noise [S, S] with detail at every scale, for clouds and stains; standard deviation 1."""
    rng = np.random.default_rng(8)
    total = np.zeros((NOISE_SIZE, NOISE_SIZE), np.float32)
    for sigma in (2, 4, 8, 16, 32):
        noise = _normalized(_blurred(rng.normal(size=total.shape).astype(np.float32), sigma))
        total += sigma**0.9 * noise
    return _normalized(total)


def _blurred(noise: np.ndarray, sigma: float) -> np.ndarray:
    pad = int(4 * sigma) + 1
    wide = cv2.GaussianBlur(np.pad(noise, pad, mode="wrap"), (0, 0), sigma)
    return wide[pad:-pad, pad:-pad]


def _normalized(noise: np.ndarray) -> np.ndarray:
    return (noise - noise.mean()) / noise.std()


def _sample(noise: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Nearest texel, repeating; u and v [N] in texels."""
    mask = NOISE_SIZE - 1
    return noise[np.floor(v).astype(np.int32) & mask, np.floor(u).astype(np.int32) & mask]


def _meters(surface: Surface) -> tuple[np.ndarray, np.ndarray]:
    """Two coordinates [m] along the surface, which stick to its shape."""
    x, y, z = (surface.local * surface.size).T
    normal = np.abs(surface.local_normal)
    flat = normal[:, 2] > 0.7
    across = np.where(normal[:, 0] > normal[:, 1], y, x)
    return np.where(flat, x, across), np.where(flat, y, z)


def _mottle(surface: Surface, texel: float) -> np.ndarray:
    """Noise [N] of about unit size at two scales, faded where a pixel covers more than the grain."""
    u, v = _meters(surface)
    fine = np.clip(1.5 - surface.footprint / (2 * texel), 0, 1)
    return 0.6 * fine * _sample(_grain(), u / texel, v / texel) + 0.6 * _sample(
        _billows(), u / texel / 4, v / texel / 4
    )


def _lot(*numbers: np.ndarray) -> np.ndarray:
    """A pseudo-random share 0..1 [N] for every tuple of whole numbers."""
    mixed = np.zeros(len(numbers[0]), np.uint32)
    for number in numbers:
        mixed = (mixed ^ number.astype(np.int64).astype(np.uint32)) * np.uint32(2654435761)
        mixed ^= mixed >> np.uint32(15)
    return (mixed & np.uint32(0xFFFF)).astype(np.float32) / 65535


def _band(value: np.ndarray, center: np.ndarray | float, half: np.ndarray | float) -> np.ndarray:
    return np.abs(value - center) < half


def _mixed(base: np.ndarray, other: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.where(where[:, None], np.asarray(other, np.float32), base)


# Ground


def _road(surface: Surface, line: Centerline) -> np.ndarray:
    s, left = line.locate(surface.position[:, :2])
    lane = surface.detail[:, 1]
    fine = np.clip(1.6 - surface.footprint / 0.03, 0, 1)
    grain = 0.13 * fine * _sample(_grain(), s / 0.012, left / 0.012)
    stains = 0.10 * _sample(_billows(), s / 0.25, left / 0.06) + 0.08 * _sample(_billows(), s / 0.05, left / 0.05)
    wheel = 0.10 * np.cos(2 * np.pi * (left / np.maximum(lane, 1)) * 2)
    repaired = _lot(np.floor(s / 7.3), np.floor(left / 2.1 + 40)) < 0.05
    asphalt = surface.color * ((1 + grain + stains - wheel * 0.5) * np.where(repaired, 0.72, 1.0))[:, None]
    wear = _sample(_billows(), s / 0.04 + 90, left / 0.04) > 1.4
    return _mixed(asphalt, surface.accent * (1 + 0.1 * grain[:, None]), _markings(s, left, surface.detail) & ~wear)


def _markings(s: np.ndarray, left: np.ndarray, detail: np.ndarray) -> np.ndarray:
    """Where paint is [N]: middle line, lane lines, edge lines, stop lines and zebra stripes at the crossing."""
    half, lane, style, start, end = detail.T
    along = (s < start - 4.5) | (s > end + 4.5)
    dashed = (s % 9.0) < 3.2
    middle = _band(left, 0, 0.07) & (dashed | (style == 1))
    middle |= (style == 2) & (_band(left, 0.14, 0.06) | _band(left, -0.14, 0.06))
    between = _band(left % np.maximum(lane, 1), 0, 0.06) & (np.abs(left) < half - 1) & (np.abs(left) > 1) & dashed
    edges = _band(np.abs(left), half - 0.08, 0.06) & (style != 3)
    lines = (half > 0) & along & (middle | between | edges)
    zebra = (_band(s, start - 2.0, 1.3) | _band(s, end + 2.0, 1.3)) & (np.abs(left) % 1.0 < 0.5)
    stop = (_band(s, start - 4.0, 0.18) & (left < 0) & (left > -half)) | (
        _band(s, end + 4.0, 0.18) & (left > 0) & (left < half)
    )
    return lines | ((half > 0) & (zebra | stop))


def _paving(surface: Surface, line: Centerline) -> np.ndarray:
    s, left = line.locate(surface.position[:, :2])
    slab = surface.detail[:, 0]
    joint = np.minimum(s % slab, left % slab) < 0.012 + 0.3 * surface.footprint
    visible = np.clip(1.2 - surface.footprint / 0.08, 0, 1)
    each = _lot(np.floor(s / slab), np.floor(left / slab)) - 0.5
    stains = 0.07 * _sample(_billows(), s / 0.04, left / 0.04)
    tone = (1 + (0.16 * each - 0.4 * joint) * visible + stains)[:, None]
    curb = surface.normal[:, 2] < 0.5
    return _mixed(surface.color * tone, surface.accent * (1 + stains[:, None]), curb)


def _grass(surface: Surface) -> np.ndarray:
    x, y = surface.position[:, 0], surface.position[:, 1]
    fine = np.clip(1.8 - surface.footprint / 0.05, 0, 1)
    blades = 0.3 * fine * _sample(_grain(), x / 0.02, y / 0.02)
    patches = 0.16 * _sample(_billows(), x / 0.08, y / 0.08)
    dry = np.clip(_sample(_billows(), x / 0.15 + 77, y / 0.15) - 0.9, 0, 1)[:, None]
    tone = (1 + blades + patches)[:, None]
    return (surface.color * (1 - 0.6 * dry) + np.array([0.16, 0.13, 0.07]) * 0.6 * dry) * tone


# Buildings


def _facade(surface: Surface) -> Paint:
    """Windows in a grid of cells, larger ones on the ground floor of shops."""
    spacing, storey, share, seed, shop = surface.detail.T
    sideways = np.abs(surface.local_normal[:, 0]) > 0.5
    width = np.where(sideways, surface.size[:, 1], surface.size[:, 0])
    u = (np.where(sideways, surface.local[:, 1], surface.local[:, 0]) + 0.5) * width
    v = (surface.local[:, 2] + 0.5) * surface.size[:, 2]
    cell = width / np.maximum(np.round(width / spacing), 1)
    column, floor = np.floor(u / cell), np.floor(v / storey)
    across, up = u / cell - column - 0.5, v / storey - floor
    floors = np.floor(surface.size[:, 2] / storey)
    ground = (floor == 0) & (shop > 0)
    half, low, high = np.where(ground, 0.44, share / 2), np.where(ground, 0.12, 0.30), np.where(ground, 0.85, 0.80)
    wall = (np.abs(surface.local_normal[:, 2]) < 0.5) & (floor < floors)
    window = wall & (np.abs(across) < half) & (up > low) & (up < high)
    thick = 0.05 + 0.25 * surface.footprint
    frame = window & ((half - np.abs(across) < thick / cell) | (np.minimum(up - low, high - up) < thick / storey))
    frame |= window & ~ground & (np.abs(across) < 0.6 * thick / cell)
    sill = wall & ~ground & (np.abs(across) < half + 0.04) & _band(up, low - 0.02, 0.022)
    glass = window & ~frame
    chance = _lot(column + 31 * floor, np.floor(seed * 997) + floor)
    curtain = glass & ~ground & (chance < 0.30) & (up > low + (high - low) * 2 * chance)
    base = surface.color * (1 + 0.05 * _mottle(surface, 0.06))[:, None]
    base = _mixed(base, base * 0.72, wall & (v < 0.6))
    base = _mixed(base, base * 0.85, wall & _band(up, 0.02, 0.02) & (floor > 0))
    pane = np.full(3, 0.02) + 0.05 * chance[:, None] * np.array([1.0, 1.0, 1.05])
    pane = _mixed(pane, np.array([0.45, 0.42, 0.36]) * (0.6 + chance[:, None]), curtain)
    pane = np.where((glass & (high - up < 0.07))[:, None], 0.4 * pane, pane)  # the reveal's shadow
    albedo = _mixed(_mixed(base, pane, glass), surface.accent, frame | sill)
    return Paint(np.clip(albedo, 0.004, 0.95), 0.5 * glass.astype(np.float32), np.zeros(len(u), np.float32))


def _brick(surface: Surface, line: Centerline) -> np.ndarray:
    s, _ = line.locate(surface.position[:, :2])
    v = surface.position[:, 2]
    length, height = surface.detail[:, 0], surface.detail[:, 1]
    row = np.floor(v / height)
    u = s + 0.5 * length * (row % 2)
    joint = (u % length < 0.012) | (v % height < 0.012)
    visible = np.clip(1.3 - surface.footprint / (0.25 * height), 0, 1)
    each = _lot(np.floor(u / length), row) - 0.5
    stains = 0.12 * _sample(_billows(), s / 0.05, v / 0.05)
    tone = (1 + (0.35 * each * (length < 1)) * visible + stains)[:, None]
    return surface.color * tone * (1 - 0.35 * (joint * visible)[:, None])


def _tiles(surface: Surface) -> np.ndarray:
    v = surface.local[:, 2] * surface.size[:, 2]
    visible = np.clip(1.3 - surface.footprint / 0.12, 0, 1)
    rows = 0.25 * ((v % 0.2) < 0.04) * visible
    return surface.color * (1 - rows + 0.12 * _mottle(surface, 0.1))[:, None]


def _leaves(surface: Surface) -> np.ndarray:
    u, v = _meters(surface)
    w = surface.local[:, 0] * surface.size[:, 0] * 0.7
    fine = np.clip(1.4 - surface.footprint / 0.12, 0.2, 1)
    leaf = _sample(_grain(), (u + w) / 0.05, (v - w) / 0.05) * fine
    clump = _sample(_billows(), (u + w) / 0.06, v / 0.06)
    depth = np.clip(0.45 + 1.5 * (surface.local**2).sum(1), 0.4, 1.05)  # the inside of a crown is dark
    tone = np.clip(1 + 0.42 * leaf + 0.22 * clump, 0.2, 2.2) * depth
    yellow = np.stack([1 + 0.12 * clump, np.ones_like(clump), 1 - 0.1 * clump], -1)
    return surface.color * tone[:, None] * yellow


# Vehicles and signs


def _greenhouse(surface: Surface) -> Paint:
    """Glass between pillars under a painted roof, on a frustum whose top is narrower by detail 0 and 1."""
    top_x, top_y, shift = surface.detail[:, 0], surface.detail[:, 1], surface.detail[:, 2]
    up = np.clip(surface.local[:, 2] + 0.5, 0, 1)
    x = (surface.local[:, 0] - shift * up) / (1 + (top_x - 1) * up)  # -0.5 rear .. 0.5 front at every height
    y = surface.local[:, 1] / (1 + (top_y - 1) * up)
    roof = surface.local_normal[:, 2] > 0.85
    lengthwise = np.abs(np.abs(x) - 0.5) < np.abs(np.abs(y) - 0.5)  # windshield or rear window
    pillar = np.where(lengthwise, np.abs(y) > 0.455, (np.abs(x) > 0.45) | _band(x, 0.03, 0.018))
    glass = ~roof & ~pillar & (up > 0.12) & (up < 0.90)
    albedo = _mixed(surface.color, surface.accent, glass)
    return Paint(albedo, np.where(glass, 0.6, 0.35).astype(np.float32), _constant(surface, 0.0))


def _bodywork(surface: Surface) -> Paint:
    x, _, z = (surface.local * surface.size).T
    side = (np.abs(surface.local_normal[:, 1]) > 0.7) & (surface.size[:, 2] > 0.9)
    gap = side & (z > 0.35) & (_band(x, 0.85, 0.012) | _band(x, -0.15, 0.012) | _band(x, -1.1, 0.012))
    dark = np.where(gap, 0.35, 1.0) * np.where(side & (z < 0.32), 0.35, 1.0)
    return Paint(surface.color * dark[:, None], _constant(surface, 0.42), _constant(surface, 0.0))


def _coach(surface: Surface) -> Paint:
    spacing, low, high = surface.detail[:, 0], surface.detail[:, 1], surface.detail[:, 2]
    up = surface.local[:, 2] + 0.5
    u = surface.local[:, 0] * surface.size[:, 0]
    side = np.abs(surface.local_normal[:, 1]) > 0.7
    pane = side & (up > low) & (up < high) & (np.abs(surface.local[:, 0]) < 0.48) & ((u % spacing) > 0.08)
    stripe = side & _band(up, low - 0.12, 0.04)
    skirt = up < 0.08
    albedo = _mixed(_mixed(surface.color, surface.accent, stripe), np.full(3, 0.025), pane | skirt)
    return Paint(albedo, np.where(pane, 0.65, 0.3).astype(np.float32), _constant(surface, 0.0))


def _symbol(kind: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Where a sign's inner figure is [N]: none, bar, upright, arrow, digits."""
    bar = _band(z, 0, 0.07) & _band(y, 0, 0.27)
    upright = _band(y, 0, 0.06) & _band(z, 0, 0.22)
    arrow = upright | (_band(z + np.abs(y), 0.2, 0.06) & _band(y, 0, 0.2))
    digits = (_band(np.abs(y), 0.11, 0.075) & _band(z, 0, 0.16)) & ~(
        _band(np.abs(y), 0.11, 0.03) & _band(np.abs(z), 0.06, 0.035)
    )
    return np.select([kind == 1, kind == 2, kind == 3, kind == 4], [bar, upright, arrow, digits], False)


def _round_sign(surface: Surface) -> np.ndarray:
    y, z = surface.local[:, 1], surface.local[:, 2]
    rim = np.hypot(y, z) > surface.detail[:, 0]
    light = surface.color.sum(1) > 1.5
    ink = np.where(light[:, None], 0.02, surface.accent)
    figure = _symbol(surface.detail[:, 1], y, z) & ~rim
    front = np.abs(surface.local_normal[:, 0]) > 0.7
    return _mixed(_mixed(surface.color, ink, figure & front), surface.accent, rim & front)


def _triangle_sign(surface: Surface) -> np.ndarray:
    y, z = surface.local[:, 1], surface.local[:, 2]
    inset = np.minimum(z + 0.25, 0.25 - 0.5 * z - 0.866 * np.abs(y))
    rim = inset < 0.075
    figure = _symbol(surface.detail[:, 1], y * 2, (z + 0.02) * 2) & ~rim
    return _mixed(_mixed(surface.color, np.full(3, 0.02), figure), surface.accent, rim)


# The sensor


@dataclass(frozen=True)
class Sensor:
    """How a camera turns light into numbers."""

    brightness: float
    white: np.ndarray  # [3] gains
    contrast: float
    noise: float  # in 8-bit steps
    blur: float  # [px] at 512 columns
    vignette: float

    @classmethod
    def random(cls, rng: np.random.Generator) -> Sensor:
        return cls(
            brightness=float(rng.uniform(0.75, 1.3)),
            white=np.array([rng.uniform(0.92, 1.08), 1.0, rng.uniform(0.9, 1.1)]),
            contrast=float(rng.uniform(0.9, 1.15)),
            noise=float(rng.uniform(0.5, 4.0)),
            blur=float(rng.choice([0.0, rng.uniform(0.3, 0.8)])),
            vignette=float(rng.uniform(0.0, 0.25)),
        )

    def expose(self, light: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """RGB [H, W, 3] uint8 from linear light [H, W, 3]."""
        height, width = light.shape[:2]
        gain = 0.30 * self.brightness / max(float(np.mean(np.minimum(light[height // 3 :], 3.0))), 1e-3)
        v, u = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
        gain = gain * (1 - self.vignette * (u * u + v * v) / 2)[..., None]
        exposed = (light * gain * self.white).astype(np.float32)
        if self.blur:
            exposed = cv2.GaussianBlur(exposed, (0, 0), self.blur * width / 512)
        shoulder = exposed * (1 + exposed / 4.0) / (1 + exposed)  # film-like: highlights bend, 2 is still below white
        tone = np.clip(shoulder * 1.15, 0, 1) ** (self.contrast / 2.2)
        noise = rng.standard_normal((height, width, 3), dtype=np.float32) * self.noise * (0.6 + 0.6 * (1 - tone))
        return np.clip(tone * 255 + noise + 0.5, 0, 255).astype(np.uint8)
