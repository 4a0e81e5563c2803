"""Predicts every frame of a data set or recording into one file each; an interrupted run can be continued."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from occ_core.errors import InvalidInput
from occ_core.frame import FULL_INTENSITY
from occ_core.inference.predictions import MadeBy, lacking, model_key, remove_others, save_prediction
from occ_core.inference.predictor import Predictor
from occ_core.shipped import require_network
from occ_core.sources.open import EVERY_CAMERA, Choice, frame_key, left_out, open_source


class PredictionsMade(NamedTuple):
    """The result of `predict_set`: the number of files, and of those that were there before."""

    files: int
    kept: int


def predict_set(
    checkpoint: Path | str,
    data: Path | str,
    out: Path | str,
    *,
    backend: str = "auto",
    threads: int = 2,
    scenes: Sequence[str] | None = None,
    version: str | None = None,
    choice: Choice = EVERY_CAMERA,
    alone: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_remark: Callable[[str], None] = lambda line: None,
) -> PredictionsMade:
    """Write OUT/<name>.npz for each frame that OUT lacks, as `occ predict` does.

    A model with memory meets the frames of a scene in turn, those again that come before one that is missing.

    Args:
        checkpoint, backend, threads: as of `Predictor.load`.
        data, scenes, version, choice: as of `open_source`.
        alone: a model with memory answers each frame as if it were the first.
        overwrite: make anew what is there, and remove what other models made.
        on_progress: hears of frames done, and of how many there are.
        on_remark: hears what was left out of the data or removed, and what to know before trusting the answers.

    Raises:
        InvalidInput: a frame that cannot be predicted, or files in `out` of another model or other images.
        MissingInput, CorruptInput, CannotWrite.
    """
    out = Path(out)
    predictor = Predictor.load(checkpoint, backend, threads)
    intensity_max = predictor.lidar.intensity_max if predictor.lidar else FULL_INTENSITY
    source = open_source(data, scenes, intensity_max, version, choice)
    for line in left_out(source):
        on_remark(f"left out: {line}")
    out.mkdir(parents=True, exist_ok=True)
    if alone:
        predictor.memory = None
    files = [out / f"{name}.npz" for name in source.names]
    model, reads_lidar = model_key(require_network(checkpoint), "alone" if alone else ""), predictor.lidar is not None

    def images(index: int) -> str:
        return frame_key(data, source, index, reads_lidar)

    if overwrite and (removed := remove_others(out, model)):
        on_remark(f"{removed} predictions of other models removed from {out}")
    missing = [True] * len(files) if overwrite else lacking(files, model, images)
    wanted = _until_the_last(missing, source.samples) if predictor.memory else missing
    cautions = set[str]()
    for i, path in enumerate(files):
        if wanted[i]:
            sweeps = source.sweeps_before(i, predictor.lidar.sweeps) if predictor.lidar else None
            try:
                frame = source[i]
                answer = predictor.predict_frame(frame, sweeps)
            except InvalidInput as error:
                raise InvalidInput(f"{data}, frame '{path.stem}': {error}") from error
            if (caution := predictor.caution(frame.rig)) and caution not in cautions:
                cautions.add(caution)
                on_remark(f"warning: {caution}")
            if missing[i]:
                save_prediction(path, answer.labels, answer.observed, MadeBy(model, images(i)), answer.confidence)
        on_progress(i + 1, len(files))
    return PredictionsMade(len(files), len(files) - sum(missing))


def _until_the_last(missing: list[bool], samples: list[tuple[str, str]]) -> list[bool]:
    """Choose the frames to predict so that a network with memory has seen the whole scene before each missing one."""
    last = {scene: i for i, (scene, _) in enumerate(samples) if missing[i]}
    return [i <= last.get(scene, -1) for i, (scene, _) in enumerate(samples)]
