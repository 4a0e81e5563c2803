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

        occ bag make /data/nuscenes drive --scene scene-0103 --version v1.0-mini

        ros2 bag play drive
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from occ_core.errors import need
    from occ_core.sources.nuscenes_tables import NuScenesTables

    need("rosbags", "bags")
    from occ_ros.bag_writer import BagOptions, write_bag

    tables = NuScenesTables(dataroot, version)
    options = BagOptions(storage, raw, sweeps, allow_missing, force)
    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(f"{scene} -> {out}", total=None)
        summary = write_bag(
            tables, scene, out, options, lambda done, total: bar.update(task, completed=done, total=total)
        )
    _print_summary(summary)


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
