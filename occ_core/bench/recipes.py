"""Scores every recipe's labels against exact truth, and what each part of `best` gives, with the same teachers.

Teachers are asked once a frame for all recipes, and recipes that lift alike share their evidence. Nothing is stored.
Memory a process: the evidence of a scene, of ten ways to lift together 25 MB a frame at 270 x 480, beside some 450 MB.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from occ_core.errors import MissingInput
from occ_core.frame import Frame
from occ_core.grid import OCC3D_GRID
from occ_core.labels.fuse import Fuser
from occ_core.labels.lift import FrameEvidence, Lifter
from occ_core.labels.recipes import PRESETS, Recipe
from occ_core.labels.scene import SceneLabel, label_window, read_frame, window_of
from occ_core.labels.score import LabelScores
from occ_core.occupancy import load_occ3d
from occ_core.parallel import Step, progress_bar, run_in_processes
from occ_core.sources.nuscenes import NuScenesSource
from occ_core.sources.nuscenes_tables import NuScenesTables
from occ_core.taxonomy import OCC3D
from occ_core.teachers.base import Teachers
from occ_core.teachers.load import load_teachers

# Part of `best` -> the fields that switch it off when they go back to Recipe's defaults, which do nothing.
PARTS: dict[str, tuple[str, ...]] = {
    "past": ("past",),
    "future": ("future",),
    "hit/pass filter": ("min_hit_share", "free_hit_share"),
    "vote": ("min_points", "priority", "priority_share"),  # one point makes a cell, and no class goes before others
    "sky": ("sky",),
    "edge cut": ("edge_cut",),
    "road correction": ("ground_z_m", "ground_reach"),
    "ground filling": ("fill_ground",),
    "surface offset": ("surface_offset_m",),
}


def changed(recipe: Recipe, fields: Sequence[str], to: Recipe) -> Recipe:
    """The recipe with these fields replaced by those of `to`."""
    return recipe.model_copy(update={name: getattr(to, name) for name in fields})


MEASURED = ("lidar", "completed")  # presets for teachers that measure; those compared here do not

ROWS: dict[str, Recipe] = {
    **{name: recipe for name, recipe in PRESETS.items() if name not in MEASURED},
    # The teachers err by one scale an image mostly, and `best` knows a remedy: how much of its lead is that alone?
    "easyocc + road correction": changed(PRESETS["easyocc"], PARTS["road correction"], PRESETS["best"]),
    **{f"best without {part}": changed(PRESETS["best"], fields, Recipe()) for part, fields in PARTS.items()},
}

FUSION = ("past", "future", "moving", "min_points", "min_hit_share", "free_hit_share", "priority", "priority_share")
"""Fields that lifting does not read: recipes that differ in these alone share their evidence."""

PROTOCOLS = {"camera": "camera mask", "full": "full scene"}
FIGURES = {"iou": "IoU", "miou_15": "mIoU 15", "miou_17": "mIoU 17", "decided": "decided", "free_precision": "free"}


@dataclass(frozen=True)
class _Job:
    """What every process has to know."""

    dataroot: Path
    teacher: str
    seed: int
    rows: Mapping[str, Recipe]

    def teachers(self) -> Teachers:
        return load_teachers(self.teacher, self.dataroot, OCC3D, seed=self.seed)


@dataclass(frozen=True)
class _SceneResult:
    scene: str
    scores: dict[str, LabelScores]
    left_out: tuple[str, ...]


def bench_recipes(
    dataroot: Path,
    teacher: str = "realistic",
    seed: int = 0,
    workers: int = 1,
    *,
    scenes: list[str] | None = None,
    rows: Mapping[str, Recipe] = ROWS,
    show_progress: bool = True,
) -> dict[str, Any]:
    """Label every keyframe with each recipe of `rows` and score it; one confusion matrix a row over all scenes.

    Args:
        dataroot: in nuScenes layout, with gts/.
        teacher: as of `load_teachers`.
        seed: of the errors that the teacher `realistic` makes.
        workers: scenes at the same time.
        scenes: names; None: all.

    Returns:
        what was labelled by whom; `left_out`: images and frames that could not be used, and why; `wall_s`, `cpu_s`;
        `rows`: name -> recipe (its settings), samples, and the protocols of LabelScores in percent. All but the times
        is the same for the same input, however many workers.

    Raises:
        MissingInput: a keyframe has no truth. CorruptInput, OccError.
    """
    start_s, start_cpu_s = time.perf_counter(), _cpu_s()
    job = _Job(Path(dataroot), teacher, seed, rows)
    tables = NuScenesTables(job.dataroot)
    names = tables.require_scenes(scenes)
    keyframes = _require_truth(tables, names)
    teachers = job.teachers()
    totals = {name: LabelScores() for name in rows}
    left_out: dict[str, tuple[str, ...]] = {}
    with progress_bar(show_progress) as progress:
        bar = progress.add_task("labels", total=keyframes * len(rows))
        for done in run_in_processes(partial(_score_scene, job), names, workers, lambda: progress.advance(bar)):
            left_out[done.scene] = done.left_out
            for name, scores in done.scores.items():
                totals[name].merge(scores)
    return {
        "dataset": _dataset(job.dataroot),
        "scenes": len(names),
        "keyframes": keyframes,
        "teacher": teacher,
        "class_teacher": teachers.classes.version,
        "depth_teacher": teachers.depth.version,
        "seed": seed,
        "left_out": {scene: left_out[scene] for scene in names if left_out[scene]},
        "workers": workers,
        "wall_s": round(time.perf_counter() - start_s, 1),
        "cpu_s": round(_cpu_s() - start_cpu_s, 1),
        "rows": {name: _row(rows[name], scores) for name, scores in totals.items()},
    }


def _row(recipe: Recipe, scores: LabelScores) -> dict[str, Any]:
    return {"recipe": recipe.model_dump(mode="json"), "samples": scores.voxels.samples, **scores.report()}


def _cpu_s() -> float:
    """Processor time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def _dataset(dataroot: Path) -> dict[str, Any]:
    """The data set's name, and the seed and sizes of a simulated one."""
    path = dataroot / "world.json"
    return {"name": dataroot.resolve().name, **(json.loads(path.read_text()) if path.is_file() else {})}


