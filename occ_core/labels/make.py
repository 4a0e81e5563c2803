"""Labels any recording: scenes run in parallel, here or on a Ray cluster, and a run can be resumed at every label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

from occ_core.errors import CannotWrite, InvalidInput, OccError
from occ_core.frame import Frame
from occ_core.labels.ray_engine import run_on_ray
from occ_core.labels.recipes import PRESETS, Recipe, load_recipe
from occ_core.labels.scene import label_scene
from occ_core.labels.store import LabelStore
from occ_core.parallel import Step, progress_bar, run_in_processes
from occ_core.sources.kitti import GROUND_Z_M
from occ_core.sources.nuscenes_tables import root_of
from occ_core.sources.scenes import Recording, SceneFrames
from occ_core.teachers.base import Teachers
from occ_core.teachers.files import FileMaps, file_maps
from occ_core.teachers.load import load_teachers
from occ_core.teachers.names import parts_of
from occ_core.version import __version__

ENGINES = ("local", "ray")
OWN = "own"
"""In a store's record: a recipe or teachers that have no name."""
RESTARTS = 3  # of the work on a scene whose process was killed


@dataclass(frozen=True)
class TeacherChoice:
    """Names the teachers, with what `load_teachers` needs to find them.

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
    """The result for a scene; `error` says in one line why labels are missing from it."""

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
    """Label the keyframes of a recording that the store `out` lacks; equal input gives equal bytes.

    Args:
        dataroot: what `open_source` opens: nuScenes layout, SemanticKITTI, a bag.
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
        InvalidInput: `out` holds labels made otherwise, an unknown engine, or a recording without poses for a recipe
            that adds up frames.
        CannotWrite: full disk and the like.
    """
    if engine not in ENGINES:
        raise InvalidInput(f"engine must be one of {', '.join(ENGINES)}, got '{engine}'")
    run = partial(run_in_processes, restarts=RESTARTS) if engine == "local" else partial(run_on_ray, gpus=gpus)
    _forget()
    chosen = TeacherChoice(teacher) if isinstance(teacher, str) else teacher
    recipe = load_recipe(recipe) if isinstance(recipe, str) else recipe
    job = Job(Path(dataroot), Path(out), recipe, chosen, sweeps, version)
    recording = _recording(job.dataroot, version)
    _require_poses(recording, recipe)
    tasks = [Task(s, tuple(recording.tokens(s))) for s in recording.require_scenes(scenes)]
    store = LabelStore(job.out, recording.grid, recording.taxonomy)
    (versions,) = run(partial(_versions, job), [None], 1)  # where the teachers will run, for the same is loaded there
    if workers > 1:
        _load_teachers.cache_clear()  # the workers' memory is theirs
    _require_same_files(job, tasks, store)
    store.claim(_made_with(job, recording, versions), {task.scene: task.tokens for task in tasks})
    lacking = [[not store.is_complete(task.scene, token) for token in task.tokens] for task in tasks]
    todo = [task for task, lacks in zip(tasks, lacking, strict=True) if any(lacks)]
    with progress_bar(show_progress) as progress:
        total = sum(map(len, lacking))
        # counted in images, which take the time: each label needs those of its own frame
        cameras = _images_a_label(recording, tasks)
        bar = progress.add_task("images", total=total * cameras, completed=(total - sum(map(sum, lacking))) * cameras)
        results = run(partial(label_one, job), todo, workers, lambda: progress.advance(bar, cameras))
        try:
            with closing(results):  # an error that is on its way keeps the generator alive, and with it the processes
                return list(_finished(results))
        except KeyboardInterrupt:
            progress.console.print(f"[yellow]stopped; the same command goes on where {out} stands[/yellow]")
            raise


def _images_a_label(recording: Recording, tasks: list[Task]) -> int:
    with suppress(OccError):  # of the first scene; its own work will say what is wrong with it
        return max(1, len(recording.scene(tasks[0].scene).shots(0))) if tasks else 1
    return 1


def _finished(results: Iterator[Done | CannotWrite]) -> Iterator[Done]:
    for result in results:
        if isinstance(result, CannotWrite):
            raise result
        yield result


def label_one(job: Job, task: Task, step: Step) -> Done | CannotWrite:
    """Make the labels of one scene that the store lacks; any engine calls this, in any process."""
    recording = _recording(job.dataroot, job.version)
    store = LabelStore(job.out, recording.grid, recording.taxonomy)
    wanted = {token for token in task.tokens if not store.is_complete(task.scene, token)}
    written, skipped, unlabelled = 0, recording.left_out, dict[str, str]()
    try:
        scene = recording.scene(task.scene, job.sweeps)
        frames = cast(Sequence[Frame], scene)  # it has what of a sequence is asked for: length and index
        index_of = {token: index for index, token in enumerate(scene.tokens)}
        meaning = _recipe_for(recording, job.recipe), wanted, recording.grid, recording.taxonomy
        for label in label_scene(frames, _teachers(job), *meaning, unlabelled):
            store.write(task.scene, label.token, label, _key_of(job, scene, index_of[label.token]))
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
    """Refuse a store whose labels were made of other images than the data set has under the same names."""
    for task in tasks:
        made_of = {token: key for token in task.tokens if (key := store.made_of(task.scene, token))}
        if not made_of:
            continue
        scene = _recording(job.dataroot, job.version).scene(task.scene)
        for index, token in enumerate(scene.tokens):
            if token in made_of and made_of[token] != _key_of(job, scene, index):
                raise InvalidInput(
                    f"{store.folder}: its label of {task.scene}, sample '{token}' was made of other files than are in "
                    f"{job.dataroot}; choose another folder"
                )


def _key_of(job: Job, frames: SceneFrames, index: int) -> str:
    """Hash what a keyframe's images and its teachers' maps are read from."""
    if isinstance(job.teacher, Teachers):  # which may look at the LiDAR, too
        return frames.key(index, True, [])
    scene, token = frames.source.samples[frames.source_indices[index]]
    names = parts_of(job.teacher.name)
    folder = root_of(job.dataroot) / "truth" / scene / token
    knows = {"oracle", "realistic"} & set(names)
    more = sorted(path for path in folder.glob("*.npz") if not path.name.startswith(".")) if knows else []
    for maps in _file_maps(job.teacher.name):
        more += maps.files(scene, token, frames.shots(index))
    return frames.key(index, "lidar" in names, more)


def _require_poses(recording: Recording, recipe: Recipe) -> None:
    if not recording.has_pose and (recipe.past, recipe.future) != (0, 0):
        raise InvalidInput(
            f"{recording.path}: nobody says where the robot is (no TF above the base frame, no odometry), so frames "
            "cannot be laid over each other; --recipe single, or one with past: 0 and future: 0, needs no poses"
        )


def _recipe_for(recording: Recording, recipe: Recipe) -> Recipe:
    """Adapt the recipe's heights, which are above level ground, to a data set whose ego frame is not on the ground, as
    SemanticKITTI's."""
    if not recording.is_kitti or recipe.ground_z_m is None:
        return recipe
    return recipe.model_copy(update={"ground_z_m": recipe.ground_z_m + GROUND_Z_M})


