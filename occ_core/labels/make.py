"""Labelling a data set: scenes in parallel, here or on a Ray cluster, resumable at every label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

from occ_core import __version__
from occ_core.errors import CannotWrite, InvalidInput, OccError
from occ_core.files import content_key
from occ_core.frame import Frame
from occ_core.grid import OCC3D_GRID
from occ_core.labels.ray_engine import run_on_ray
from occ_core.labels.recipes import PRESETS, Recipe, load_recipe
from occ_core.labels.scene import label_scene
from occ_core.labels.store import LabelStore
from occ_core.parallel import Step, progress_bar, run_in_processes
from occ_core.sources.nuscenes import NuScenesSource
from occ_core.sources.nuscenes_tables import NuScenesTables
from occ_core.taxonomy import OCC3D
from occ_core.teachers.base import Teachers
from occ_core.teachers.load import load_teachers

ENGINES = ("local", "ray")
OWN = "own"
"""In a store's record: a recipe or teachers that have no name."""
RESTARTS = 3  # of the work on a scene whose process was killed


@dataclass(frozen=True)
class TeacherChoice:
    """Which teachers, and what `load_teachers` needs to find them.

    Attributes:
        name: such as `oracle` or `grounded-sam+metric3d`.
        weights: folder of their weights.
        device: such as `cuda:0`; None: what there is.
        seed: of teachers that make errors on purpose.
        cache: folder to keep their maps in; None: every map is made anew.
    """

    name: str
    weights: Path | None = None
    device: str | None = None
    seed: int = 0
    cache: Path | None = None


@dataclass(frozen=True)
class Job:
    """What every worker has to know."""

    dataroot: Path
    out: Path
    recipe: Recipe
    teacher: TeacherChoice | Teachers
    sweeps: bool
    version: str | None = None


@dataclass(frozen=True)
class Task:
    """One scene and the tokens of all its samples."""

    scene: str
    tokens: tuple[str, ...]


@dataclass(frozen=True)
class Done:
    """What came of a scene: `error` says, in one line, why labels are missing from it."""

    scene: str
    written: int
    skipped: tuple[str, ...]
    error: str = ""


def make_labels(
    dataroot: Path | str,
    out: Path | str,
    recipe: Recipe | str = "best",
    teacher: TeacherChoice | Teachers | str = "grounded-sam+metric3d",
    engine: str = "local",
    workers: int = 1,
    *,
    scenes: list[str] | None = None,
    sweeps: bool = False,
    gpus: float = 0.0,
    version: str | None = None,
    show_progress: bool = True,
) -> list[Done]:
    """Label the keyframes of a data set, or those that the store `out` lacks; equal input gives equal bytes.

    Args:
        dataroot: in nuScenes layout.
        recipe: or its name, or a YAML file: see `load_recipe`.
        teacher: by name, see `load_teachers`; or one's own, which say in `version` all that changes their maps and are
            pickled where there are several workers.
        engine: local | ray. On a cluster, `dataroot` and `out` lie where every node sees them.
        workers: scenes at the same time; for ray, 0 = as many as the cluster has room for.
        scenes: names; None: all.
        sweeps: windows of the recipe count all frames, not keyframes only.
        gpus: for ray, the share of a GPU that one scene's teachers take.
        version: table folder, as of NuScenesTables.

    Returns:
        one entry a scene that had work to do. A scene that cannot be labelled does not stop the others.

    Raises:
        InvalidInput: `out` holds labels made otherwise, or an unknown engine.
        CannotWrite: full disk and the like.
    """
    if engine not in ENGINES:
        raise InvalidInput(f"engine must be one of {', '.join(ENGINES)}, got '{engine}'")
    run = partial(run_in_processes, restarts=RESTARTS) if engine == "local" else partial(run_on_ray, gpus=gpus)
    _forget()
    chosen = TeacherChoice(teacher) if isinstance(teacher, str) else teacher
    recipe = load_recipe(recipe) if isinstance(recipe, str) else recipe
    job = Job(Path(dataroot), Path(out), recipe, chosen, sweeps, version)
    tables = _tables(job.dataroot, version)
    tasks = [Task(s, tuple(token for token, _ in tables.samples(s))) for s in tables.require_scenes(scenes)]
    store = LabelStore(job.out)
    (versions,) = run(partial(_versions, job), [None], 1)  # where the teachers will run, for the same is loaded there
    if workers > 1:
        _load_teachers.cache_clear()  # the workers' memory is theirs
    _require_same_files(job, tasks, store)
    store.claim(_made_with(job, versions), {task.scene: task.tokens for task in tasks})
    lacking = [[not store.is_complete(task.scene, token) for token in task.tokens] for task in tasks]
    todo = [task for task, lacks in zip(tasks, lacking, strict=True) if any(lacks)]
    with progress_bar(show_progress) as progress:
        total = sum(map(len, lacking))
        # in images, for those are what takes the time: each label asks for those of its own moment
        cameras = len(NuScenesSource(tables, scenes=[tasks[0].scene]).cameras) if tasks else 1
        bar = progress.add_task("images", total=total * cameras, completed=(total - sum(map(sum, lacking))) * cameras)
        results = run(partial(label_one, job), todo, workers, lambda: progress.advance(bar, cameras))
        try:
            with closing(results):  # an error that is on its way keeps the generator alive, and with it the processes
                return list(_finished(results))
        except KeyboardInterrupt:
            progress.console.print(f"[yellow]stopped; the same command goes on where {out} stands[/yellow]")
            raise


