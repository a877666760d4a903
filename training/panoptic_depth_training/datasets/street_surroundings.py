# SPDX-License-Identifier: Apache-2.0
"""Ground, buildings, walls, fences and greenery of a rendered street (street coordinates: street_site.py)."""

from __future__ import annotations

import numpy as np

from panoptic_depth_training.datasets.street_shapes import (
    CROWN_KINDS,
    FENCE_KINDS,
    Color,
    Look,
    Material,
    Part,
    box,
    conifer,
    crown,
    fence_panel,
    gable,
    hedge,
    placed,
    tube,
)
from panoptic_depth_training.datasets.street_site import CURB, END, REACH, SIDES, START, Site

METAL = Look((0.16, 0.165, 0.17))
BARK = Look((0.07, 0.055, 0.04))
MARKING: Color = (0.6, 0.6, 0.57)
PLASTER: tuple[Color, ...] = (
    *((0.50, 0.46, 0.38), (0.55, 0.53, 0.50), (0.42, 0.30, 0.18), (0.36, 0.36, 0.38), (0.48, 0.38, 0.26)),
    *((0.30, 0.22, 0.18), (0.26, 0.10, 0.07), (0.20, 0.085, 0.06), (0.45, 0.42, 0.30), (0.22, 0.25, 0.28)),
    *((0.58, 0.50, 0.36), (0.40, 0.22, 0.15), (0.33, 0.37, 0.33)),
)
ROOFS: tuple[Color, ...] = ((0.20, 0.075, 0.045), (0.09, 0.085, 0.085), (0.14, 0.09, 0.07), (0.06, 0.065, 0.075))
TRIMS: tuple[Color, ...] = ((0.5, 0.48, 0.44), (0.2, 0.2, 0.2), (0.35, 0.3, 0.25))
AWNINGS: tuple[Color, ...] = ((0.4, 0.04, 0.03), (0.05, 0.18, 0.08), (0.5, 0.45, 0.3), (0.04, 0.08, 0.25))
BRICKS: tuple[Color, ...] = ((0.28, 0.12, 0.08), (0.22, 0.16, 0.12))
CONCRETE: tuple[Color, ...] = ((0.36, 0.36, 0.34), (0.45, 0.42, 0.36))
FENCES: tuple[Color, ...] = (
    *((0.22, 0.14, 0.08), (0.5, 0.5, 0.48), (0.06, 0.07, 0.06), (0.12, 0.2, 0.12), (0.3, 0.3, 0.3)),
)
GREENS: tuple[Color, ...] = (
    *((0.055, 0.105, 0.025), (0.075, 0.12, 0.03), (0.04, 0.08, 0.022), (0.10, 0.125, 0.035)),
    *((0.03, 0.065, 0.03), (0.14, 0.10, 0.03), (0.06, 0.09, 0.045)),
)
GRASSES: tuple[Color, ...] = ((0.07, 0.115, 0.03), (0.11, 0.12, 0.045), (0.055, 0.10, 0.03), (0.15, 0.12, 0.07))


# Ground


def build_ground(site: Site) -> None:
    """Road, crossing, sidewalks and the land beside them."""
    asphalt, walk, grass = _asphalt(site), _paving(site), Look(site.pick(GRASSES), Material.GRASS)
    section = site.section
    site.strip((-section.edge(-1), section.edge(1)), 0.0, (START - 40, END + 40), asphalt, "road")
    for side in SIDES:
        _beside_the_road(site, side, walk, grass)
        _crossing_ground(site, side, asphalt, walk)
    site.stand([placed(box(), (0, 0, -0.75), (900, 900, 1.0), grass, "terrain")], 0, 0)


def _asphalt(site: Site) -> Look:
    rng, section = site.rng, site.section
    gray = rng.uniform(0.06, 0.17)
    color = (gray * rng.uniform(0.95, 1.06), gray, gray * rng.uniform(0.93, 1.05))
    style = float(rng.choice([0, 1, 2, 3], p=[0.2, 0.4, 0.2, 0.2]))
    crossed = (site.crossing.start, site.crossing.end) if site.crossing else (1e6, 1e6)
    detail = (section.lanes_edge, section.lane, style, *crossed)
    return Look(color, Material.ROAD, accent=MARKING, detail=detail)


