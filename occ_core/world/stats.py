"""Figures of a simulated data set beside those of the real samples: is the city as hard as reality?"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from occ_core.errors import MissingInput, need
from occ_core.files import write_atomically
from occ_core.images import read_rgb
from occ_core.occupancy import Occupancy, load_occ3d
from occ_core.taxonomy import OCC3D
from occ_core.world.classes import OWN_BODY
from occ_core.world.saved import keyframes, load_truth
from occ_core.world.sensors import LIDAR_MIN_M

CLASSES = len(OCC3D.names) - 1
RANGES_M = (0.0, 5.0, 10.0, 20.0, 30.0, 40.0, 60.0, 80.0, 1000.0)
MOVING_M_S = 0.5
PIXELS_PER_CLASS = 60  # per image, for the colour classifier
MAX_KEYFRAMES = 120
# Loss weights of OccNeRF's released code: 1 / sqrt(frequency), so they tell the frequencies over all of nuScenes.
OCCNERF_WEIGHTS = (
    0, 0.35, 1.74, 0.98, 0.45, 2.37, 1.87, 1.85, 4.36, 1.50, 0.55, 0.23, 0, 0.49, 0.48, 0.21, 0.31,
)  # fmt: skip


@dataclass
class SceneFigures:
    """Sums over keyframes; `summary` turns them into the figures that are shown."""

    name: str
    class_voxels: np.ndarray = field(default_factory=lambda: np.zeros(CLASSES))
    class_frames: np.ndarray = field(default_factory=lambda: np.zeros(CLASSES))
    observed: list[float] = field(default_factory=list)
    observed_lidar: list[float] = field(default_factory=list)
    returns: list[int] = field(default_factory=list)
    range_counts: np.ndarray = field(default_factory=lambda: np.zeros(len(RANGES_M) - 1))
    depth_counts: np.ndarray = field(default_factory=lambda: np.zeros(len(RANGES_M) - 1))
    sky: list[float] = field(default_factory=list)
    brightness: list[float] = field(default_factory=list)
    contrast: list[float] = field(default_factory=list)
    boxes: list[int] = field(default_factory=list)
    moving: list[int] = field(default_factory=list)

    def add_occupancy(self, occupancy: Occupancy) -> None:
        """Occupied voxels that cameras observe, as the camera-mask protocol scores them."""
        labels = occupancy.labels[occupancy.occupied]
        counts = np.bincount(labels, minlength=CLASSES)[:CLASSES]
        self.class_voxels += counts
        self.class_frames += counts > 0
        self.observed.append(float(occupancy.observed.mean()))
        if occupancy.mask_lidar is not None:
            self.observed_lidar.append(float(occupancy.mask_lidar.mean()))

    def add_image(self, image_rgb: np.ndarray) -> None:
        luma = image_rgb @ np.array([0.299, 0.587, 0.114])
        self.brightness.append(float(luma.mean()))
        self.contrast.append(float(luma.std()))

    def add_sweep(self, points_m: np.ndarray) -> None:
        distance = np.linalg.norm(points_m, axis=1)
        distance = distance[distance > LIDAR_MIN_M]
        self.returns.append(len(distance))
        self.range_counts += np.histogram(distance, RANGES_M)[0]

    def add_depth(self, depth_m: np.ndarray) -> None:
        finite = np.isfinite(depth_m)
        self.sky.append(float(1 - finite.mean()))
        self.depth_counts += np.histogram(depth_m[finite], RANGES_M)[0]

    def summary(self) -> dict[str, float | None]:
        """Figure -> value; None where the source does not hold it. Shares are percent."""
        out: dict[str, float | None] = {}
        for i in range(CLASSES):
            share = self.class_voxels[i] / self.class_voxels.sum() * 100 if self.class_voxels.sum() else None
            out[f"class share {OCC3D.names[i]} %"] = share
        out["observed by cameras %"] = _mean(self.observed, 100)
        out["observed by LiDAR %"] = _mean(self.observed_lidar, 100)
        out["occupied of observed voxels %"] = self._occupied_share()
        out["LiDAR returns a sweep"] = _mean(self.returns)
        for counts, what in ((self.range_counts, "LiDAR returns"), (self.depth_counts, "pixels")):
            for low, high, count in zip(RANGES_M[:-1], RANGES_M[1:], counts, strict=True):
                label = f"{what} {low:.0f}..{high:.0f} m %" if high < 1000 else f"{what} beyond {low:.0f} m %"
                out[label] = count / counts.sum() * 100 if counts.sum() else None
        out["sky pixels %"] = _mean(self.sky, 100)
        out["image brightness 0..255"] = _mean(self.brightness)
        out["spread of brightness over images"] = float(np.std(self.brightness)) if self.brightness else None
        out["image contrast 0..255"] = _mean(self.contrast)
        out["boxes a keyframe"] = _mean(self.boxes)
        out["moving boxes a keyframe"] = _mean(self.moving)
        return out

    def _occupied_share(self) -> float | None:
        cells = sum(self.observed) * 640_000
        return float(self.class_voxels.sum() / cells * 100) if cells else None


def _mean(values: list, scale: float = 1.0) -> float | None:
    return float(np.mean(values)) * scale if values else None


def simulated_figures(out: Path, progress: bool = True) -> tuple[SceneFigures, dict[str, float | None]]:
    """Figures of a data set of `occ world make`, and how far colour tells the class (see `color_accuracy`)."""
    figures = SceneFigures("simulated")
    entries = list(keyframes(out))
    entries = entries[:: max(1, -(-len(entries) // MAX_KEYFRAMES))]
    samples: dict[str, list[np.ndarray]] = {}
    rng = np.random.default_rng(0)
    for scene, token, files in track(entries, "keyframes", disable=not progress):
        figures.add_occupancy(load_occ3d(out / "gts" / scene / token / "labels.npz"))
        for channel, path in files.items():
            image = read_rgb(path)
            depth_m, class_id = load_truth(out, scene, token, channel)
            figures.add_image(image)
            figures.add_depth(depth_m)
            samples.setdefault(scene, []).append(_balanced_pixels(image, class_id, rng))
    _add_sweeps_and_boxes(figures, out)
    return figures, color_accuracy({scene: np.concatenate(rows) for scene, rows in samples.items()})


def _balanced_pixels(image: np.ndarray, class_id: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sample pixels, uint8 (N, 4): red, green, blue, class, with at most PIXELS_PER_CLASS of each class."""
    rows = []
    flat, colors = class_id.ravel(), image.reshape(-1, 3)
    for c in np.unique(flat[flat != OWN_BODY]):
        where = np.flatnonzero(flat == c)
        pick = rng.choice(where, min(PIXELS_PER_CLASS, len(where)), replace=False)
        rows.append(np.column_stack([colors[pick], np.full(len(pick), c, dtype=np.uint8)]))
    return np.concatenate(rows).astype(np.uint8)


