# SPDX-License-Identifier: Apache-2.0
"""What decides the trained weights: every setting with its meaning, and named recipes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from panoptic_depth_model.config import PRESETS, PanopticDepthConfig, segmentation_only
from panoptic_depth_model.depth import VARIANTS
from panoptic_depth_model.panoptic_depth import check_size
from panoptic_depth_ros.taxonomy import Taxonomy
from panoptic_depth_training.augment import AUGMENTATIONS
from panoptic_depth_training.datasets.sources import WEIGHTED_SYNTAX
from panoptic_depth_training.optim import ADAM, ADAMW, CLIP_NORM, CLIP_VALUE

BACKBONE_PARTS = 5  # stem and four stages
PRECISIONS = ("float32", "bfloat16")


def option(default: Any, text: str) -> Any:
    """A field of the config that is also an option of the command line."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainingConfig:
    """A training. Two with equal configs and data give equal weights on one machine."""

    preset: str = option("compact", f"network size: {', '.join(PRESETS)}")
    segmentation_only: bool = option(False, "leave depth out, as the paper's first stages do")
    depth_variant: str = option("", f"of the paper's ablation instead of the preset's: {', '.join(VARIANTS)}")
    adaptive_fusion: bool = option(True, "weigh region kernels by their area (equation 1), not by that of the map")
    data: tuple[str, ...] = option((), f"labeled images, {WEIGHTED_SYNTAX}; repeat the option to mix several")
    start_from: str = option("", "weights to begin with instead of random ones; parts that they lack start anew")
    backbone_weights: str = option("", "of a classifier: a file, or a name of torchvision's such as IMAGENET1K_V1")
    height: int = option(256, "network input height [px]")
    width: int = option(512, "network input width [px]")
    focal_length_px: float = option(480.0, "depth is learned as a camera of this focal length would see it")
    view: str = option("vehicle", f"how an image is scaled and cropped: {', '.join(AUGMENTATIONS)}")
    steps: int = option(3000, "optimizer steps in all")
    batch: int = option(8, "images a step, over all processes")
    accumulate: int = option(1, "parts that a process's share of a step is computed in, to save memory")
    half_size_steps: int = option(0, "first steps at half height and width, twice the batch, half the cost")
    optimizer: str = option(ADAMW, f"{ADAMW} or {ADAM} (weight decay within the gradient)")
    learning_rate: float = option(1e-3, "highest learning rate")
    warmup_steps: int = option(100, "steps until it is reached")
    weight_decay: float = option(0.01, "of all weights but those of norms")
    clip: str = option(CLIP_NORM, f"limit of gradients, by common {CLIP_NORM} or entry by entry ({CLIP_VALUE})")
    clip_limit: float = option(10.0, "its limit")
    frozen_parts: int = option(0, "of the backbone that do not learn: 1 the stem, 2 with the first stage, ...")
    frozen_norms: bool = option(False, "batch norms keep their statistics and do not learn")
    average_decay: float = option(0.0, "of the average of weights that is kept as the result; 0: the last step's")
    precision: str = option("float32", f"of the network's arithmetic: {', '.join(PRECISIONS)}; losses are float32")
    channels_last: bool = option(True, "memory order of the maps that convolutions are faster in")
    compile: bool = option(False, "compile the network first (torch.compile)")
    mask_weight: float = option(4.0, "of the mask losses")
    depth_weight: float = option(0.5, "of the depth losses")
    pixel_weight: float = option(1.0, "of heads for category and depth of pixels, which help learning and are not kept")
    seed: int = option(0, "of weights and augmentation")

    def __post_init__(self) -> None:
        check_size(self.height, self.width)
        if self.half_size_steps:
            check_size(self.height // 2, self.width // 2)
        for name, known in (
            ("preset", tuple(PRESETS)),
            ("depth_variant", ("", *VARIANTS)),
            ("view", AUGMENTATIONS),
            ("precision", PRECISIONS),
            ("optimizer", (ADAM, ADAMW)),
            ("clip", (CLIP_NORM, CLIP_VALUE)),
        ):
            if getattr(self, name) not in known:
                names = ", ".join(filter(None, known))
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; expected one of {names}")
        self._check_numbers()
        if self.segmentation_only and self.depth_variant:
            raise ValueError("segmentation_only leaves depth out, so depth_variant has no meaning; give one of them")
        if self.start_from and self.backbone_weights:
            raise ValueError("start_from brings the backbone's weights along; leave backbone_weights out")

    def _check_numbers(self) -> None:
        for name in ("steps", "batch", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("focal_length_px", "clip_limit"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number above 0")
        counts = ("warmup_steps", "half_size_steps", "seed")
        for name in ("learning_rate", "mask_weight", "depth_weight", "pixel_weight", "weight_decay", *counts):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if not 0 <= self.frozen_parts <= BACKBONE_PARTS:
            raise ValueError(f"frozen_parts is {self.frozen_parts}; expected 0 to {BACKBONE_PARTS}")
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"average_decay is {self.average_decay}; expected 0 (off) or a share below 1")

    def network(self, taxonomy: Taxonomy) -> PanopticDepthConfig:
        """The network that is trained on data with these categories."""
        network = replace(
            PRESETS[self.preset],
            num_categories=len(taxonomy),
            thing_ids=taxonomy.thing_ids,
            adaptive_fusion=self.adaptive_fusion,
        )
        if self.segmentation_only:
            return segmentation_only(network)
        return replace(network, depth=VARIANTS[self.depth_variant]) if self.depth_variant else network

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")


# The three stages of the paper (its section 4.3 and the released configs), each from the weights of the one before.
_PAPER = TrainingConfig(
    preset="paper",
    height=512,
    width=1024,
    focal_length_px=2262.5,  # Cityscapes' camera at full size: what the paper's depth is metric for
    view="paper_crop",
    steps=130_000,
    batch=32,
    optimizer=ADAM,
    learning_rate=1e-4,
    warmup_steps=2000,
    weight_decay=1e-4,
    clip=CLIP_VALUE,
    clip_limit=35.0,
    precision="bfloat16",
    depth_weight=5.0,
    pixel_weight=0.0,
)
_PAPER_SEGMENTATION = replace(_PAPER, segmentation_only=True)
_PAPER_FULL_SCALE = replace(
    _PAPER_SEGMENTATION,
    height=1024,
    width=2048,
    view="paper_full_scale",
    steps=10_000,
    batch=8,
    learning_rate=1e-5,
    frozen_parts=2,
    frozen_norms=True,
)
RECIPES: Mapping[str, TrainingConfig] = {
    "default": TrainingConfig(),
    "paper_segmentation": _PAPER_SEGMENTATION,
    "paper_full_scale": _PAPER_FULL_SCALE,
    "paper_depth": replace(_PAPER_FULL_SCALE, segmentation_only=False, view="full_frame", learning_rate=1e-4),
    # Seconds on one core; for tests of the whole chain.
    "debug": TrainingConfig(height=64, width=128, focal_length_px=120.0, steps=4, batch=2, warmup_steps=1),
}


def changed(config: TrainingConfig, values: Mapping[str, Any]) -> TrainingConfig:
    """The config with some fields replaced. Raises ValueError for a field that does not exist."""
    if unknown := set(values) - {entry.name for entry in fields(config)}:
        raise ValueError(f"unknown settings {', '.join(sorted(unknown))}")
    return replace(config, **values)
