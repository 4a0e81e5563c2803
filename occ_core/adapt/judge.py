"""Networks on held-out stretches: by LiDAR rays, by labels that no network saw, by true voxels where there are some."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from occ_core.adapt.doctor import TRUTH_TOPIC
from occ_core.adapt.label import LABELS
from occ_core.clouds import occupancy_of
from occ_core.evaluation.lidar_rays import BANDS, GROUPS, LidarRayScores, returns_of
from occ_core.evaluation.predictions import read_confidence, read_observed
from occ_core.evaluation.report import SetScores
from occ_core.frame import Frame
from occ_core.grid import VoxelGrid
from occ_core.inference.predictions import MadeBy, made_by, model_key, save_prediction
from occ_core.inference.predictor import Predictor
from occ_core.occupancy import Occupancy, load_occ3d
from occ_core.sensor_messages import stamp_of
from occ_core.sources.bag_reader import BagReader
from occ_core.sources.clouds import points_of
from occ_core.sources.scenes import Recording, SceneFrames
from occ_core.sources.stretch import is_stretch, read_stretch
from occ_core.taxonomy import Taxonomy

MATCH_NS = 20_000_000  # a truth whose stamp is farther from the frame's was taken elsewhere
NEAR = BANDS[:2]  # of ranges that the rays are summed over to one number


def judge(
    model: Path, stretches: Sequence[Path], predictions: Path, on_progress: Callable[[int, int], None], threads: int = 2
) -> dict[str, Any]:
    """Answer every keyframe of some stretches, and score the answers.

    Args:
        model: checkpoint, run in torch, or exported.
        predictions: folder for one <token>.npz a keyframe; those of this model that are there are read.

    Returns:
        `lidar` as of LidarRayScores.report, `labels` and `truth` as of SetScores.report, each with `samples`, as far
        as there is something to judge by; `summary`: see `summary_of`.
    """
    backend = "torch" if model.suffix == ".safetensors" else "auto"
    predictor, key = Predictor.load(model, backend, threads), model_key(model, backend)
    rays = LidarRayScores(predictor.taxonomy, predictor.grid)
    scores = {name: SetScores(predictor.taxonomy, predictor.grid) for name in ("labels", "truth")}
    recordings = [Recording(stretch) for stretch in stretches]
    scenes = [recording.scene(name) for recording in recordings for name in recording.scenes]
    total = sum(map(len, scenes))
    for done, (frame, images, truths) in enumerate(_labelled_frames(scenes, predictor), start=1):
        path = predictions / f"{frame.token}.npz"
        labels = _answer(predictor, frame, path, MadeBy(key, images))
        if frame.lidar is not None:
            rays.add(labels, returns_of(frame))
        observed, confidence = read_observed(path, predictor.grid), read_confidence(path, predictor.grid)
        for name, truth in truths.items():
            scores[name].add(truth, labels)
            if confidence is not None:
                scores[name].reliability.add(truth, labels, observed, confidence)
        on_progress(done, total)
    report: dict[str, Any] = {"lidar": rays.report()} if rays.frames else {}
    report |= {name: {"samples": of.voxels.samples, **of.report()} for name, of in scores.items() if of.voxels.samples}
    return _finite(report | {"summary": summary_of(report)})


def _answer(predictor: Predictor, frame: Frame, path: Path, made: MadeBy) -> np.ndarray:
    """uint8 (X, Y, Z)."""
    if made_by(path) == made:
        with np.load(path, allow_pickle=False) as record:
            return record["pred"]
    answer = predictor.predict_frame(frame)
    save_prediction(path, answer.labels, answer.observed, made, answer.confidence)
    return answer.labels


def _labelled_frames(
    scenes: Sequence[SceneFrames], predictor: Predictor
) -> Iterator[tuple[Frame, str, dict[str, Occupancy]]]:
    """Each keyframe, the hash of what it is read from, and what it may be judged by."""
    for frames in scenes:
        true = true_voxels(frames.path, predictor.grid, predictor.taxonomy)
        if predictor.memory is not None:
            predictor.memory.forget()
        for index, token in enumerate(frames.tokens):
            frame = frames[index]
            path = frames.path / LABELS / frame.scene / token / "labels.npz"
            known = {"labels": load_occ3d(path, predictor.grid, predictor.taxonomy)} if path.is_file() else {}
            truth = true.of(frame)
            yield frame, frames.key(index, lidar=False), known | ({} if truth is None else {"truth": truth})


def true_voxels(recording: Path, grid: VoxelGrid, taxonomy: Taxonomy) -> TrueVoxels | CityVoxels:
    """What is known of a stretch of a bag, or of a simulated city."""
    kind = TrueVoxels if is_stretch(recording) else CityVoxels
    return kind(recording, grid, taxonomy)


class CityVoxels:
    """The exact voxels of a simulated data set's keyframes."""

    def __init__(self, dataroot: Path, grid: VoxelGrid, taxonomy: Taxonomy) -> None:
        self._folder, self._grid, self._taxonomy = dataroot / "gts", grid, taxonomy

    def of(self, frame: Frame) -> Occupancy | None:
        """The truth of a keyframe; None: there is none."""
        path = self._folder / frame.scene / frame.token / "labels.npz"
        return load_occ3d(path, self._grid, self._taxonomy) if path.is_file() else None


