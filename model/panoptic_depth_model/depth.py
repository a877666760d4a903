# SPDX-License-Identifier: Apache-2.0
"""Instance-wise depth (PanopticDepth, section 3.3): every segment shifts and stretches a normalized map.

A depth kernel holds the shift, the range, and the weights that act on the depth embedding [E, h, w]; schemes
without normalization hold the weights alone. Depth is in meters along the optical axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from panoptic_depth_model.resampling import in_blocks, in_image, upsampled, upsampled_rows

PIXEL, DIRECT, T1, T2 = "pixel", "direct", "T1", "T2"
SCHEMES = (PIXEL, DIRECT, T1, T2)

STARTING_SHIFT_M, STARTING_RANGE_M = 12.0, 12.0


@dataclass(frozen=True)
class DepthScale:
    """How the product of kernel and embedding becomes meters. With n its sigmoid, r and s sigmoids of the kernel:

    - ``T2`` (equation 5): depth = shift_limit_m * s + range_limit_m * r * (n - 0.5); s is the segment's mean depth
    - ``T1`` (equation 4): depth = shift_limit_m * s + range_limit_m * r * n; s is the segment's nearest point
    - ``direct``: depth = range_limit_m * n, with a kernel for each segment
    - ``pixel``: depth = range_limit_m * n, with an embedding of one channel and no kernels

    The answer is limited to min_m..max_m. The paper has shift_limit_m = range_limit_m = 88 (d_max); the released
    network computes 44 s + 88 r (2 n - 1), which is T2 with the limits 44 and 176.
    """

    scheme: str = T2
    shift_limit_m: float = 88.0
    range_limit_m: float = 176.0
    min_m: float = 0.5
    max_m: float = 80.0
    supervise_shift: bool = True  # whether a loss compares each thing's shift with its true depth

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise ValueError(f"unknown depth scheme {self.scheme!r}; expected one of {', '.join(SCHEMES)}")
        if not 0 <= self.min_m < self.max_m:
            raise ValueError(f"depth range {self.min_m}..{self.max_m} m; expected 0 <= minimum < maximum")
        if self.supervise_shift and not self.has_shift:
            raise ValueError(f"depth scheme {self.scheme!r} has no shift to supervise; set supervise_shift to False")

    @property
    def has_kernels(self) -> bool:
        """Whether every segment has a depth kernel of its own."""
        return self.scheme != PIXEL

    @property
    def has_shift(self) -> bool:
        return self.scheme in (T1, T2)

    def embedding_size(self, size: int) -> int:
        """Channels of the depth embedding, where `size` is what kernels would act on."""
        return size if self.has_kernels else 1

    def kernel_size(self, size: int) -> int:
        """Entries of a depth kernel that acts on an embedding of `size` channels."""
        return (2 if self.has_shift else 0) + size if self.has_kernels else 0

    @property
    def starting_values(self) -> tuple[float, ...]:
        """First entries of the kernel of a segment that nothing is known of yet.

        Errors are relative, so a start far beyond the usual depth of a street would drown all other losses.
        """
        if not self.has_shift:
            return ()
        return _logit(STARTING_SHIFT_M / self.shift_limit_m), _logit(STARTING_RANGE_M / self.range_limit_m)

    def weights(self, depth_kernels: Tensor) -> Tensor:
        """The part [..., E] of kernels that acts on the depth embedding."""
        return depth_kernels[..., 2:] if self.has_shift else depth_kernels

    def shift_m(self, depth_kernels: Tensor) -> Tensor:
        """Each segment's shift in meters, [...] from kernels [..., 2 + E]."""
        return self.shift_limit_m * depth_kernels[..., 0].sigmoid()

    def depth_m(self, logits: Tensor, depth_kernels: Tensor) -> Tensor:
        """Depth in meters before the limits, so that a loss can still pull it back inside.

        Args:
            logits: products of kernels and embedding, of a shape that depth_kernels[..., 0] broadcasts to.
        """
        nearest_m, range_m = self.span(depth_kernels)
        return nearest_m + range_m * logits.sigmoid()

    def span(self, depth_kernels: Tensor) -> tuple[Tensor, Tensor]:
        """Of kernels [..., D], two [...] in meters: depth where n is 0, and how much more it is where n is 1."""
        if not self.has_shift:
            nearest_m = torch.zeros_like(depth_kernels[..., 0])
            return nearest_m, nearest_m + self.range_limit_m
        range_m = self.range_limit_m * depth_kernels[..., 1].sigmoid()
        return self.shift_m(depth_kernels) - (range_m / 2 if self.scheme == T2 else 0.0), range_m

    def segment_depth(self, depth_kernels: Tensor, embedding: Tensor) -> Tensor:
        """A depth map per kernel before the limits: [B, S, h, w] from [B, S, D] and an embedding [B, E, h, w]."""
        logits = (self.weights(depth_kernels) @ embedding.flatten(2)).unflatten(2, embedding.shape[2:])
        return self.depth_m(logits, depth_kernels[:, :, None, None, :])

    def pixel_depth(self, embedding: Tensor) -> Tensor:
        """Scheme `pixel`: depth before the limits [B, h, w] from an embedding [B, 1, h, w]."""
        return self.range_limit_m * embedding[:, 0].sigmoid()

    def limited(self, depth_m: Tensor) -> Tensor:
        return depth_m.clamp(self.min_m, self.max_m)


