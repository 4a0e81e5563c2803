"""Can trunks be told by their shape, where a class network knows vegetation alone? Against the classes of LiDAR points.

python benchmarks/trunks.py SEMANTICKITTI MAPS

MAPS: class maps of Cityscapes' train ids, PNG, as of `files:MAPS` (docs/map_files.md). A thin column that stands alone
0.4 to 1.6 m above ground and has vegetation above it is called a trunk. Its numbers were set before the first run.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
from scipy import ndimage

from occ_core.geometry import apply, inverse
from occ_core.sources.kitti import CAMERA, GROUND_Z_M, SemanticKittiSource
from occ_core.taxonomy import SEMANTIC_KITTI
from occ_core.teachers.files import FileClasses
from occ_core.teachers.lidar import read_kitti_labels

CELL_M, SIDE = 0.2, 400
RANGE_M = 30.0
FOOT_M, CROWN_M = (0.4, 1.6), 2.2  # above ground
WIDEST, APART, REACH = 4, 4, 5  # cells: of a column, to whatever else stands there, and within which there is a crown


def called_trunk(points_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of points (N, 3) of vegetation, z above ground: which are at the height of trunks, and which of a trunk."""
    at = np.floor(points_m[:, :2] / CELL_M).astype(int) + (0, SIDE // 2)
    inside = ((at >= 0) & (at < SIDE)).all(axis=1)
    low = inside & (points_m[:, 2] > FOOT_M[0]) & (points_m[:, 2] < FOOT_M[1])
    feet, crowns = np.zeros((2, SIDE, SIDE), dtype=bool)
    feet[tuple(at[low].T)] = True
    crowns[tuple(at[inside & (points_m[:, 2] > CROWN_M)].T)] = True
    columns, count = ndimage.label(feet, np.ones((3, 3)))
    is_trunk = np.zeros(count + 1, dtype=bool)
    for number, box in enumerate(ndimage.find_objects(columns), start=1):
        around = [tuple(slice(max(0, s.start - by), s.stop + by) for s in box) for by in (APART, REACH)]
        alone = feet[around[0]].sum() == (columns[box] == number).sum()
        thin = max(s.stop - s.start for s in box) <= WIDEST
        is_trunk[number] = thin and alone and crowns[around[1]].any()
    called = low.copy()
    called[low] = is_trunk[columns[tuple(at[low].T)]]
    return low, called


def main(dataroot: Path, maps: Path) -> None:
    source, teacher = SemanticKittiSource(dataroot), FileClasses(maps, SEMANTIC_KITTI)
    trunk, vegetation = (SEMANTIC_KITTI.id_of(name) for name in ("trunk", "vegetation"))
    called, called_are, all_low = Counter[str](), Counter[str](), 0
    for number in range(len(source)):
        frame = source[number]
        assert frame.lidar is not None
        points_m, own = frame.lidar.points_lidar_m, read_kitti_labels(source.labels_path(number))
        camera, class_id = frame.rig[CAMERA], teacher.classes(frame)[CAMERA].class_id
        pixels, seen = camera.project(apply(inverse(camera.ego_from_cam), points_m))
        seen &= np.linalg.norm(points_m, axis=1) < RANGE_M
        points_m, own = points_m[seen], own[seen]
        share = (pixels[seen] + 0.5) / camera.size
        column, row = (share * class_id.shape[::-1]).astype(int).clip(0, np.array(class_id.shape[::-1]) - 1).T
        said = class_id[row, column]
        called.update(_name(of) for of in said[own == trunk])
        low, called = called_trunk((points_m - (0, 0, GROUND_Z_M))[said == vegetation])
        all_low += int((own[said == vegetation][low] == trunk).sum())
        called_are.update(_name(of) for of in own[said == vegetation][called])
    print("points of trunks are called:", dict(called.most_common()))
    print("points called trunk by their shape are:", dict(called_are.most_common()))
    found = called_are["trunk"]
    right, of_all = 100 * found / max(1, called_are.total()), 100 * found / max(1, all_low)
    print(f"right: {right:.0f} %; found of the trunks there: {of_all:.0f} %")


def _name(class_id: int) -> str:
    return SEMANTIC_KITTI.names[class_id] if class_id < len(SEMANTIC_KITTI) else "unknown"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
