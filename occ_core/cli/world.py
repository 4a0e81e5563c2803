"""`occ world`: a simulated city as a nuScenes data set with exact ground truth."""

from __future__ import annotations

from pathlib import Path

import typer

app = typer.Typer(no_args_is_help=True, help="Simulated drives through made-up cities, with exact ground truth.")


@app.command()
def make(
    out: Path = typer.Argument(..., help="Folder of the data set; made if absent."),
    scenes: int = typer.Option(1, help="Number of scenes; each is a city of its own."),
    seed: int = typer.Option(0, help="Another seed gives other cities: no scene is shared between two seeds."),
    size: str = typer.Option("450x800", help="HEIGHTxWIDTH of the images, pixels."),
    keyframes: int = typer.Option(40, help="Keyframes per scene, 2 a second."),
    sweeps: bool = typer.Option(False, help="Also write what lies between keyframes: images 12 Hz, LiDAR 20 Hz."),
    workers: int = typer.Option(1, help="Scenes rendered at the same time; 0 = one per core."),
) -> None:
    """Simulate drives and write them as a nuScenes v1.0 data set.

    The folder opens in the nuscenes-devkit (version v1.0-mini). Beside the usual files it holds gts/ (exact voxels in
    Occ3D's format) and truth/ (exact depth and class of every pixel, for oracle teachers). Stop it whenever you like:
    the same command goes on where it stood.

    Example:  occ world make city --scenes 4 --seed 7 --keyframes 10 --workers 2
    """
    import os

    from occ_core.world.make import make_world
    from occ_core.world.scene import Settings

    height, width = _size(size)
    settings = Settings(scenes, seed, width, height, keyframes, sweeps)
    make_world(out, settings, workers or os.cpu_count() or 1)
    typer.echo(f"{scenes} scenes of {keyframes} keyframes in {out}")


def _size(text: str) -> tuple[int, int]:
    from occ_core.errors import InvalidInput

    parts = text.lower().split("x")
    if len(parts) != 2 or not all(p.isdigit() for p in parts):
        raise InvalidInput(f"--size must be HEIGHTxWIDTH in pixels, such as 450x800, got '{text}'")
    return int(parts[0]), int(parts[1])
