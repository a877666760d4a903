# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest

from panoptic_depth_ros.taxonomy import LABEL_DIVISOR, MAX_CATEGORIES, VOID_PANOPTIC_ID, Category, Taxonomy

GRAY = (9, 9, 9)


def test_a_category_id_is_its_position(taxonomy: Taxonomy) -> None:
    assert taxonomy[2].name == "car"
    assert taxonomy.names == ("road", "sky", "car", "person")
    assert taxonomy.thing_ids == (2, 3)
    assert taxonomy.stuff_ids == (0, 1)
    assert [category.has_depth for category in taxonomy] == [True, False, True, True]


def test_a_taxonomy_survives_json(taxonomy: Taxonomy) -> None:
    assert Taxonomy.from_json(json.loads(json.dumps(taxonomy.to_json()))) == taxonomy


def test_the_last_category_that_fits_stays_below_void() -> None:
    full = Taxonomy(tuple(Category(f"c{i}", True, GRAY) for i in range(MAX_CATEGORIES)))
    assert (len(full) - 1) * LABEL_DIVISOR + LABEL_DIVISOR - 1 < VOID_PANOPTIC_ID < 2**16


@pytest.mark.parametrize("count", [0, MAX_CATEGORIES + 1])
def test_a_taxonomy_that_labels_cannot_hold_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} categories; 1 to {MAX_CATEGORIES}"):
        Taxonomy(tuple(Category("x", False, GRAY) for _ in range(count)))


@pytest.mark.parametrize("color", [(0, 0), (0, 0, 256), (-1, 0, 0)])
def test_a_color_is_three_bytes(color: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"'pole'.*not RGB"):
        Taxonomy((Category("pole", False, color),))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "item",
    [
        {"name": "car", "is_thing": True},
        {"name": "car", "is_thing": True, "color": [1, 2, 3], "wheels": 4},
        {"is_thing": True, "color": [1, 2, 3]},
        "car",
    ],
)
def test_json_that_is_no_category_is_refused_with_its_position(item: object) -> None:
    good = {"name": "road", "is_thing": False, "color": [1, 2, 3]}
    with pytest.raises(ValueError, match="category 1: expected name, is_thing, color, has_depth"):
        Taxonomy.from_json([good, item])  # type: ignore[list-item]
