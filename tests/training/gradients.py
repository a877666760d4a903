# SPDX-License-Identifier: Apache-2.0
"""Writes the gradient of a training's first step: gradients.py SETTINGS.json OUT.pt, alone or under torchrun."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from panoptic_depth_training.config import TrainingConfig
from panoptic_depth_training.data import open_mixture
from panoptic_depth_training.distributed import join, leave
from panoptic_depth_training.train import batches, start

values = json.loads(Path(sys.argv[1]).read_text())
config = TrainingConfig(**{**values, "data": tuple(values["data"])})
processes = join("cpu")
images = open_mixture(config.data)
run = start(config, images.taxonomy, Path(sys.argv[2]).parent / "nothing", processes)
image, targets = next(batches(config, images, 0, 0, processes))
total, _ = run.module(image, targets)
total.backward()
if processes.is_first:
    torch.save({name: p.grad for name, p in run.network.named_parameters() if p.grad is not None}, sys.argv[2])
leave()
