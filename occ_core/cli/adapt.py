"""`occ adapt`: a robot's own bags become a trained, judged network that runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer


def adapt(
    bags: Annotated[list[Path], typer.Argument(metavar="BAG... OUT", help="ROS 2 bags of one robot, and last OUT.")],
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Who says class and depth of pixels, as of `occ labels make`: files:DIR, or networks. Depth is set "
            "right by the LiDAR where there is one. Default: grounded-sam+metric3d."
        ),
    ] = None,
    hours: Annotated[float, typer.Option(help="Of training; how many steps that is, is measured here.")] = 2.0,
    steps: Annotated[int | None, typer.Option(help="Steps of training, instead of --hours.", min=1)] = None,
    start: Annotated[str, typer.Option(help="Checkpoint to begin from: nano, which ships, or a file.")] = "nano",
    weights: Annotated[Path | None, typer.Option(help="Folder with the teachers' weights.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1)] = 2,
    replay: Annotated[
        bool, typer.Option("--replay/--no-replay", help="Play the held-out end to the node, where ROS 2 is.")
    ] = True,
    sim_only: Annotated[
        Path | None,
        typer.Option(
            "--sim-only",
            help="No bag: simulated cities, seen by the cameras of this rig file (as of the node) or recording.",
        ),
    ] = None,
    cities: Annotated[
        int, typer.Option(help="Simulated cities to learn from, too, seen by the bag's cameras; 0: none.", min=0)
    ] = 64,
    seed: Annotated[int, typer.Option(help="Of the simulated cities, and with --sim-only the two after it.")] = 1,
    short: Annotated[
        bool,
        typer.Option("--short", help="Take bags however short: shows that the line runs, not what adapting gains."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen, and how long.")] = False,
) -> None:
    """From a robot's bags to a network that knows its cameras and places, judged on drives it has not seen, running.

    Looks whether the recordings will do, and stops with causes if not. Then: the end of each bag is kept to judge by;
    labels are made of the rest, without a human; the network that ships learns from them; both are judged; the better
    one is exported, compared, timed, and played the end of the last bag through the node. Stop it whenever you like, or
    let it be killed: the same command goes on and ends with the same bytes. docs/adapt.md says what OUT holds. Example:

        occ adapt drive adapted --teacher files:maps --hours 2
        occ adapt --sim-only rig.yaml adapted --hours 2
    """
    from occ_core.adapt.line import plan, plan_of_cities, run
    from occ_core.errors import InvalidInput, MissingInput, need
    from occ_core.shipped import require_network

    *recordings, out = bags
    if not recordings and sim_only is None:
        raise MissingInput("give one bag or more, and last the folder to write to: occ adapt BAG OUT")
    if sim_only is not None and (recordings or teacher or weights or short):
        raise InvalidInput("--sim-only takes OUT alone: no bag, --teacher, --weights or --short")
    for module, extra in (("torch", "torch"), ("onnx", "onnx"), ("rosbags", "bags"), ("numba", "world")):
        need(module, extra)
    checkpoint = require_network(start)
    if sim_only is not None:
        need("embreex", "world")
        found = plan_of_cities(sim_only, out, checkpoint, cities, seed, hours, steps, threads)
    else:
        found = plan(recordings, out, checkpoint, teacher, hours, steps, weights, threads, short, cities, seed)
    for line in found.lines():
        typer.echo(line)
    if dry_run:
        return
    try:
        report = run(found, typer.echo, _replay() if replay and sim_only is None else None)
    except KeyboardInterrupt:
        typer.echo(f"stopped; the same command goes on where {out} stands")
        raise typer.Exit(130) from None
    _show(report)


def _replay() -> Callable[[Path, Path], dict[str, Any]] | None:
    """None where ROS 2 is not installed."""
    from occ_core.errors import MissingPackage, need

    try:
        need("rclpy", "ros")
        found: Callable[[Path, Path], dict[str, Any]] = need("occ_ros.replay", "ros").replay
    except MissingPackage:
        typer.echo("no ROS 2 here: the bag is not replayed through the node")
        return None
    return found


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from occ_core.adapt.page import summary_rows

    table = Table(title="held-out stretch, percent", title_justify="left")
    for heading in ("", "before", "after"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in summary_rows(report):
        table.add_row(*row)
    Console().print(table)
    typer.secho(report["why"], fg=typer.colors.GREEN if report["better"] else typer.colors.YELLOW)
    speed = report["speed"][report["runs"]]
    took = f"p50 {speed['p50_ms']} ms, p95 {speed['p95_ms']} ms"
    typer.echo(
        f"runs as {report['runs']}: {took}; {speed['same_percent']} % of what it or torch calls occupied is alike"
    )
    if played := report.get("replay"):
        typer.echo(f"replayed: {played['frames_answered']} frames answered, p50 {played['p50_ms']} ms to answer")
    typer.echo(report["node"]["run"])