def _paving(site: Site) -> Look:
    rng = site.rng
    tone = rng.uniform(0.16, 0.36)
    color = (tone * rng.uniform(0.98, 1.12), tone, tone * rng.uniform(0.85, 1.02))
    slab = float(rng.choice([0.4, 0.6, 1.2]))
    return Look(color, Material.PAVING, accent=(0.3, 0.3, 0.29), detail=(slab,))


def _beside_the_road(site: Site, side: int, walk: Look, grass: Look) -> None:
    """Sidewalk, at times a verge in it, and the lots' ground."""
    edge, outer, yard = (side * site.section.edge(side), side * site.section.outer(side), 14.0 * side)
    has_verge = site.rng.random() < 0.25 and site.section.sidewalk[side > 0] > 3.0
    for start, end in site.stretches():
        reach = (START - 40 if start == START else start, END + 40 if end == END else end)
        site.strip((edge, outer), CURB, reach, walk, "sidewalk")
        if has_verge:
            site.strip((edge + side * 0.2, edge + side * 1.2), CURB + 0.03, reach, grass, "terrain")
        if site.urban > 0.6:
            site.strip((outer, outer + yard), CURB - 0.01, reach, walk, "sidewalk")
            site.strip((outer + yard, side * REACH), CURB - 0.01, reach, grass, "terrain")
        else:
            site.strip((outer, side * REACH), CURB - 0.02, reach, grass, "terrain")


def _crossing_ground(site: Site, side: int, asphalt: Look, walk: Look) -> None:
    """One arm of the other road, with its sidewalks."""
    if site.crossing is None:
        return
    section, crossing = site.section, site.crossing
    unmarked = Look(asphalt.color, Material.ROAD, asphalt.accent, (0.0, *asphalt.detail[1:]))
    across = (side * section.edge(side), side * REACH)
    site.strip(across, 0.0, (crossing.start, crossing.end), unmarked, "road")
    for s in (crossing.start - 1.1, crossing.end + 1.1):
        site.strip((side * section.outer(side), side * REACH), CURB, (s - 1.1, s + 1.1), walk, "sidewalk")


# Lots along the road


def build_lots(site: Site, side: int) -> None:
    """One lot after the other: closed rows, houses with gardens, greens, walls, yards."""
    rng = site.rng
    weights = np.array([1.2 * site.urban**2 + 0.02, 0.35, 0.3, 0.22, 0.22]) * rng.uniform(0.3, 1.5, 5)
    if site.urban > 0.75:
        weights[1:] *= 0.25
    for start, end in site.stretches():
        s = start + (2.5 if start > START else 0.0)
        last = end - (2.5 if end < END else 0.0)
        while s < last - 6:
            kind = rng.choice(5, p=weights / weights.sum())
            length = min(rng.uniform(9, 22) if kind == 0 else rng.uniform(12, 30), last - s)
            lot = (_row_building, _house, _green, _walled, _yard)[kind]
            lot(site, side, s, length)
            s += length + (rng.uniform(1, 4) if rng.random() < 0.15 else 0.0)


def _row_building(site: Site, side: int, s: float, length: float) -> None:
    rng = site.rng
    near = site.section.outer(side) + (0.0 if rng.random() < 0.7 else rng.uniform(0, 2.5))
    depth, floors = rng.uniform(9, 13), int(rng.integers(2, 8))
    _building(site, side, (s + length / 2, near), (length, depth), floors, is_gabled=rng.random() < 0.35)


def _house(site: Site, side: int, s: float, length: float) -> None:
    """A detached house behind its front garden."""
    rng, front = site.rng, site.section.outer(side)
    _barrier(site, side, front + 0.3, (s, s + length))
    near = front + rng.uniform(4, 9)
    size = (length * rng.uniform(0.5, 0.75), rng.uniform(8, 10))
    _building(site, side, (s + length / 2, near), size, int(rng.integers(1, 4)), is_gabled=True)
    for _ in range(rng.integers(0, 4)):
        _tree_in(site, (s, s + length), side, (front + 1.5, near - 1), (2.5, 6))


