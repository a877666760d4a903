# SPDX-License-Identifier: Apache-2.0
"""A whole street, drawn from one generator: what stands, what moves, and the way of the ego-vehicle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from panoptic_depth_training.datasets.street_furniture import build_furniture
from panoptic_depth_training.datasets.street_shapes import Part
from panoptic_depth_training.datasets.street_site import SIDES, Centerline, Section, Site, Thing, Track
from panoptic_depth_training.datasets.street_surroundings import (
    build_backdrop,
    build_closing_row,
    build_ground,
    build_lots,
)
from panoptic_depth_training.datasets.street_traffic import Traffic


@dataclass(frozen=True)
class Layout:
    """A street that is ready to be rendered."""

    centerline: Centerline
    section: Section
    static: list[tuple[Part, np.ndarray]]  # with world_from_owner
    things: list[Thing]
    ego: Track


def lay_out(rng: np.random.Generator, is_crowded: bool = False) -> Layout:
    """Draw a street. A crowded one is the same street, with more people and two-wheelers farther along it."""
    site = Site(rng)
    build_ground(site)
    for side in SIDES:
        build_lots(site, side)
        build_furniture(site, side)
        build_backdrop(site, side)
    build_closing_row(site)
    traffic = Traffic(site)
    ego = traffic.build()
    if is_crowded:
        traffic.build_crowd()
    return Layout(site.line, site.section, site.static, site.things, ego)
