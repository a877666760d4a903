# SPDX-License-Identifier: Apache-2.0
"""PanopticDepth (Gao et al., CVPR 2022): masks and depth of every segment from kernels generated for it.

Start reading at `PanopticDepth`. Letters: B images, H W image size, h w map size, T things, K categories,
N segments, C width, E depth embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from panoptic_depth_model.backbones import build_backbone
from panoptic_depth_model.depth import DepthScale, select_then_dot
from panoptic_depth_model.heads import EmbeddingHead, KernelHead, LocationHead
from panoptic_depth_model.kernels import (
    Kernels,
    concatenate,
    dynamic_convolution,
    fuse_stuff,
    fuse_things,
    sort_by_score,
    stuff_kernels,
    thing_kernels,
)
from panoptic_depth_model.merge import accept_greedily, accept_stuff, mask_quality
from panoptic_depth_model.pyramid import FeaturePyramid, SemanticPyramid

SIZE_MULTIPLE = 32  # the coarsest backbone stride
LEVEL_STRIDES = (8, 16, 32, 64, 128)  # of the pyramid levels p3..p7 that have kernel heads
CENTER_WINDOWS = (3, 3, 3, 5, 5)  # smoothing of the center maps on these levels
EMBEDDING_STRIDE = 4


@dataclass(frozen=True)
class Decisions:
    """The thresholds that turn probabilities into segments; areas in pixels of the network's input."""

    centers_per_level: int = 100
    min_center_score: float = 0.01
    min_region_probability: float = 0.4
    min_region_score: float = 0.1
    min_similarity: float = 0.97  # of two kernels that are the same thing
    max_things: int = 100
    min_thing_score: float = 0.2
    max_overlap: float = 0.5
    min_stuff_area_px: int = 2048
    merge_rounds: int = 8
    label_stride: int = 1  # pixel grid on which the best segment is picked; 1, 2 or 4


@dataclass(frozen=True)
class PanopticDepthConfig:
    """A PanopticDepth network. The same values that build it are stored with its weights."""

    num_categories: int
    thing_ids: tuple[int, ...]
    backbone: str
    width: int  # channels of the pyramid, the heads and the mask embedding
    head_convs: int
    depth_dim: int = 16
    depth: DepthScale = field(default_factory=DepthScale)
    decisions: Decisions = field(default_factory=Decisions)
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # RGB, of values 0..255
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    def __post_init__(self) -> None:
        if not all(0 <= category < self.num_categories for category in self.thing_ids):
            raise ValueError(f"thing ids {self.thing_ids} are not all below {self.num_categories} categories")
        if self.decisions.label_stride not in (1, 2, EMBEDDING_STRIDE):
            raise ValueError(
                f"label_stride is {self.decisions.label_stride}; expected 1, 2 or {EMBEDDING_STRIDE}"
            )

    @property
    def stuff_ids(self) -> tuple[int, ...]:
        return tuple(i for i in range(self.num_categories) if i not in self.thing_ids)

    @property
    def num_segments(self) -> int:
        """Rows of the segment table: the best things, then every stuff category."""
        return self.decisions.max_things + len(self.stuff_ids)


CITYSCAPES_THINGS = tuple(range(11, 19))

PRESETS = {
    # Small enough for a laptop's processor; every map is a quarter of the paper's width.
    "compact": PanopticDepthConfig(
        num_categories=19,
        thing_ids=CITYSCAPES_THINGS,
        backbone="resnet18",
        width=64,
        head_convs=2,
        decisions=Decisions(max_things=50, min_stuff_area_px=128, label_stride=2),
    ),
}


class LevelMaps(NamedTuple):
    """What the heads say on one pyramid level."""

    centers: Tensor  # [B, T, h, w] logits
    regions: Tensor  # [B, K, h, w] logits
    mask_kernels: Tensor  # [B, C, h, w]
    depth_kernels: Tensor  # [B, 2 + E, h, w]


class Maps(NamedTuple):
    """Everything that the losses act on."""

    levels: list[LevelMaps]  # p3..p7
    mask_embedding: Tensor  # [B, C, H/4, W/4]
    depth_embedding: Tensor  # [B, E, H/4, W/4]


