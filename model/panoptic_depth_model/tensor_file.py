# SPDX-License-Identifier: Apache-2.0
"""Dictionaries of tensors and plain values in files: written whole or not at all, read without running code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def write_tensors(path: Path, contents: Mapping[str, Any]) -> None:
    """Write a file; an older one survives until the new one is whole. Raises OSError."""
    partial = path.with_name(path.name + ".partial")
    try:
        torch.save(dict(contents), partial)
        partial.replace(path)
    except RuntimeError as error:  # how PyTorch tells of a full disk
        raise OSError(f"{path} could not be written; is its folder there, and room on the disk?") from error
    finally:
        partial.unlink(missing_ok=True)


def read_tensors(path: Path) -> dict[str, Any]:
    """What `write_tensors` wrote, on the CPU.

    Raises:
        OSError: there is no such file, or it may not be read.
        ValueError: it is none of these.
    """
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a file that is cut or of another kind may trip its reader in any way
        raise ValueError(f"{path}: no file of tensors, or cut short") from error
    if not isinstance(contents, dict):
        raise ValueError(f"{path}: expected named tensors and values, found a {type(contents).__name__}")
    return contents
