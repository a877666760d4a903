# SPDX-License-Identifier: Apache-2.0
"""A trained network in one file: its config, its tensors, and facts about how it came to be."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from panoptic_depth_model.config import Decisions, EmbeddingConfig, PanopticDepthConfig
from panoptic_depth_model.depth import DepthScale
from panoptic_depth_model.panoptic_depth import PanopticDepth
from panoptic_depth_model.tensor_file import read_tensors, write_tensors

FORMAT = "panoptic_depth weights 2"


def save_weights(path: Path, network: PanopticDepth, facts: Mapping[str, Any]) -> None:
    """Write a network that `load_weights` rebuilds; facts are plain values (str, numbers, lists, dicts)."""
    write_tensors(
        path,
        {
            "format": FORMAT,
            "config": asdict(network.config),
            "state": {name: tensor.cpu() for name, tensor in network.state_dict().items()},
            "facts": dict(facts),
        },
    )


def load_weights(path: Path) -> tuple[PanopticDepth, dict[str, Any]]:
    """The network in evaluation mode, and its facts.

    Raises:
        OSError: there is no such file, or it may not be read.
        ValueError: it holds something else, or a network that answers nothing.
    """
    contents = read_tensors(path)
    _check_format(path, str(contents.get("format", "nothing of the kind")))
    try:
        network = PanopticDepth(config_from_dict(contents["config"]))
        network.load_state_dict(contents["state"])
        facts = dict(contents["facts"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: names itself {FORMAT!r} but lacks a part of that, or has one too many") from error
    if broken := [name for name, tensor in network.state_dict().items() if not tensor.isfinite().all()]:
        raise ValueError(
            f"{path}: {len(broken)} tensors hold values that are no numbers, such as {broken[0]}; "
            "the training had gone astray, take weights from before"
        )
    return network.eval(), facts


def _check_format(path: Path, there: str) -> None:
    if there.startswith("panoptic_depth checkpoint"):
        raise ValueError(
            f"{path}: the state of a training under way; expected its result, weights.pt in the same folder, "
            "which is there when the training has ended"
        )
    if there != FORMAT:
        raise ValueError(f"{path}: expected {FORMAT!r}, as train writes it; the file says {there!r}")


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
