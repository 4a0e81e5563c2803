"""`occ eval --html`: the scores on a page, with what was scored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from occ_core.show.predicted_frames import PredictedFrames


def evaluated_frames(predictions: Path, truths: Path | None, data: Path | None, version: str | None) -> PredictedFrames:
    """What a page shows of predictions; asked before they are scored, so that a wrong folder costs no wait.

    Args:
        truths: GTS of `occ eval`. data: what was predicted; None: the data set that GTS lies in.

    Raises:
        MissingInput: nothing tells what was predicted.
    """
    from occ_core.errors import MissingInput
    from occ_core.evaluation.ssc import holds_voxels
    from occ_core.show.predicted_frames import PredictedFrames

    folder = None if truths is None else truths.resolve()
    if folder is not None and holds_voxels(folder):  # sequences/<scene>/voxels
        folder = folder.parents[2]
        data = data or folder
    if data is None and folder is not None:
        data = folder.parent
    if data is None:
        raise MissingInput("--html shows images: name what was predicted, --lidar DATA or --images DATA")
    return PredictedFrames(predictions, data, folder, version)


def write_eval_page(path: Path, frames: PredictedFrames, report: dict[str, Any], remarks: list[str]) -> None:
    """Write the page of a report of `occ eval`, and say where it is."""
    from occ_core.show.page import page_frames, write_page
    from occ_core.show.page_figures import doctor_table
    from occ_core.show.page_report import figures_of

    figures = figures_of(report, remarks)
    if rows := frames.cameras():
        figures = replace(figures, tables=[*figures.tables, doctor_table("the recording's cameras", rows)])
    write_page(path, frames.title, page_frames(frames), figures)
    typer.echo(f"page       {path} ({path.stat().st_size / 1e6:.1f} MB)")
