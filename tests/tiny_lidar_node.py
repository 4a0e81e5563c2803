"""The occupancy node with the smallest network that takes LiDAR: it marks the cells that a return lies in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from occ_core.inference.backends import torch_backend
from occ_core.models import build
from occ_core.models.checkpoint import describe, save_checkpoint
from occ_core.models.config import CameraModelConfig, LidarInput
from occ_core.models.voxel_answer import VoxelAnswer
from occ_core.network_input.rig_images import RigImages

PRESENT, PAST, NO_CLOUD = 1, 2, 3  # labels: a return of the newest sweep, of one before, and of cell (0, 0, 0)


class TinyLidarConfig(CameraModelConfig):
    takes_lidar: ClassVar[bool] = True

    kind: Literal["tiny-lidar"] = "tiny-lidar"
    name: str = "tiny lidar"
    grid_origin_m: tuple[float, float, float] = (-16.0, -16.0, -2.0)
    voxel_size_m: float = 1.0
    grid_shape: tuple[int, int, int] = (32, 32, 6)
    input_width: int = 64
    input_height: int = 32
    lidar: LidarInput | None = LidarInput(sweeps=3)


class TinyLidar(nn.Module):
    def __init__(self, config: TinyLidarConfig) -> None:
        super().__init__()
        self.config = config
        self.unused = nn.Parameter(torch.zeros(1))

    def answer(self, rig_images: RigImages) -> VoxelAnswer:
        cloud, grid = rig_images.lidar, self.config.grid
        assert cloud is not None
        labels = torch.full((1, *grid.shape), self.config.classes.free_id, dtype=torch.uint8)
        points = cloud[0][torch.isfinite(cloud[0]).all(dim=1)]
        if not len(points):
            labels[0, 0, 0, 0] = NO_CLOUD
        for row in sorted(points.tolist(), key=lambda point: -point[4]):  # the newest last
            cell = [int((p - o) // grid.voxel_size_m) for p, o in zip(row[:3], grid.origin_m, strict=True)]
            if all(0 <= i < n for i, n in zip(cell, grid.shape, strict=True)):
                labels[0, cell[0], cell[1], cell[2]] = PRESENT if row[4] == 0 else PAST
        return VoxelAnswer(labels, torch.full_like(labels, 255), torch.ones_like(labels))


def checkpoint(path: Path, dropout: float, intensity_max: float = 255.0) -> Path:
    config = TinyLidarConfig(lidar=LidarInput(sweeps=3, dropout=dropout, intensity_max=intensity_max))
    save_checkpoint(path, TinyLidar(config).state_dict(), describe(config, {}))
    return path


def use_tiny_lidar(setattr: Any = setattr) -> None:
    """Make it a kind of model, for as long as `setattr` lasts."""
    known_type, known_model = build.config_type, build.build_model
    setattr(build, "config_type", lambda kind: TinyLidarConfig if kind == "tiny-lidar" else known_type(kind))
    made = lambda config: (TinyLidar if build.kind_of(config) == "tiny-lidar" else known_model)(config)  # noqa: E731
    setattr(torch_backend, "build_model", made)


if __name__ == "__main__":
    from occ_ros.occupancy_node import main

    use_tiny_lidar()
    main()
