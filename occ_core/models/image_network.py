"""From the images of a rig to features: a backbone, and a pyramid (arXiv 1612.03144) that joins its levels."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from occ_core.errors import CorruptInput, InvalidInput, MissingInput
from occ_core.models.mobilenetv4 import CHANNELS as MOBILENET_CHANNELS
from occ_core.models.mobilenetv4 import MobileNetV4Small
from occ_core.models.resnet import ResNet

LEVELS = (4, 8, 16, 32)  # strides, in pixels per feature, that a pyramid can give


class FeaturePyramid(nn.Module):
    """Images uint8 [B, N, H, W, 3] to features [B, N, C, H / s, W / s], one for each stride s of `levels`."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: str, channels: int, levels: tuple[int, ...], checkpoint: bool = False):
        super().__init__()
        if not levels or not set(levels) <= set(LEVELS):
            raise InvalidInput(f"feature strides must be some of {LEVELS}, got {levels}")
        self.levels, self.multiple = levels, max(16, *levels)
        self.register_buffer("mean", torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1), persistent=False)
        self.backbone: MobileNetV4Small | ResNet
        given: tuple[int, ...]
        self.strides: tuple[int, ...]
        if backbone == "mobilenetv4-small":
            self.backbone, self.strides, given = MobileNetV4Small(), LEVELS[1:], MOBILENET_CHANNELS
        else:
            self.backbone = ResNet(backbone, checkpoint)
            self.strides, given = LEVELS, self.backbone.channels
        # A level finer than all the backbone gives is drawn from the one above alone.
        used = [(s, c) for s, c in zip(self.strides, given, strict=True) if s >= min(levels)]
        self.lateral = nn.ModuleDict({str(s): nn.Conv2d(c, channels, 1) for s, c in used})
        self.smooth = nn.ModuleDict({str(s): smoothing(channels) for s in levels})

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        b, n, height, width, _ = images.shape
        if height % self.multiple or width % self.multiple:
            raise InvalidInput(f"images must be a multiple of {self.multiple} px, got {width} x {height}")
        pixels = (images.flatten(0, 1).permute(0, 3, 1, 2).float() - self.mean) / self.std
        features = dict(zip(self.strides, self.backbone(pixels), strict=True))
        levels: dict[int, Tensor] = {}
        x = None
        for stride in reversed([s for s in LEVELS if s >= min(self.levels)]):
            above = None if x is None else F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = self.lateral[str(stride)](features[stride]) if stride in features else above
            if above is not None and stride in features:  # which has an odd number of rows or columns, maybe
                x = x + above[..., : x.shape[2], : x.shape[3]]
            if stride in self.levels:
                levels[stride] = self.smooth[str(stride)](x).unflatten(0, (b, n))
        return tuple(levels[stride] for stride in self.levels)

    def load_backbone(self, path: Path) -> None:
        """Weights of the backbone alone, by its own parameter names; a classifier's are passed over.

        Raises:
            MissingInput, CorruptInput: no such file, or not safetensors.
            InvalidInput: names or shapes are another network's.
        """
        if not path.is_file():
            raise MissingInput(f"{path}: no such file of backbone weights")
        try:
            given = load_file(path)
        except SafetensorError as error:
            raise CorruptInput(f"{path}: not a safetensors file: {error}") from error
        own = self.backbone.state_dict()
        counters = {name for name in own if name.endswith("num_batches_tracked")}
        missing = sorted(set(own) - set(given) - counters)
        if missing:
            raise InvalidInput(
                f"{path}: lacks {len(missing)} of {len(own)} parameters of the backbone: '{missing[0]}' .."
            )
        for name, tensor in own.items():
            if name in given and given[name].shape != tensor.shape:
                raise InvalidInput(
                    f"{path}: '{name}' is {tuple(given[name].shape)}, the backbone's is {tuple(tensor.shape)}"
                )
        self.backbone.load_state_dict({name: given.get(name, tensor) for name, tensor in own.items()})


class ImageNetwork(nn.Module):
    """The features of one stride: images uint8 [B, N, H, W, 3] to [B, N, C, H / stride, W / stride]."""

    def __init__(self, backbone: str, channels: int, stride: int, checkpoint: bool = False):
        super().__init__()
        self.pyramid = FeaturePyramid(backbone, channels, (stride,), checkpoint)

    def forward(self, images: Tensor) -> Tensor:
        return self.pyramid(images)[0]

    def load_backbone(self, path: Path) -> None:
        """See `FeaturePyramid.load_backbone`."""
        self.pyramid.load_backbone(path)


def smoothing(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
    )
