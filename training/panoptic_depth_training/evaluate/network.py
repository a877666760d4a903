# SPDX-License-Identifier: Apache-2.0
"""What a trainer asks about its network: scores, and a picture of what it says. h, w: the network's size."""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import Tensor

from panoptic_depth_model.deployable import Deployable
from panoptic_depth_model.panoptic_depth import PanopticDepth
from panoptic_depth_ros.pipeline import Pipeline
from panoptic_depth_ros.prediction import number_instances
from panoptic_depth_ros.taxonomy import LABEL_DIVISOR, VOID_PANOPTIC_ID, Taxonomy
from panoptic_depth_ros.visualize import depth_color
from panoptic_depth_training.colors import label_colors
from panoptic_depth_training.datasets.sources import list_images, parse_source
from panoptic_depth_training.evaluate.scoring import Scores, ScoringSettings, readable, rules_for, score
from panoptic_depth_training.evaluate.tables import flat
from panoptic_depth_training.facts import ModelFacts
from panoptic_depth_training.inference import evaluating
from panoptic_depth_training.torch_engine import engine_for


def evaluate(
    network: PanopticDepth, facts: ModelFacts, data: str, count: int | None = None
) -> dict[str, float | str]:
    """The flat scores of a network at its training size on the first `count` images (None: all), where it is.

    Raises ValueError where the data cannot be opened, has other categories, or holds no image that can be read.
    """
    engine = engine_for(network, facts, "network")
    images = list_images(parse_source(data))
    scores = Scores(rules_for(engine.manifest, images, ScoringSettings()))
    score(Pipeline(engine), images, range(len(images))[:count], scores, done=lambda: None)
    for fault in scores.faults:
        print(f"evaluate: left out {fault}", file=sys.stderr)
    return flat(readable(scores.result(), data))


def predicted_picture(network: PanopticDepth, taxonomy: Taxonomy, image: Tensor) -> np.ndarray:
    """Image, segments and depth side by side [h, 3w, 3] uint8, of an RGB image [h, w, 3] uint8 at network size.

    The network runs where it is, and its mode is put back.
    """
    deployable = Deployable(network)
    with evaluating(deployable), torch.inference_mode():
        batch = deployable(image[None].to(next(network.parameters()).device))
    segment_ids, depth, category, score = (output[0].cpu().numpy() for output in batch[:4])
    ids_of_rows = category * LABEL_DIVISOR + number_instances(category, score, taxonomy)  # unused rows' show nowhere
    panoptic_ids = np.append(VOID_PANOPTIC_ID, ids_of_rows)[segment_ids]
    rgb = image.cpu().numpy()
    scale = network.config.depth
    depth_panel = depth_color(depth, scale.max_m) if scale else np.zeros_like(rgb)
    return np.hstack([rgb, label_colors(panoptic_ids, taxonomy), depth_panel])
