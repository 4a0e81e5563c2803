"""Samples for networks by table, read from scenes that are decoded and tabulated already.

A batch depends on the run's seed and its own number alone, so that a resumed run sees what an unbroken one would have
seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import torch

from occ_core.models.easyocc.config import EasyOccConfig
from occ_core.models.easyocc.inputs import SampleSequence, TableImages, TableTargets
from occ_core.models.easyocc.past import StampedPose, refusal, then_from_now
from occ_core.models.easyocc.settings import NanoTraining
from occ_core.models.easyocc.table import leaning_rays, mirrored_rays
from occ_core.training.augment import (
    TURNS,
    TabulatedSample,
    mirror,
    pick_columns,
    read_sample,
    recolour,
    retextured,
    turn,
    zoomed,
)
from occ_core.training.cache import SceneCache
from occ_core.training.config import TrainingConfig
from occ_core.training.keyframes import Keyframe, KeyframeSource, names_of
from occ_core.training.samples import Sample, SampleDataset

HEIGHT_OFF = 0.03  # standard deviation of the factor on a camera's height, where rays lean
RARE = 0.02  # share of the occupied cells below which a class is rare: columns that have it are picked first


class TabulatedDataset:
    """A data set of whole samples.

    Args:
        scenes: what is read. sources: what these were made from.
        judged: samples are given as they are, with all their labels.
    """

    needs = frozenset({"labels", "class_map"})
    counted_cells, counted_pixels = 200, 1 << 62  # as of `SampleDataset`; pixels of all samples, which are small
    order_stream, augmentation_stream = 2, 1  # numbers of the random streams of their order and of what is done to them

    def __init__(
        self,
        scenes: Sequence[SceneCache],
        config: TrainingConfig,
        judged: bool = False,
        sources: Sequence[KeyframeSource] = (),
    ) -> None:
        self.scenes, self.config, self.judged, self.sources = list(scenes), config, judged, list(sources)
        self.model = cast(EasyOccConfig, config.model)
        self.indices = self._list_indices()

    @property
    def batch_size(self) -> int:
        return self.config.batch_size

    def _list_indices(self) -> list[tuple[int, ...]]:
        return [(s, i) for s, scene in enumerate(self.scenes) for i in range(len(scene.tokens))]

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Sample]:
        return (self.batch([(0, index)]) for index in range(len(self)))

    @property
    def names(self) -> list[str]:
        """Names of the samples, unique within a data set."""
        return names_of(self.sources)

    def keyframe(self, index: int) -> tuple[KeyframeSource, Keyframe]:
        """Which sample of which data set."""
        number, (s, i) = 0, self.indices[index]
        for source in self.sources:
            scenes = list(source.scenes.values())
            if s < number + len(scenes):
                return source, scenes[s - number][i]
            number += len(scenes)
        raise IndexError(index)

    @property
    def labelled(self) -> list[int]:
        return list(range(len(self)))

    def scene_of(self, index: int) -> int:
        """The number of a sample's scene."""
        return self.indices[index][0]

    def fewest_cameras(self) -> int:
        return min(scene["present"].shape[1] for scene in self.scenes)

    def neighbour_gap_s(self) -> float | None:
        return None

    def files(self) -> Iterator[Path]:
        """No files: they were read when the scenes were decoded."""
        return iter(())

    def labels(self, index: int) -> np.ndarray:
        return self._array("labels", index)

    def class_map(self, index: int) -> np.ndarray:
        """The class in which each feature pixel's ray ends, uint8 (N, h, w)."""
        return self._array("pixel_class", index)

    def _array(self, name: str, index: int) -> np.ndarray:
        s, i = self.indices[index]
        return self.scenes[s][name][i]

    def of(self, kind: str) -> TabulatedDataset:
        """The data set of another kind of samples from the same scenes."""
        own = {"samples": TabulatedDataset, "images": TabulatedImageDataset, "sequences": TabulatedSequenceDataset}[
            kind
        ]
        return own(self.scenes, self.config, self.judged, self.sources)

    def batch(self, keys: Sequence[tuple[int, int]]) -> Sample:
        """Read samples by (serial number, index) and put them into one batch."""
        if self.judged:
            return self._judged([index for _, index in keys])
        rng = self._chance(keys)
        samples, columns = [], []
        for _, index in keys:
            samples.append(self.augmented(index, rng))
            columns.append(pick_columns(samples[-1].labels, self.config.nano.columns, self._rare, rng))
        return Sample(stacked(samples, self.model), targets_of(samples, columns, self.config.nano))

    def _judged(self, indices: Sequence[int]) -> Sample:
        samples = [read_sample(self.scenes[s], i, self.model) for s, i in (self.indices[index] for index in indices)]
        inputs, targets = stacked(samples, self.model), targets_of(samples, [], self.config.nano)
        pose = self.stamped_pose(indices[0]) if len(indices) == 1 else None
        return Sample(
            replace(inputs, pose=pose),
            replace(targets, labels=torch.from_numpy(np.stack([sample.labels for sample in samples]))),
        )

    def stamped_pose(self, index: int) -> StampedPose | None:
        """When and where the robot was; None if nobody said where."""
        s, i = self.indices[index]
        scene = self.scenes[s]
        stamp_ns, pose, rig = (scene[name][i] for name in ("stamp_ns", "world_from_ego", "rig"))
        if np.isnan(pose).any():
            return None
        return StampedPose(int(stamp_ns), np.array(pose), f"{s} {scene.name}", str(int(rig)))

    def _chance(self, keys: Sequence[tuple[int, int]]) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, self.augmentation_stream, keys[0][0] // self.batch_size])

    def augmented(self, index: int, rng: np.random.Generator) -> TabulatedSample:
        """Read a sample, and mirror, turn and recolour it and drop cameras at random."""
        c, (s, i) = self.config, self.indices[index]
        scene = self.scenes[s]
        dropped = np.flatnonzero(rng.random(scene["present"].shape[1]) < c.camera_dropout)
        sample = read_sample(scene, i, self.model, dropped.tolist())
        if rng.random() < c.nano.flip:
            sample = mirror(sample, self.model)
        if rng.random() < c.nano.turn:
            sample = turn(sample, int(rng.choice(TURNS)), self.model)
        return replace(sample, images=recolour(sample.images, c.color_jitter, rng))

    @cached_property
    def _rare(self) -> np.ndarray:
        """Whether each label is of a rare class, bool (256,)."""
        some = range(0, len(self), max(1, len(self) // self.counted_cells))
        counts = sum((np.bincount(self.labels(i).ravel(), minlength=256) for i in some), np.zeros(256, dtype=np.int64))
        rare, counts = np.zeros(256, dtype=bool), counts[: len(self.model.classes)]
        occupied = np.sort(counts)[:-1].sum()  # the free class is the largest in any label set
        rare[: len(counts)] = counts < RARE * occupied
        return rare


class TabulatedSequenceDataset(TabulatedDataset):
    """A data set of sequences: samples with some before them, all of a sequence mirrored, recoloured and dropped alike.

    How many there are before is drawn for each batch; none, too, so that the network still answers alone.
    """

    augmentation_stream = 5

    def batch(self, keys: Sequence[tuple[int, int]]) -> Sample:
        """Read sequences by (serial number, index of the newest sample) and put them into one batch."""
        rng, nano = self._chance(keys), self.config.nano
        before = int(rng.integers(nano.memory_frames + 1))
        rows = [self._row(index, before, rng) for _, index in keys]
        columns = [pick_columns(row[-1].labels, nano.columns, self._rare, rng) for row in rows]
        newest = [row[-1] for row in rows]
        return Sample(sequence_batch(rows, self.model), targets_of(newest, columns, nano))

    def _row(self, index: int, before: int, rng: np.random.Generator) -> list[TabulatedSample]:
        """A sample and at most `before` samples before it, as far back as a network may remember."""
        first = index
        while first > 0 and index - first < before and self._follows(first):
            first -= 1
        alike = int(rng.integers(2**32))
        return [self.augmented(i, np.random.default_rng(alike)) for i in range(first, index + 1)]

    def _follows(self, index: int) -> bool:
        then, now = self.stamped_pose(index - 1), self.stamped_pose(index)
        return then is not None and now is not None and refusal(then, now) is None


class TabulatedImageDataset(TabulatedDataset):
    """A data set of single images, of any camera of any sample."""

    order_stream, augmentation_stream = 4, 3

    @property
    def batch_size(self) -> int:
        return self.config.nano.image_batch

    def _list_indices(self) -> list[tuple[int, ...]]:
        present = [np.argwhere(scene["present"]).tolist() for scene in self.scenes]
        return [(s, i, camera) for s, pairs in enumerate(present) for i, camera in pairs]

    def batch(self, keys: Sequence[tuple[int, int]]) -> Sample:
        """Read images by (serial number, index) and put them into one batch."""
        rng = self._chance(keys)
        rows = [self._image(index, rng) for _, index in keys]
        images, depth, classes, rays = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*rows, strict=True))
        return Sample(TableImages(images, rays), TableTargets(depth, classes, settings=self.config.nano))

    def _image(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """Image, depth, pixel_class and rays of one image, zoomed, mirrored and recoloured at random."""
        (s, i, camera), c = self.indices[index], self.config
        scene = self.scenes[s]
        image, depth, classes = (scene[name][i, camera] for name in ("images", "depth", "pixel_class"))
        rays = scene["rays"][int(scene["rig"][i]), camera]
        if rng.random() < c.nano.zoom:
            image, depth, classes, rays = zoomed(scene, i, camera, self.model, rng)
        if rng.random() < c.nano.flip:
            image, depth, classes = image[:, ::-1], depth[:, ::-1], classes[:, ::-1]
            rays = mirrored_rays(rays)
        if c.nano.lean_deg:
            lean_rad = np.radians(rng.normal(0, c.nano.lean_deg, 2))
            rays = leaning_rays(np.array(rays), lean_rad, rng.normal(1, HEIGHT_OFF))
        if c.nano.retexture and rng.random() < c.nano.retexture:
            image = retextured(np.ascontiguousarray(image), rng)
        return recolour(np.ascontiguousarray(image)[None], c.color_jitter, rng)[0], depth, classes, rays


Samples = SampleDataset | TabulatedDataset
"""What a run reads: each sample decoded anew, or from what is decoded and tabulated already."""


def stacked(samples: Sequence[TabulatedSample], config: EasyOccConfig) -> TableImages:
    """Put samples into one batch; the index tables are shifted so that all samples share one row matrix and its one
    zero row."""
    w, h = config.feature_size

    def joined(name: str, rows_per_camera: int) -> torch.Tensor:
        total = sum(len(s.table.rays) for s in samples) * rows_per_camera
        parts, start = [], 0
        for sample in samples:
            own = len(sample.table.rays) * rows_per_camera
            index = getattr(sample.table, name)
            parts.append(np.where(index == own, total, index + start) if len(samples) > 1 else index)
            start += own
        return torch.from_numpy(np.concatenate(parts).astype(np.int32))

    return TableImages(
        torch.from_numpy(np.concatenate([s.images for s in samples])),
        torch.from_numpy(np.concatenate([s.table.rays for s in samples])),
        joined("voxel_index", h * w * config.depth_bins),
        joined("pillar_index", h * w),
    )


def targets_of(
    samples: Sequence[TabulatedSample], columns: Sequence[np.ndarray], settings: NanoTraining
) -> TableTargets:
    """Make the targets of a batch; `columns` holds each sample's indices into its (X, Y), or is empty."""
    picked = labels = None
    if columns:
        x, y, z = samples[0].labels.shape
        of = zip(samples, columns, strict=True)
        labels = torch.from_numpy(np.concatenate([s.labels.reshape(x * y, z)[c] for s, c in of]))
        picked = torch.from_numpy(np.concatenate([c + i * x * y for i, c in enumerate(columns)]))
    depth, classes = (
        torch.from_numpy(np.concatenate([getattr(s, name) for s in samples])) for name in ("depth", "pixel_class")
    )
    return TableTargets(depth, classes, picked, labels, settings=settings)


def sequence_batch(rows: Sequence[Sequence[TabulatedSample]], config: EasyOccConfig) -> SampleSequence:
    """Put rows of samples, the newest last, into one batch; a row that begins later than others waits with its first
    sample."""
    length = max(map(len, rows))
    linked = np.zeros((length - 1, len(rows)), dtype=bool)
    motion = np.zeros((length - 1, len(rows), 2, 3), dtype=np.float32)
    for b, row in enumerate(rows):
        for k, (then, now) in enumerate(pairwise(row), start=length - len(row)):
            linked[k, b], motion[k, b] = True, then_from_now(then.world_from_ego, now.world_from_ego)
    waiting = [[row[0]] * (length - len(row)) + list(row) for row in rows]
    samples = tuple(stacked(samples, config) for samples in zip(*waiting, strict=True))
    return SampleSequence(samples, torch.from_numpy(linked), torch.from_numpy(motion))
