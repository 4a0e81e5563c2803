"""`occ compare`: two runs beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

RUN = "A file of `occ eval --json`, a folder of `occ train`, or a folder of predictions."


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help=RUN)],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another of the same kind.")],
    truths: Annotated[
        Path | None, typer.Argument(metavar="[GTS]", help="What predictions are scored against, as of `occ eval`.")
    ] = None,
    lidar: Annotated[Path | None, typer.Option(help="What was predicted, with a LiDAR, as of `occ eval`.")] = None,
    images: Annotated[Path | None, typer.Option(help="What was predicted, without LiDAR, as of `occ eval`.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="What was predicted, for images on the page. Default: beside GTS, or --lidar.")
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="Table folder of nuScenes layout; default: the only one there is.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Also write a page: both side by side, and all figures.")] = None,
) -> None:
    """Two runs beside each other: scores with differences (B less A), and on a page the same frames as both see them.

    Predictions are scored as by `occ eval`, on the frames that both have. Trainings are compared by what they say of
    themselves: scores on what they held out, curves, settings that differ; with GTS, --lidar or --data also by their
    answers to held-out frames. Examples:

        occ compare before.json after.json

        occ compare predictions-a predictions-b city/gts --html compare.html

        occ compare runs/a runs/b --html compare.html
    """
    from contextlib import ExitStack

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from occ_core.cli.eval_page import evaluated_frames
    from occ_core.errors import MissingInput
    from occ_core.evaluation.evaluate import evaluate
    from occ_core.show.comparison import difference_tables, frames_of_both, on_equal_frames, open_runs
    from occ_core.show.page import write_page
    from occ_core.show.page_data import PageFrame
    from occ_core.show.page_figures import Figures

    runs = open_runs(a, b)
    notes: list[str] = []
    frames: list[PageFrame] = []
    names = runs[0].name, runs[1].name
    if runs[0].kind == "predictions" and not any((truths, lidar, images, html and data)):
        raise MissingInput(
            "nothing to compare predictions by: give GTS, --lidar DATA, --images DATA, or --data and --html"
        )
    scored, shown = any((truths, lidar, images)), html is not None and any((truths, lidar, images, data))
    with ExitStack() as stack:
        if scored or shown:
            one, other, notes = stack.enter_context(on_equal_frames(*runs))
        if scored:
            against: dict[str, Any] = {
                "lidar": lidar,
                "images": images,
                "data": data if truths else None,
                "version": version,
            }
            reports = [evaluate(folder, truths, **against, on_remark=lambda _: None) for folder in (one, other)]
            runs = runs[0]._replace(report=reports[0]), runs[1]._replace(report=reports[1])
        tables = difference_tables(*runs)
        if shown:
            both = (evaluated_frames(folder, truths, data or lidar or images, version) for folder in (one, other))
            frames = list(frames_of_both(names, *both))
    for title, header, rows in tables:
        table = Table(*map(escape, header), title=title, title_justify="left")
        for row in rows:
            table.add_row(*map(escape, row))
        Console().print(table)
    for line in notes:
        typer.echo(line)
    if html is not None:
        logs = {f"{run.name}{what}": log for run in runs for what, log in run.logs.items()}
        figures = Figures(tables, notes, logs, {run.name: run.report for run in runs})
        write_page(html, " and ".join(names), frames, figures)
        typer.echo(f"page       {html} ({html.stat().st_size / 1e6:.1f} MB)")
