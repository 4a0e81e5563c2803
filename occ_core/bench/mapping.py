"""Measures how long the map takes for a frame, beside its plain twin: `occ bench mapping`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from occ_core.clouds import voxel_points
from occ_core.geometry import pose
from occ_core.grid import OCC3D_GRID
from occ_core.mapping.costs import class_costs, column_costs, column_costs_in_world
from occ_core.mapping.rolling_map import RollingMap
from occ_core.mapping.update import update_plain
from occ_core.occupancy import Occupancy
from occ_core.taxonomy import OCC3D

HEADINGS_DEG = (0, 17, 45)
STEP_M, PERIOD_NS = 0.8, 83_000_000  # 10 m/s at 12 Hz
BAND_M = (0.3, 2.0)


def bench_mapping(repeats: int) -> dict[str, Any]:
    """Median processor time in ms of one thread, of each part, for a frame of 200 x 200 x 16 cells."""
    seen = _street()
    figures: dict[str, float] = {}
    for heading in HEADINGS_DEG:
        figures[f"fuse, heading {heading} deg"] = _drive(RollingMap(OCC3D_GRID, OCC3D), seen, heading, repeats)
    plain = RollingMap(OCC3D_GRID, OCC3D)
    plain._update = update_plain
    figures["fuse, plain numpy"] = _drive(plain, seen, HEADINGS_DEG[1], max(2, repeats // 5))
    rolling_map, costs = RollingMap(OCC3D_GRID, OCC3D), class_costs(OCC3D)
    _drive(rolling_map, seen, HEADINGS_DEG[1], 3)
    fused = rolling_map.occupancy()
    turned = _pose(0, HEADINGS_DEG[1])
    figures["map as an occupancy"] = _median_ms(rolling_map.occupancy, repeats)
    figures["its points"] = _median_ms(lambda: voxel_points(fused), repeats)
    figures["its costs"] = _median_ms(lambda: column_costs(fused, BAND_M, costs), repeats)
    figures["costs of a frame"] = _median_ms(lambda: column_costs(seen, BAND_M, costs), repeats)
    in_world = _median_ms(lambda: column_costs_in_world(seen, turned, BAND_M, costs), repeats)
    figures["costs of a frame, in the world"] = in_world
    return {
        "cells_seen": int(seen.observed.sum()),
        "cells_of_map": int(np.prod(rolling_map.shape)),
        "update": rolling_map._update.__name__,
        "cpu_ms": {name: round(value, 3) for name, value in figures.items()},
    }


def _street() -> Occupancy:
    """Road, houses, trees; a quarter of the cells observed, as cameras do."""
    rng = np.random.default_rng(0)
    labels = np.full(OCC3D_GRID.shape, OCC3D.free_id, dtype=np.uint8)
    labels[:, :, 2] = OCC3D.id_of("driveable_surface")
    labels[:, [60, 140], 3:] = OCC3D.id_of("manmade")
    trees = rng.random(OCC3D_GRID.shape) < 0.02
    labels[trees] = OCC3D.id_of("vegetation")
    x, y = np.meshgrid(*(np.abs(np.arange(20) - 9.5) for _ in range(2)), indexing="ij")
    blocks = rng.random((20, 20)) < np.clip(1.2 - np.hypot(x, y) / 11, 0, 1)  # what is hidden lies together
    seen = np.repeat(np.repeat(blocks, 10, axis=0), 10, axis=1)[:, :, None] & (np.arange(16) < 12)
    return Occupancy(OCC3D_GRID, OCC3D, labels, seen)


def _drive(rolling_map: RollingMap, seen: Occupancy, heading_deg: float, frames: int) -> float:
    """Median of `frames` frames of a robot that drives on; two before them do not count."""
    times = []
    for frame in range(frames + 2):
        world_from_ego = _pose(frame, heading_deg)
        start = time.thread_time()
        rolling_map.fuse(seen, world_from_ego, frame * PERIOD_NS)
        times.append(1e3 * (time.thread_time() - start))
    return float(np.median(times[2:]))


def _pose(frame: int, heading_deg: float) -> np.ndarray:
    half = np.radians(heading_deg) / 2
    return pose((frame * STEP_M, 0, 0), (np.cos(half), 0.005, 0.005, np.sin(half)))  # a little roll and pitch


def _median_ms(work: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        work()
        times.append(1e3 * (time.thread_time() - start))
    return float(np.median(times))
