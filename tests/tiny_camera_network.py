"""The smallest camera network there can be, data to train it on, and, as a program, its training: RUN.json OUT."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import small_nuscenes
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from occ_core.grid import VoxelGrid
from occ_core.inference.backends import torch_backend
from occ_core.models import build
from occ_core.models.config import CameraModelConfig
from occ_core.models.voxel_answer import VoxelAnswer
from occ_core.network_input.projection import cell_centers_m, lift
from occ_core.network_input.rig_images import RigImages, Targets
from occ_core.occupancy import Occupancy, save_occ3d
from occ_core.taxonomy import OCC3D
from occ_core.training import state
from occ_core.training.config import TrainingConfig


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """What a run would be resumed from."""
    return load_file(folder / "last.safetensors")


def rows(folder: Path) -> list[dict[str, str]]:
    """The log of a run."""
    with open(folder / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


class TinyConfig(CameraModelConfig):
    kind: Literal["tiny"] = "tiny"
    name: str = "tiny"
    grid_origin_m: tuple[float, float, float] = (-40.0, -40.0, -1.0)
    voxel_size_m: float = 4.0
    grid_shape: tuple[int, int, int] = (20, 20, 2)
    input_width: int = 64
    input_height: int = 32
    needs: tuple[str, ...] = ("labels",)


GRID = TinyConfig().grid


class Tiny(nn.Module):
    """A convolution with batch norm and dropout, features lifted to cells, a linear layer, what mostly is where."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(8, len(config.classes))
        self.place = nn.Parameter(torch.zeros(len(config.classes), *config.grid_shape))

    def logits(self, rig_images: RigImages) -> torch.Tensor:
        b, n, h, w, _ = rig_images.images.shape
        features = self.backbone(rig_images.images.flatten(0, 1).permute(0, 3, 1, 2).float() / 255)
        features = features.reshape(b, n, 8, h // 4, w // 4)
        lifted, _ = lift(features, cell_centers_m(self.config.grid), rig_images)
        seen = self.head(lifted.permute(0, 2, 1)).permute(0, 2, 1)
        return seen.reshape(b, -1, *self.config.grid_shape) + self.place

    def forward(self, rig_images: RigImages, targets: Targets, progress: float) -> dict[str, torch.Tensor]:
        labels = targets.labels
        assert labels is not None
        return {"cells": F.cross_entropy(self.logits(rig_images), labels.long(), ignore_index=255)}

    def answer(self, rig_images: RigImages) -> VoxelAnswer:
        labels = self.logits(rig_images).argmax(dim=1).to(torch.uint8)
        return VoxelAnswer(labels, torch.full_like(labels, 128), torch.ones_like(labels))


def use_tiny(setattr: Any = setattr) -> None:
    """Make it a kind of model, for as long as `setattr` lasts."""
    known = build.config_type
    setattr(build, "config_type", lambda kind: TinyConfig if kind == "tiny" else known(kind))
    for module in (state, torch_backend):
        setattr(module, "build_model", lambda config: (Tiny if config.kind == "tiny" else build.build_model)(config))


def make_data(root: Path, scenes: int = 3, keyframes: int = 2, sweeps: int = 1, grid: VoxelGrid = GRID) -> list[str]:
    """A small data set, labelled in `gts`. Returns its tokens."""
    tokens = small_nuscenes.make(root, keyframes=keyframes, sweeps=sweeps, scenes=scenes, truth=False)
    write_labels(root, "gts", tokens, keyframes, grid=grid)
    return tokens


def write_labels(
    root: Path, folder: str, tokens: list[str], keyframes: int, ground: int = 11, grid: VoxelGrid = GRID
) -> None:
    """Ground below, free above, two rows unobserved."""
    labels = np.full(grid.shape, OCC3D.free_id, dtype=np.uint8)
    labels[:, :, 0] = ground
    observed = np.ones(grid.shape, dtype=bool)
    observed[:2] = False
    for i, token in enumerate(tokens):
        label = Occupancy(grid, OCC3D, labels, observed)
        save_occ3d(root / folder / f"scene-{i // keyframes + 1:04d}" / token / "labels.npz", label)


def run_config(root: Path, **changes: Any) -> TrainingConfig:
    settings: dict[str, Any] = {"model": TinyConfig(), "data": (root,), "steps": 6, "threads": 1, "device": "cpu"}
    settings |= {"validation_scenes": 1, "warmup_steps": 2, "learning_rate": 0.05, "log_every": 1, "ema_decay": 0.5}
    return TrainingConfig(**{**settings, **changes})


def main(run: Path, out: Path) -> None:
    """Train as the json says: `data`, `changes` of the config, `resume`, `die_at` a step."""
    from occ_core.training import loop

    use_tiny()
    asked = json.loads(run.read_text())
    original = loop.train_step

    def mortal(now: Any, *rest: Any) -> dict[str, float]:
        if now.step == asked.get("die_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(now, *rest)

    loop.train_step = mortal
    loop.train(run_config(Path(asked["data"]), **asked.get("changes", {})), out, asked.get("resume", False))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
