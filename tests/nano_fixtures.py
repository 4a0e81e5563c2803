"""Scenes as EasyOcc nano's training reads them, made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from model_fixtures import SMALL, ring_rig

from occ_core.geometry import pose
from occ_core.inference.table import build_table
from occ_core.models.easyocc.config import EasyOccConfig
from occ_core.taxonomy import OCC3D
from occ_core.training.cache import SceneCache
from occ_core.training.config import TrainingConfig
from occ_core.training.rays import ray_targets

if TYPE_CHECKING:
    from occ_core.training.moments import Moment
    from occ_core.training.tabulated import TabulatedMoments

ROAD, CAR, WALL, FREE, UNSEEN = OCC3D.id_of("driveable_surface"), OCC3D.id_of("car"), OCC3D.id_of("manmade"), 17, 255
PERIOD_NS = 500_000_000


def hand_made(name: str, samples: int = 3, seed: int = 0) -> SceneCache:
    """Images whose brightness tells how far the wall ahead is, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    rig = ring_rig()
    table = build_table(rig, SMALL)
    labels = np.full((samples, *SMALL.grid_shape), FREE, dtype=np.uint8)
    labels[..., 1] = ROAD
    images = rng.integers(0, 60, (samples, 4, 64, 128, 3), dtype=np.uint8)
    for i in range(samples):
        x = int(rng.integers(24, 38))
        labels[i, x:, :, 1:] = WALL
        labels[i, 22, 10 + i, 2] = CAR
        images[i] += np.uint8(5 * x)
    labels[:, :, :2] = UNSEEN
    rays = [ray_targets(label, rig, SMALL) for label in labels]
    depth, classes = (np.stack(part) for part in zip(*rays, strict=True))
    arrays = {"images": images, "present": np.ones((samples, 4), dtype=bool), "labels": labels, "depth": depth}
    arrays |= {"pixel_class": classes, "rig": np.zeros(samples, dtype=np.int64)}
    arrays |= {"stamp_ns": 10**18 + np.arange(samples) * PERIOD_NS, "world_from_ego": driven(samples)}
    arrays |= {key: value[None] for key, value in vars(table).items()}
    arrays |= {"origins_ego_m": np.stack([camera.ego_from_cam[:3, 3] for camera in rig])[None]}
    arrays |= {"own": np.zeros((1, 4, *SMALL.feature_size[::-1]), dtype=bool)}
    return SceneCache(name, [f"{name}-{i}" for i in range(samples)], arrays.__getitem__)


def driven(samples: int) -> np.ndarray:
    """world_from_ego (S, 4, 4) of a slow bend to the left, from somewhere in the world."""
    start = pose((100.0, -50.0, 0.0), (np.cos(0.6), 0.0, 0.0, np.sin(0.6)))
    step = pose((1.6, 0.0, 0.0), (np.cos(0.05), 0.0, 0.0, np.sin(0.05)))
    return np.stack([start @ np.linalg.matrix_power(step, i) for i in range(samples)])


def judged(*scenes: SceneCache, config: EasyOccConfig = SMALL) -> TabulatedMoments:
    """Their moments one by one, with all labels."""
    from occ_core.training.tabulated import TabulatedMoments

    return TabulatedMoments(scenes, TrainingConfig(model=config), judged=True)


def drawn(scenes: list[SceneCache], config: TrainingConfig, kind: str = "moments", step: int = 0) -> Iterator[Moment]:
    """Batches of a phase, as one process draws them."""
    from occ_core.training.steps import Steps
    from occ_core.training.tabulated import TabulatedMoments

    samples = TabulatedMoments(scenes, config).of(kind)
    return map(samples.batch, Steps(len(samples), config.seed, samples.batch_size, 1, 0, 1, step, stream=samples.order))


def use_scenes(monkeypatch: Any, *parts: list[SceneCache]) -> None:
    """Train on, fit on and judge by such scenes, whatever data a run names."""
    from occ_core.training import lessons
    from occ_core.training.data_sets import Held
    from occ_core.training.tabulated import TabulatedMoments

    def held(config: TrainingConfig, *_: Any) -> Held:
        samples = [TabulatedMoments(scenes, config, judged=i > 0) for i, scenes in enumerate(parts)]
        return Held(samples[0], samples[1], samples[2], *([scene.name for scene in part] for part in parts[1:]))

    monkeypatch.setattr(lessons, "open_data", held)


def open_scenes(root: Path, labels: str, config: EasyOccConfig, cache: Path, **changes: Any) -> list[SceneCache]:
    """All scenes of a data set as a run on all of them opens them."""
    from occ_core.training.data_sets import open_data

    fields = {"validation_scenes": 0, "nano": {"threshold_scenes": 0}, **changes}
    run = TrainingConfig(model=config, data=(root,), labels=labels, cache=cache, **fields)
    return open_data(run, config.needs, print).training.scenes
