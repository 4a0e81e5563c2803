"""Batches from cached scenes: drawn, mirrored, recoloured, cameras dropped; and the columns that the loss reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import cv2
import numpy as np
import torch
from torch import Tensor

from occ_core.losses.ray import IGNORE
from occ_core.models.easyocc.config import STRIDE, EasyOccConfig
from occ_core.models.easyocc.table import Table, mirrored, mirrored_rays, turned, zoomed_rays
from occ_core.training.cache import SceneCache
from occ_core.training.config import TrainingConfig
from occ_core.training.rays import march

TURNS = (1, 2, 2, 3)  # quarters: a street that still lies along the robot teaches more than one across
MOST_ZOOM = 1.7  # beyond, an image is too coarse to be one of a longer lens
QUARTER = np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # counter-clockwise around z


@dataclass(frozen=True, eq=False)
class Sample:
    """One moment as the network sees it; arrays as in SceneCache, without the sample axis."""

    images: np.ndarray
    labels: np.ndarray
    depth: np.ndarray
    pixel_class: np.ndarray
    table: Table
    world_from_ego: np.ndarray


@dataclass(frozen=True, eq=False)
class Batch:
    """B samples on top of each other; `columns` index (B, X, Y), `column_labels` are theirs, (K, Z)."""

    images: np.ndarray
    depth: np.ndarray
    pixel_class: np.ndarray
    voxel_index: np.ndarray
    pillar_index: np.ndarray
    rays: np.ndarray
    columns: np.ndarray
    column_labels: np.ndarray


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """N images, each of any camera of any sample."""

    images: np.ndarray
    depth: np.ndarray
    pixel_class: np.ndarray
    rays: np.ndarray


def read_sample(scene: SceneCache, i: int, config: EasyOccConfig, dropped: Sequence[int] = ()) -> Sample:
    """Sample `i` of a scene; cameras that have no image, and `dropped` ones, see nothing."""
    rig = int(scene["rig"][i])
    table = Table(*(scene[name][rig] for name in ("voxel_index", "pillar_index", "rays")))
    blind = set(np.flatnonzero(~scene["present"][i]).tolist()) | set(dropped)
    images, labels, depth, pixel_class = (np.array(scene[k][i]) for k in ("images", "labels", "depth", "pixel_class"))
    depth[~scene["present"][i]] = pixel_class[~scene["present"][i]] = IGNORE
    table = without_cameras(table, blind, config)
    return Sample(images, labels, depth, pixel_class, table, np.array(scene["world_from_ego"][i]))


def without_cameras(table: Table, blind: set[int], config: EasyOccConfig) -> Table:
    """The table with the cells of `blind` cameras pointed at the zero row."""
    if not blind:
        return table
    w, h = config.feature_size

    def cut(index: np.ndarray, rows_per_camera: int) -> np.ndarray:
        index = np.array(index)
        camera = index // rows_per_camera
        index[np.isin(camera, list(blind))] = len(table.rays) * rows_per_camera
        return index

    return Table(cut(table.voxel_index, h * w * config.depth_bins), cut(table.pillar_index, h * w), table.rays)


def mirror(sample: Sample, config: EasyOccConfig) -> Sample:
    """The same moment in a mirror: left and right of the ego swapped, and of the world, where it will turn left."""
    swap = np.diag([1.0, -1, 1, 1])
    return Sample(
        np.ascontiguousarray(sample.images[:, :, ::-1]),
        np.ascontiguousarray(sample.labels[:, ::-1]),
        np.ascontiguousarray(sample.depth[..., ::-1]),
        np.ascontiguousarray(sample.pixel_class[..., ::-1]),
        mirrored(sample.table, config),
        swap @ sample.world_from_ego @ swap,
    )


def turn(sample: Sample, quarters: int, config: EasyOccConfig) -> Sample:
    """The same moment on a robot that stands turned clockwise: the world turned counter-clockwise around it."""
    labels = np.ascontiguousarray(np.rot90(sample.labels, quarters))
    world_from_turned = sample.world_from_ego @ np.linalg.matrix_power(QUARTER, -quarters)
    return replace(
        sample, labels=labels, table=turned(sample.table, quarters, config), world_from_ego=world_from_turned
    )


def recolour(images: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Random gain and gamma per channel and offset per camera, uint8 in and out."""
    out = np.empty_like(images)
    levels = np.arange(256) / 255.0
    common = rng.uniform(1 - strength, 1 + strength)
    for i, image in enumerate(images):
        gamma = np.exp(rng.normal(0, strength, 1))
        gain = common * rng.uniform(1 - strength / 2, 1 + strength / 2, 3)
        offset = rng.normal(0, strength / 4)
        table = levels[:, None] ** gamma * gain + offset
        lut = np.clip(np.rint(table * 255), 0, 255).astype(np.uint8)
        out[i] = cv2.LUT(image, lut[:, None])
    return out


