"""Labels out of thin air, for tests of what handles labels."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import small_nuscenes

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


def make_city(root: Path, scenes: int = 3, keyframes: int = 3) -> list[str]:
    """A data set with pixel truth that the oracle reads: road below, walls of one scene's class above, sky on top."""
    tokens = small_nuscenes.make(root, keyframes, sweeps=1, boxes=False, truth=False, scenes=scenes)
    width, height = small_nuscenes.SIZE
    rows = np.arange(height)[:, None] + np.zeros(width)
    with np.errstate(divide="ignore"):
        ground_m = np.where(rows > 24, 1.5 * 41 / (rows - 23.5), np.inf)
    for place, token in enumerate(tokens):
        scene = place // keyframes
        wall_m = 8 + 2 * scene + np.arange(width) / 8 + place
        depth_m = np.where(rows < 6, np.inf, np.minimum(ground_m, wall_m))
        class_id = np.where(depth_m == ground_m, 11, 14 + scene % 3).astype(np.uint8)
        class_id[rows < 6] = OCC3D.free_id
        folder = root / "truth" / f"scene-{scene + 1:04d}" / token
        folder.mkdir(parents=True)
        for camera in ("CAM_FRONT", "CAM_BACK"):
            np.savez(folder / f"{camera}.npz", depth_m=depth_m.astype(np.float16), class_id=class_id)
    return tokens
