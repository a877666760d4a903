# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files of detectron2, read without running what is in them: a pickle from the net could be a program."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

TORCH_MAGIC = 0x1950A86A20F9469CFC6C
# What a damaged or foreign file makes the readers raise.
UNREADABLE = (
    pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, IndexError, KeyError, TypeError, ValueError
)

# Some files have batch norms that are a scale and a shift; a variance of 1 - epsilon makes ours just that.
BATCH_NORM_EPSILON = 1e-5
_CAFFE_KINDS = {
    "w": "weight",
    "bn_s": "weight",
    "bn_gamma": "weight",
    "bn_b": "bias",
    "bn_beta": "bias",
    "bn_running_mean": "running_mean",
    "bn_running_var": "running_var",
}
_CAFFE_LAYERS = {"branch2a": "conv1", "branch2b": "conv2", "branch2c": "conv3", "branch1": "downsample.0"}


class ImportFailed(ValueError):
    """The file is not what this program takes over."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a detectron2 checkpoint (.pth of torch, .pkl with NumPy arrays), without running its code.

    Raises:
        ImportFailed: the file holds something else, or objects that are neither numbers nor containers.
    """
    try:
        contents = _contents(path)
        model = contents
        for key in ("model", "blobs"):  # detectron2's own, and what it takes from Caffe2
            model = model.get(key, model) if isinstance(model, dict) else model
        if not isinstance(model, dict) or not all(isinstance(v, Tensor | np.ndarray) for v in model.values()):
            raise ImportFailed(
                f"{path}: holds {type(contents).__name__}; expected a dict of tensors, or one under 'model'"
            )
        # Normalization constants are stored by some versions of detectron2; the config has them.
        return {
            str(name): torch.as_tensor(value)
            for name, value in model.items()
            if name not in ("pixel_mean", "pixel_std")
        }
    except ImportFailed:
        raise
    except UNREADABLE as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ImportFailed(f"{path}: not a checkpoint that can be read safely ({reason})") from error


def _contents(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        return torch.load(path, map_location="cpu", weights_only=True)
    with path.open("rb") as file:
        contents = _NumbersOnly(file, encoding="latin1").load()
    # Before version 1.6 torch wrote no archive but several pickles, of which the first is this number.
    if isinstance(contents, int) and contents == TORCH_MAGIC:
        return torch.load(path, map_location="cpu", weights_only=True)
    return contents


class _NumbersOnly(pickle.Unpickler):
    """Reads arrays and containers; anything else in a pickle could run code."""

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "collections", "OrderedDict":
                return OrderedDict
            case "numpy", "ndarray":
                return np.ndarray
            case "numpy", "dtype":
                return np.dtype
            case "numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct":
                return np.empty(0).__reduce__()[0]  # where it lives depends on NumPy's version
            case "numpy.core.multiarray" | "numpy._core.multiarray", "scalar":
                return np.float32(0).__reduce__()[0]
            case "numpy.core.numeric" | "numpy._core.numeric", "_frombuffer":
                return _array_of_buffer
            case "_codecs", "encode":
                return _latin1_only
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is neither a number nor a container")


def _array_of_buffer(buffer: Any, dtype: np.dtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
    """How NumPy stores an array in a pickle of protocol 5."""
    return np.frombuffer(bytes(buffer), dtype).reshape(shape, order=order).copy()


def _latin1_only(text: str, encoding: str = "latin1") -> bytes:
    """How Python 3 stores bytes in a pickle for Python 2."""
    return text.encode("latin1")


def classifier_state(blobs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A ResNet of Caffe2 (detectron2's ImageNetPretrained/MSRA/R-50.pkl) under torchvision's names, for RGB input.

    Raises:
        ImportFailed: it holds other names.
    """
    # Beside the network: momenta, the classifier, and a bias of the first convolution that detectron2 has no place for.
    beside = re.compile(r".*_momentum|fc1000_\w+|pred_\w+|conv1_b")
    state = {_torchvision_name(blob): values.float() for blob, values in blobs.items() if not beside.fullmatch(blob)}
    if "conv1.weight" not in state:
        raise ImportFailed(f"no conv1_w among {len(blobs)} tensors; expected a Caffe2 ResNet such as MSRA/R-50.pkl")
    state["conv1.weight"] = state["conv1.weight"].flip(1)  # BGR there
    for name in [name for name, values in state.items() if name.endswith(".weight") and values.ndim == 1]:
        norm, channels = name.removesuffix(".weight"), len(state[name])
        state.setdefault(f"{norm}.running_mean", torch.zeros(channels))
        state.setdefault(f"{norm}.running_var", torch.full((channels,), 1 - BATCH_NORM_EPSILON))
    return state


def _torchvision_name(blob: str) -> str:
    """Of a tensor such as res2_0_branch2a_w or res_conv1_bn_gamma."""
    match = re.fullmatch(r"(?:res(\d)_(\d+)_(branch\d[abc]?)|(?:res_)?conv1)_(w|bn_\w+)", blob)
    if match is None or match[4] not in _CAFFE_KINDS or (match[3] or "branch1") not in _CAFFE_LAYERS:
        raise ImportFailed(f"{blob} is no tensor of a Caffe2 ResNet; expected names such as res2_0_branch2a_w")
    layer = f"layer{int(match[1]) - 1}.{match[2]}.{_CAFFE_LAYERS[match[3]]}" if match[1] else "conv1"
    if match[4] != "w":  # the batch norm behind the convolution
        layer = layer[:-1] + "1" if layer.endswith("downsample.0") else layer.replace("conv", "bn")
    return f"{layer}.{_CAFFE_KINDS[match[4]]}"
