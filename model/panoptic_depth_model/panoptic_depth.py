# SPDX-License-Identifier: Apache-2.0
"""PanopticDepth (Gao et al., CVPR 2022): masks and depth of every segment from kernels generated for it.

Start reading at `PanopticDepth`. Letters: B images, H W image size, h w map size, P positions of all pyramid levels,
T things, R region channels, N segments, C mask kernel size, D depth kernel size, E depth embedding size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from panoptic_depth_model.backbones import build_backbone
from panoptic_depth_model.config import EMBEDDING_STRIDE, PanopticDepthConfig
from panoptic_depth_model.depth import select_then_dot, upsampled_depth
from panoptic_depth_model.heads import EmbeddingHead, KernelHead, LocationHead
from panoptic_depth_model.kernels import (
    Kernels,
    areas_of,
    concatenate,
    dynamic_convolution,
    fuse_things,
    region_kernels,
    side_by_side,
    sort_by_score,
    thing_kernels,
)
from panoptic_depth_model.merge import (
    GROUP,
    accept_greedily,
    accept_regions,
    excess,
    mask_quality,
    most_probable,
    painted,
)
from panoptic_depth_model.pyramid import FeaturePyramid, SemanticPyramid
from panoptic_depth_model.resampling import cropped, in_cells, in_image, upsampled

SIZE_MULTIPLE = 32  # the coarsest backbone stride
LEVEL_STRIDES = (8, 16, 32, 64, 128)  # of the pyramid levels p3..p7 that have kernel heads
CENTER_WINDOWS = (3, 3, 3, 5, 5)  # smoothing of the center maps on these levels


class LevelMaps(NamedTuple):
    """What the heads say on one pyramid level."""

    centers: Tensor  # [B, T, h, w] logits
    regions: Tensor  # [B, R, h, w] logits
    mask_kernels: Tensor  # [B, C, h, w], before the things' or the regions' embedding
    depth_kernels: Tensor  # [B, D, h, w]; D is 0 without kernels for depth


class FlatMaps(NamedTuple):
    """What the heads say on all levels, side by side."""

    centers: Tensor  # [B, T, P] logits
    regions: Tensor  # [B, R, P] logits
    mask_kernels: Tensor  # [B, C, P]
    depth_kernels: Tensor  # [B, D, P]


class Maps(NamedTuple):
    """Everything that the losses act on."""

    levels: list[LevelMaps]  # p3..p7
    mask_embedding: Tensor  # [B, C, H/4, W/4]
    depth_embedding: Tensor  # [B, E, H/4, W/4]; E is 0 without depth

    def in_float32(self) -> Maps:
        """Maps that were computed in half precision, for what must not be.

        Where the embedding outgrew half precision it is as large as that can be: infinity times the zeros of an empty
        row would be NaN, which no other row's mask could be compared with.
        """
        levels = [LevelMaps(*(part.float() for part in level)) for level in self.levels]
        largest = torch.finfo(self.mask_embedding.dtype).max
        mask_embedding = self.mask_embedding.clamp(-largest, largest).float()
        return Maps(levels, mask_embedding, self.depth_embedding.float())


class Segments(NamedTuple):
    """What may become a segment: the best things, and every region."""

    things: Kernels  # T rows
    regions: Kernels  # R rows, stuff first


class Choice(NamedTuple):
    """Which segments stay, and which of them has each pixel."""

    labels: Tensor  # in cells [B, (4/s)**2, h, w], as floats: row + 1 of the segment table; 0 void
    score: Tensor  # [B, N] of the segment table; 0 for an empty row


class Inference(NamedTuple):
    """The answer for a batch; `labels` lie on a grid that is `label_stride` times coarser than the image."""

    labels: Tensor  # [B, H/s, W/s], as floats: row + 1 of the segment table; 0 void
    depth: Tensor | None  # [B, H, W] m; None for a network without depth
    category: Tensor  # [B, N] int64
    score: Tensor  # [B, N]; 0 for an empty row


class PanopticDepth(nn.Module):
    """Where are segments, which kernels belong to them, what do the kernels see."""

    def __init__(self, config: PanopticDepthConfig) -> None:
        super().__init__()
        self.config = config
        width, convs, embedding = config.width, config.head_convs, config.embedding
        deformable = config.deformable_heads
        self.backbone = build_backbone(config.backbone)
        self.pyramid = FeaturePyramid(self.backbone.channels, width)
        self.semantic_pyramid = SemanticPyramid(width)
        self.location_head = LocationHead(
            width, convs, len(config.thing_ids), len(config.regions), deformable=deformable
        )
        self.mask_kernel_head = KernelHead(width, convs, width, deformable=False)
        self.depth_kernel_head: KernelHead | None = None
        if config.depth and config.depth_kernel_size:
            self.depth_kernel_head = KernelHead(width, convs, config.depth_kernel_size, deformable=deformable)
            self.depth_kernel_head.start_at(config.depth.starting_values)
        self.embedding_head = EmbeddingHead(
            width,
            embedding.width,
            convs,
            config.depth_embedding_size,
            deformable=embedding.deformable,
            norm=embedding.norm,
            shared=embedding.shared,
        )
        self.embed_things = nn.Linear(width, embedding.width)
        self.embed_stuff = nn.Linear(width, embedding.width)
        self._register_constants(config)

    def _register_constants(self, config: PanopticDepthConfig) -> None:
        """What moves to the device with the network and is not stored with its weights."""
        stuff_first = sorted(range(len(config.regions)), key=lambda row: config.regions[row] not in config.stuff_ids)
        for name, values in (
            ("thing_ids", config.thing_ids),
            ("stuff_ids", config.stuff_ids),
            ("region_ids", config.regions),
            ("stuff_first", stuff_first),
        ):
            self.register_buffer(name, torch.tensor(values), persistent=False)
        self.register_buffer("pixel_mean", torch.tensor(config.pixel_mean)[:, None, None], persistent=False)
        self.register_buffer("pixel_std", torch.tensor(config.pixel_std)[:, None, None], persistent=False)
        self.thing_ids: Tensor
        self.stuff_ids: Tensor
        self.region_ids: Tensor
        self.stuff_first: Tensor  # the region channels, those of stuff before the others
        self.pixel_mean: Tensor
        self.pixel_std: Tensor

    def normalized(self, image: Tensor) -> Tensor:
        """What `forward` and `infer` take, [B, 3, H', W'], from RGB images [B, H, W, 3] uint8.

        H' and W' are the next multiples of 32; the rows and columns that are added are zero.
        """
        height, width = image.shape[1:3]
        # TensorRT moves bytes only after they became floats, hence the conversion before the permutation.
        normalized = (image.to(torch.float32).permute(0, 3, 1, 2) - self.pixel_mean) / self.pixel_std
        if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
            normalized = F.pad(normalized, (0, -width % SIZE_MULTIPLE, 0, -height % SIZE_MULTIPLE))
        return normalized

    def forward(self, image: Tensor) -> Maps:
        """The dense maps for a normalized image [B, 3, H, W]."""
        p2, *levels = self.pyramid(self.backbone(image))
        p3, p4, p5 = levels[:3]
        mask_embedding, depth_embedding = self.embedding_head(self.semantic_pyramid([p2, p3, p4, p5]))
        return Maps([self.level_maps(level) for level in levels], mask_embedding, depth_embedding)

    def level_maps(self, level: Tensor) -> LevelMaps:
        centers, regions = self.location_head(level)
        depth_kernels = level[:, :0] if self.depth_kernel_head is None else self.depth_kernel_head(level)
        return LevelMaps(centers, regions, self.mask_kernel_head(level), depth_kernels)

    def infer(self, image: Tensor, size: tuple[int, int] | None = None) -> Inference:
        """Segments and depth for a normalized image [B, 3, H', W'].

        Args:
            size: height and width of the image before `normalized` padded it; the answer has this size.
        """
        height, width = size or (image.shape[2], image.shape[3])
        maps = self(image)
        segments = self.segments(maps.levels)
        choice = self.choose(segments, maps.mask_embedding, (height, width), self.config.decisions.label_stride)
        table = self.table(segments)
        depth = self.depth(table, choice.labels, maps.depth_embedding, (height, width))
        labels = cropped(in_image(choice.labels), (height, width), self.config.decisions.label_stride)
        return Inference(labels, depth, table.category, choice.score)

    def segments(self, levels: list[LevelMaps]) -> Segments:
        """Kernels of things and regions from all levels, fused: the kernel producer."""
        flat, centers = flattened(levels), [level.centers for level in levels]
        return Segments(self.things(centers, flat), self.regions(flat, areas_of(centers)))

    def things(self, centers: list[Tensor], flat: FlatMaps) -> Kernels:
        """Up to `max_things` kernels of things, in falling score of their centers."""
        decisions = self.config.decisions
        candidates = thing_kernels(
            centers,
            flat.mask_kernels,
            flat.depth_kernels,
            self.thing_ids,
            windows=CENTER_WINDOWS,
            per_level=decisions.centers_per_level,
            count=decisions.max_centers,
            min_score=decisions.min_center_score,
        )
        candidates = candidates._replace(mask=self.embed_things(candidates.mask))
        fused = sort_by_score(fuse_things(candidates, decisions.min_similarity), decisions.max_things)
        # A score only falls from here on (by mask quality): a center below the last threshold is out already.
        return fused._replace(score=torch.where(fused.score >= decisions.min_thing_score, fused.score, 0.0))

    def regions(self, flat: FlatMaps, areas: list[int]) -> Kernels:
        """One kernel per region channel, stuff first; things are included, their regions compete with it for pixels."""
        decisions = self.config.decisions
        found = region_kernels(
            flat.regions,
            flat.mask_kernels,
            flat.depth_kernels,
            self.region_ids,
            areas=areas,
            adaptive=self.config.adaptive_fusion,
            min_probability=decisions.min_region_probability,
            min_score=decisions.min_region_score,
        )
        return rows(found._replace(mask=self.embed_stuff(found.mask)), self.stuff_first)

    def table(self, segments: Segments) -> Kernels:
        """The rows of the segment table: all things, then the regions that are stuff."""
        stuff = len(self.config.stuff_ids)
        return concatenate([segments.things, Kernels(*(part[:, :stuff] for part in segments.regions))])

    def choose(
        self, segments: Segments, mask_embedding: Tensor, size: tuple[int, int], label_stride: int
    ) -> Choice:
        """Masks of all segments, merged. Segments are accepted at stride 4, pixels given at `label_stride`.

        Args:
            size: height and width of the image without padding, which alone decides what stays.
        """
        things, regions = segments
        decisions = self.config.decisions
        first_region, stuff = things.score.shape[1], len(self.config.stuff_ids)
        masks = dynamic_convolution(torch.cat([things.mask, regions.mask], dim=1), mask_embedding).sigmoid()
        above = excess(masks[:, :first_region], decisions.min_mask_probability)
        score = things.score * mask_quality(above, decisions.min_mask_probability)
        score = torch.where(score >= decisions.min_thing_score, score, 0.0)

        inside = cropped(above, size, EMBEDDING_STRIDE).flatten(2).ceil()
        thing_stays = accept_greedily(inside, score, decisions.max_overlap, decisions.merge_rounds)
        taken = thing_stays.to(score.dtype)[:, None] @ inside
        min_area = decisions.min_stuff_area_px / EMBEDDING_STRIDE**2
        found = regions.score > 0
        shown = cropped(masks[:, first_region:], size, EMBEDDING_STRIDE).flatten(2)
        wins = accept_regions(shown, found, taken, min_area)
        stays = torch.cat([thing_stays, wins[:, :stuff]], dim=1)

        factor = EMBEDDING_STRIDE // label_stride
        if decisions.allow_void:
            fine = upsampled(masks, factor)
            every_region = torch.cat([stays, torch.zeros_like(wins[:, stuff:])], dim=1)
            thing_masks = fine[:, :first_region] > decisions.min_mask_probability
            labels = in_cells(painted(thing_masks, score, fine[:, first_region:], found, every_region), factor)
        else:
            whole_groups = -(-stays.shape[1] // GROUP) * GROUP  # regions of things fill the last one, and take no part
            labels = most_probable(masks[:, :whole_groups], stays, factor)
        table_score = torch.cat([score, regions.score[:, :stuff]], dim=1)
        return Choice(labels, torch.where(stays, table_score, 0.0))

    def depth(self, table: Kernels, labels: Tensor, depth_embedding: Tensor, size: tuple[int, int]) -> Tensor | None:
        """Depth [B, H, W] for labels in cells; void pixels use the first row, so that depth is finite everywhere."""
        scale = self.config.depth
        if scale is None:
            return None
        depth_m = upsampled_depth(table.depth, row_of(labels), depth_embedding, scale, EMBEDDING_STRIDE)
        return cropped(scale.limited(depth_m), size, 1)

    def answer_depth(self, maps: Maps) -> Tensor:
        """Depth [B, H/4, W/4] of the network's own segments, before the limits: what a frame with depth but
        without segments can teach. Gradients pass through kernels and embedding, not through the choice."""
        assert self.config.depth is not None
        segments = self.segments(maps.levels)
        height, width = (EMBEDDING_STRIDE * length for length in maps.mask_embedding.shape[2:])
        with torch.no_grad():
            labels = self.choose(segments, maps.mask_embedding, (height, width), EMBEDDING_STRIDE).labels
        table = self.table(segments)
        return select_then_dot(table.depth, row_of(labels[:, 0]), maps.depth_embedding, self.config.depth)


def flattened(levels: list[LevelMaps]) -> FlatMaps:
    """The maps of all levels side by side."""
    return FlatMaps(*(side_by_side(part) for part in zip(*levels, strict=True)))


def row_of(labels: Tensor) -> Tensor:
    """The row of the segment table that each label stands for, int64; the first for void."""
    return (labels - 1).clamp(min=0).to(torch.int64)


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
