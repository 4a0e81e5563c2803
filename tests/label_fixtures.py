"""Labels out of thin air, for tests of what handles labels."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from occ_core.grid import OCC3D_GRID
from occ_core.labels.scene import SceneLabel
from occ_core.occupancy import Occupancy
from occ_core.taxonomy import OCC3D

MADE_WITH = {"recipe": "best", "settings": {"past": 13, "min_points": 4}, "teacher": "oracle", "package": "0"}


def scene_label(token: str, seed: int = 0, skipped: tuple[str, ...] = ()) -> SceneLabel:
    """A road with blocks on it, some of it unobserved."""
    rng = np.random.default_rng(seed)
    labels = np.full(OCC3D_GRID.shape, OCC3D.free_id, dtype=np.uint8)
    labels[:, :, 2] = OCC3D.id_of("driveable_surface")
    for x, y in rng.integers(0, 190, (40, 2)):
        labels[x : x + 6, y : y + 5, 3:8] = rng.integers(1, 17)
    observed = np.zeros(OCC3D_GRID.shape, dtype=bool)
    observed[20:180, 30:170] = True
    labels[~observed] = OCC3D.free_id
    occupied = labels != OCC3D.free_id
    confidence = np.where(occupied, 0.75, np.where(observed, 0.5, 0)).astype(np.float32)
    votes = np.where(occupied, rng.integers(1, 200, OCC3D_GRID.shape), 0).astype(np.uint16)
    return SceneLabel(token, Occupancy(OCC3D_GRID, OCC3D, labels, observed, confidence), votes, skipped)


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder, by its path in it."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