def _finished(results: Iterator[Done | CannotWrite]) -> Iterator[Done]:
    for result in results:
        if isinstance(result, CannotWrite):
            raise result
        yield result


def label_one(job: Job, task: Task, step: Step) -> Done | CannotWrite:
    """Make the labels of one scene that the store lacks; any engine calls this, in any process."""
    store = LabelStore(job.out)
    wanted = {token for token in task.tokens if not store.is_complete(task.scene, token)}
    written, skipped, unlabelled = 0, list[str](), dict[str, str]()
    try:
        source = NuScenesSource(_tables(job.dataroot, job.version), scenes=[task.scene], sweeps=job.sweeps)
        frames = cast(Sequence[Frame], source)  # it has what of a sequence is asked for: length and index
        index_of = {token: index for index, token in enumerate(source.tokens)}
        for label in label_scene(frames, _teachers(job), job.recipe, wanted, unlabelled=unlabelled):
            store.write(task.scene, label.token, label, _key_of(job, source, index_of[label.token]))
            written += 1
            skipped += [reason for reason in label.skipped if reason not in skipped]
            step()
    except CannotWrite as error:
        return error  # the next scene would meet the same
    except OccError as error:
        return Done(task.scene, written, tuple(skipped), str(error))
    if unlabelled:
        first = next(iter(unlabelled.values()))
        reason = f"{len(unlabelled)} of its keyframes cannot be read and have no label, first: {first}"
        return Done(task.scene, written, tuple(skipped), reason)
    return Done(task.scene, written, tuple(skipped))


def _require_same_files(job: Job, tasks: list[Task], store: LabelStore) -> None:
    """Refuse a store whose labels are of other images than the data set has under the same names."""
    for task in tasks:
        made_of = {token: key for token in task.tokens if (key := store.made_of(task.scene, token))}
        if not made_of:
            continue
        source = NuScenesSource(_tables(job.dataroot, job.version), scenes=[task.scene])
        for index, token in enumerate(source.tokens):
            if made_of.get(token, key := _key_of(job, source, index)) != key:
                raise InvalidInput(
                    f"{store.folder}: its label of {task.scene}, sample '{token}' was made of other files than are in "
                    f"{job.dataroot}; choose another folder"
                )


def _key_of(job: Job, source: NuScenesSource, index: int) -> str:
    """Hash of the files that a keyframe's images and its teachers' knowledge are read from."""
    teachers = ["lidar"] if isinstance(job.teacher, Teachers) else job.teacher.name.split("+")
    scene, token = source.samples[index]
    knows = {"oracle", "realistic"} & set(teachers)
    folder = source.tables.dataroot / "truth" / scene / token
    truth = sorted(path for path in folder.glob("*.npz") if not path.name.startswith(".")) if knows else []
    return content_key([*source.files(index, "lidar" in teachers), *truth])


def _versions(job: Job, _: None, step: Step) -> tuple[str, str]:
    teachers = _teachers(job)
    return teachers.classes.version, teachers.depth.version


def _made_with(job: Job, versions: tuple[str, str]) -> dict[str, Any]:
    """All that decides a label's bytes, but for the data set itself."""
    preset = next((name for name, recipe in PRESETS.items() if recipe == job.recipe), OWN)
    return {
        "package": __version__,
        "recipe": preset,
        "settings": job.recipe.model_dump(mode="json"),
        "sweeps": job.sweeps,
        "teacher": OWN if isinstance(job.teacher, Teachers) else job.teacher.name,
        "class_teacher": versions[0],
        "depth_teacher": versions[1],
        "seed": 0 if isinstance(job.teacher, Teachers) else job.teacher.seed,
        "grid": {"origin_m": OCC3D_GRID.origin_m, "voxel_size_m": OCC3D_GRID.voxel_size_m, "shape": OCC3D_GRID.shape},
        "taxonomy": OCC3D.name,
    }


# A process labels many scenes and opens tables and teachers once.


def _forget() -> None:
    """What was opened for an earlier run: its files may have changed since."""
    _tables.cache_clear()
    _load_teachers.cache_clear()


@lru_cache(maxsize=1)
def _tables(dataroot: Path, version: str | None) -> NuScenesTables:
    return NuScenesTables(dataroot, version)


def _teachers(job: Job) -> Teachers:
    if isinstance(job.teacher, Teachers):
        return job.teacher
    return _load_teachers(job.dataroot, job.teacher)


@lru_cache(maxsize=1)
def _load_teachers(dataroot: Path, choice: TeacherChoice) -> Teachers:
    return load_teachers(choice.name, dataroot, OCC3D, choice.weights, choice.device, choice.seed, choice.cache)
