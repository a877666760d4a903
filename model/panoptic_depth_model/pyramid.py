# SPDX-License-Identifier: Apache-2.0
"""Feature pyramids: one map per stride for the kernel heads, one stride-4 map for the embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from panoptic_depth_model.convolutions import conv_block


class FeaturePyramid(nn.Module):
    """Top-down feature pyramid p2..p7 (strides 4..128), all of one width."""

    def __init__(self, in_channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList([nn.Conv2d(channels, width, 1) for channels in in_channels])
        self.outputs = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in in_channels])
        self.p6 = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """[p2, ..., p7] from the backbone's four features."""
        laterals = [lateral(x) for lateral, x in zip(self.laterals, features, strict=True)]
        merged = [laterals[-1]]
        for lateral in reversed(laterals[:-1]):
            merged.insert(0, lateral + F.interpolate(merged[0], scale_factor=2.0, mode="nearest"))
        p2, p3, p4, p5 = (output(x) for output, x in zip(self.outputs, merged, strict=True))
        p6 = self.p6(p5)
        p7 = self.p7(F.relu(p6))
        return [p2, p3, p4, p5, p6, p7]


class Upsample(nn.Module):
    """Bilinear upsampling by two."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class SemanticPyramid(nn.Module):
    """p2..p5 brought to stride 4 and summed: the context that the embeddings grow from."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList([conv_block(width, width)])
        for doublings in (1, 2, 3):
            steps = [nn.Sequential(conv_block(width, width), Upsample()) for _ in range(doublings)]
            self.branches.append(nn.Sequential(*steps))

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """[B, width, H/4, W/4] from p2..p5."""
        first, *others = [branch(level) for branch, level in zip(self.branches, levels, strict=True)]
        for other in others:
            first = first + other
        return first