def _green(site: Site, side: int, s: float, length: float) -> None:
    rng, front = site.rng, site.section.outer(side)
    if rng.random() < 0.4:
        _barrier(site, side, front + 0.3, (s, s + length))
    for _ in range(int(length / rng.uniform(2.5, 7))):
        _tree_in(site, (s, s + length), side, (front + 1.5, front + 18), (4, 13))
    for _ in range(rng.integers(0, 7)):
        _bush(site, s + rng.uniform(0, length), side * (front + rng.uniform(1.0, 9)))


def _walled(site: Site, side: int, s: float, length: float) -> None:
    rng, front = site.rng, site.section.outer(side) + 0.2
    is_brick = rng.random() < 0.5
    color = site.pick(BRICKS if is_brick else CONCRETE)
    joint = (0.75 * color[0], 0.75 * color[1], 0.75 * color[2])
    look = Look(color, Material.BRICK, accent=joint, detail=(0.25, 0.08) if is_brick else (2.5, 1.25))
    _wall(site, side, (front, front + 0.3), rng.uniform(1.2, 3.0), (s, s + length), look)
    for _ in range(rng.integers(1, 6)):
        _tree_in(site, (s, s + length), side, (front + 3, front + 12), (5, 11))
    if rng.random() < 0.5:
        near, floors = front + rng.uniform(8, 16), int(rng.integers(1, 5))
        _building(site, side, (s + length / 2, near), (length * 0.8, 10), floors, is_gabled=rng.random() < 0.5)


def _yard(site: Site, side: int, s: float, length: float) -> None:
    rng, front = site.rng, site.section.outer(side) + 0.2
    _fence(site, side, front, (s, s + length))
    if rng.random() < 0.6:
        near, floors = front + rng.uniform(6, 14), int(rng.integers(1, 4))
        _building(site, side, (s + length / 2, near), (length * 0.9, 12), floors, is_gabled=False)
    for _ in range(rng.integers(0, 4)):
        _tree_in(site, (s, s + length), side, (front + 2.5, front + 6), (4, 9))


def build_backdrop(site: Site, side: int) -> None:
    """A second row that closes the view between the lots."""
    rng = site.rng
    s = START
    while s < END + 30:
        length = rng.uniform(14, 30)
        middle = s + length / 2
        if site.is_clear_of_crossing(middle, length / 2 + 3):
            if rng.random() < 0.25 + 0.6 * site.urban:
                near, floors = rng.uniform(34, 44), int(rng.integers(2, 8))
                _building(site, side, (middle, near), (length * 0.9, 12), floors, is_gabled=rng.random() < 0.4)
            else:
                for _ in range(4):
                    _tree_in(site, (s, s + length), side, (32, 58), (7, 16))
        s += length


def build_closing_row(site: Site) -> None:
    """Where the street ends for the eye."""
    rng = site.rng
    for left in np.arange(-90, 91, 15):
        if rng.random() < site.urban:
            s, floors = END + 42 + rng.uniform(0, 10), int(rng.integers(2, 9))
            _building(site, 1, (s, left - 6), (13, 15), floors, is_gabled=rng.random() < 0.4)
        else:
            for _ in range(5):
                _tree_in(site, (END + 42, END + 60), 1, (left - 9, left + 9), (9, 18))


# Buildings


def _building(
    site: Site, side: int, place: tuple[float, float], size: tuple[float, float], floors: int, is_gabled: bool
) -> None:
    """A block of size (length, depth). Place is (s of its middle, distance of its front from the road's middle)."""
    rng = site.rng
    (s, near), (length, depth) = place, size
    storey = rng.uniform(2.8, 3.6)
    height = floors * storey + 0.7
    wall, trim = _facade(site, storey), Look(site.pick(TRIMS))
    parts = [placed(box(), (0, 0, height / 2), (length, depth, height), wall, "building")]
    parts += _gabled_roof(site, size, height, trim) if is_gabled else _flat_roof(site, size, height, wall, trim)
    front = -side * depth / 2
    if rng.random() < 0.4:
        for floor in range(1, floors):
            parts += _balconies(site, length, (front, front - side), floor * storey, trim)
    if rng.random() < 0.4:
        cloth = Look(site.pick(AWNINGS), Material.CLOTH)
        center = (rng.uniform(-0.2, 0.2) * length, front - side * 0.6, min(3.0, storey))
        parts.append(placed(box(), center, (length * 0.4, 1.3, 0.08), cloth, "building", roll=-side * 0.35))
    site.stand(parts, s, side * (near + depth / 2), z=CURB - 0.05)


