# SPDX-License-Identifier: Apache-2.0
"""What a PanopticDepth network is made of, and the sizes that have names."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from panoptic_depth_model.depth import RELEASED, DepthScale

EMBEDDING_STRIDE = 4
MAX_TOPK = 3840  # of TensorRT
SOME_THING = -1  # a region channel that stands for all things together, as PanopticFCN's first


@dataclass(frozen=True)
class Decisions:
    """The thresholds that turn probabilities into segments; areas in pixels of the network's input."""

    centers_per_level: int = 100
    max_centers: int = 500  # of all levels together
    min_center_score: float = 0.01
    min_region_probability: float = 0.4
    min_region_score: float = 0.1
    min_similarity: float = 0.97  # of two kernels that are the same thing
    max_things: int = 100
    min_thing_score: float = 0.2
    min_mask_probability: float = 0.5  # a thing's mask is where it is more probable than this
    max_overlap: float = 0.5
    min_stuff_area_px: int = 2048
    merge_rounds: int = 8
    label_stride: int = 1  # pixel grid on which the best segment is picked; 1, 2 or 4
    allow_void: bool = False  # whether a pixel that no segment has painted stays void

    def __post_init__(self) -> None:
        for name in ("centers_per_level", "max_centers", "max_things"):
            if not 1 <= getattr(self, name) <= MAX_TOPK:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 to {MAX_TOPK}")
        if not 0 <= self.min_mask_probability < 1:
            raise ValueError(f"min_mask_probability is {self.min_mask_probability}; expected 0 to below 1")
        if self.label_stride not in (1, 2, EMBEDDING_STRIDE):
            raise ValueError(f"label_stride is {self.label_stride}; expected 1, 2 or {EMBEDDING_STRIDE}")


@dataclass(frozen=True)
class EmbeddingConfig:
    """The tower at stride 4 whose output the kernels are multiplied with."""

    width: int  # channels of the mask embedding, so the size of a mask kernel
    shared: bool  # whether the depth embedding grows from the same tower
    deformable: bool = False
    norm: bool = True


@dataclass(frozen=True)
class PanopticDepthConfig:
    """A PanopticDepth network. The same values that build it are stored with its weights."""

    num_categories: int
    thing_ids: tuple[int, ...]
    backbone: str
    width: int  # channels of the pyramid and the heads
    head_convs: int
    embedding: EmbeddingConfig
    deformable_heads: bool = False  # in the location head and the depth kernel head
    adaptive_fusion: bool = True  # of region kernels (equation 1); False: PanopticFCN's average
    depth_dim: int = 16
    depth: DepthScale | None = field(default_factory=DepthScale)  # None: segmentation only
    decisions: Decisions = field(default_factory=Decisions)
    region_ids: tuple[int, ...] = ()  # category of every region channel; empty: one for each category
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # RGB, of values 0..255
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    def __post_init__(self) -> None:
        if not all(0 <= category < self.num_categories for category in self.thing_ids):
            raise ValueError(f"thing ids {self.thing_ids} are not all below {self.num_categories} categories")
        if len(set(self.regions)) < len(self.regions):
            raise ValueError(f"region_ids {self.region_ids} name a category twice; expected one channel for each")
        if missing := set(self.stuff_ids) - set(self.regions):
            raise ValueError(f"region_ids {self.region_ids} lack the stuff categories {sorted(missing)}")

    @property
    def stuff_ids(self) -> tuple[int, ...]:
        return tuple(i for i in range(self.num_categories) if i not in self.thing_ids)

    @property
    def regions(self) -> tuple[int, ...]:
        """The category of every region channel, or SOME_THING."""
        return self.region_ids or tuple(range(self.num_categories))

    @property
    def num_segments(self) -> int:
        """Rows of the segment table: the best things, then every stuff category."""
        return self.decisions.max_things + len(self.stuff_ids)

    @property
    def depth_embedding_size(self) -> int:
        return self.depth.embedding_size(self.depth_dim) if self.depth else 0

    @property
    def depth_kernel_size(self) -> int:
        return self.depth.kernel_size(self.depth_dim) if self.depth else 0


def segmentation_only(config: PanopticDepthConfig) -> PanopticDepthConfig:
    """The same network without depth: what the paper trains first. Such a network may leave pixels void."""
    return replace(config, depth=None, decisions=replace(config.decisions, allow_void=True))


CITYSCAPES_THINGS = tuple(range(11, 19))

# The published network; official weights import into it (import_official.py), hence their pixel statistics:
# no division, and the mean of red on blue and of blue on red.
_PAPER = PanopticDepthConfig(
    num_categories=19,
    thing_ids=CITYSCAPES_THINGS,
    backbone="resnet50_caffe",
    width=256,
    head_convs=3,
    embedding=EmbeddingConfig(width=256, shared=False, deformable=True, norm=False),
    deformable_heads=True,
    depth=RELEASED,
    pixel_mean=(103.53, 116.28, 123.675),
    pixel_std=(1.0, 1.0, 1.0),
)
# Transformers come with the pixel statistics of torchvision, which are the defaults.
_SWIN_T = replace(
    _PAPER, backbone="swin_t", pixel_mean=PanopticDepthConfig.pixel_mean, pixel_std=PanopticDepthConfig.pixel_std
)

PRESETS = {
    "paper": _PAPER,
    "paper_swin_t": _SWIN_T,
    "paper_swin_s": replace(_SWIN_T, backbone="swin_s"),
    # A third of the published arithmetic, and no operator that an engine lacks. A thing's kernels are the mean over its
    # peaks; the published threshold of 0.01 lets in peaks on levels that nothing was learned on, with depth that is
    # wrong by a factor. None of them would stay by itself: that takes min_thing_score.
    "vehicle": PanopticDepthConfig(
        num_categories=19,
        thing_ids=CITYSCAPES_THINGS,
        backbone="resnet50",
        width=128,
        head_convs=2,
        embedding=EmbeddingConfig(width=128, shared=True),
        decisions=Decisions(min_center_score=0.05, label_stride=2),
    ),
    # Small enough for a laptop's processor; every map is a quarter of the paper's width, and its tables are as small as
    # frames of 256x512 allow (model/README.md).
    "compact": PanopticDepthConfig(
        num_categories=19,
        thing_ids=CITYSCAPES_THINGS,
        backbone="resnet18",
        width=64,
        head_convs=2,
        embedding=EmbeddingConfig(width=64, shared=True),
        decisions=Decisions(
            min_center_score=0.05,
            max_centers=128,
            max_things=21,  # with stuff, two groups of rows that are compared at once
            min_stuff_area_px=128,
            merge_rounds=4,
            label_stride=2,
        ),
    ),
}