def _versions(job: Job, _: None, step: Step) -> tuple[str, str]:
    teachers = _teachers(job)
    return teachers.classes.version, teachers.depth.version


def _made_with(job: Job, recording: Recording, versions: tuple[str, str]) -> dict[str, Any]:
    """Everything that decides a label's bytes, except for the data set itself."""
    preset = next((name for name, recipe in PRESETS.items() if recipe == job.recipe), OWN)
    grid = recording.grid
    return {
        "package": __version__,
        "recipe": preset,
        "settings": job.recipe.model_dump(mode="json"),
        "sweeps": job.sweeps,
        "teacher": OWN if isinstance(job.teacher, Teachers) else job.teacher.name,
        "class_teacher": versions[0],
        "depth_teacher": versions[1],
        "seed": 0 if isinstance(job.teacher, Teachers) else job.teacher.seed,
        "grid": {"origin_m": grid.origin_m, "voxel_size_m": grid.voxel_size_m, "shape": grid.shape},
        "taxonomy": recording.taxonomy.name,
    }


# A process labels many scenes and opens recording and teachers once.


def _forget() -> None:
    """Close what was opened for an earlier run, since its files may have changed."""
    for opened in (_recording, _file_maps, _load_teachers):
        opened.cache_clear()


@lru_cache(maxsize=1)
def _recording(dataroot: Path, version: str | None) -> Recording:
    return Recording(dataroot, version)


@lru_cache(maxsize=1)
def _file_maps(teacher: str) -> list[FileMaps]:
    return file_maps(teacher)


def _teachers(job: Job) -> Teachers:
    if isinstance(job.teacher, Teachers):
        return job.teacher
    return _load_teachers(job.dataroot, job.version, job.teacher)


@lru_cache(maxsize=1)
def _load_teachers(dataroot: Path, version: str | None, choice: TeacherChoice) -> Teachers:
    taxonomy = _recording(dataroot, version).taxonomy
    return load_teachers(choice.name, dataroot, taxonomy, choice.weights, choice.device, choice.seed, choice.cache)
