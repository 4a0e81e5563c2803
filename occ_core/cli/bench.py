"""`occ bench`: how long things take, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from occ_core.cli.world import size_of

app = typer.Typer(no_args_is_help=True, help="How long things take on this machine; run them while it is idle.")


@app.callback()
def _group() -> None:
    """A callback keeps `labels` a command of its own although it is the only one."""


@app.command()
def labels(
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the class maps and depths, pixels.")] = "450x800",
    frames: Annotated[int, typer.Option(help="Frames in the window of a label.", min=1)] = 14,
    repeats: Annotated[int, typer.Option(help="Times that each is measured; the median is shown.", min=1)] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write all figures to this file.")] = None,
) -> None:
    """Time lifting, voting and ray casting of six cameras, teachers excluded, beside plain numpy and Open3D.

    Example:  occ bench labels --json benchmarks/labels_speed.json
    """
    import json

    from occ_core.files import write_atomically
    from occ_core.host import host
    from occ_core.labels.bench import bench_labels

    height, width = size_of(size)
    figures = bench_labels(height, width, frames, repeats)
    record = {**host(("numpy", "numba", "open3d")), **figures}
    if json_file is not None:
        write_atomically(json_file, (json.dumps(record, indent=1) + "\n").encode())
    for name, row in figures["ms"].items():
        typer.echo(f"{name:10} {row if isinstance(row, str) else format(row['median'], '8.0f') + ' ms a keyframe'}")
    typer.echo(f"{figures['megabytes_a_frame_kept']:.1f} MB kept a frame, peak {figures['peak_memory_mb']:.0f} MB")
