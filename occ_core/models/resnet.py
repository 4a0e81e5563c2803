"""ResNet (He et al., arXiv 1512.03385) in plain torch, without its classifier.

Parameter names are torchvision's, so its weights load by name; as there, a bottleneck's stride sits in the 3x3
convolution.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from occ_core.models import checkpointing
from occ_core.models.mobilenetv4 import IMAGENET_MEAN, IMAGENET_STD

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}  # per stage
WIDTHS = (64, 128, 256, 512)
RECOMPUTED = 4  # blocks computed again at a time: of ResNet-101's third stage as a whole they would be 1.5 GB


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, cin: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(cin, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(cin, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, cin: int, width: int, stride: int):
        super().__init__()
        cout = self.expansion * width
        self.conv1 = nn.Conv2d(cin, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, cout, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(cout)
        self.downsample = shortcut(cin, cout, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


def shortcut(cin: int, cout: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and cin == cout:
        return None
    return nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))


class ResNet(nn.Module):
    """Maps images [N, 3, H, W] to features at `strides`, of `channels`."""

    strides: ClassVar[tuple[int, ...]] = (4, 8, 16, 32)
    mean: ClassVar[tuple[float, float, float]] = IMAGENET_MEAN
    std: ClassVar[tuple[float, float, float]] = IMAGENET_STD

    def __init__(self, name: str, checkpoint: bool = False):
        super().__init__()
        block = BasicBlock if name == "resnet18" else Bottleneck
        self.checkpoint = checkpoint
        self.channels: tuple[int, ...] = tuple(width * block.expansion for width in WIDTHS)
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        cin, stages = 64, []
        for stage, (count, width) in enumerate(zip(BLOCKS[name], WIDTHS, strict=True)):
            layers: list[nn.Module] = []
            for index in range(count):
                layers.append(block(cin, width, 2 if stage and not index else 1))
                cin = width * block.expansion
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        stem = nn.Sequential(self.conv1, self.bn1, nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
        x = checkpointing.run(stem, images, self.checkpoint)
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for first in range(0, len(stage), RECOMPUTED):
                x = checkpointing.run(stage[first : first + RECOMPUTED], x, self.checkpoint)
            features.append(x)
        return tuple(features)