def pick_columns(labels: np.ndarray, count: int, rare: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices into (X, Y) of at most `count` columns: rare classes first, then others in view, 1/8 all hidden ones.

    Args:
        labels: uint8 (X, Y, Z). rare: bool (256,) by label.
    """
    columns = labels.reshape(-1, labels.shape[-1])
    in_view = (columns != IGNORE).any(axis=1)
    observed, hidden = np.flatnonzero(in_view), rng.permutation(np.flatnonzero(~in_view))[: count // 8]
    special = rare[columns[observed]].any(axis=1)
    first, rest = observed[special], observed[~special]
    first = rng.permutation(first)[: count // 2]
    rest = rng.permutation(rest)[: count - len(first) - len(hidden)]
    return np.sort(np.concatenate([first, rest, hidden]))


def collate(samples: list[Sample], columns: list[np.ndarray], config: EasyOccConfig) -> Batch:
    """One batch; the index tables are shifted so that all samples share one row matrix and its one zero row."""
    w, h = config.feature_size
    x, y, z = config.grid_shape

    def joined(name: str, rows_per_camera: int) -> np.ndarray:
        total = sum(len(s.table.rays) for s in samples) * rows_per_camera
        parts, start = [], 0
        for sample in samples:
            own = len(sample.table.rays) * rows_per_camera
            index = getattr(sample.table, name)
            parts.append(np.where(index == own, total, index + start) if len(samples) > 1 else index)
            start += own
        return np.concatenate(parts).astype(np.int32)

    return Batch(
        np.concatenate([s.images for s in samples]),
        np.concatenate([s.depth for s in samples]),
        np.concatenate([s.pixel_class for s in samples]),
        joined("voxel_index", h * w * config.depth_bins),
        joined("pillar_index", h * w),
        np.concatenate([s.table.rays for s in samples]),
        np.concatenate([c + i * x * y for i, c in enumerate(columns)]),
        np.concatenate([s.labels.reshape(x * y, z)[c] for s, c in zip(samples, columns, strict=True)]),
    )


def tensors_of(batch: Batch | ImageBatch) -> dict[str, Tensor]:
    """The same arrays as torch tensors, without a copy."""
    return {name: torch.from_numpy(array) for name, array in vars(batch).items()}


class Draw:
    """An endless, seeded stream of training batches: each epoch visits every sample once, in random order."""

    def __init__(self, scenes: list[SceneCache], rare: np.ndarray, config: TrainingConfig, step: int = 0):
        self.scenes, self.rare, self.config = scenes, rare, config
        self.model = cast(EasyOccConfig, config.model)
        self.places = [(s, i) for s, scene in enumerate(scenes) for i in range(len(scene.tokens))]
        self.step = step

    def __next__(self) -> Batch:
        """Depends on the seed and the step alone, so that a resumed run sees what an unbroken one would have seen."""
        c = self.config
        rng = np.random.default_rng([c.seed, 1, self.step])
        samples, columns = [], []
        for k in range(c.batch_size):
            samples.append(self.augmented(*self.place(k), rng))
            columns.append(pick_columns(samples[-1].labels, c.nano.columns, self.rare, rng))
        self.step += 1
        return collate(samples, columns, self.model)

    def place(self, k: int) -> tuple[SceneCache, int]:
        """Scene and number of the batch's `k`th sample."""
        epoch, place = divmod(self.step * self.config.batch_size + k, len(self.places))
        order = np.random.default_rng([self.config.seed, 2, epoch]).permutation(len(self.places))
        scene, i = self.places[order[place]]
        return self.scenes[scene], i

    def augmented(self, scene: SceneCache, i: int, rng: np.random.Generator) -> Sample:
        """Sample `i` of a scene: mirrored, recoloured, without some cameras."""
        c = self.config
        dropped = np.flatnonzero(rng.random(scene["present"].shape[1]) < c.camera_dropout)
        sample = read_sample(scene, i, self.model, dropped.tolist())
        if rng.random() < c.nano.flip:
            sample = mirror(sample, self.model)
        if rng.random() < c.nano.turn:
            sample = turn(sample, int(rng.choice(TURNS)), self.model)
        return replace(sample, images=recolour(sample.images, c.color_jitter, rng))


class DrawImages:
    """The same of single images, for the steps on the image network alone."""

    def __init__(self, scenes: list[SceneCache], config: TrainingConfig, step: int = 0):
        self.scenes, self.config, self.step = scenes, config, step
        self.model = cast(EasyOccConfig, config.model)
        present = [np.argwhere(scene["present"]).tolist() for scene in scenes]
        self.places = [(s, i, camera) for s, places in enumerate(present) for i, camera in places]

    def __next__(self) -> ImageBatch:
        c = self.config
        rng = np.random.default_rng([c.seed, 3, self.step])
        rows = []
        for k in range(c.nano.image_batch):
            epoch, place = divmod(self.step * c.nano.image_batch + k, len(self.places))
            order = np.random.default_rng([c.seed, 4, epoch]).permutation(len(self.places))
            rows.append(self._augmented(self.places[order[place]], rng))
        self.step += 1
        return ImageBatch(*(np.stack(arrays) for arrays in zip(*rows, strict=True)))

    def _augmented(self, place: tuple[int, int, int], rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        s, i, camera = place
        scene, c = self.scenes[s], self.config
        image, depth, classes = (scene[name][i, camera] for name in ("images", "depth", "pixel_class"))
        rays = scene["rays"][int(scene["rig"][i]), camera]
        if rng.random() < c.nano.zoom:
            image, depth, classes, rays = zoomed(scene, i, camera, self.model, rng)
        if rng.random() < c.nano.flip:
            image, depth, classes = image[:, ::-1], depth[:, ::-1], classes[:, ::-1]
            rays = mirrored_rays(rays)
        return recolour(np.ascontiguousarray(image)[None], c.color_jitter, rng)[0], depth, classes, rays


def zoomed(
    scene: SceneCache, i: int, camera: int, config: EasyOccConfig, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """A part of an image as a longer lens would have shown it: image, depth, pixel_class and rays as of ImageBatch.

    What each ray meets is asked of the labels again, for a target moved by half a feature pixel would err by metres.
    """
    rig, (w, h) = int(scene["rig"][i]), config.feature_size
    zoom = MOST_ZOOM ** rng.random()
    # feature pixels from the corner of the whole image to that of the part; no ray's centre leaves the outer centres
    least = (1 - 1 / zoom) / 2
    left, top = (rng.uniform(least, n - n / zoom - least) for n in (w, h))
    part = np.array([[1 / zoom, 0, (left + 0.5 / STRIDE / zoom) * STRIDE - 0.5]
                     , [0, 1 / zoom, (top + 0.5 / STRIDE / zoom) * STRIDE - 0.5]])  # fmt: skip
    size = config.input_width, config.input_height
    image = cv2.warpAffine(scene["images"][i, camera], part, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    columns, rows = (start + (np.arange(n) + 0.5) / zoom - 0.5 for start, n in ((left, w), (top, h)))
    rays = zoomed_rays(np.array(scene["rays"][rig, camera]), rows, columns, zoom)
    directions = rays[:3].transpose(1, 2, 0).astype(np.float64)
    depth, classes = march(scene["labels"][i], scene["origins_ego_m"][rig, camera], directions, config)
    own = scene["own"][rig, camera][rows.round().astype(int)[:, None], columns.round().astype(int)]
    ignored = np.uint8(IGNORE)
    return image, np.where(own, ignored, depth), np.where(own, ignored, classes), rays
