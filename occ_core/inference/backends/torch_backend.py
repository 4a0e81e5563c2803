"""Runs the network in torch: it is the plain twin of every faster backend, and runs every kind of network."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from occ_core.camera import Rig
from occ_core.errors import CorruptInput, InvalidInput
from occ_core.lidar_points import absent_points
from occ_core.models.build import ModelConfig, build_model, parse_config
from occ_core.models.checkpoint import load_checkpoint, load_into, load_record, trained_cameras
from occ_core.models.easyocc.deployed import Deployed
from occ_core.models.easyocc.model import Answer, EasyOcc
from occ_core.models.easyocc.past import Past
from occ_core.models.easyocc.table import TableCache
from occ_core.network_input.preprocess import Preprocess
from occ_core.network_input.rig_inputs import rig_inputs

Asked = Callable[..., tuple[Tensor, ...]]
"""Of images, rig, missing cameras and what else the kind of network takes: a Past, or a LiDAR's cloud."""


class _Within(TorchFunctionMode):
    """Stops a network from being built that is far larger than its weights, since a json can ask for anything."""

    SLACK = 1 << 24  # buffers that are not kept in files
    MAKERS = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn)

    def __init__(self, weights: int, path: Path) -> None:
        super().__init__()
        self._weights, self._path, self._taken = weights, path, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.MAKERS:
            self._taken += math.prod(args if isinstance(args[0], int) else args[0])
            if self._taken > self._weights + self.SLACK:
                raise CorruptInput(
                    f"{self._path}: its json asks for a network of more than {self._taken} weights, the file has "
                    f"{self._weights}"
                )
        return func(*args, **(kwargs or {}))


def load_model(path: Path) -> nn.Module:
    """Load the network of a checkpoint of any kind, ready to answer."""
    tensors, record = load_checkpoint(path)
    with _Within(sum(tensor.numel() for tensor in tensors.values()), path):
        model = build_model(parse_config(record["model"]))
    load_into(model, tensors, path)
    return model.eval()


class TorchSession:
    """Runs EasyOcc nano on the CPU, for which it is made, and camera networks on a GPU if there is one."""

    def __init__(self, path: Path, threads: int, compiled: bool = False):
        torch.set_num_threads(threads)
        model = load_model(path)
        self.config: ModelConfig = cast(Any, model).config
        if compiled and not self.config.by_table:
            raise InvalidInput(
                f"{path}: backend torch-compiled runs EasyOcc nano only; run this one with backend torch"
            )
        self.cameras = trained_cameras(load_record(path))
        by_table = self.config.by_table
        self._answer: Asked = _by_table(cast(EasyOcc, model), compiled) if by_table else _by_rig(model, self.config)

    def run(
        self, images: np.ndarray, rig: Rig, missing: frozenset[str], lidar: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels, confidence and observed, uint8 (X, Y, Z), from images uint8 (N, H, W, 3) of the rig's cameras and,
        for a network that takes LiDAR, a cloud float32 (P, 5) or None."""
        with torch.inference_mode():
            answer = self._answer(images, rig, missing, lidar)
            labels, confidence, observed = (part[0].cpu().numpy() for part in answer[:3])
        return labels, confidence, observed

    def run_after(
        self, images: np.ndarray, rig: Rig, missing: frozenset[str], past: Past
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The same for a network with memory, and its state for the next frame."""
        with torch.inference_mode():
            labels, confidence, observed, state = (part.numpy() for part in self._answer(images, rig, missing, past))
        return labels[0], confidence[0], observed[0], state


def _by_table(model: EasyOcc, compiled: bool) -> Asked:
    answer: Callable[..., tuple[Tensor, ...]] = torch.compile(Deployed(model)) if compiled else Answer(model)
    tables = TableCache(model.config)

    def asked(images: np.ndarray, rig: Rig, missing: frozenset[str], past: Past | None) -> tuple[Tensor, ...]:
        table = tables.of(rig, missing)
        arrays = images, table.voxel_index, table.pillar_index, table.rays, *(past or ())
        return answer(*map(torch.from_numpy, arrays))

    return asked


def _by_rig(model: nn.Module, config: ModelConfig) -> Asked:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    preprocess = Preprocess(config.input_width, config.input_height)
    without_points = None if config.lidar_input is None else absent_points()

    def asked(
        images: np.ndarray, rig: Rig, missing: frozenset[str], lidar: np.ndarray | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        present = np.array([name not in missing for name in rig.names])
        cloud = without_points if lidar is None else lidar
        return cast(Any, model).answer(rig_inputs(images, present, rig, preprocess, cloud).batch().to(device))

    return asked
