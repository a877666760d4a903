# SPDX-License-Identifier: Apache-2.0
"""The manifest of a network that was not exported, or is about to be."""

from __future__ import annotations

from dataclasses import replace

from panoptic_depth_model.panoptic_depth import PanopticDepth, check_size
from panoptic_depth_model.weights import digest
from panoptic_depth_ros.manifest import Manifest
from panoptic_depth_ros.taxonomy import Taxonomy
from panoptic_depth_training.facts import ModelFacts

SMALLEST_DEPTH_M = 1e-3  # a manifest's range starts above zero, also where a network's own starts at zero
ANY_RANGE_M = (SMALLEST_DEPTH_M, 80.0)  # stands in the manifest of a network that gives depth to no category


def manifest_of(network: PanopticDepth, facts: ModelFacts, height: int, width: int, name: str) -> Manifest:
    """What a network that was not exported says about itself. Its version and opset are empty."""
    check_size(height, width)
    scale = network.config.depth
    nearest_m, farthest_m = (max(scale.min_m, SMALLEST_DEPTH_M), scale.max_m) if scale else ANY_RANGE_M
    return Manifest(
        name=name,
        version="",
        preset=facts.preset,
        height=height,
        width=width,
        # At another size the same view has its focal length scaled with it.
        focal_length_px=facts.focal_length_px * width / facts.width,
        min_depth_m=nearest_m,
        max_depth_m=farthest_m,
        taxonomy=facts.taxonomy if scale else without_depth(facts.taxonomy),
        opset=0,
        digest=digest(network.state_dict()),
        scores=facts.scores,
    )


def without_depth(taxonomy: Taxonomy) -> Taxonomy:
    """The same categories, none of which has a depth."""
    return Taxonomy(tuple(replace(category, has_depth=False) for category in taxonomy))
