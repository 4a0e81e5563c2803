"""The smallest camera network there can be, for tests of training; also a program that trains it: CONFIG OUT [resume]."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from occ_core.models import build
from occ_core.models.config import CameraModelConfig
from occ_core.models.projection import cell_centers_m, lift
from occ_core.models.rig_images import RigImages, Targets, VoxelAnswer

GRID = {"grid_origin_m": (-40.0, -40.0, -1.0), "voxel_size_m": 4.0, "grid_shape": (20, 20, 2)}


class TinyConfig(CameraModelConfig):
    kind: Literal["easyocc"] = "easyocc"
    name: str = "tiny"
    input_width: int = 64
    input_height: int = 32
    needs: frozenset[str] = frozenset({"labels"})
    bad_at: float = 2.0  # progress at which the loss is not a number
    die_at: float = 2.0  # progress at which the process is killed


class Tiny(nn.Module):
    """Two convolutions, features lifted to cells, a linear layer; with a batch norm and dropout to have states."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(8, len(config.classes))

    def logits(self, rig_images: RigImages) -> torch.Tensor:
        b, n, h, w, _ = rig_images.images.shape
        features = self.backbone(rig_images.images.flatten(0, 1).permute(0, 3, 1, 2).float() / 255)
        features = features.reshape(b, n, 8, h // 4, w // 4)
        lifted, _ = lift(features, cell_centers_m(self.config.grid), rig_images)
        return self.head(lifted.permute(0, 2, 1)).permute(0, 2, 1).reshape(b, -1, *self.config.grid_shape)

    def forward(self, rig_images: RigImages, targets: Targets, progress: float) -> dict[str, torch.Tensor]:
        if progress >= self.config.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        loss = F.cross_entropy(self.logits(rig_images), targets.labels.long(), ignore_index=255)
        return {"cells": loss * (float("nan") if progress >= self.config.bad_at else 1.0)}

    def answer(self, rig_images: RigImages) -> VoxelAnswer:
        labels = self.logits(rig_images).argmax(dim=1).to(torch.uint8)
        return VoxelAnswer(labels, torch.full_like(labels, 128), torch.ones_like(labels))


build.config_type = lambda kind: TinyConfig  # type: ignore[assignment]
build.build_model = Tiny  # type: ignore[assignment]

if __name__ == "__main__":
    from occ_core.training.config import load_config
    from occ_core.training.loop import train

    train(load_config(Path(sys.argv[1])), Path(sys.argv[2]), resume="resume" in sys.argv[3:])
