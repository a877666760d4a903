# SPDX-License-Identifier: Apache-2.0
"""A network as the vehicle runs it: camera bytes in, segments and depth out, every shape fixed beforehand."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from panoptic_depth_model.panoptic_depth import PanopticDepth, check_size
from panoptic_depth_model.resampling import block_sums, repeated


class Outputs(NamedTuple):
    """The contract between training and vehicle; the field names are the names of the exported outputs."""

    segment_ids: Tensor  # [B, H, W] uint8; 0 void, k = row k-1 of the table
    depth: Tensor  # [B, H, W] float32, m along the optical axis
    segment_category: Tensor  # [B, N] int32
    segment_score: Tensor  # [B, N] float32; 0 for an empty row
    segment_area: Tensor  # [B, N] int32, px
    segment_depth: Tensor  # [B, N] float32, m, mean over the segment; 0 for an empty row


class Deployable(nn.Module):
    """A network with image bytes before it and the segment table after it."""

    def __init__(self, network: PanopticDepth) -> None:
        super().__init__()
        if network.config.num_segments > 255:
            raise ValueError(
                f"{network.config.num_segments} segment rows do not fit uint8 ids; lower max_things"
            )
        self.network = network

    def forward(self, image: Tensor) -> Outputs:
        """Segments and depth of RGB images [B, H, W, 3] uint8."""
        check_size(image.shape[1], image.shape[2])
        inference = self.network.infer(self.network.normalized(image))
        # A network without depth says 0 everywhere; its manifest's taxonomy gives depth to no category.
        depth = image.new_zeros(image.shape[:3], dtype=torch.float32) if inference.depth is None else inference.depth
        area, depth_sum = segment_sums(inference.labels, depth, inference.score.shape[1])
        found = area > 0
        stride = image.shape[1] // inference.labels.shape[1]
        return Outputs(
            segment_ids=repeated(inference.labels[:, None], stride).squeeze(1).to(torch.uint8),
            depth=depth,
            segment_category=inference.category.to(torch.int32),
            segment_score=torch.where(found, inference.score, 0.0),
            segment_area=area.to(torch.int32),
            segment_depth=depth_sum / area.clamp(min=1),
        )


def segment_sums(labels: Tensor, depth: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Area [px] and sum of depth [B, N] of segments 1..N; labels may be coarser than depth [B, H, W].

    A label covers a whole block of pixels, so sums over blocks give exact results. And a segment is a number of two
    digits: sums for all pairs of digits are products, one for each line of labels, with base + N / base comparisons a
    label instead of N.
    """
    stride = depth.shape[1] // labels.shape[1]
    blocks = block_sums(depth, stride)[:, :, None]  # [B, h, 1, w]
    segment = labels[:, :, None].to(depth.dtype) - 1
    base = 2 ** -(-count.bit_length() // 2)  # near the root of N; quotients of powers of two are exact
    digit = torch.arange(base, dtype=depth.dtype, device=labels.device)[:, None]
    high = (segment / base).floor()  # -1 for void, which is no digit
    first = (high == digit[: -(-count // base)]).to(depth.dtype)  # [B, h, N / base, w]
    second = (segment - base * high == digit).to(depth.dtype).mT  # [B, h, w, base]
    area, depth_sum = ((part @ second).sum(dim=1).flatten(1)[:, :count] for part in (first, first * blocks))
    return area * stride**2, depth_sum
