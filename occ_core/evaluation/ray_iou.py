"""RayIoU: do rays of a virtual LiDAR end in the prediction where they end in the truth, in the same class?

Tang et al., "Fully Sparse 3D Occupancy Prediction" (SparseOcc), ECCV 2024, section 4, and the code published with it.
Thick surfaces, which a mask of visible cells forgives, cost here; cells that nobody saw are free, as the labels say.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from occ_core.errors import InvalidInput, MissingInput, need
from occ_core.evaluation.voxel_iou import class_means, iou_by_class
from occ_core.geometry import apply, inverse
from occ_core.grid import OCC3D_GRID, VoxelGrid
from occ_core.sources.nuscenes_tables import NuScenesTables
from occ_core.taxonomy import OCC3D, Taxonomy

THRESHOLDS_M = (1, 2, 4)
MAX_ORIGINS = 8
ORIGIN_LIMIT_M = 39.0  # of |x| and |y|, in a grid that ends at 40
TOP_PITCH_RAD = 0.21  # the upper end of nuScenes' LiDAR


def ray_pitches() -> np.ndarray:
    """The 39 pitches of the published ray set, float64 radians, upwards.

    From one unit above level ground the first ten rays meet it 1, 2, ... 10 units ahead: -atan(1/k), that is -45 to
    -5.7 degrees. From there the last step, atan(1/9) - atan(1/10) = 0.63 degrees, is repeated until 0.21 rad is passed:
    29 more, up to 12.55 degrees.
    """
    pitches = [-np.arctan(1 / k) for k in range(1, 11)]
    step = pitches[-1] - pitches[-2]
    while pitches[-1] < TOP_PITCH_RAD:
        pitches.append(pitches[-1] + step)
    return np.array(pitches)


def ray_directions() -> np.ndarray:
    """Unit vectors of the published ray set, float64 (14040, 3): each pitch at 360 azimuths, one degree apart."""
    pitch, azimuth = (grid.ravel() for grid in np.meshgrid(ray_pitches(), np.deg2rad(np.arange(360)), indexing="ij"))
    return np.stack([np.cos(pitch) * np.cos(azimuth), np.cos(pitch) * np.sin(azimuth), np.sin(pitch)], axis=1)


def ray_origins(
    dataroot: Path | NuScenesTables, tokens: Iterable[str], version: str | None = None
) -> dict[str, np.ndarray]:
    """Find where the rays of each sample start: at the LiDAR's positions in the keyframes of its scene.

    Args:
        dataroot: data set in nuScenes layout; no sensor file of it is read.
        tokens: of the samples.
        version: table folder, as of NuScenesTables.

    Returns:
        sample token -> float64 (1..8, 3), metres in the ego frame of the sample's LiDAR sweep.

    Raises:
        MissingInput: no such data set, or a sample that is not in it or has no LiDAR sweep. CorruptInput.
    """
    tables = dataroot if isinstance(dataroot, NuScenesTables) else NuScenesTables(dataroot, version)
    wanted, found = set(tokens), {}
    for scene in tables.scenes:
        if wanted.isdisjoint(token for token, _ in tables.samples(scene)):
            continue
        sweeps = [r for r in tables.records(scene) if r.modality == "lidar" and r.is_keyframe]
        places_world_m = np.array([apply(r.world_from_ego, r.ego_from_sensor[:3, 3]) for r in sweeps])
        for record in sweeps:
            found[record.sample_token] = near_origins(apply(inverse(record.world_from_ego), places_world_m))
    if lacking := sorted(wanted - set(found)):
        raise MissingInput(
            f"{tables.dataroot}: no LiDAR pose of {len(lacking)} of {len(wanted)} samples, first: {lacking[0]}"
        )
    return {token: found[token] for token in wanted}


def near_origins(places_ego_m: np.ndarray) -> np.ndarray:
    """Keep the places (N, 3) with |x|, |y| < 39 m; if there are more than 8, choose 8 evenly, with the first and the
    last."""
    near = places_ego_m[(np.abs(places_ego_m[:, :2]) < ORIGIN_LIMIT_M).all(axis=1)]
    if len(near) <= MAX_ORIGINS:
        return near
    return near[np.round(np.linspace(0, len(near) - 1, MAX_ORIGINS)).astype(int)]


class RayScores:
    """Rays by class, summed over all samples.

    Args:
        taxonomy, grid: of truth and predictions.

    Raises:
        MissingPackage: without numba.
    """

    def __init__(self, taxonomy: Taxonomy = OCC3D, grid: VoxelGrid = OCC3D_GRID) -> None:
        need("numba", "world")
        self.taxonomy, self.grid = taxonomy, grid
        self.samples = 0
        self.truth = np.zeros(len(taxonomy), dtype=np.int64)
        self.predicted = np.zeros(len(taxonomy), dtype=np.int64)
        self.hits = np.zeros((len(THRESHOLDS_M), len(taxonomy)), dtype=np.int64)
        self._directions = ray_directions()

    def add(self, truth: np.ndarray, predicted: np.ndarray, origins_ego_m: np.ndarray) -> None:
        """Count the rays of one sample that end in something in the truth.

        Args:
            truth, predicted: uint8 (X, Y, Z) class ids.
            origins_ego_m: (N, 3), see `ray_origins`.

        Raises:
            InvalidInput: another shape, or a label that is no class.
        """
        from occ_core.evaluation.first_hit import first_hits

        origins = np.asarray(origins_ego_m, dtype=np.float64)
        if origins.ndim != 2 or origins.shape[1] != 3 or not np.isfinite(origins).all():
            raise InvalidInput(f"ray origins must be finite (N, 3) in metres, got {origins.shape}")
        for name, labels in (("truth", truth), ("prediction", predicted)):
            if labels.shape != self.grid.shape or labels.dtype != np.uint8:
                raise InvalidInput(f"{name} must be uint8 {self.grid.shape}, got {labels.dtype} {labels.shape}")
            if labels.max() >= len(self.taxonomy):
                raise InvalidInput(f"{name} holds label {labels.max()}, limit {len(self.taxonomy) - 1}")
        starts = np.repeat(origins, len(self._directions), axis=0)
        directions = np.tile(self._directions, (len(origins), 1))
        free, count = self.taxonomy.free_id, len(self.taxonomy)
        true_class, true_m = first_hits(truth, free, self.grid, starts, directions)
        ends = true_class != free
        true_class, true_m = true_class[ends], true_m[ends]
        found_class, found_m = first_hits(predicted, free, self.grid, starts[ends], directions[ends])
        self.truth += np.bincount(true_class, minlength=count)
        self.predicted += np.bincount(found_class, minlength=count)
        error_m = np.abs(found_m - true_m)
        for number, threshold_m in enumerate(THRESHOLDS_M):
            hit = (found_class == true_class) & (error_m < threshold_m)
            self.hits[number] += np.bincount(true_class[hit], minlength=count)
        self.samples += 1

    def merge(self, other: RayScores) -> None:
        """Add the counts of `other`."""
        self.truth += other.truth
        self.predicted += other.predicted
        self.hits += other.hits
        self.samples += other.samples

    def report(self) -> dict[str, Any]:
        """Scores in percent, and `rays`, the number of rays that count.

        at_1m, at_2m, at_4m: mean over the 17 classes at each threshold; at_1m_15, ...: without the taxonomy's ignored
        classes; rayiou_17, rayiou_15: their means over the three. per_class, and per_class_at_1m, ...: by class name.
        As in voxel scores, a class that no counted ray meets has no IoU: None, and left out of the means.
        """
        ious = iou_by_class(self.hits, self.truth + self.predicted - self.hits)
        report = class_means(ious.mean(axis=0), self.taxonomy)
        out = {f"rayiou_{kind}": report[f"miou_{kind}"] for kind in (17, 15)} | {"per_class": report["per_class"]}
        for threshold_m, iou in zip(THRESHOLDS_M, ious, strict=True):
            at = class_means(iou, self.taxonomy)
            out[f"at_{threshold_m}m"], out[f"at_{threshold_m}m_15"] = at["miou_17"], at["miou_15"]
            out[f"per_class_at_{threshold_m}m"] = at["per_class"]
        return out | {"samples": self.samples, "rays": int(self.truth.sum())}
