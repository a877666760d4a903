# SPDX-License-Identifier: Apache-2.0
"""Image features at strides 4, 8, 16 and 32 from torchvision's classification networks."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.resnet import ResNet, resnet18

BACKBONES = ("resnet18",)


class ResNetFeatures(nn.Module):
    """A torchvision ResNet without its classifier."""

    def __init__(self, resnet: ResNet) -> None:
        super().__init__()
        self.stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool)
        self.stages = nn.ModuleList([resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4])
        bottleneck = 4 if hasattr(resnet.layer1[0], "conv3") else 1
        self.channels = tuple(bottleneck * base for base in (64, 128, 256, 512))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features [B, channels[i], H/s, W/s] for s = 4, 8, 16, 32 from a normalized image [B, 3, H, W]."""
        features = []
        x = self.stem(image)
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def build_backbone(name: str) -> ResNetFeatures:
    """A backbone with random weights."""
    match name:
        case "resnet18":
            return ResNetFeatures(resnet18(weights=None))
        case _:
            raise ValueError(f"unknown backbone {name!r}; expected one of {', '.join(BACKBONES)}")