class TrueVoxels:
    """What TRUTH_TOPIC of a stretch's bag says, by time; read when asked for."""

    def __init__(self, stretch: Path, grid: VoxelGrid, taxonomy: Taxonomy) -> None:
        self._reader, self._grid, self._taxonomy = BagReader(read_stretch(stretch).bag), grid, taxonomy
        self._stamps: list[tuple[int, int]] = []  # stamp and log time
        if TRUTH_TOPIC in self._reader.of_type("sensor_msgs/msg/PointCloud2"):
            self._stamps = sorted((stamp_of(m), log_ns) for _, log_ns, m in self._reader.messages([TRUTH_TOPIC]))

    def of(self, frame: Frame) -> Occupancy | None:
        """The truth at a frame's stamp; None: there is none so near."""
        return self.at(frame.stamp_ns)

    def at(self, stamp_ns: int) -> Occupancy | None:
        """The truth at a stamp; None: there is none so near."""
        after = bisect_left(self._stamps, (stamp_ns, 0))
        near = min(self._stamps[max(0, after - 1) : after + 1], key=lambda p: abs(p[0] - stamp_ns), default=None)
        if near is None or abs(near[0] - stamp_ns) > MATCH_NS:
            return None
        for _, _, message in self._reader.messages([TRUTH_TOPIC], near[1], near[1] + 1):
            return occupancy_of(points_of(message), self._grid, self._taxonomy)
        return None


def summary_of(report: dict[str, Any]) -> dict[str, float]:
    """The few numbers that tell networks apart, in percent, as far as there is something to judge by.

    lidar_above, lidar_ground: returns up to 20 m whose ray the map stops within 1 m, the bands' mean;
    labels_iou, labels_miou_15, truth_iou, truth_miou_15: cells that a camera observes.
    """
    numbers: dict[str, float] = {}
    if "lidar" in report:
        for group in GROUPS:
            bands = [report["lidar"][group][band]["within_1m"] for band in NEAR]
            known = [value for value in bands if math.isfinite(value)]
            if known:
                numbers[f"lidar_{group}"] = sum(known) / len(known)
    for name in ("labels", "truth"):
        if name in report:
            numbers |= {f"{name}_{key}": report[name]["camera"][key] for key in ("iou", "miou_15")}
    return {name: value for name, value in numbers.items() if value is not None and math.isfinite(value)}


class Change(NamedTuple):
    """What decides between two networks, in percent: `what` it is, and its mean score of each."""

    what: str
    was: float
    now: float

    @property
    def lost(self) -> float:
        """Points; negative: won."""
        return self.was - self.now

    def __str__(self) -> str:
        return f"{self.what}: mean score {self.was:.1f} % before, {self.now:.1f} % after"


def change_of(before: dict[str, float], after: dict[str, float]) -> Change | None:
    """From two summaries, as of `summary_of`: by the LiDAR, or without one by held-out labels; None: by neither.

    The score is the mean of what the LiDAR says of ground and of what stands on it, or of IoU and mIoU. True voxels
    are shown and decide nothing, since robots have none.
    """
    for kind, what in (("lidar_", "LiDAR rays"), ("labels_", "held-out labels")):
        common = [name for name in before if name.startswith(kind) and name in after]
        if common:
            return Change(what, *(sum(numbers[name] for name in common) / len(common) for numbers in (before, after)))
    return None


def _finite(value: Any) -> Any:
    """NaN, which JSON does not have, as None."""
    if isinstance(value, dict):
        return {key: _finite(of) for key, of in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
