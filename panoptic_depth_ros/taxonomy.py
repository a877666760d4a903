# SPDX-License-Identifier: Apache-2.0
"""What a segment can be: categories, their colors, and how category and instance share one number.

A category's id is its position in the taxonomy, 0..K-1. A *panoptic id* is
``category_id * LABEL_DIVISOR + instance``, with instance 1, 2, ... for things and 0 for stuff.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

VOID_CATEGORY = 255  # vision_msgs fixes 255 as "unlabelled" in 8-bit label images
VOID_PANOPTIC_ID = 65535  # and 65535 in 16-bit ones
LABEL_DIVISOR = 1000
MAX_CATEGORIES = VOID_PANOPTIC_ID // LABEL_DIVISOR  # category 65 would run past 16 bits


@dataclass(frozen=True)
class Category:
    """One kind of segment. ``has_depth`` is False where depth has no meaning (sky)."""

    name: str
    is_thing: bool
    color: tuple[int, int, int]  # RGB, 0..255
    has_depth: bool = True


@dataclass(frozen=True)
class Taxonomy:
    """The categories a model knows; the id of a category is its position."""

    categories: tuple[Category, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.categories) <= MAX_CATEGORIES:
            raise ValueError(
                f"taxonomy has {len(self.categories)} categories; 1 to {MAX_CATEGORIES} fit a 16-bit label image"
            )
        for category in self.categories:
            if len(category.color) != 3 or not all(0 <= value <= 255 for value in category.color):
                raise ValueError(f"category {category.name!r}: color {category.color} is not RGB with 0..255 each")

    def __len__(self) -> int:
        return len(self.categories)

    def __iter__(self) -> Iterator[Category]:
        return iter(self.categories)

    def __getitem__(self, category_id: int) -> Category:
        return self.categories[category_id]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(category.name for category in self.categories)

    @property
    def thing_ids(self) -> tuple[int, ...]:
        return tuple(i for i, category in enumerate(self.categories) if category.is_thing)

    @property
    def stuff_ids(self) -> tuple[int, ...]:
        return tuple(i for i, category in enumerate(self.categories) if not category.is_thing)

    def to_json(self) -> list[dict[str, Any]]:
        """The categories as plain values, in order."""
        return [
            {"name": c.name, "is_thing": c.is_thing, "color": list(c.color), "has_depth": c.has_depth}
            for c in self.categories
        ]

    @classmethod
    def from_json(cls, items: Sequence[dict[str, Any]]) -> Taxonomy:
        """The inverse of `to_json`; raises ValueError when a field is missing or unknown."""
        return cls(tuple(_category(i, item) for i, item in enumerate(items)))


def _category(position: int, item: dict[str, Any]) -> Category:
    try:
        return Category(**{**item, "color": tuple(int(value) for value in item["color"])})
    except (TypeError, KeyError) as error:
        raise ValueError(f"category {position}: expected name, is_thing, color, has_depth; got {item}") from error
