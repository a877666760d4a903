# SPDX-License-Identifier: Apache-2.0
"""Instance-wise depth (PanopticDepth, section 3.3): every segment shifts and stretches a normalized map.

A depth kernel [2 + E] holds the shift, the range, and the weights that act on the depth embedding [E, h, w].
Depth is in meters along the optical axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

SCHEMES = {"T1": 0.0, "T2": 0.5}  # what is subtracted from the normalized depth, which lies in 0..1

STARTING_SHIFT_M, STARTING_RANGE_M = 12.0, 12.0


@dataclass(frozen=True)
class DepthScale:
    """How a segment's normalized depth becomes meters.

    depth = shift_limit_m * shift + range_limit_m * range * (normalized - offset), limited to min_m..max_m,
    where shift and range lie in 0..1. With scheme T1 (equation 4) the offset is 0 and the shift means the
    segment's nearest point; with T2 (equation 5) it is 0.5 and the shift means its mean depth.
    """

    scheme: str = "T2"
    shift_limit_m: float = 88.0
    range_limit_m: float = 176.0
    min_m: float = 0.5
    max_m: float = 80.0

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise ValueError(f"unknown depth scheme {self.scheme!r}; expected one of {', '.join(SCHEMES)}")
        if not 0 < self.min_m < self.max_m:
            raise ValueError(f"depth range {self.min_m}..{self.max_m} m; expected 0 < minimum < maximum")

    @property
    def starting_logits(self) -> tuple[float, float]:
        """Shift and range logits of a segment that nothing is known of yet.

        Errors are relative, so a start far beyond the usual depth of a street would drown all other losses.
        """
        return _logit(STARTING_SHIFT_M / self.shift_limit_m), _logit(STARTING_RANGE_M / self.range_limit_m)

    def shift_m(self, depth_kernels: Tensor) -> Tensor:
        """Each segment's shift in meters, [...] from kernels [..., 2 + E]."""
        return self.shift_limit_m * depth_kernels[..., 0].sigmoid()

    def range_m(self, depth_kernels: Tensor) -> Tensor:
        """Each segment's range in meters, [...] from kernels [..., 2 + E]."""
        return self.range_limit_m * depth_kernels[..., 1].sigmoid()

    def depth_m(self, normalized_logits: Tensor, shift_m: Tensor, range_m: Tensor) -> Tensor:
        """Depth in meters before the limits, so that a loss can still pull it back inside."""
        return shift_m + range_m * (normalized_logits.sigmoid() - SCHEMES[self.scheme])

    def limited(self, depth_m: Tensor) -> Tensor:
        return depth_m.clamp(self.min_m, self.max_m)


def _logit(share: float) -> float:
    return math.log(share / (1 - share))


def normalized_weights(depth_kernels: Tensor) -> Tensor:
    """The part [..., E] of kernels [..., 2 + E] that acts on the depth embedding."""
    return depth_kernels[..., 2:]


def select_then_dot(depth_kernels: Tensor, rows: Tensor, embedding: Tensor, scale: DepthScale) -> Tensor:
    """Depth [B, H, W] in meters where every pixel uses the kernel of its own segment.

    Selecting the kernel before the product needs E multiplications a pixel instead of a depth map per
    segment.

    Args:
        depth_kernels: [B, N, 2 + E].
        rows: [B, H, W] int64, each pixel's row in `depth_kernels`.
        embedding: [B, E, H, W].
    """
    batch, count, size = depth_kernels.shape
    first_row = rows.new_tensor(range(batch))[:, None, None] * count
    own = F.embedding(rows + first_row, depth_kernels.reshape(batch * count, size))  # [B, H, W, 2 + E]
    logits = (normalized_weights(own) * embedding.permute(0, 2, 3, 1)).sum(dim=-1)
    return scale.limited(scale.depth_m(logits, scale.shift_m(own), scale.range_m(own)))
