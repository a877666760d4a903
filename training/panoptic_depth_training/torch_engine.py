# SPDX-License-Identifier: Apache-2.0
"""PyTorch as an engine: weights that were not exported yet go the way that images take on the vehicle."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from panoptic_depth_model.deployable import Deployable
from panoptic_depth_model.panoptic_depth import PanopticDepth, check_size
from panoptic_depth_model.weights import digest, load_weights
from panoptic_depth_ros.engines import Engine, Report, open_engine
from panoptic_depth_ros.manifest import OUTPUTS, Manifest, ModelError
from panoptic_depth_ros.taxonomy import Taxonomy
from panoptic_depth_training.facts import ModelFacts

WEIGHTS_SUFFIX = ".pt"
SMALLEST_DEPTH_M = 1e-3  # a manifest's range starts above zero, also where a network's own starts at zero
ANY_RANGE_M = (SMALLEST_DEPTH_M, 80.0)  # stands in the manifest of a network that gives depth to no category


class TorchEngine:
    """Runs a network with PyTorch. The network stays its owner's: its mode is put back after every call."""

    def __init__(self, network: PanopticDepth, manifest: Manifest) -> None:
        self._deployable = Deployable(network)
        self._manifest = manifest
        self._device = next(network.parameters()).device

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    @property
    def description(self) -> str:
        return f"PyTorch {torch.__version__} on {self._device.type.upper()}"

    def infer(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs of the contract for RGB images [B, h, w, 3] uint8."""
        with evaluating(self._deployable), torch.inference_mode():
            outputs = self._deployable(torch.from_numpy(images).to(self._device))
        return {name: output.cpu().numpy() for name, output in zip(OUTPUTS, outputs, strict=True)}

    def close(self) -> None:
        del self._deployable


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A module in evaluation mode inside the block. Behind it every part is in its own mode again: parts of a network
    that is in training may be frozen.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def open_model(
    path: Path, device: str = "auto", threads: int = 0, size: tuple[int, int] | None = None, report: Report = print
) -> Engine:
    """The engine for weights (.pt) or for an exported model.

    Args:
        device: for weights auto, cpu or cuda; else as `open_engine` has it.
        threads: on the CPU; 0 takes one per core.
        size: height and width [px] of the network's input; None: the training's. An exported model has its own.

    Raises:
        ModelError: the file is neither, or the device cannot run it.
        ValueError: the size is none that a network takes.
    """
    if path.suffix != WEIGHTS_SUFFIX:
        if size is not None:
            raise ModelError(f"model {path}: its input size is fixed; leave the size out, or export it with another")
        return open_engine(path, device, threads, report=report)
    if threads:
        torch.set_num_threads(threads)
    try:
        network, facts = load_weights(path)
    except (OSError, RuntimeError, TypeError, EOFError, pickle.UnpicklingError) as error:  # what torch.load may meet
        raise ModelError(f"model {path}: cannot be read as weights ({error}); give what train wrote") from error
    network.to(torch_device(device, path))
    return engine_for(network, ModelFacts.from_dict(facts), path.stem, size)


def engine_for(
    network: PanopticDepth, facts: ModelFacts, name: str, size: tuple[int, int] | None = None
) -> TorchEngine:
    """An engine around a network where it is; `size` as in `open_model`."""
    height, width = size or (facts.height, facts.width)
    return TorchEngine(network, manifest_of(network, facts, height, width, name))


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


def torch_device(device: str, path: Path) -> torch.device:
    """Where to run weights. Raises ModelError for a device that needs an exported model, or that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda"):
        raise ModelError(
            f"model {path}: weights run on cpu or cuda, not on {device}; export them first with "
            "python -m panoptic_depth_training.export"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("device is cuda, but PyTorch finds no GPU; see nvidia-smi, or take --device cpu")
    return torch.device(device)
