# SPDX-License-Identifier: Apache-2.0
"""Networks that find segments untrained, and the tensors of official checkpoints. Left out without PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from torch import Tensor

    from panoptic_depth_model.config import PanopticDepthConfig
    from panoptic_depth_model.panoptic_depth import PanopticDepth

collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]


@pytest.fixture(scope="session")
def config() -> PanopticDepthConfig:
    """The compact preset at a quarter of its width."""
    from panoptic_depth_model.config import PRESETS

    preset = PRESETS["compact"]
    return replace(preset, width=16, embedding=replace(preset.embedding, width=16))


@pytest.fixture(scope="session")
def loud_network(images) -> Callable[[PanopticDepthConfig], PanopticDepth]:
    """Makes networks with random weights that find several segments on any image."""
    import torch

    from panoptic_depth_model.panoptic_depth import PanopticDepth

    def build(config: PanopticDepthConfig) -> PanopticDepth:
        torch.manual_seed(0)
        for_small_images = replace(config.decisions, min_stuff_area_px=64, max_overlap=0.8)
        network = PanopticDepth(replace(config, decisions=for_small_images))
        with torch.no_grad():
            pixels = network.normalized(images)
            learn_statistics(network, pixels)
            maps = network.eval()(pixels)
            p3 = maps.levels[0]
            spread(network.location_head.centers, p3.centers, mean=-1.5, deviation=2.0)
            spread(network.location_head.regions, p3.regions, mean=0.0, deviation=2.0)
            spread(network.mask_kernel_head.kernels, p3.mask_kernels, mean=0.0, deviation=1.0)
            if network.embedding_head.depth is not None:
                spread(network.embedding_head.depth, maps.depth_embedding, mean=0.0, deviation=0.5)
            if network.depth_kernel_head is not None:
                spread(network.depth_kernel_head.kernels, p3.depth_kernels, mean=-1.0, deviation=0.5)
            turn_across(network, maps.mask_embedding)
        return network

    return build


def learn_statistics(network: PanopticDepth, pixels) -> None:
    """Give the batch norms the statistics of these images, so that deep features are neither huge nor nothing."""
    import torch

    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    network.train()(pixels)


def spread(conv, output, *, mean: float, deviation: float) -> None:
    """Scale a last convolution so that what it gave with a zero bias would have this mean and deviation."""
    gain = deviation / output.std()
    conv.weight.mul_(gain)
    conv.bias.fill_(mean - gain * (output - conv.bias[:, None, None]).mean())


def turn_across(network: PanopticDepth, embedding) -> None:
    """Make mask kernels orthogonal to the mean embedding, so that each mask has an edge somewhere in the image."""
    import torch

    channels = embedding.shape[1]
    mean = torch.nn.functional.normalize(embedding.mean(dim=(0, 2, 3)), dim=0)  # [C]
    across = torch.eye(channels) - torch.outer(mean, mean)
    deviation = (across @ embedding.transpose(0, 1).flatten(1)).square().sum(0).mean().sqrt()
    for layer in (network.embed_things, network.embed_stuff):
        torch.nn.init.orthogonal_(layer.weight)
        layer.weight.copy_(4.0 / deviation * across @ layer.weight)
        layer.bias.zero_()


@pytest.fixture(scope="session")
def network(config, loud_network) -> PanopticDepth:
    return loud_network(config)


@pytest.fixture(scope="session")
def soft_patterns() -> Callable[[int, int], Tensor]:
    """A function that gives two different soft-edged RGB patterns [2, height, width, 3] uint8."""
    import torch

    def patterns(height: int, width: int) -> Tensor:
        coarse = torch.rand(2, 3, height // 16, width // 16, generator=torch.Generator().manual_seed(0))
        fine = torch.nn.functional.interpolate(coarse, scale_factor=16, mode="bicubic")
        return (255 * fine.clamp(0, 1)).to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    return patterns


@pytest.fixture(scope="session")
def images(soft_patterns) -> Tensor:
    return soft_patterns(64, 128)


Shapes = dict[str, tuple[int, ...]]


def _backbone_shapes() -> Shapes:
    shapes: Shapes = {"backbone.bottom_up.stem.conv1.weight": (64, 3, 7, 7)}
    outputs = {"backbone.bottom_up.stem.conv1": 64}
    before = 64
    for stage, (blocks, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), start=2):
        for block in range(blocks):
            prefix = f"backbone.bottom_up.res{stage}.{block}"
            convolutions = {"conv1": (width, before, 1, 1), "conv2": (width, width, 3, 3)}
            convolutions["conv3"] = (4 * width, width, 1, 1)
            if block == 0:
                convolutions["shortcut"] = (4 * width, before, 1, 1)
            for name, shape in convolutions.items():
                shapes[f"{prefix}.{name}.weight"] = shape
                outputs[f"{prefix}.{name}"] = shape[0]
            before = 4 * width
    for name, channels in outputs.items():
        for vector in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.norm.{vector}"] = (channels,)
    return shapes


def _pyramid_shapes() -> Shapes:
    shapes: Shapes = {}
    for level, channels in zip((2, 3, 4, 5), (256, 512, 1024, 2048), strict=True):
        shapes |= _convolution(f"backbone.fpn_lateral{level}", (256, channels, 1, 1), bias=True)
        shapes |= _convolution(f"backbone.fpn_output{level}", (256, 256, 3, 3), bias=True)
    for level in (6, 7):
        shapes |= _convolution(f"backbone.top_block.p{level}", (256, 256, 3, 3), bias=True)
    for block in ("p2.0", "p3.0", "p4.0", "p4.2", "p5.0", "p5.2", "p5.4"):
        shapes |= _convolution(f"semantic_fpn.{block}", (256, 256, 3, 3), norm=True)
    return shapes


def _convolution(name: str, shape: tuple[int, ...], *, bias: bool = False, norm: bool = False) -> Shapes:
    shapes: Shapes = {f"{name}.weight": shape}
    if bias:
        shapes[f"{name}.bias"] = shape[:1]
    if norm:
        shapes |= {f"{name}.norm.weight": shape[:1], f"{name}.norm.bias": shape[:1]}
    return shapes


def _tower(name: str, first: int, width: int, *, deformable: bool, norm: bool) -> Shapes:
    shapes: Shapes = {}
    for layer, channels in ((1, first), (2, width), (3, width)):
        prefix = f"{name}_head_{layer}"
        if deformable:
            shapes |= _convolution(f"{prefix}.offset_mask_conv", (27, channels, 3, 3), bias=True)
        main = f"{prefix}.dcnv2" if deformable else prefix
        shapes |= _convolution(main, (width, channels, 3, 3), bias=not norm, norm=norm)
    return shapes


def _segmentation_shapes(things: int, regions: int, encoder_width: int, deformable_encoder: bool) -> Shapes:
    return {
        **_tower("position_head.position_head.position_head", 256, 256, deformable=True, norm=True),
        **_convolution("position_head.out_inst", (things, 256, 3, 3), bias=True),
        **_convolution("position_head.out_sem", (regions, 256, 3, 3), bias=True),
        **_tower("kernel_head.kernel_head.kernel_head", 258, 256, deformable=False, norm=True),
        **_convolution("kernel_head.out_conv", (256, 256, 3, 3), bias=True),
        **_tower(
            "feature_encoder.encode_head.encode_head", 258, encoder_width, deformable=deformable_encoder, norm=False
        ),
        **_convolution("thing_generator.embed_extractor", (encoder_width, 256, 1, 1), bias=True),
        **_convolution("stuff_generator.embed_extractor", (encoder_width, 256, 1, 1), bias=True),
    }


def _depth_shapes() -> Shapes:
    return {
        **_tower("depth_encode_head.encode_head.depth_encode_head", 258, 256, deformable=True, norm=False),
        **_convolution("depth_encode_head.embed_extractor", (16, 256, 1, 1), bias=True),
        **_tower("depth_kernel_head.depth_kernel_head.depth_kernel_head", 258, 256, deformable=True, norm=True),
        **_convolution("depth_kernel_head.out_depth_kernel", (18, 256, 3, 3), bias=True),
    }


@pytest.fixture(scope="session")
def official_shapes() -> dict[str, Shapes]:
    """Names and shapes of the tensors in detectron2's state dicts, by network."""
    trunk = _backbone_shapes() | _pyramid_shapes()
    segmentation = trunk | _segmentation_shapes(8, 19, 256, True)
    counters: Shapes = {
        name.replace("running_var", "num_batches_tracked"): () for name in trunk if name.endswith("running_var")
    }
    return {
        "depth": segmentation | _depth_shapes(),
        "segmentation": segmentation,
        "segmentation with counters": segmentation | counters,
        "PanopticFCN": trunk | _segmentation_shapes(80, 54, 64, False),
        "PanopticFCN Star": trunk | _segmentation_shapes(80, 54, 256, True),
    }
