"""Image backbones by name, and how their weights are read: from a checkpoint of this library, from a file that uses the
same names, or from the package that ships ImageNet's."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch.nn as nn
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from occ_core.errors import CorruptInput, InvalidInput, MissingInput
from occ_core.models import efficientnet_lite
from occ_core.models.config import IMAGENET
from occ_core.models.efficientnet_lite import EfficientNetLite0
from occ_core.models.mobilenetv4 import MobileNetV4Small
from occ_core.models.resnet import ResNet

Backbone = MobileNetV4Small | ResNet | EfficientNetLite0
"""Each maps images [N, 3, H, W], normalised by its `mean` and `std`, to features at `strides`, of `channels`."""


def build_backbone(name: str, checkpoint: bool = False) -> Backbone:
    """Build the untrained backbone that a config names; `checkpoint` (ResNets only) trades time for memory."""
    match name:
        case "mobilenetv4-small":
            return MobileNetV4Small()
        case "efficientnet-lite0":
            return EfficientNetLite0()
    return ResNet(name, checkpoint)


def load_backbone(backbone: Backbone, weights: str | Path) -> None:
    """Load weights of the backbone alone. `weights` is "imagenet" (shipped by a package), a safetensors file with the
    backbone's parameter names (a classifier's are ignored), or a checkpoint of any network of this library that has
    this backbone.

    Raises:
        MissingInput, CorruptInput: no such file, or not safetensors. MissingPackage: the package is not installed.
        InvalidInput: names or shapes are another network's, or ImageNet weights are asked of one that has none.
    """
    if weights == IMAGENET:
        if not isinstance(backbone, EfficientNetLite0):
            raise InvalidInput(
                f"backbone_weights '{IMAGENET}' are at hand for efficientnet-lite0, not for {type(backbone).__name__}"
            )
        weights = efficientnet_lite.imagenet_file()
        given = efficientnet_lite.published_weights(weights)
    else:
        given = _tensors(Path(weights))
    own = backbone.state_dict()
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    missing = sorted(set(own) - set(given) - counters)
    if missing:
        raise InvalidInput(
            f"{weights}: lacks {len(missing)} of {len(own)} parameters of the backbone: '{missing[0]}' .."
        )
    for name, tensor in own.items():
        if name in given and given[name].shape != tensor.shape:
            raise InvalidInput(
                f"{weights}: '{name}' is {tuple(given[name].shape)}, the backbone's is {tuple(tensor.shape)}"
            )
    backbone.load_state_dict({name: given.get(name, tensor) for name, tensor in own.items()})


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise MissingInput(f"{path}: no such file of backbone weights")
    try:
        given = load_file(path)
    except SafetensorError as error:
        raise CorruptInput(f"{path}: not a safetensors file: {error}") from error
    inside = {name.rpartition("backbone.")[2]: value for name, value in given.items() if "backbone." in name}
    return inside or given


def origin(weights: str | Path | None) -> dict[str, Any] | None:
    """Where a backbone's weights come from, for the record of what is trained from them."""
    if weights is None:
        return None
    if weights != IMAGENET:
        return {"file": Path(weights).name}
    from importlib.metadata import version

    path = efficientnet_lite.imagenet_file()
    package = efficientnet_lite.PACKAGE.replace("_", "-")
    return {
        "package": f"{package} {version(package)}",
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "trained_on": "ImageNet",
        "licence": efficientnet_lite.LICENCE,
    }


def statistics(backbone: nn.Module) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [1, 3, 1, 1] with which the backbone expects colours 0..255 to be normalised."""
    import torch

    one: Any = backbone
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (one.mean, one.std))
    return mean, std