def _facade(site: Site, storey: float) -> Look:
    rng = site.rng
    frame = (0.55, 0.55, 0.53) if rng.random() < 0.6 else (0.08, 0.06, 0.05)
    spacing, share, seed, is_shop = (
        rng.uniform(1.9, 3.4),
        rng.uniform(0.32, 0.66),
        rng.uniform(0, 1),
        rng.random() < 0.45,
    )
    detail = (spacing, storey, share, seed, float(is_shop))
    return Look(site.pick(PLASTER), Material.FACADE, accent=frame, detail=detail)


def _gabled_roof(site: Site, size: tuple[float, float], height: float, trim: Look) -> list[Part]:
    length, depth = size
    tiles = Look(site.pick(ROOFS), Material.TILES)
    roof = (length + 0.4, depth + 0.9, depth * site.rng.uniform(0.3, 0.5))
    chimney = (length * 0.25, 0, height + depth * 0.35)
    return [
        placed(gable(), (0, 0, height), roof, tiles, "building"),
        placed(box(), chimney, (0.6, 0.6, 2.0), trim, "building"),
    ]


def _flat_roof(site: Site, size: tuple[float, float], height: float, wall: Look, trim: Look) -> list[Part]:
    length, depth = size
    shed = (site.rng.uniform(-0.3, 0.3) * length, 0, height + 1.0)
    look = wall if site.rng.random() < 0.5 else trim
    return [
        placed(box(), (0, 0, height), (length + 0.3, depth + 0.5, 0.35), trim, "building"),
        placed(box(), shed, (3.0, 3.0, 2.0), look, "building"),
    ]


def _balconies(site: Site, length: float, reach: tuple[float, float], z: float, trim: Look) -> list[Part]:
    """Along one floor; reach is where they start and end across the front."""
    parts = []
    middle, railing = sum(reach) / 2, 0.02 * reach[0] + 0.98 * reach[1]
    for x in np.arange(-length / 2 + 2.2, length / 2 - 2.0, 4.5):
        look = METAL if site.rng.random() < 0.5 else trim
        parts.append(placed(box(), (x, middle, z), (2.6, 1.0, 0.15), trim, "building"))
        parts.append(placed(box(), (x, railing, z + 0.55), (2.6, 0.06, 0.95), look, "building"))
    return parts


# Walls and fences


def _barrier(site: Site, side: int, near: float, stretch: tuple[float, float]) -> None:
    """What separates a front garden from the sidewalk; at times nothing does."""
    match site.rng.choice(4, p=[0.35, 0.3, 0.2, 0.15]):
        case 0:
            _fence(site, side, near, stretch)
        case 1:
            _hedge(site, side, near, stretch)
        case 2:
            color = site.pick([(0.4, 0.38, 0.34), (0.3, 0.14, 0.1)])
            look = Look(color, Material.BRICK, accent=(0.3, 0.28, 0.25), detail=(0.4, 0.2))
            _wall(site, side, (near, near + 0.25), site.rng.uniform(0.5, 1.3), stretch, look)


def _wall(
    site: Site, side: int, faces: tuple[float, float], height: float, stretch: tuple[float, float], look: Look
) -> None:
    inner, outer = side * faces[0], side * faces[1]
    site.ribbon([(inner, height), (outer, height), (outer, -0.3), (inner, -0.3)], stretch, look, "wall")