def _require_truth(tables: NuScenesTables, scenes: Sequence[str]) -> int:
    """Number of keyframes, all of which have truth."""
    paths = [tables.truth_path(scene, token) for scene in scenes for token, _ in tables.samples(scene)]
    if lacking := [path for path in paths if not path.is_file()]:
        raise MissingInput(f"{lacking[0]}: no truth to score labels against; {len(lacking)} of {len(paths)} lack it")
    return len(paths)


def _score_scene(job: _Job, scene: str, step: Step) -> _SceneResult:
    """Every row's scores on one scene; `step` is called for each label."""
    tables = NuScenesTables(job.dataroot)
    source = NuScenesSource(tables, scenes=[scene])
    evidence_by_frame = _lift_all(source, job.teachers(), job.rows)
    truths = [load_occ3d(tables.truth_path(scene, token)) for token in source.tokens]
    scores = {name: LabelScores() for name in job.rows}
    left_out: dict[str, None] = {}
    for name, recipe in job.rows.items():
        fuser = Fuser(recipe, OCC3D_GRID, OCC3D)
        for index, truth in enumerate(truths):
            window = window_of(index, len(truths), recipe)
            label = label_window(evidence_by_frame[_lift_part(recipe)], index, window, fuser)
            if isinstance(label, SceneLabel):
                scores[name].add(truth, label.occupancy)
                left_out |= dict.fromkeys(label.skipped)
            else:
                left_out[label] = None
            step()
    return _SceneResult(scene, scores, tuple(left_out))


def _lift_part(recipe: Recipe) -> Recipe:
    return changed(recipe, FUSION, Recipe())


def _lift_all(
    source: NuScenesSource, teachers: Teachers, rows: Mapping[str, Recipe]
) -> dict[Recipe, dict[int, FrameEvidence | str]]:
    """Lift all frames for each part of a recipe that lifts; each frame is read, and its teachers asked, once."""
    evidence_by_frame: dict[Recipe, dict[int, FrameEvidence | str]] = {
        _lift_part(recipe): {} for recipe in rows.values()
    }
    lifters = {part: Lifter(part, OCC3D_GRID, OCC3D) for part in evidence_by_frame}
    frames = cast(Sequence[Frame], source)  # it has what of a sequence is asked for
    for index, token in enumerate(source.tokens):
        frame = read_frame(frames, index, token)
        if isinstance(frame, str):
            for of_part in evidence_by_frame.values():
                of_part[index] = frame
            continue
        classes, depths = teachers.classes.classes(frame), teachers.depth.depth(frame)
        for part, lifter in lifters.items():
            evidence_by_frame[part][index] = lifter.lift(frame, classes, depths)
    return evidence_by_frame


def markdown(figures: Mapping[str, Any]) -> str:
    """The table of `bench_recipes`, in percent; `free` is the precision of free."""
    heads = ["recipe", *(f"{title}: {head}" if key == "iou" else head
                         for title in PROTOCOLS.values() for key, head in FIGURES.items())]  # fmt: skip
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for name, row in figures["rows"].items():
        lines.append([name, *(_text(row[protocol][key]) for protocol in PROTOCOLS for key in FIGURES)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def _text(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.2f}"
