"""`occ bag`: ROS 2 bags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    help="Make ROS 2 bags from nuScenes-format data sets, and check whether a bag can be used.",
)


@app.command("make")
def make(
    dataroot: Annotated[Path, typer.Argument(help="Data set in nuScenes v1.0 layout, real or from `occ world make`.")],
    out: Annotated[Path, typer.Argument(help="Folder of the bag to write.")],
    scene: Annotated[str, typer.Option(help="Name of the scene, such as scene-0103.")],
    version: Annotated[str | None, typer.Option(help="Table folder; default: the only v1.0-* there is.")] = None,
    storage: Annotated[str, typer.Option(help="mcap or sqlite3.")] = "mcap",
    raw: Annotated[bool, typer.Option("--raw", help="Decoded images (20x larger) instead of the JPEG files.")] = False,
    sweeps: Annotated[
        bool | None,
        typer.Option("--sweeps/--no-sweeps", help="What lies between keyframes; default: the files that are there."),
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out keyframe files that are missing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it is a bag.")] = False,
) -> None:
    """Turn one scene of a nuScenes data set into a ROS 2 bag.

    Images keep their bytes and every message its sensor's own stamp. What the data set lacks is listed at the end.
    Example:

        occ bag make /data/nuscenes drive --scene scene-0103 --version v1.0-mini

        ros2 bag play drive
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from occ_core.errors import need
    from occ_core.sources.nuscenes_tables import NuScenesTables

    need("rosbags", "bags")
    from occ_core.bags.writer import BagOptions, write_bag

    tables = NuScenesTables(dataroot, version)
    options = BagOptions(storage, raw, sweeps, allow_missing, force)
    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(f"{scene} -> {out}", total=None)
        summary = write_bag(
            tables, scene, out, options, lambda done, total: bar.update(task, completed=done, total=total)
        )
    _print_summary(summary)


@app.command("check")
def check(
    bag: Annotated[Path, typer.Argument(help="Folder of a ROS 2 bag, or its .mcap or .db3 file.")],
    base_frame: Annotated[str, typer.Option(help="Frame of the vehicle.")] = "base_link",
    world_frame: Annotated[str | None, typer.Option(help="Default: odom, else map, else odometry's.")] = None,
    camera: Annotated[list[str] | None, typer.Option(help="Camera to use, by name or topic; repeat.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Camera to leave out, by name or topic; repeat.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first problem (exit code 2).")] = False,
    ego_mask: Annotated[
        Path | None,
        typer.Option(help="Folder for masks of what shows the robot itself, found in the bag, and a picture."),
    ] = None,
) -> None:
    """The doctor of recordings: what each camera is, whether it can be used, and if not why, and what helps.

    Reads a bag as everything else here reads it, and decodes every image once. Exit code 1 if a camera cannot be used
    or looks unusable, 2 if none can. docs/troubleshooting.md says more. Example:

        occ bag check drive

    With --ego-mask drive/masks, everything that reads the bag afterwards uses the masks: look at them first.
    """
    from rich.progress import Progress, TextColumn

    from occ_core.cli.doctor_table import make_console, print_cameras
    from occ_core.frame import Frame
    from occ_core.labels.ego_finder import MaskFinder, write_found
    from occ_core.sources.bag import BagSource
    from occ_core.sources.bag_report import BagReport

    source = BagSource(bag, camera or None, base_frame, world_frame, exclude=exclude or (), strict=strict)
    finder = None if ego_mask is None else MaskFinder()
    with Progress(TextColumn("{task.description}"), transient=True) as bar:
        task = bar.add_task("reading", total=None)

        def seen(sets: int, frame: Frame) -> None:
            bar.update(task, description=f"reading: {sets} sets")
            if finder is not None:
                finder.add(frame)

        report = BagReport(source, seen)
    console = make_console()
    print_cameras(console, f"{bag}: {report.sets} image sets in {report.seconds:.1f} s", report.rows)
    sections = {
        "TF": report.tf_lines(),
        "motion": report.motion_lines(),
        "same view": report.view_lines(),
        "skipped": [f"{count} x {reason}" for reason, count in source.skipped.items()],
    }
    console.print(f"key camera {source.key.name}; base {source.base_frame}; world {source.world_frame or '(none)'}")
    for title, lines in sections.items():
        for line in lines:
            console.print(f"{title}: {line}", markup=False, highlight=False)
    console.print(f"LiDAR: {f'{report.sweeps} sweeps on {source.lidar_topic}' if source.lidar_topic else 'none'}")
    if finder is not None and ego_mask is not None:
        for line in write_found(finder.found(), ego_mask):
            console.print(line, soft_wrap=True)
    if not report.well:
        raise typer.Exit(1)


def _print_summary(summary) -> None:  # type: ignore[no-untyped-def]
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(
        title=f"{summary.path}: {summary.bytes / 1e6:.1f} MB in {summary.seconds:.1f} s", title_justify="left"
    )
    table.add_column("topic")
    table.add_column("messages", justify="right")
    for topic, count in sorted(summary.counts.items()):
        table.add_row(topic, str(count))
    console.print(table)
    if summary.left_out:
        absent = Table(title="Not in the bag", title_justify="left")
        absent.add_column("what")
        absent.add_column("why")
        for what, why in summary.left_out:
            absent.add_row(what, why)
        console.print(absent)