def _logit(share: float) -> float:
    return math.log(share / (1 - share))


# The rows of the paper's ablation (tables 3 and 5), by their letters.
VARIANTS = {
    letter: DepthScale(scheme, 88.0, 88.0, supervise_shift=supervised)
    for letter, scheme, supervised in (
        ("A", PIXEL, False),
        ("B", DIRECT, False),
        ("C", T1, False),
        ("D", T2, False),
        ("E", T1, True),
        ("F", T2, True),
    )
}
# What the released networks compute and were trained with.
RELEASED = DepthScale(T2, 44.0, 176.0, min_m=0.0, max_m=80.0)


def select_then_dot(depth_kernels: Tensor, rows: Tensor, embedding: Tensor, scale: DepthScale) -> Tensor:
    """Depth [B, H, W] in meters, before the limits, where every pixel uses the kernel of its own segment.

    Selecting the kernel before the product needs E multiplications a pixel instead of a depth map per
    segment.

    Args:
        depth_kernels: [B, N, D].
        rows: [B, H, W] int64, each pixel's row in `depth_kernels`.
        embedding: [B, E, H, W].
    """
    if not scale.has_kernels:
        return scale.pixel_depth(embedding)
    batch, count, size = depth_kernels.shape
    first_row = torch.arange(batch, device=rows.device)[:, None, None] * count
    own = F.embedding(rows + first_row, depth_kernels.reshape(batch * count, size))  # [B, H, W, D]
    logits = (scale.weights(own) * embedding.permute(0, 2, 3, 1)).sum(dim=-1)
    return scale.depth_m(logits, own)


def upsampled_depth(depth_kernels: Tensor, rows: Tensor, embedding: Tensor, scale: DepthScale, factor: int) -> Tensor:
    """`select_then_dot` with a `factor` times finer embedding: depth [B, h * factor, w * factor] in meters.

    Products and upsampling are both linear. So the products of all kernels are taken on the coarse grid, and upsampled
    only where a pixel's own segment needs it.

    Args:
        depth_kernels: [B, N, D].
        rows: [B, b**2, h, w] int64, the row in `depth_kernels` of each of the b x b blocks of every cell.
        embedding: [B, E, h, w].
    """
    if not scale.has_kernels:
        return scale.pixel_depth(upsampled(embedding, factor))
    products = (scale.weights(depth_kernels) @ embedding.flatten(2)).unflatten(2, embedding.shape[2:])  # [B, N, h, w]
    logits = upsampled_rows(products, rows, factor)
    nearest_m, range_m = (values.gather(1, rows.flatten(1)).view_as(rows) for values in scale.span(depth_kernels))
    blocks = math.isqrt(rows.shape[1])
    nearest_m, range_m, normalized = (in_blocks(part, blocks) for part in (nearest_m, range_m, logits.sigmoid()))
    return in_image((nearest_m + range_m * normalized).flatten(1, 4))
