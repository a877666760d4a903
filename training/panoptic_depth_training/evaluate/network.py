# SPDX-License-Identifier: Apache-2.0
"""What a trainer asks about its network: scores, and a picture of what it says. h, w: the network's size."""

from __future__ import annotations

import colorsys
import sys

import numpy as np
import torch
from torch import Tensor

from panoptic_depth_model.config import PanopticDepthConfig
from panoptic_depth_model.deployable import Deployable
from panoptic_depth_model.panoptic_depth import PanopticDepth
from panoptic_depth_ros.maps import outlined
from panoptic_depth_ros.pipeline import Pipeline
from panoptic_depth_ros.visualize import depth_color
from panoptic_depth_training.datasets.sources import list_images, parse_source
from panoptic_depth_training.evaluate.scoring import Scores, ScoringSettings, readable, rules_for, score
from panoptic_depth_training.evaluate.tables import flat
from panoptic_depth_training.facts import ModelFacts
from panoptic_depth_training.torch_engine import engine_for, evaluating

_GOLDEN = 0.618  # turns by this part of a circle never come close to each other


def evaluate(network: PanopticDepth, facts: ModelFacts, data: str, count: int) -> dict[str, float | str]:
    """The flat scores of a network at its training size on the first `count` images, where the network is.

    Raises ValueError where the data cannot be opened, has other categories, or holds no image that can be read.
    """
    engine = engine_for(network, facts, "network")
    images = list_images(parse_source(data))
    scores = Scores(rules_for(engine.manifest, images, ScoringSettings()))
    score(Pipeline(engine), images, range(min(count, len(images))), scores, done=lambda: None)
    for fault in scores.faults:
        print(f"evaluate: left out {fault}", file=sys.stderr)
    return flat(readable(scores.result(), data))


def predicted_picture(network: PanopticDepth, image: Tensor) -> np.ndarray:
    """Image, segments and depth side by side [h, 3w, 3] uint8, of an RGB image [h, w, 3] uint8 at network size.

    The network runs where it is, and its mode is put back.
    """
    deployable = Deployable(network)
    with evaluating(deployable), torch.inference_mode():
        batch = deployable(image[None].to(next(network.parameters()).device))
    segment_ids, depth, category = (output[0].cpu().numpy() for output in batch[:3])
    rgb = image.cpu().numpy()
    segments = outlined(_segment_colors(network.config, category)[segment_ids], segment_ids)
    scale = network.config.depth
    return np.hstack([rgb, segments, depth_color(depth, scale.max_m) if scale else np.zeros_like(rgb)])


def _segment_colors(config: PanopticDepthConfig, category_of_row: np.ndarray) -> np.ndarray:
    """RGB per segment id [256, 3] uint8: a hue for each category, a brightness for each thing; void is black."""
    colors = np.zeros((256, 3), np.uint8)
    for row, category in enumerate(category_of_row.tolist()):
        hue, value = (category * _GOLDEN) % 1, 0.95
        if category in config.thing_ids:
            value = 0.6 + 0.4 * ((row * _GOLDEN) % 1)
        colors[row + 1] = np.round(255 * np.array(colorsys.hsv_to_rgb(hue, 0.75, value)))
    return colors
