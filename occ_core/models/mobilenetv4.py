"""MobileNetV4-Conv-Small (Qin et al., arXiv 2404.10518) in plain torch, without its classifier.

Parameter names are those of timm's `mobilenetv4_conv_small`, so its weights load with `load_state_dict(strict=False)`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar

import torch.nn as nn
from torch import Tensor

# One row a block: kernel of the first depthwise convolution (0 = none), of the second, stride, in, expanded, out.
STAGE_2 = [(5, 5, 2, 64, 192, 96), *[(0, 3, 1, 96, 192, 96)] * 4, (3, 0, 1, 96, 384, 96)]
STAGE_3 = [
    (3, 3, 2, 96, 576, 128),
    (5, 5, 1, 128, 512, 128),
    (0, 5, 1, 128, 512, 128),
    (0, 5, 1, 128, 384, 128),
    (0, 3, 1, 128, 512, 128),
    (0, 3, 1, 128, 512, 128),
]
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class ConvBn(nn.Sequential):
    """Convolution, batch norm and (where `relu`) ReLU, with timm's names inside."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True, bn="bn1"):
        conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
        layers: list[tuple[str, nn.Module]] = [("conv", conv), (bn, nn.BatchNorm2d(cout))]
        super().__init__(OrderedDict([*layers, *([("relu", nn.ReLU(inplace=True))] if relu else [])]))


class UniversalInvertedBottleneck(nn.Module):
    """Depthwise (optional), expand, depthwise (optional), project; residual where shapes agree."""

    def __init__(self, start: int, middle: int, stride: int, cin: int, wide: int, cout: int):
        super().__init__()
        self.residual = stride == 1 and cin == cout
        if start:  # the stride sits in the middle convolution where there is one
            first_stride = 1 if middle else stride
            self.dw_start = ConvBn(cin, cin, start, first_stride, groups=cin, relu=False, bn="bn")
        self.pw_exp = ConvBn(cin, wide, 1, bn="bn")
        if middle:
            self.dw_mid = ConvBn(wide, wide, middle, stride, groups=wide, bn="bn")
        self.pw_proj = ConvBn(wide, cout, 1, relu=False, bn="bn")

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.children():
            y = layer(y)
        return x + y if self.residual else y


class MobileNetV4Small(nn.Module):
    """Maps images [N, 3, H, W] to features at `strides`, of `channels`."""

    strides: ClassVar[tuple[int, ...]] = (8, 16, 32)
    channels: ClassVar[tuple[int, ...]] = (64, 96, 128)
    mean: ClassVar[tuple[float, float, float]] = IMAGENET_MEAN
    std: ClassVar[tuple[float, float, float]] = IMAGENET_STD

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(3, 32, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.act = nn.ReLU(inplace=True)
        self.blocks = nn.Sequential(
            nn.Sequential(ConvBn(32, 32, 3, 2), ConvBn(32, 32, 1)),
            nn.Sequential(ConvBn(32, 96, 3, 2), ConvBn(96, 64, 1)),
            nn.Sequential(*[UniversalInvertedBottleneck(*row) for row in STAGE_2]),
            nn.Sequential(*[UniversalInvertedBottleneck(*row) for row in STAGE_3]),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = self.blocks[0](self.act(self.bn1(self.conv_stem(images))))
        x8 = self.blocks[1](x)
        x16 = self.blocks[2](x8)
        return x8, x16, self.blocks[3](x16)
