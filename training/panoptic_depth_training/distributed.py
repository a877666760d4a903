# SPDX-License-Identifier: Apache-2.0
"""One training on several processes, as torchrun starts them; a single process needs none of it.

    torchrun --nproc-per-node 8 -m panoptic_depth_training.train ...
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Processes:
    """This process's place among all that train together."""

    rank: int = 0
    count: int = 1
    device: torch.device = CPU

    @property
    def is_first(self) -> bool:
        """Whether this one writes files and reports."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes, without gradient."""
        if self.count == 1:
            return values
        values = values.detach().clone()
        distributed.all_reduce(values)
        return values / self.count

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; all of them must ask. No GPU is waited for.

        Raises:
            ValueError: a process is gone.
        """
        if self.count == 1:
            return flag
        value = torch.tensor(float(flag))
        try:
            distributed.all_reduce(value, op=distributed.ReduceOp.MAX)
        except RuntimeError as error:
            raise ValueError(f"another process ended, and its own lines say why ({error})") from error
        return bool(value.item())


def join(device: str) -> Processes:
    """Join the processes that torchrun started, or be alone.

    Args:
        device: `cpu`, `cuda`, or `auto` for a GPU where there is one.

    Raises:
        ValueError: there are fewer GPUs than processes on this machine, or none at all.
    """
    places = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    rank, count, local = (int(os.environ.get(name, default)) for name, default in places)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"process {local} of this machine has no GPU ({torch.cuda.device_count()} found); "
                "start as many processes as there are GPUs, or train with --device cpu"
            )
        torch.cuda.set_device(local)
        torch.backends.cudnn.benchmark = True  # shapes stay, so the search for the fastest convolution pays
    if count > 1 and not distributed.is_initialized():
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    return Processes(rank, count, torch.device(device, local) if device == "cuda" else CPU)


def leave() -> None:
    """Undo `join`."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