class Inference(NamedTuple):
    """The answer for a batch; `labels` lie on a grid that is `label_stride` times coarser than the image."""

    labels: Tensor  # [B, H/s, W/s] int64; 0 void, k = row k-1 of the table
    depth: Tensor  # [B, H, W] m
    category: Tensor  # [B, N] int64
    score: Tensor  # [B, N]; 0 for an empty row


class PanopticDepth(nn.Module):
    """Where are segments, which kernels belong to them, what do the kernels see."""

    def __init__(self, config: PanopticDepthConfig) -> None:
        super().__init__()
        self.config = config
        width, convs = config.width, config.head_convs
        self.backbone = build_backbone(config.backbone)
        self.pyramid = FeaturePyramid(self.backbone.channels, width)
        self.semantic_pyramid = SemanticPyramid(width)
        self.location_head = LocationHead(width, convs, len(config.thing_ids), config.num_categories)
        self.mask_kernel_head = KernelHead(width, convs, width)
        self.depth_kernel_head = KernelHead(width, convs, 2 + config.depth_dim)
        self.depth_kernel_head.start_at(config.depth.starting_logits)
        self.embedding_head = EmbeddingHead(width, convs, config.depth_dim)
        self.embed_things = nn.Linear(width, width)
        self.embed_stuff = nn.Linear(width, width)
        self.register_buffer("thing_ids", torch.tensor(config.thing_ids), persistent=False)
        self.register_buffer("stuff_ids", torch.tensor(config.stuff_ids), persistent=False)
        self.register_buffer("pixel_mean", torch.tensor(config.pixel_mean)[:, None, None], persistent=False)
        self.register_buffer("pixel_std", torch.tensor(config.pixel_std)[:, None, None], persistent=False)
        self.thing_ids: Tensor
        self.stuff_ids: Tensor
        self.pixel_mean: Tensor
        self.pixel_std: Tensor

    def normalized(self, image: Tensor) -> Tensor:
        """What `forward` and `infer` take, [B, 3, H, W], from RGB images [B, H, W, 3] uint8."""
        # TensorRT moves bytes only after they became floats, hence the conversion before the permutation.
        return (image.to(torch.float32).permute(0, 3, 1, 2) - self.pixel_mean) / self.pixel_std

    def forward(self, image: Tensor) -> Maps:
        """The dense maps for a normalized image [B, 3, H, W]."""
        p2, *levels = self.pyramid(self.backbone(image))
        p3, p4, p5 = levels[:3]
        mask_embedding, depth_embedding = self.embedding_head(self.semantic_pyramid([p2, p3, p4, p5]))
        return Maps([self.level_maps(level) for level in levels], mask_embedding, depth_embedding)

    def level_maps(self, level: Tensor) -> LevelMaps:
        centers, regions = self.location_head(level)
        return LevelMaps(centers, regions, self.mask_kernel_head(level), self.depth_kernel_head(level))

    def infer(self, image: Tensor) -> Inference:
        """Segments and depth for a normalized image [B, 3, H, W]."""
        maps = self(image)
        things, stuff = self.things(maps.levels), self.stuff(maps.levels)
        probability, score = self.merge(things, stuff, maps.mask_embedding)
        labels = pick_labels(probability, score, self.config.decisions.label_stride)
        segments = concatenate([things, rows(stuff, self.stuff_ids)])
        return Inference(labels, self.depth(segments, labels, maps.depth_embedding), segments.category, score)

    def things(self, levels: list[LevelMaps]) -> Kernels:
        """Up to `max_things` kernels of things, in falling score of their centers."""
        decisions = self.config.decisions
        found = [
            thing_kernels(
                level.centers,
                level.mask_kernels,
                level.depth_kernels,
                self.thing_ids,
                window=window,
                count=decisions.centers_per_level,
                min_score=decisions.min_center_score,
            )
            for level, window in zip(levels, CENTER_WINDOWS, strict=True)
        ]
        candidates = concatenate(found)
        candidates = candidates._replace(mask=self.embed_things(candidates.mask))
        candidates = sort_by_score(candidates, candidates.score.shape[1])
        fused = sort_by_score(fuse_things(candidates, decisions.min_similarity), decisions.max_things)
        # A score only falls from here on (by mask quality): a center below the last threshold is out already.
        return fused._replace(score=torch.where(fused.score >= decisions.min_thing_score, fused.score, 0.0))

    def stuff(self, levels: list[LevelMaps]) -> Kernels:
        """One kernel per category, things included: their regions compete with stuff for pixels."""
        decisions = self.config.decisions
        found = [
            stuff_kernels(
                level.regions,
                level.mask_kernels,
                level.depth_kernels,
                min_probability=decisions.min_region_probability,
                min_score=decisions.min_region_score,
            )
            for level in levels
        ]
        fused = fuse_stuff(found)
        return fused._replace(mask=self.embed_stuff(fused.mask))

    def merge(self, things: Kernels, stuff: Kernels, mask_embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Mask probabilities [B, N, h, w] and scores [B, N] of segments that stay; -1 and 0 for others."""
        decisions = self.config.decisions
        thing_probability = dynamic_convolution(things.mask, mask_embedding).sigmoid()
        stuff_probability = dynamic_convolution(stuff.mask, mask_embedding).sigmoid()

        score = things.score * mask_quality(thing_probability.flatten(2))
        score = torch.where(score >= decisions.min_thing_score, score, 0.0)
        masks = thing_probability.flatten(2) > 0.5
        thing_stays = accept_greedily(masks, score, decisions.max_overlap, decisions.merge_rounds)
        painted = (masks & thing_stays[..., None]).any(dim=1, keepdim=True)
        min_area = decisions.min_stuff_area_px / EMBEDDING_STRIDE**2
        stuff_stays = accept_stuff(stuff_probability.flatten(2), stuff.score > 0, painted, min_area)

        stays = torch.cat([thing_stays, stuff_stays.index_select(1, self.stuff_ids)], dim=1)
        probability = torch.cat([thing_probability, stuff_probability.index_select(1, self.stuff_ids)], dim=1)
        score = torch.cat([score, stuff.score.index_select(1, self.stuff_ids)], dim=1)
        return torch.where(stays[..., None, None], probability, -1.0), torch.where(stays, score, 0.0)

    def depth(self, segments: Kernels, labels: Tensor, depth_embedding: Tensor) -> Tensor:
        """Depth [B, H, W]; void pixels use the first row, so that depth is finite everywhere."""
        stride = self.config.decisions.label_stride
        embedding = upsampled(depth_embedding, EMBEDDING_STRIDE)
        segment_rows = repeated((labels - 1).clamp(min=0), stride)
        return select_then_dot(segments.depth, segment_rows, embedding, self.config.depth)


def pick_labels(probability: Tensor, score: Tensor, label_stride: int) -> Tensor:
    """The most probable segment of every pixel, as row + 1 [B, H/s, W/s]; 0 everywhere when no segment stays.

    Probabilities are interpolated before the choice, which draws smooth borders.
    """
    labels = upsampled(probability, EMBEDDING_STRIDE // label_stride).argmax(dim=1) + 1
    anything = (score > 0).any(dim=1)
    return torch.where(anything[:, None, None], labels, 0)


def upsampled(maps: Tensor, factor: int) -> Tensor:
    """Bilinear, [B, C, h, w] to [B, C, h * factor, w * factor]."""
    if factor == 1:
        return maps
    return F.interpolate(maps, scale_factor=float(factor), mode="bilinear", align_corners=False)


def repeated(labels: Tensor, factor: int) -> Tensor:
    """Every label of [B, h, w] as a factor x factor block."""
    batch, height, width = labels.shape
    blocks = labels[:, :, None, :, None].expand(-1, -1, factor, -1, factor)
    return blocks.reshape(batch, height * factor, width * factor)


def rows(kernels: Kernels, index: Tensor) -> Kernels:
    """Some rows of a table of kernels."""
    return Kernels(*(part.index_select(1, index) for part in kernels))


def check_size(height: int, width: int) -> None:
    """Refuse a network input that the pyramid cannot halve evenly."""
    if height <= 0 or width <= 0 or height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
        raise ValueError(
            f"network input is {height}x{width}; height and width must be positive "
            f"multiples of {SIZE_MULTIPLE}: letterbox the image to such a size"
        )