def color_accuracy(samples: dict[str, np.ndarray]) -> dict[str, float | None]:
    """Mean class accuracy, percent, of a random forest that sees one pixel's colour, on scenes it was not trained on.

    Args:
        samples: scene -> uint8 (N, 4): red, green, blue, class. Every second scene is held out.
    """
    ensemble = need("sklearn.ensemble", "world")
    names = sorted(samples)
    key = "class from one pixel's colour %"
    key_sky = key + " (sky included)"
    if len(names) < 2:
        return {key: None, key_sky: None}
    train, test = (np.concatenate([samples[n] for n in names[i::2]]) for i in (0, 1))
    forest = ensemble.RandomForestClassifier(40, min_samples_leaf=20, class_weight="balanced", random_state=0, n_jobs=1)
    forest.fit(train[:, :3], train[:, 3])
    guess = forest.predict(test[:, :3])
    recall = {c: float((guess[test[:, 3] == c] == c).mean()) for c in np.unique(test[:, 3])}
    solid = [r for c, r in recall.items() if c != OCC3D.free_id]
    return {key: 100 * float(np.mean(solid)), key_sky: 100 * float(np.mean(list(recall.values())))}


def _add_sweeps_and_boxes(figures: SceneFigures, dataroot: Path) -> None:
    """LiDAR keyframes and annotations of any data set in nuScenes layout."""
    folder = next(iter(sorted(dataroot.glob("v1.0-*"))), None)
    if folder is None:
        raise MissingInput(f"{dataroot}: no table folder v1.0-*")
    tables = {n: json.loads((folder / f"{n}.json").read_text()) for n in ("sample_data", "sample_annotation", "sample")}
    for row in tables["sample_data"]:
        path = dataroot / row["filename"]
        if row["is_key_frame"] and row["filename"].endswith(".pcd.bin") and path.is_file():
            figures.add_sweep(np.fromfile(path, dtype=np.float32).reshape(-1, 5)[:, :3])
    stamp = {row["token"]: row["timestamp"] * 1e-6 for row in tables["sample"]}
    by_token = {row["token"]: row for row in tables["sample_annotation"]}
    boxes = dict.fromkeys(stamp, 0)
    moving = dict.fromkeys(stamp, 0)
    for row in by_token.values():
        boxes[row["sample_token"]] += 1
        before, after = (by_token.get(row[k], row) for k in ("prev", "next"))
        seconds = stamp[after["sample_token"]] - stamp[before["sample_token"]]
        if seconds > 0:
            step = np.linalg.norm(np.subtract(after["translation"], before["translation"]))
            moving[row["sample_token"]] += step / seconds > MOVING_M_S
    if by_token:
        figures.boxes += boxes.values()
        figures.moving += moving.values()


