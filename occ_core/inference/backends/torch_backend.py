"""The network in torch: the plain twin of every faster backend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from occ_core.inference.table import Table
from occ_core.models.easyocc.config import EasyOccConfig, parse_config
from occ_core.models.easyocc.model import Answer, EasyOcc, channels_last
from occ_core.training.checkpoint import load_checkpoint, load_into


def load_model(path: Path) -> EasyOcc:
    """The network of a checkpoint, ready to answer."""
    tensors, record = load_checkpoint(path)
    model = EasyOcc(parse_config(record["model"]))
    load_into(model, tensors, path)
    return channels_last(model).eval()


class TorchSession:
    def __init__(self, path: Path, threads: int):
        torch.set_num_threads(threads)
        self.answer = Answer(load_model(path))

    @property
    def config(self) -> EasyOccConfig:
        return self.answer.model.config

    def run(self, images: np.ndarray, table: Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels, confidence and observed, uint8 (X, Y, Z), from images uint8 (N, H, W, 3)."""
        inputs = images, table.voxel_index, table.pillar_index, table.rays
        with torch.inference_mode():
            labels, confidence, observed = self.answer(*(torch.from_numpy(array) for array in inputs))
        return labels[0].numpy(), confidence[0].numpy(), observed[0].numpy()
