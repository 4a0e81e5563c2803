"""How camera networks learn: moments read by worker processes, losses that each network brings along."""

from __future__ import annotations

import hashlib
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from occ_core.errors import InvalidInput, OccError
from occ_core.evaluation.voxel_iou import confusion_matrix
from occ_core.files import default_cache
from occ_core.frame import FULL_INTENSITY
from occ_core.models.config import CameraModelConfig
from occ_core.sources.open import Choice, FrameSource, frame_files, left_out, open_source
from occ_core.teachers.base import Teachers
from occ_core.teachers.load import load_teachers
from occ_core.training.config import TrainingConfig
from occ_core.training.counts import count_classes
from occ_core.training.file_check import require_files
from occ_core.training.hold_out import hold_out
from occ_core.training.label_files import IGNORE, open_labels
from occ_core.training.moments import (
    NEEDS,
    Augmentation,
    Keyframe,
    Moment,
    Moments,
    MomentSource,
    collate,
)
from occ_core.training.ranks import Ranks
from occ_core.training.steps import Steps


class RigLessons:
    """See `lessons.Lessons`."""

    fitted: frozenset[str] = frozenset()

    def __init__(self, config: TrainingConfig, ranks: Ranks, told: Callable[[str], None]) -> None:
        self.config, self.ranks = config, ranks
        self.model = cast(CameraModelConfig, config.model)
        self.taxonomy = self.model.classes
        self.phases: tuple[int, ...] = (config.steps,)
        self.needs = needs_of(config)
        self.data = open_data(config, self.needs, told)
        self.record = data_record(self.data)
        told("how often each class occurs")
        counts = count_classes(self.data.training, self.needs, self.taxonomy, ranks)
        self.record |= counts.record
        self.weights = {name: tensor.to(ranks.device) for name, tensor in counts.weights.items()}

    def batches(self, first_step: int) -> Iterator[Moment]:
        """This process's share; read by `workers` processes, ahead of the steps."""
        c = self.config
        rank, world = self.ranks.rank, self.ranks.world
        moments = self.data.training
        order = Steps(
            len(moments),
            c.seed,
            c.batch_size,
            c.accumulate,
            rank,
            world,
            first_step,
            moments.labelled,
            c.labelled_share,
        )
        return self._loader(moments, order)

    def losses(self, network: nn.Module, batch: Moment, progress: float, average: nn.Module) -> dict[str, Tensor]:
        """The network's own; one that learns from its average is given it."""
        rig_images, targets = batch.to(self.ranks.device)
        teacher = (average,) if self.model.mean_teacher else ()
        return network(rig_images, replace(targets, **self.weights), progress, *teacher)

    def fit(self, average: nn.Module) -> None:
        """Nothing to fit."""

    @torch.inference_mode()
    def confusion(self, average: nn.Module) -> np.ndarray | None:
        """Of this process's share of the held-out moments, cells that a camera observes."""
        held_out = self.data.validation
        if not len(held_out):
            return None
        average.eval()
        matrix = np.zeros((len(self.taxonomy), len(self.taxonomy)), dtype=np.int64)
        own = [[(0, i)] for i in range(self.ranks.rank, len(held_out), self.ranks.world)]
        for batch in self._loader(held_out, own):
            answer = cast(Any, average).answer(batch.rig_images.to(self.ranks.device))
            truth = cast(Tensor, batch.targets.labels).numpy()
            matrix += confusion_matrix(truth, answer.labels.cpu().numpy(), truth != IGNORE, len(self.taxonomy))
        return matrix

    def _loader(self, moments: Moments, order: Any) -> Iterator[Moment]:
        """Batches in order.

        Raises:
            MissingInput, CorruptInput, InvalidInput: of a moment that cannot be read, wherever it was read.
        """
        loader = DataLoader(
            _Readable(moments),
            batch_sampler=order,
            collate_fn=_collate,
            num_workers=self.config.workers,
            worker_init_fn=_begin_worker,
            pin_memory=self.ranks.device.type == "cuda",
        )
        for batch in loader:
            if isinstance(batch, OccError):
                raise batch
            yield batch


class _Readable(Dataset):
    """Moments, or why one cannot be read: an error that is raised in a worker process comes out as its stack trace."""

    def __init__(self, moments: Moments) -> None:
        self.moments = moments

    def __getitem__(self, key: tuple[int, int]) -> Moment | OccError:
        try:
            return self.moments[key]
        except OccError as error:
            return error