def real_figures(root: Path) -> list[SceneFigures]:
    """Figures of the real samples that lie below `root`; sets that are absent are left out."""
    out = []
    for folder, name in (
        ("nuscenes_scene0061_1kf", "scene-0061"),
        ("nuscenes_scene0103_4kf", "scene-0103"),
        ("ddad_dgp_scene02/nuscenes_style", "DDAD"),
    ):
        if (root / folder).is_dir():
            figures = SceneFigures(name)
            _add_sweeps_and_boxes(figures, root / folder)
            for path in sorted((root / folder / "samples").glob("CAM_*/*")):
                figures.add_image(read_rgb(path, smaller=2))
            out.append(figures)
    grids = sorted((root / "occ3d_labels").glob("*/labels.npz"))
    if grids:
        figures = SceneFigures("Occ3D grid")
        for path in grids:
            figures.add_occupancy(load_occ3d(path))
        out.append(figures)
    if not out:
        raise MissingInput(f"{root}: none of the real samples is here (nuscenes_scene0061_1kf, occ3d_labels, ...)")
    return out


def implied_shares() -> dict[str, float | None]:
    """Class shares over nuScenes that OccNeRF's loss weights imply, percent; it leaves out others and other_flat."""
    share = np.array([1 / w**2 if w else 0.0 for w in OCCNERF_WEIGHTS])
    share *= 100 / share.sum()
    return {f"class share {OCC3D.names[i]} %": float(share[i]) or None for i in range(CLASSES)}


def report(out: Path, real: Path | None, json_file: Path | None) -> None:
    """Print the table of `occ world stats`, and write it as json."""
    figures, color = simulated_figures(out)
    columns: dict[str, dict[str, float | None]] = {"simulated": figures.summary() | color}
    if real is not None:
        columns |= {f.name: f.summary() for f in real_figures(real)}
        columns["OccNeRF weights"] = implied_shares()
    table = Table(title=f"{out}: {len(figures.observed)} keyframes", header_style="bold")
    table.add_column("figure", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right")
    for row in columns["simulated"]:
        values = [column.get(row) for column in columns.values()]
        if any(v is not None for v in values):
            table.add_row(row, *("" if v is None else f"{v:.3g}" if v < 1000 else f"{v:.0f}" for v in values))
    console = Console()
    if not console.is_terminal:  # a pipe or a file has no width to keep to
        console = Console(width=140)
    console.print(table)
    if json_file is not None:
        write_atomically(json_file, json.dumps(columns, indent=1).encode())
