"""`occ view`: look at predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def view(
    predictions: Annotated[Path, typer.Argument(help="Folder of predictions, one npz a sample token.")],
    data: Annotated[Path, typer.Option(help="The nuScenes-format data set that they are predictions of.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures and the recording.")] = Path("view"),
    pictures: Annotated[int, typer.Option(help="At most this many pictures, spread over the scenes.", min=0)] = 4,
    recording: Annotated[bool, typer.Option(help="Write a rerun recording of every sample.")] = True,
) -> None:
    """Pictures (PNG) and an interactive recording (rerun) of predictions beside the truth.

    Example: occ view predictions --data city --out view; then: rerun view/recording.rrd
    """
    from occ_core.show.predictions import show_predictions

    for path in show_predictions(predictions, data, out, pictures, recording):
        typer.echo(path)
