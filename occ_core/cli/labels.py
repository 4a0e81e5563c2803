"""`occ labels`: 3D pseudo-labels from teachers of images, made, checked, looked at and scored."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    help="""Labels without a human: teachers say class and depth of each pixel, time makes them dense.

    The whole way, on a simulated city with the truth at hand to judge by:

        occ world make city --scenes 2 --keyframes 10

        occ labels make city city-labels --recipe best --teacher realistic

        occ labels check city-labels

        occ labels show city-labels city

        occ labels score city-labels city

        occ train easyocc_nano --data city --labels city-labels
    """,
)

STORE = Annotated[Path, typer.Argument(metavar="STORE", help="Folder from `occ labels make`.")]
DATAROOT = Annotated[Path, typer.Argument(help="What the labels were made of: nuScenes layout, SemanticKITTI, a bag.")]
VERSION = Annotated[
    str | None, typer.Option(help="Table folder of the data set, such as v1.0-mini; default: the only one there is.")
]
SCENE = Annotated[list[str] | None, typer.Option(help="Only this scene; may be repeated.")]


@app.command()
def make(
    dataroot: Annotated[Path, typer.Argument(help="Data set in nuScenes layout, SemanticKITTI, or a ROS 2 bag.")],
    out: Annotated[Path, typer.Argument(help="Folder of the label store; made if absent.")],
    recipe: Annotated[
        str,
        typer.Option(help="single, easyocc, easyocc-clamped, shelf, best, lidar or completed; or one's own YAML file."),
    ] = "best",
    teacher: Annotated[
        str,
        typer.Option(
            help="oracle or realistic (simulated data), lidar, files:DIR, grounded-sam+metric3d, or another "
            "CLASS+DEPTH pair; CLASS+DEPTH+lidar completes the depth by the LiDAR (recipe completed)."
        ),
    ] = "grounded-sam+metric3d",
    engine: Annotated[
        str, typer.Option(help="local: processes of this machine; ray: tasks of a Ray cluster.")
    ] = "local",
    workers: Annotated[
        int,
        typer.Option(
            help="Scenes at the same time. 0: one per core here, one per GPU if networks are asked; as many as there "
            "is room for on Ray."
        ),
    ] = 0,
    gpus: Annotated[float, typer.Option(help="Ray only: share of a GPU that the teachers of one scene take.")] = 0.0,
    scene: SCENE = None,
    version: VERSION = None,
    sweeps: Annotated[
        bool, typer.Option("--sweeps", help="Use what lies between keyframes, too; windows then count all frames.")
    ] = False,
    weights: Annotated[Path | None, typer.Option(help="Folder with the teachers' weights.")] = None,
    device: Annotated[
        str | None, typer.Option(help="Where teachers run, such as cuda:0. Default: what is there.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the errors that the teacher `realistic` makes.")] = 0,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder to keep the teachers' maps in, for other recipes; off: none. Default: teacher-maps beside OUT "
            "for networks, none for others."
        ),
    ] = None,
    find_ego_masks: Annotated[
        bool,
        typer.Option("--find-ego-masks", help="First find what shows the robot itself; kept in DATAROOT/masks."),
    ] = False,
) -> None:
    """Label every keyframe of a data set or bag, in Occ3D's format.

    A bag's frames are labelled about every half second, and those of SemanticKITTI; while the robot stands, every five
    seconds. SemanticKITTI's labels have its own grid and classes.

    Stop it whenever you like, or let it be killed: the same command goes on where it stood, makes broken files anew and
    ends with the same bytes as an undisturbed run. A folder whose labels were made with another recipe or teacher is
    refused. See docs/labels.md for the files and docs/teachers.md for the teachers.

    Example:  occ labels make city city-labels --recipe best --teacher realistic

    On a cluster, two scenes to a GPU:

        occ labels make /data/nuscenes /data/labels --engine ray --gpus 0.5
    """
    from occ_core.labels.make import TeacherChoice, make_labels
    from occ_core.labels.recipes import load_recipe
    from occ_core.teachers.cache import folder_for, size_of
    from occ_core.teachers.names import processes_for

    if find_ego_masks:
        from occ_core.labels.ego_finder import find_masks

        for line in find_masks(dataroot, scene):
            typer.echo(line)
    if workers == 0 and engine == "local":
        workers = processes_for(teacher, device)
    cache = folder_for(cache, teacher, out)
    choice = TeacherChoice(teacher, weights, device, seed, cache)
    try:
        done = make_labels(
            dataroot,
            out,
            load_recipe(recipe),
            choice,
            engine,
            workers,
            scenes=scene,
            sweeps=sweeps,
            gpus=gpus,
            version=version,
        )
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if cache is not None:
        typer.echo(
            f"teachers' maps: {size_of(cache) / 1e6:.1f} MB in {cache} (for other recipes; --cache off keeps none)"
        )
    _report(out, done)


def _report(out: Path, done) -> None:
    """Print what was made and what was left out; the exit code is 2 if scenes failed."""
    typer.echo(f"{sum(scene.written for scene in done)} labels made, in {out}")
    for scene in done:
        for reason in scene.skipped[:3]:
            typer.echo(f"left out in {scene.scene}: {reason}")
        if len(scene.skipped) > 3:
            typer.echo(f"left out in {scene.scene}: {len(scene.skipped) - 3} more, see its labels.json")
    failed = [scene for scene in done if scene.error]
    for scene in failed:
        typer.secho(f"error: {scene.scene}: {scene.error}", err=True, fg=typer.colors.RED)
    if failed:
        raise typer.Exit(2)


@app.command()
def check(store: STORE) -> None:
    """Verify every label of a store: it is there, its bytes have their hash, its arrays make sense.

    Prints one line a problem. Exit code 0: complete and sound; 1: not. What is broken or absent is made anew by the
    `occ labels make` command that made the store; strange files are left alone.

    Example:  occ labels check city-labels
    """
    from occ_core.labels.store import LabelStore

    labels = LabelStore.open(store)
    count = 0
    for problem in labels.check():
        typer.echo(problem)
        count += 1
    typer.echo(f"{count} problems in a store of {len(labels.samples)} labels")
    if count:
        raise typer.Exit(1)


@app.command()
def split(
    labels: Annotated[
        Path,
        typer.Argument(help="Folder of <scene>/<token>/labels.npz, a store's too; or SemanticKITTI with its voxels."),
    ],
    out: Annotated[Path, typer.Argument(help="New folder of labels of the same form.")],
    percent: Annotated[float, typer.Option(help="How much of them: 1, 10, 100, ....")],
    by: Annotated[str, typer.Option(help="Of frames, or of scenes, all of whose labels are taken.")] = "frames",
    seed: Annotated[int, typer.Option(help="Which ones.")] = 0,
) -> None:
    """A label budget: a seeded part of a folder of labels, to be named as --labels of `occ train`.

    Files are hard links where the disk allows them. Of one seed, the 1 % are a part of the 10 %; one frame at least is
    there. OUT/split.json says what was taken.

    Example:  occ labels split city/gts city-10 --percent 10; then: occ train CONFIG --labels city-10
    """
    from occ_core.labels.split import split_labels

    record = split_labels(labels, out, percent, by, seed)
    typer.echo(f"{record['labels']} of {record['of_labels']} labels, of {len(record['scenes'])} scenes, in {out}")


@app.command()
def voxelise(
    dataroot: Annotated[Path, typer.Argument(help="SemanticKITTI with labels of its points.")],
    out: Annotated[Path, typer.Argument(help="Folder for sequences/<scene>/voxels/<frame>.label and .invalid.")],
    scene: SCENE = None,
    every: Annotated[int, typer.Option(help="Only each n-th frame; the data set's own voxels have n = 5.", min=1)] = 1,
) -> None:
    """Ground truth of SemanticKITTI scene completion from its labelled scans, laid over each other by their poses.

    A cell has the class of most points in it, is free where rays of a scan pass it, and nobody knows it else. Things
    labelled as moving come from the frame's own scan alone. The files are of the form of the data set's own voxels, for
    `occ train CONFIG --labels OUT` and `occ eval PRED OUT/sequences/08/voxels`. Frames that OUT has are kept.

    Example:  occ labels voxelise semantickitti kitti-voxels --scene 08 --every 5
    """
    from rich.progress import track

    from occ_core.labels.voxelise import voxelise as run

    frames = list(track(run(dataroot, out, scene, every), description="voxelising"))
    typer.echo(f"{len(frames)} frames in {out}")


@app.command()
def show(
    store: STORE,
    dataroot: DATAROOT,
    out: Annotated[Path, typer.Option(help="Folder for the pictures and the recording.")] = Path("labels-view"),
    scene: SCENE = None,
    version: VERSION = None,
    pictures: Annotated[int, typer.Option(help="At most this many pictures, spread over the scenes.", min=0)] = 4,
    recording: Annotated[bool, typer.Option(help="Write a rerun recording of every sample.")] = True,
    maps: Annotated[bool, typer.Option(help="Ask the store's teachers for class maps and depths.")] = True,
    weights: Annotated[Path | None, typer.Option(help="Folder with the teachers' weights.")] = None,
    device: Annotated[str | None, typer.Option(help="Where teachers run, such as cuda:0.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder where `make` kept the teachers' maps.")] = None,
) -> None:
    """Pictures (PNG) and an interactive recording (rerun) of labels and what they come from.

    Images, class maps and depths of the teachers; the label in 3D and from above, beside the truth where there is some;
    votes, and which cells nobody saw.

    Example:  occ labels show city-labels city --out look; then: rerun look/recording.rrd
    """
    from occ_core.labels.store import LabelStore
    from occ_core.show.labels import show_labels
    from occ_core.teachers.cache import folder_for
    from occ_core.teachers.load import load_teachers

    labels, teachers = LabelStore.open(store), None
    if maps:
        made_with = labels.record["made_with"]
        name = made_with["teacher"]
        cache = folder_for(cache, name, store)
        teachers = load_teachers(name, dataroot, labels.taxonomy, weights, device, made_with["seed"], cache)
    for path in show_labels(labels, dataroot, out, scene, pictures, recording, teachers, version):
        typer.echo(path)


@app.command()
def score(
    store: STORE,
    dataroot: DATAROOT,
    scene: SCENE = None,
    version: VERSION = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write all figures to this file.")] = None,
) -> None:
    """Score labels against exact truth (DATAROOT/gts) and against LiDAR points, whichever the data set has.

    Against truth: every protocol of `occ eval`, the share of cells decided, and how often a cell called free is free.
    Against LiDAR: where its points fall. That says something only of labels made without this LiDAR.

    Example:  occ labels score city-labels city --json scores.json
    """
    from rich.console import Console
    from rich.progress import Progress

    from occ_core.evaluation.report import write_report
    from occ_core.labels.score import score_store, tables_of

    with Progress(transient=True) as progress:
        task = progress.add_task("scoring", total=None)
        report = score_store(
            store, dataroot, scene, lambda done, total: progress.update(task, completed=done, total=total), version
        )
    if json_file is not None:
        write_report(json_file, report)
    for table in tables_of(report):
        Console().print(table)
    for line in report.get("warnings", []):
        typer.echo(f"warning: {line}")
    typer.echo(f"{report['samples']} labels" + (f", {report['lacking']} not there yet" if report["lacking"] else ""))
    if report["sweeps_missing"]:
        typer.echo(f"not scored against LiDAR: {report['sweeps_missing']}, whose sweep is missing or empty")
