"""Opens the data sets of a run and decides which samples train, which fit and which validate, for any network."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from occ_core.errors import InvalidInput
from occ_core.files import default_cache
from occ_core.frame import FULL_INTENSITY
from occ_core.models.config import CameraModelConfig
from occ_core.models.easyocc.config import EasyOccConfig
from occ_core.sources.open import Choice, FrameSource, left_out, open_source
from occ_core.teachers.base import Teachers
from occ_core.teachers.load import load_teachers
from occ_core.training.cache import open_scenes
from occ_core.training.config import TrainingConfig
from occ_core.training.file_check import require_files
from occ_core.training.hold_out import hold_out
from occ_core.training.keyframes import Keyframe, KeyframeSource
from occ_core.training.label_files import open_labels
from occ_core.training.ranks import ALONE, Ranks
from occ_core.training.samples import NEEDS, Augmentation, SampleDataset
from occ_core.training.tabulated import Samples, TabulatedDataset

Scene = tuple[Path, str]  # its data set, and its name there
TEACHER_TARGETS = frozenset({"class_map", "depth_m"})
"""What teachers give, of NEEDS."""


class DataSplit(NamedTuple):
    """The samples of a run, divided; none is in two parts, unless the run has `nano.fit_on_learned`. A network sets its
    `fitted` tensors on `fitting`, see `models.config`."""

    training: Samples
    fitting: Samples
    validation: Samples
    fitting_scenes: list[str]
    held_out_scenes: list[str]


def needs_of(config: TrainingConfig) -> frozenset[str]:
    """Return which of NEEDS the losses read; all of them if the model does not say.

    Raises:
        InvalidInput: they need a teacher, and the run names none.
    """
    said = getattr(config.model, "needs", None)
    if said is None:
        return NEEDS if config.teacher else NEEDS - TEACHER_TARGETS
    needs = frozenset[str](said)
    if config.unlabelled and config.model.by_table:
        raise InvalidInput(f"'{config.model.name}' learns from labels alone, the run has 'unlabelled: true'")
    if config.pseudo_labels is not None and "pseudo_labels" not in needs:
        raise InvalidInput(f"no loss of '{config.model.name}' learns from pseudo_labels: name them under 'labels'")
    if needs & TEACHER_TARGETS and config.teacher is None:
        raise InvalidInput(
            f"losses of '{config.model.name}' need {' and '.join(sorted(needs & TEACHER_TARGETS))}, which a teacher "
            "gives: name one under 'teacher' in the config"
        )
    return needs


def open_data(
    config: TrainingConfig, needs: frozenset[str], on_progress: Callable[[str], None], ranks: Ranks = ALONE
) -> DataSplit:
    """Open the samples of a run. The last scenes, or the named ones, are held out, unless other validation data is
    given.

    Args:
        needs: what the losses need of NEEDS.
        on_progress: is given a line that says what is being read.
        ranks: processes that share the work of reading.

    Raises:
        InvalidInput: no data, no scene or no labelled sample to train on, no scene of a name that is to be held out,
            labels of another grid or taxonomy, the same sample in training and validation.
    """
    if not config.data:
        raise InvalidInput("no training data: name folders under 'data' in the config, or with --data")
    sets = [_OpenedData.open(root, config, on_progress) for root in config.data]
    once = list({opened.location: opened for opened in sets}.values())  # one that is named twice teaches twice
    labels, truth = config.labels if "labels" in needs else None, config.validation_labels or config.labels
    learnt = [opened.keyframes(labels, config, needs) for opened in sets]
    everywhere = [(opened.location, scene) for opened in once for scene in opened.frames.scenes]
    apart = _held_out(everywhere, learnt, config)
    training = [_without(source, {*apart.fitting, *apart.validation}) for source in learnt]
    if not any(source.keyframes for source in training) or (labels is not None and not any(map(_labelled, training))):
        raise InvalidInput(
            f"no sample to train on has labels: none of {len(everywhere) - len(apart.validation)} scenes in folder "
            f"'{config.labels}'"
        )
    fitting = [_of(opened.keyframes(labels, config), apart.fitting) for opened in once if apart.fitting]
    on_learned = config.nano.fit_on_learned and not apart.fitting
    if on_learned:
        fitting = [_without(opened.keyframes(labels, config), apart.validation) for opened in once]
    asked, others = apart.validation, [opened for opened in once if opened.has(apart.validation)]
    if config.validation:
        others = [_OpenedData.open(root, config, on_progress) for root in config.validation]
        asked = [(opened.location, scene) for opened in others for scene in opened.frames.scenes]
    judged = [_of(opened.keyframes(truth, config), asked) for opened in others]
    if asked and not any(source.keyframes for source in judged):
        raise InvalidInput(
            f"none of the {len(asked)} held-out scenes has labels in '{truth}' to be scored with: name other "
            "validation_labels, or hold out no scene"
        )
    made = partial(_samples, config=config, on_progress=on_progress, ranks=ranks)
    parts = made(training, needs), made(fitting), made(judged)
    if twice := set(parts[0].names) & {*(() if on_learned else parts[1].names), *parts[2].names}:
        raise InvalidInput(f"{len(twice)} samples are in training and validation data, first: {min(twice)}")
    on_progress("which files are there")
    require_files(path for part in parts for path in part.files())
    return DataSplit(*parts, *(sorted({scene for _, scene in scenes}) for scenes in (apart.fitting, asked)))


def _samples(
    sources: list[KeyframeSource],
    needs: frozenset[str] | None = None,
    *,
    config: TrainingConfig,
    on_progress: Callable[[str], None],
    ranks: Ranks,
) -> Samples:
    """Make the data set that a network of the run's kind reads: augmented, with the targets in `needs`; or, with None,
    unchanged and with labels only, to be scored."""
    if config.model.by_table:
        scenes = open_scenes(
            sources, cast(EasyOccConfig, config.model), config.cache or default_cache(), ranks, on_progress
        )
        return TabulatedDataset(scenes, config, needs is None, sources)
    model = cast(CameraModelConfig, config.model)
    if needs is None:
        return SampleDataset(sources, model, frozenset({"labels"}))
    lidar_dropout = 0.0 if model.lidar is None else model.lidar.dropout
    augmentation = Augmentation(config.color_jitter, config.camera_dropout, lidar_dropout, config.seed)
    return SampleDataset(sources, model, needs, augmentation, config.batch_size)


class HeldOutScenes(NamedTuple):
    """Scenes that no weight is trained on."""

    fitting: list[Scene]
    validation: list[Scene]


def _held_out(everywhere: list[Scene], learnt: list[KeyframeSource], config: TrainingConfig) -> HeldOutScenes:
    """Choose the held-out scenes: the named ones, or the last ones. Only scenes with a sample to learn from count,
    unless the held-out data has labels of its own. Of the remaining scenes the last ones are for fitting."""
    taught = list(dict.fromkeys((source.root.resolve(), scene) for source in learnt for scene in source.scenes))
    counted = everywhere if config.validation_labels else taught
    asked, fitting = config.validation_scenes, config.nano.threshold_scenes if config.model.fitted else 0
    validation: list[Scene] = []
    if config.validation:
        asked = 0
    elif not isinstance(asked, int):
        names = [scene for _, scene in everywhere]
        if absent := [name for name in asked if name not in names]:
            raise InvalidInput(
                f"validation_scenes names '{absent[0]}', which is none of the {len(names)}: {names[0]} .. {names[-1]}"
            )
        validation = [scene for scene in everywhere if scene[1] in asked]
        if len(validation) == len(everywhere):
            raise InvalidInput(f"no scene is left to train on of {len(everywhere)}: validation_scenes names them all")
        asked, counted = 0, [scene for scene in counted if scene not in validation]
    kept = hold_out(len(counted), asked, fitting)
    validation += counted[len(counted) - kept.validation :]
    rest = [scene for scene in taught if scene not in validation]
    return HeldOutScenes(rest[len(rest) - kept.thresholds :], validation)


def _of(source: KeyframeSource, scenes: Collection[Scene]) -> KeyframeSource:
    """Keep only the keyframes of the given scenes."""
    location = source.root.resolve()
    return replace(source, keyframes=[k for k in source.keyframes if (location, k.scene) in scenes])


def _without(source: KeyframeSource, scenes: Collection[Scene]) -> KeyframeSource:
    """Keep only the keyframes of all other scenes."""
    location = source.root.resolve()
    return replace(source, keyframes=[k for k in source.keyframes if (location, k.scene) not in scenes])


def _labelled(source: KeyframeSource) -> bool:
    return source.labels is not None and any(keyframe.labelled for keyframe in source.keyframes)


@dataclass(frozen=True, eq=False)
class _OpenedData:
    """One data set; it is opened once, however its scenes are divided."""

    root: Path
    frames: FrameSource
    choice: Choice

    @staticmethod
    def open(root: Path, config: TrainingConfig, on_progress: Callable[[str], None]) -> _OpenedData:
        on_progress(str(root.name))
        lidar = config.model.lidar_input
        intensity_max = lidar.intensity_max if lidar else FULL_INTENSITY
        choice = Choice(config.cameras, config.exclude, config.strict)
        frames = open_source(root, intensity_max=intensity_max, version=config.version, choice=choice)
        for line in left_out(frames):
            print(f"left out: {line}", file=sys.stderr)
        return _OpenedData(root, frames, choice)

    @property
    def location(self) -> Path:
        """The resolved path, which is the same whatever the data set was called."""
        return self.root.resolve()

    def has(self, scenes: Collection[Scene]) -> bool:
        return any((self.location, scene) in scenes for scene in self.frames.scenes)

    def keyframes(
        self, labels: str | None, config: TrainingConfig, needs: frozenset[str] | None = None
    ) -> KeyframeSource:
        """Select keyframes. With `labels`, only labelled ones are kept; to train losses that have `needs`, a run with
        `unlabelled: true` keeps all, with the other targets that the losses need."""
        samples = enumerate(self.frames.samples)
        found = [Keyframe(scene, token, index) for index, (scene, token) in samples]
        files = pseudo = teachers = None
        if labels is not None:
            files = open_labels(self.root, self.frames, labels, config.model)
            found = [k._replace(labelled=files.path(k.scene, k.token).is_file()) for k in found]
            found = [k for k in found if k.labelled or (config.unlabelled and needs is not None)]
        if needs is not None and config.pseudo_labels is not None:
            pseudo = open_labels(self.root, self.frames, config.pseudo_labels, config.model)
        if needs is not None and needs & TEACHER_TARGETS:
            teachers = self._teachers(config)
        return KeyframeSource(self.frames, found, files, teachers, pseudo, self.root, self.choice)

    def _teachers(self, config: TrainingConfig) -> Teachers:
        maps = (config.cache or default_cache()) / "maps"
        taxonomy, weights = config.model.classes, config.teacher_weights
        device = "cpu" if config.workers else None  # a GPU that one process has opened cannot be used by its children
        return load_teachers(cast(str, config.teacher), self.root, taxonomy, weights, device, config.teacher_seed, maps)


def data_record(data: DataSplit) -> dict[str, Any]:
    """Describe the data for the json beside the checkpoint; the number of cameras is read from the first keyframe of
    each scene."""
    samples = data.training
    sources = [source for source in samples.sources if source.keyframes]
    names, gap_s = sorted(samples.names), samples.neighbour_gap_s()
    pseudo = [source.pseudo_labels.provenance for source in sources if source.pseudo_labels]
    unlabelled = len(samples) - len(samples.labelled)
    return {
        "scenes": len({samples.scene_of(index) for index in range(len(samples))}),
        "samples": len(samples),
        "labels": [source.labels.provenance for source in sources if source.labels],
        **({"pseudo_labels": pseudo} if pseudo else {}),
        **({"unlabelled": unlabelled} if unlabelled else {}),
        "tokens_sha256": hashlib.sha256("\n".join(names).encode()).hexdigest(),
        "cameras": samples.fewest_cameras(),
        **({} if gap_s is None else {"neighbour_s": round(gap_s, 3)}),
        **({"threshold_scenes": data.fitting_scenes} if data.fitting_scenes else {}),
        "held_out_scenes": data.held_out_scenes,
        "held_out_samples": len(data.validation),
    }
