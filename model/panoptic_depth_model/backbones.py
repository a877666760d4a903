# SPDX-License-Identifier: Apache-2.0
"""Image features at strides 4, 8, 16 and 32 from torchvision's classification networks."""

from __future__ import annotations

import re
from pathlib import Path

import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # what BatchNorm2d and SyncBatchNorm are

from panoptic_depth_model.detectron2_files import classifier_state, read_checkpoint
from panoptic_depth_model.tensor_file import read_tensors

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
# The stride sits in the first 1x1 convolution of a bottleneck instead of the 3x3: what Caffe's weights were
# trained with, and with them detectron2's and those of PanopticFCN and PanopticDepth.
CAFFE = {"resnet50_caffe": "resnet50", "resnet101_caffe": "resnet101"}
SWINS = ("swin_t", "swin_s")
BACKBONES = (*RESNETS, *CAFFE, *SWINS)


class Backbone(nn.Module):
    """A stem and four stages, each at half the resolution of the one before it."""

    def __init__(self, stem: nn.Module, stages: list[nn.Module], channels: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.channels = channels
        self.frozen_parts = 0
        self.frozen_norms = False

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features [B, channels[i], H/s, W/s] for s = 4, 8, 16, 32 from a normalized image [B, 3, H, W]."""
        features: list[Tensor] = []
        x = self.stem(image)
        for stage in self.stages:
            x = stage(x)
            features.append(self.feature(x, len(features)))
        return features

    def feature(self, x: Tensor, index: int) -> Tensor:
        """A stage's output as the pyramid takes it, [B, C, h, w]."""
        return x

    def freeze(self, parts: int, norms: bool) -> None:
        """Keep weights as they are in training.

        Args:
            parts: how many of stem, first stage, second stage, ...
            norms: whether batch norms use their running statistics and do not learn (FrozenBN).
        """
        self.frozen_parts, self.frozen_norms = parts, norms
        for module in self._frozen_modules():
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        modules: list[nn.Module] = [self.stem, *self.stages][: self.frozen_parts]
        if self.frozen_norms:
            modules += [module for module in self.modules() if isinstance(module, _BatchNorm)]
        return modules


class ResNetFeatures(Backbone):
    """A torchvision ResNet without its classifier."""

    def __init__(self, resnet: torchvision.models.ResNet) -> None:
        stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool)
        stages = [resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4]
        expansion = resnet.layer1[0].expansion
        super().__init__(stem, stages, tuple(expansion * base for base in (64, 128, 256, 512)))


class SwinFeatures(Backbone):
    """A torchvision Swin transformer; every stage's output is normalized, as detectors on Swin do."""

    def __init__(self, swin: torchvision.models.SwinTransformer) -> None:
        # Patches, then blocks and patch merging in turns; a merging begins the next stage.
        patches, *parts = swin.features
        stages = [parts[0], *(nn.Sequential(parts[i], parts[i + 1]) for i in (1, 3, 5))]
        channels = tuple(swin.norm.normalized_shape[0] >> shift for shift in (3, 2, 1, 0))
        super().__init__(patches, stages, channels)
        self.norms = nn.ModuleList([nn.LayerNorm(count) for count in channels])

    def feature(self, x: Tensor, index: int) -> Tensor:
        return self.norms[index](x).permute(0, 3, 1, 2).contiguous()


def build_backbone(name: str) -> Backbone:
    """A backbone with random weights."""
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}; expected one of {', '.join(BACKBONES)}")
    classifier = torchvision.models.get_model(CAFFE.get(name, name), weights=None)
    if name in SWINS:
        return SwinFeatures(classifier)
    if name in CAFFE:
        _stride_in_first_convolution(classifier)
    return ResNetFeatures(classifier)


def load_pretrained(backbone: Backbone, name: str, source: str) -> None:
    """Give a backbone the weights of a classifier trained elsewhere.

    Args:
        backbone: what `build_backbone(name)` made.
        source: a file with torchvision's state dict, detectron2's file of a Caffe2 ResNet (MSRA/R-50.pkl, for
            the backbones named caffe), or the name of torchvision's weights, such as IMAGENET1K_V1, which are
            taken from torch's cache or downloaded.

    Raises:
        ValueError: the weights do not exist or belong to another network.
    """
    classifier = torchvision.models.get_model(CAFFE.get(name, name), weights=None)
    state, expected = (_without_classifier(s) for s in (_state_from(name, source), classifier.state_dict()))
    if strange := [key for key in {**expected, **state} if _shape(state, key) != _shape(expected, key)]:
        raise ValueError(
            f"{source}: not the weights of {name}: {len(strange)} tensors are missing, unknown or of another shape, "
            f"such as {', '.join(strange[:3])}"
        )
    classifier.load_state_dict(state, strict=False)
    features = SwinFeatures(classifier) if name in SWINS else ResNetFeatures(classifier)
    # A Swin's output norms are not the classifier's: they stay as they are.
    state = {key: value for key, value in features.state_dict().items() if not key.startswith("norms.")}
    backbone.load_state_dict(state, strict=False)


def _state_from(name: str, source: str) -> dict[str, Tensor]:
    if source.endswith(".pkl"):
        return classifier_state(read_checkpoint(Path(source)))
    if Path(source).exists():
        try:
            state = read_tensors(Path(source))
        except OSError as error:
            raise ValueError(f"{source}: cannot be read ({error})") from error
        if not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError(f"{source}: expected the state dict of torchvision's {name}, names and tensors alone")
        return state
    known = torchvision.models.get_model_weights(CAFFE.get(name, name))
    if source not in known.__members__:
        raise ValueError(
            f"{source!r}: no such file, and torchvision's weights for {name} are {', '.join(known.__members__)}"
        )
    try:
        return known[source].get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # the network, or a file whose hash is wrong
        raise ValueError(
            f"{source} could not be downloaded ({error}); fetch {known[source].url} elsewhere and give the file's path"
        ) from error


def _without_classifier(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a backbone needs; batch norm counters, which old files lack, are of no use to it."""
    return {key: value for key, value in state.items() if not re.match(r"(fc|head)\.|.*num_batches_tracked$", key)}


def _shape(state: dict[str, Tensor], key: str) -> tuple[int, ...] | None:
    return tuple(state[key].shape) if key in state else None


def _stride_in_first_convolution(resnet: torchvision.models.ResNet) -> None:
    for stage in (resnet.layer2, resnet.layer3, resnet.layer4):
        block = stage[0]
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