def _collate(parts: list[Moment | OccError]) -> Moment | OccError:
    for part in parts:
        if isinstance(part, OccError):
            return part
    return collate(cast(list[Moment], parts))


def _begin_worker(_: int) -> None:
    """One thread a worker: there are several of them. Ctrl-C is for the process that trains, which ends them."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


# --- which moments ----------------------------------------------------------------------------------------------------


class Held(NamedTuple):
    """No moment is in both."""

    training: Moments
    validation: Moments
    held_out_scenes: list[str]


def needs_of(config: TrainingConfig) -> frozenset[str]:
    """What the losses need of NEEDS, or where the model does not say, all that there is.

    Raises:
        InvalidInput: they need a teacher, and the run names none.
    """
    taught = {"class_map", "depth_m"}
    needs = getattr(config.model, "needs", None)
    if needs is None:
        return NEEDS if config.teacher else NEEDS - taught
    needs = frozenset(needs)
    if config.pseudo_labels is not None and "pseudo_labels" not in needs:
        raise InvalidInput(f"no loss of '{config.model.name}' learns from pseudo_labels: name them under 'labels'")
    if needs & taught and config.teacher is None:
        raise InvalidInput(
            f"losses of '{config.model.name}' need {' and '.join(sorted(needs & taught))}, which a teacher gives: "
            "name one under 'teacher' in the config"
        )
    return needs


def open_data(config: TrainingConfig, needs: frozenset[str], told: Callable[[str], None]) -> Held:
    """The moments of a run; those of the last scenes, or of named ones, are held out, unless other data is.

    Raises:
        InvalidInput: no data, no scene or no labelled moment to train on, no scene of a name that is to be held out,
            labels of another grid or taxonomy, the same sample in training and validation.
    """
    if not config.data:
        raise InvalidInput("no training data: name folders under 'data' in the config, or with --data")
    model = cast(CameraModelConfig, config.model)
    sets, others = ([_Set.open(root, config, told) for root in roots] for roots in (config.data, config.validation))
    scenes = [(i, scene) for i, opened in enumerate(sets) for scene in opened.frames.scenes]
    apart = _held_out(scenes, config)
    kept = [place for place in scenes if place not in apart]
    if not kept:
        raise InvalidInput(f"no scene is left to train on of {len(scenes)}: validation_scenes names them all")
    if config.validation:
        held_out = [(opened, set(opened.frames.scenes)) for opened in others]
    else:
        held_out = [(opened, {scene for j, scene in apart if j == i}) for i, opened in enumerate(sets)]
    training = [(opened, {scene for j, scene in kept if j == i}) for i, opened in enumerate(sets)]
    labels = config.labels if "labels" in needs else None
    taught = bool(needs & {"class_map", "depth_m"})
    learnt = [opened.part(part, labels, config, taught, config.unlabelled) for opened, part in training]
    if config.pseudo_labels is not None:
        learnt = [opened.with_pseudo_labels(of, config) for (opened, _), of in zip(training, learnt, strict=True)]
    truth = config.validation_labels or config.labels
    asked = [opened.part(part, truth, config, False, False) for opened, part in held_out if part]
    held_out_scenes = sorted({scene for _, part in held_out for scene in part})
    lidar_dropout = 0.0 if model.lidar is None else model.lidar.dropout
    augmentation = Augmentation(config.color_jitter, config.camera_dropout, lidar_dropout, config.seed)
    moments = Moments(learnt, model, needs, augmentation), Moments(asked, model, frozenset({"labels"}))
    if not len(moments[0]) or (labels is not None and not moments[0].labelled):
        raise InvalidInput(f"no moment to train on has labels: none of {len(kept)} scenes in folder '{config.labels}'")
    if held_out_scenes and not len(moments[1]):
        raise InvalidInput(
            f"none of the {len(held_out_scenes)} held-out scenes has labels in '{truth}' to be scored with: name other "
            "validation_labels, or hold out no scene"
        )
    if twice := set(moments[0].names) & set(moments[1].names):
        raise InvalidInput(f"{len(twice)} samples are in training and validation data, first: {min(twice)}")
    told("which files are there")
    require_files(path for part in moments for path in _files_of(part, model.lidar is not None))
    return Held(*moments, held_out_scenes)


def _files_of(moments: Moments, lidar: bool) -> Iterator[Path]:
    """What is read of each keyframe itself."""
    for source in moments.sources:
        for scene, token, place, labelled in source.keyframes:
            yield from frame_files(source.frames, place, lidar)
            if source.labels is not None and labelled:
                yield from source.labels.files(scene, token)


def _held_out(
    scenes: list[tuple[int, str]],  # number of the data set, and the scene's name
    config: TrainingConfig,
) -> set[tuple[int, str]]:
    """Those of `scenes` that are not trained on."""
    asked = config.validation_scenes
    if config.validation:
        return set()
    if isinstance(asked, int):
        return set(scenes[len(scenes) - hold_out(len(scenes), asked).validation :])
    names = [scene for _, scene in scenes]
    if absent := [name for name in asked if name not in names]:
        raise InvalidInput(
            f"validation_scenes names '{absent[0]}', which is none of the {len(names)}: {names[0]} .. {names[-1]}"
        )
    return {place for place in scenes if place[1] in asked}


@dataclass(frozen=True, eq=False)
class _Set:
    """One data set, opened once however its scenes are shared out."""

    root: Path
    frames: FrameSource

    @staticmethod
    def open(root: Path, config: TrainingConfig, told: Callable[[str], None]) -> _Set:
        told(str(root.name))
        model = cast(CameraModelConfig, config.model)
        intensity_max = model.lidar.intensity_max if model.lidar else FULL_INTENSITY
        choice = Choice(config.cameras, config.exclude, config.strict)
        frames = open_source(root, intensity_max=intensity_max, version=config.version, choice=choice)
        for line in left_out(frames):
            print(f"left out: {line}", file=sys.stderr)
        return _Set(root, frames)

    def part(
        self, scenes: set[str], labels: str | None, config: TrainingConfig, teachers: bool, unlabelled: bool
    ) -> MomentSource:
        """Keyframes of some scenes; with `labels`, those that are labelled, or if `unlabelled` ones are taken, all."""
        samples = enumerate(self.frames.samples)
        keyframes = [Keyframe(scene, token, place) for place, (scene, token) in samples if scene in scenes]
        files = None
        if labels is not None:
            files = open_labels(self.root, self.frames, labels, cast(CameraModelConfig, config.model))
            keyframes = [k._replace(labelled=files.path(k.scene, k.token).is_file()) for k in keyframes]
            keyframes = [k for k in keyframes if k.labelled or unlabelled]
        asked = self._teachers(config) if teachers else None
        return MomentSource(self.frames, keyframes, files, asked)

    def with_pseudo_labels(self, source: MomentSource, config: TrainingConfig) -> MomentSource:
        """The same moments; those without label have what teachers say of their cells."""
        files = open_labels(self.root, self.frames, cast(str, config.pseudo_labels), cast(Any, config.model))
        return replace(source, pseudo_labels=files)

    def _teachers(self, config: TrainingConfig) -> Teachers:
        maps = (config.cache or default_cache()) / "maps"
        taxonomy, weights = config.model.classes, config.teacher_weights
        device = "cpu" if config.workers else None  # a GPU that one process has opened cannot be used by its children
        return load_teachers(cast(str, config.teacher), self.root, taxonomy, weights, device, config.teacher_seed, maps)


def data_record(data: Held) -> dict[str, Any]:
    """What the json beside the checkpoint says of the data; the first keyframe of each scene tells of its cameras."""
    sources = [source for source in data.training.sources if source.keyframes]
    names = sorted(data.training.names)
    gap_s = data.training.neighbour_gap_s()
    pseudo = [source.pseudo_labels.provenance for source in sources if source.pseudo_labels]
    unlabelled = len(names) - len(data.training.labelled)
    firsts = [(s, {k.scene: k.place for k in reversed(s.keyframes)}.values()) for s in sources]
    return {
        "scenes": len({keyframe.scene for source in sources for keyframe in source.keyframes}),
        "samples": len(names),
        "labels": [source.labels.provenance for source in sources if source.labels],
        **({"pseudo_labels": pseudo} if pseudo else {}),
        **({"unlabelled": unlabelled} if unlabelled else {}),
        "tokens_sha256": hashlib.sha256("\n".join(names).encode()).hexdigest(),
        "cameras": min(len(source.frames[place].rig) for source, places in firsts for place in places),
        **({} if gap_s is None else {"neighbour_s": round(gap_s, 3)}),
        "held_out_scenes": data.held_out_scenes,
        "held_out_samples": len(data.validation),
    }