def _fence(site: Site, side: int, near: float, stretch: tuple[float, float]) -> None:
    kind, height = int(site.rng.integers(FENCE_KINDS)), site.rng.uniform(0.9, 1.9)
    look = Look(site.pick(FENCES))
    for s, length in _panels(stretch, 2.4):
        panel = placed(fence_panel(kind), (0, 0, 0), (length, 0.08, height), look, "fence")
        site.stand([panel], s, side * near, z=CURB - 0.05)


def _hedge(site: Site, side: int, near: float, stretch: tuple[float, float]) -> None:
    rng = site.rng
    green, height = Look(site.pick(GREENS), Material.LEAVES), rng.uniform(0.9, 2.2)
    for s, length in _panels(stretch, 2.2):
        kind, turn = int(rng.integers(3)), float(rng.choice([0, np.pi]))
        size = (length * 1.08, 0.9, height)
        part = placed(hedge(kind), (0, 0, height / 2), size, green, "vegetation", yaw=turn)
        site.stand([part], s, side * (near + 0.45), z=CURB - 0.05)


def _panels(stretch: tuple[float, float], length: float) -> list[tuple[float, float]]:
    """(s of the middle, length) of equal panels of about this length."""
    start, end = stretch
    count = max(1, round((end - start) / length))
    each = (end - start) / count
    return [(start + (i + 0.5) * each, each) for i in range(count)]


# Greenery


def _tree_in(
    site: Site, s: tuple[float, float], side: int, left: tuple[float, float], height: tuple[float, float]
) -> None:
    """A tree somewhere in a range of s and of distances from the middle."""
    rng = site.rng
    plant_tree(site, rng.uniform(*s), side * rng.uniform(*left), rng.uniform(*height))


def plant_tree(site: Site, s: float, left: float, height: float) -> None:
    """A broad tree or a conifer, unless it would stand on the crossing."""
    if not site.is_clear_of_crossing(s, 2.0):
        return
    rng = site.rng
    green = Look(site.pick(GREENS, 0.3), Material.LEAVES)
    turn, is_far = rng.uniform(0, 2 * np.pi), not -12 < s < 60 or abs(left) > 22
    is_conifer = rng.random() < 0.15
    parts = _conifer_parts(site, height, green) if is_conifer else _broad_tree_parts(site, height, green, is_far)
    site.stand(parts, s, left, turn)


def _conifer_parts(site: Site, height: float, green: Look) -> list[Part]:
    size = (height * 0.9, height * 0.9, height)
    return [
        placed(conifer(int(site.rng.integers(3))), (0, 0, 0.55 * height), size, green, "vegetation"),
        tube((0, 0, -0.2), (0, 0, height * 0.3), 0.025 * height, BARK, "vegetation"),
    ]


def _broad_tree_parts(site: Site, height: float, green: Look, is_far: bool) -> list[Part]:
    rng = site.rng
    wide, trunk = height * rng.uniform(0.55, 0.9), 0.02 * height * rng.uniform(0.7, 1.4)
    bare = height * rng.uniform(0.22, 0.4)
    size = (wide, wide * rng.uniform(0.85, 1.1), (height - bare) * 1.15)
    leaves = crown(int(rng.integers(CROWN_KINDS)), is_far=is_far)
    parts = [placed(leaves, (0, 0, (height + bare) / 2), size, green, "vegetation")]
    top = (rng.normal() * 0.1, 0, bare + 0.25 * height)
    parts.append(tube((0, 0, -0.2), top, trunk, BARK, "vegetation"))
    for _ in range(3):
        tip = (rng.normal() * 0.2 * wide, rng.normal() * 0.2 * wide, bare + 0.35 * height)
        parts.append(tube((0, 0, bare * 0.9), tip, trunk * 0.5, BARK, "vegetation"))
    return parts


def _bush(site: Site, s: float, left: float) -> None:
    rng = site.rng
    size = rng.uniform(0.8, 2.4)
    green = Look(site.pick(GREENS, 0.3), Material.LEAVES)
    leaves = crown(int(rng.integers(CROWN_KINDS)))
    part = placed(leaves, (0, 0, 0.35 * size), (size * 1.3, size * 1.3, size), green, "vegetation")
    site.stand([part], s, left, rng.uniform(0, 6))
