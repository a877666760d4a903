# SPDX-License-Identifier: Apache-2.0
"""Networks with random weights that still find segments, for comparing engines where nothing was trained yet."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from panoptic_depth_model.config import PRESETS
from panoptic_depth_model.panoptic_depth import PanopticDepth

# Random residual branches at full strength magnify a rounding error a hundredfold from stem to last stage, which no
# trained network does.
BRANCH_GAIN = 0.2
MASK_GAIN = 1.5  # logits of a mask's typical pixel
CENTERS, REGIONS = (-6.0, 2.5), (1.5, 1.5)  # mean and deviation of logits, which leave some above the thresholds
# The more channels compete, the more pixels go to one by a hair. Of center and region channels these take part.
THINGS, STUFF = (2,), (0, 2)
MUTE = -12.0  # logit


def untrained(preset: str, images: Tensor) -> PanopticDepth:
    """A preset that finds things of one category and two kinds of stuff on images like these [B, H, W, 3] uint8."""
    torch.manual_seed(0)
    network = PanopticDepth(PRESETS[preset])
    with torch.no_grad():
        for block in network.modules():
            if isinstance(block, BasicBlock | Bottleneck):
                (block.bn2 if isinstance(block, BasicBlock) else block.bn3).weight.fill_(BRANCH_GAIN)
        pixels = network.normalized(images)
        _learn_statistics(network, pixels)
        maps = network.eval()(pixels)
        level, heads = maps.levels[0], network.location_head
        _spread(heads.centers, level.centers, *CENTERS)
        _spread(heads.regions, level.regions, *REGIONS)
        for convolution, channels in ((heads.centers, THINGS), (heads.regions, STUFF)):
            quiet = [i for i in range(convolution.out_channels) if i not in channels]
            convolution.bias[quiet] = MUTE  # type: ignore[index]
        _spread(network.mask_kernel_head.kernels, level.mask_kernels, 0.0, 1.0)
        if network.depth_kernel_head is not None:
            _spread(network.depth_kernel_head.kernels, level.depth_kernels, -1.0, 0.5)
        if network.embedding_head.depth is not None:
            _spread(network.embedding_head.depth, maps.depth_embedding, 0.0, 0.5)
        _give_masks_edges(network, maps.mask_embedding)
    return network


def _learn_statistics(network: PanopticDepth, pixels: Tensor) -> None:
    """Batch norms take those of these images, so that deep features are neither huge nor nothing."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    network.train()(pixels)


def _spread(convolution: nn.Conv2d, output: Tensor, mean: float, deviation: float) -> None:
    """Scale a convolution so that this output of it [B, C, h, w] would have the mean and deviation asked for."""
    assert convolution.bias is not None
    gain = deviation / output.std()
    convolution.weight.mul_(gain)
    convolution.bias.copy_(mean + gain * (convolution.bias - output.mean()))


def _give_masks_edges(network: PanopticDepth, embedding: Tensor) -> None:
    """Mask kernels see what differs from the mean embedding only, so that masks end somewhere in the image."""
    flat = embedding.transpose(0, 1).flatten(1)  # [C, B * h * w]
    mean = nn.functional.normalize(flat.mean(dim=1), dim=0)
    across = torch.eye(len(mean)) - torch.outer(mean, mean)
    deviation = (across @ flat).square().sum(dim=0).mean().sqrt()
    for layer in (network.embed_things, network.embed_stuff):
        nn.init.orthogonal_(layer.weight)
        layer.weight.copy_(MASK_GAIN / deviation * across @ layer.weight)
        layer.bias.zero_()
