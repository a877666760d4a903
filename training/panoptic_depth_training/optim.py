# SPDX-License-Identifier: Apache-2.0
"""How weights move: the optimizer and its groups, the learning rate's way, clipping, averaging."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

ADAM, ADAMW = "adam", "adamw"  # weight decay within the gradient, as in the paper; or beside it
CLIP_NORM, CLIP_VALUE = "norm", "value"
POLY_POWER = 0.9

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def build_optimizer(network: nn.Module, kind: str, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """Adam or AdamW over all weights that learn; weights of norms do not decay."""
    norms: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad:
                (norms if isinstance(module, _NORMS) else others).append(parameter)
    groups = [{"params": others, "weight_decay": weight_decay}, {"params": norms, "weight_decay": 0.0}]
    match kind:
        case "adam":
            return torch.optim.Adam(groups, lr=learning_rate, fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, lr=learning_rate, fused=True)
        case _:
            raise ValueError(f"unknown optimizer {kind!r}; expected {ADAM} or {ADAMW}")


def learning_rate_at(step: int, steps: int, highest: float, warmup_steps: int, warmup_factor: float = 1e-3) -> float:
    """Linear warm-up from `warmup_factor`, times a polynomial decay to zero at `steps` (power 0.9)."""
    reached = min(1.0, step / max(warmup_steps, 1))
    return highest * (warmup_factor + (1 - warmup_factor) * reached) * (1 - step / steps) ** POLY_POWER


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradients(parameters: Iterable[Tensor], how: str, limit: float) -> None:
    """Scale all gradients down to a common norm, or cut each entry off (the paper: by value, 35)."""
    match how:
        case "norm":
            nn.utils.clip_grad_norm_(parameters, limit)
        case "value":
            nn.utils.clip_grad_value_(parameters, limit)
        case _:
            raise ValueError(f"unknown clipping {how!r}; expected {CLIP_NORM} or {CLIP_VALUE}")


class WeightAverage:
    """An exponential average of a network's weights and buffers, which scores better than the last step.

    The average begins as the mean of the first steps, so that it forgets the random start.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take the weights after a step into the average."""
        self.steps += 1
        share = max(1 - self.decay, 1 / self.steps)
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                self.state[name].lerp_(tensor, share)
            else:
                self.state[name].copy_(tensor)
