"""The label files of a data set: Occ3D's layout for any source, or SemanticKITTI's own voxels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from occ_core.errors import InvalidInput, MissingInput
from occ_core.evaluation.ssc import read_ssc_truth
from occ_core.grid import SEMANTIC_KITTI_GRID, SEMANTIC_KITTI_VOXELS
from occ_core.labels.store import provenance, require_same_meaning, split_of
from occ_core.models.build import ModelConfig
from occ_core.occupancy import load_occ3d
from occ_core.sources.kitti import SemanticKittiSource
from occ_core.sources.nuscenes_tables import root_of
from occ_core.sources.open import FrameSource
from occ_core.taxonomy import SEMANTIC_KITTI, UNLABELED

VOXELS = "voxels"
"""The `labels` of a run that mean SemanticKITTI's own."""


@dataclass(frozen=True)
class LabelFiles:
    """The labels of one data set.

    Attributes:
        folder: holds <scene>/<token>/labels.npz, or where they are `voxels`, <scene>/voxels/<token>.label.
    """

    folder: Path
    voxels: bool = False

    def path(self, scene: str, token: str) -> Path:
        """The path at which the label of a sample would be."""
        if self.voxels:
            return self.folder / scene / VOXELS / f"{token}.label"
        return self.folder / scene / token / "labels.npz"

    def files(self, scene: str, token: str) -> list[Path]:
        """The files that `read` reads."""
        path = self.path(scene, token)
        return [path, path.with_suffix(".invalid")] if self.voxels else [path]

    def read(self, scene: str, token: str, model: ModelConfig) -> np.ndarray:
        """Read a label, uint8 (X, Y, Z): class ids of the model's taxonomy, UNLABELED where nobody looked.

        Raises:
            MissingInput, CorruptInput.
        """
        path = self.path(scene, token)
        if self.voxels:
            return read_ssc_truth(path)
        label = load_occ3d(path, model.grid, model.classes)
        return np.where(label.observed, label.labels, np.uint8(UNLABELED))

    @property
    def provenance(self) -> dict[str, Any]:
        """What is known about how the labels were made, for the record of what is made from them."""
        return {"folder": VOXELS, **split_of(self.folder.parent)} if self.voxels else provenance(self.folder)


def open_labels(root: Path, frames: FrameSource, labels: str, model: ModelConfig) -> LabelFiles:
    """The labels of the data set at `root`.

    Args:
        labels: folder inside the data set, or a path of its own; of SemanticKITTI, "voxels" means its own, and a folder
            that holds `sequences/` voxels made elsewhere. A model's grid may be where the voxels are, or where papers
            say that they are.

    Raises:
        MissingInput: no such folder. InvalidInput: they are of another grid or taxonomy than the model; names both.
    """
    is_kitti = isinstance(frames, SemanticKittiSource)
    folder = root if labels == VOXELS and is_kitti else labels_folder(root, labels)
    if is_kitti and (folder / "sequences").is_dir():
        if model.grid not in (SEMANTIC_KITTI_VOXELS, SEMANTIC_KITTI_GRID):
            raise InvalidInput(f"{folder}: its voxels are of grid {SEMANTIC_KITTI_VOXELS}, the model's is {model.grid}")
        if model.taxonomy != SEMANTIC_KITTI.name:
            names = f"taxonomy {SEMANTIC_KITTI.name}, the model's is {model.taxonomy}"
            raise InvalidInput(f"{folder}: its voxels are of {names}")
        return LabelFiles(folder / "sequences", voxels=True)
    require_same_meaning(folder, model.grid, model.classes)
    return LabelFiles(folder)


def labels_folder(dataroot: Path, labels: str) -> Path:
    """Folder of Occ3D labels: `labels` inside the data set, or a path of its own."""
    inside = root_of(dataroot) / labels
    for folder in (inside, Path(labels)):
        if folder.is_dir():
            return folder
    raise MissingInput(f"no labels: neither {inside} nor {labels} is a folder")
