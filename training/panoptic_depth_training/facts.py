# SPDX-License-Identifier: Apache-2.0
"""What is known of a network beside its weights: how it was trained, for which camera, how well it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from panoptic_depth_ros.taxonomy import Taxonomy
from panoptic_depth_training.datasets.cityscapes import CITYSCAPES


@dataclass(frozen=True)
class ModelFacts:
    """Stored with the weights and copied into the manifest of an exported model."""

    preset: str
    taxonomy: Taxonomy
    height: int  # network input of the training [px]
    width: int
    focal_length_px: float  # at that size; the focal length that the depth is metric for
    scores: dict[str, float | str] = field(default_factory=dict)  # and how they came about

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as panoptic_depth_model.weights stores them."""
        return {**vars(self), "taxonomy": self.taxonomy.to_json()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelFacts:
        """The inverse of `to_dict`; also the facts of weights that panoptic_depth_model.import_official wrote.

        Raises:
            ValueError: they are imported ones of categories that nothing is known of.
        """
        if "imported_from" not in values:
            return cls(**{**values, "taxonomy": Taxonomy.from_json(values["taxonomy"])})
        if values["num_categories"] != len(CITYSCAPES):
            raise ValueError(
                f"{values['imported_from']}: {values['num_categories']} categories without names; only networks for "
                f"the {len(CITYSCAPES)} of Cityscapes can be used as they are, train on data of yours from others"
            )
        # Released for Cityscapes at full size, whose cameras have about this focal length.
        return cls("paper", CITYSCAPES, 1024, 2048, 2262.5, {"imported_from": values["imported_from"]})
