# SPDX-License-Identifier: Apache-2.0
"""The state of a training, so that it can stop anywhere and go on as if it had not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from panoptic_depth_model.tensor_file import read_tensors, write_tensors

FORMAT = "panoptic_depth checkpoint 3"


def save_checkpoint(
    path: Path,
    learned: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Any] | None,
    step: int,
    settings: dict[str, Any],
) -> None:
    """Write all that the steps after `step` depend on; an older file survives until the new one is whole.

    `average` is the state of the weights' average, None where none is kept.
    """
    write_tensors(
        path,
        {
            "format": FORMAT,
            "step": step,
            "settings": settings,
            "learned": learned.state_dict(),
            "optimizer": optimizer.state_dict(),
            "average": average,
        },
    )


def load_checkpoint(
    path: Path, learned: nn.Module, optimizer: torch.optim.Optimizer, settings: dict[str, Any]
) -> tuple[int, dict[str, Any] | None]:
    """Restore what is learned and the optimizer; return the steps done and the average.

    Raises ValueError where the settings are not those of the file, or it cannot be read.
    """
    try:
        contents = read_tensors(path)
    except ValueError as error:
        raise ValueError(f"{error}; remove it to start anew") from error
    if contents.get("format") != FORMAT:
        raise ValueError(f"{path}: not a training checkpoint ({FORMAT!r}); remove it to start anew")
    if changes := differences(contents["settings"], settings):
        raise ValueError(
            f"{path}: belongs to another training ({', '.join(changes.values())}); "
            "give the same options or another folder"
        )
    learned.load_state_dict(contents["learned"])
    optimizer.load_state_dict(contents["optimizer"])
    return contents["step"], contents["average"]


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, str]:
    """What is set otherwise here than there, by name, in words."""
    changed = [key for key in here if there.get(key) != here[key]]
    return {key: f"{key} was {there.get(key)!r} and is {here[key]!r}" for key in changed}
