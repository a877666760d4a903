# SPDX-License-Identifier: Apache-2.0
"""A trained network in one file: its config, its tensors, and facts about how it came to be."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from panoptic_depth_model.config import Decisions, EmbeddingConfig, PanopticDepthConfig
from panoptic_depth_model.depth import DepthScale
from panoptic_depth_model.panoptic_depth import PanopticDepth

FORMAT = "panoptic_depth weights 2"


def save_weights(path: Path, network: PanopticDepth, facts: Mapping[str, Any]) -> None:
    """Write a network that `load_weights` rebuilds; facts are plain values (str, numbers, lists, dicts)."""
    partial = path.with_name(path.name + ".partial")
    torch.save(
        {
            "format": FORMAT,
            "config": asdict(network.config),
            "state": {name: tensor.cpu() for name, tensor in network.state_dict().items()},
            "facts": dict(facts),
        },
        partial,
    )
    partial.replace(path)


def load_weights(path: Path) -> tuple[PanopticDepth, dict[str, Any]]:
    """The network in evaluation mode, and its facts."""
    contents = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise ValueError(
            f"{path}: expected a file written by save_weights ({FORMAT!r}); got {type(contents).__name__}"
        )
    network = PanopticDepth(config_from_dict(contents["config"]))
    network.load_state_dict(contents["state"])
    return network.eval(), contents["facts"]


def config_from_dict(values: Mapping[str, Any]) -> PanopticDepthConfig:
    """The inverse of dataclasses.asdict; an unknown or missing field raises TypeError."""
    parts = {
        "embedding": EmbeddingConfig(**values["embedding"]),
        "depth": values["depth"] and DepthScale(**values["depth"]),
        "decisions": Decisions(**values["decisions"]),
    }
    return PanopticDepthConfig(**{**values, **parts})


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and values of a state dict, independent of the file that holds it."""
    sha = hashlib.sha256()
    for name in sorted(state):
        sha.update(name.encode())
        sha.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()
