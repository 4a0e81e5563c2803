"""`occ teachers`: what teachers say about images, as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Class and depth maps as files, made where the GPU is, used anywhere.")


@app.callback()
def _group() -> None:
    """Keeps `run` a command of its own."""


@app.command()
def run(
    dataroot: Annotated[Path, typer.Argument(help="Data set in nuScenes layout, SemanticKITTI, or a ROS 2 bag.")],
    out: Annotated[Path, typer.Argument(help="Folder of the maps; made if absent.")],
    teacher: Annotated[str, typer.Option(help="As of `occ labels make`; or one that knows classes or depth only.")],
    scene: Annotated[list[str] | None, typer.Option(help="Only this scene; may be repeated.")] = None,
    version: Annotated[str | None, typer.Option(help="Table folder of the data set, such as v1.0-mini.")] = None,
    sweeps: Annotated[bool, typer.Option("--sweeps", help="Also what lies between keyframes.")] = False,
    weights: Annotated[Path | None, typer.Option(help="Folder with the teachers' weights.")] = None,
    device: Annotated[
        str | None, typer.Option(help="Where teachers run, such as cuda:0. Default: what is there.")
    ] = None,
    by_stamp: Annotated[
        bool, typer.Option("--by-stamp", help="Call maps by camera and stamp: for a bag that was made of the data set.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the errors that the teacher `realistic` makes.")] = 0,
) -> None:
    """Write class and depth maps of every keyframe's images, for `occ labels make ... --teacher files:OUT`.

    Stop it whenever you like, or let it be killed: the same command goes on where it stood, to the same bytes.
    docs/map_files.md describes the files; about 130 kB an image of 1600 x 900.

    Example:  occ teachers run drive maps --teacher grounded-sam+metric3d --weights weights
    """
    from occ_core.labels.make import TeacherChoice
    from occ_core.labels.map_writer import write_maps
    from occ_core.parallel import progress_bar

    with progress_bar(True) as progress:
        bar = progress.add_task("images")
        try:
            done = write_maps(
                dataroot,
                out,
                TeacherChoice(teacher, weights, device, seed),
                scene,
                sweeps,
                version,
                by_stamp,
                lambda images, total: progress.update(bar, completed=images, total=total),
            )
        except KeyboardInterrupt:
            progress.console.print(f"[yellow]stopped; the same command goes on where {out} stands[/yellow]")
            raise typer.Exit(130) from None
    typer.echo(f"maps of {done.written} images written, of {done.there} there already, in {out}")
    for line in done.left_out[:10]:
        typer.echo(f"left out: {line}")
    if len(done.left_out) > 10:
        typer.echo(f"left out: {len(done.left_out) - 10} more")
    for line in done.failed:
        typer.secho(f"error: {line}", err=True, fg=typer.colors.RED)
    if done.failed:
        raise typer.Exit(2)
