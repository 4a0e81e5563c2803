"""Depth of the teacher `motion` against exact depth (simulated city) or LiDAR: motion_depth.py DATA [FRAME ...]"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from occ_core.evaluation.depth import lidar_depth, nearest_in_pixel
from occ_core.frame import Frame
from occ_core.sources.open import open_source
from occ_core.teachers.motion import MotionDepth
from occ_core.teachers.oracle import Oracle

EDGES_M = (0, 10, 20, 40, 80)


def truth_of(data: Path, frame: Frame, camera: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 2) of the image and their depths, to 80 m."""
    if (data / "truth").is_dir():
        _, depth_m = Oracle(data).read(frame, camera)
        rows, columns = np.nonzero(depth_m < EDGES_M[-1])
        return np.stack([columns, rows], axis=1), depth_m[rows, columns]
    pixels, depth_m = nearest_in_pixel(*lidar_depth(frame, camera))
    return pixels[depth_m < EDGES_M[-1]], depth_m[depth_m < EDGES_M[-1]]


def main() -> None:
    data, source = Path(sys.argv[1]), open_source(sys.argv[1])
    numbers = [int(number) for number in sys.argv[2:]] or range(len(source))
    teacher, estimated, true = MotionDepth(data), [], []
    for frame in (source[number] for number in numbers):
        for camera, found in teacher.depth(frame).items():
            pixels, truth_m = truth_of(data, frame, camera)
            place = (pixels + 0.5) * np.array(found.size) / frame.rig[camera].size
            columns, rows = np.floor(place).astype(int).clip(0, np.array(found.size) - 1).T
            estimated.append(found.depth_m[rows, columns])
            true.append(truth_m)
    found_m, truth_m = np.concatenate(estimated), np.concatenate(true)
    for low, high in ((0, 80), *zip(EDGES_M, EDGES_M[1:], strict=False)):
        of = (truth_m >= low) & (truth_m < high)
        known = of & np.isfinite(found_m)
        ratio = found_m[known] / truth_m[known]
        print(
            f"{low}-{high} m: {of.sum()} pixels, with depth {100 * known.sum() / of.sum():.1f} %, AbsRel "
            f"{np.abs(ratio - 1).mean():.3f}, delta 1.25 {100 * (np.maximum(ratio, 1 / ratio) < 1.25).mean():.1f} %"
        )


if __name__ == "__main__":
    main()
