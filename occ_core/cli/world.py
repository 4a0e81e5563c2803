"""`occ world`: a simulated city as a nuScenes data set with exact ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Simulated drives through made-up cities, with exact ground truth.")


@app.command()
def make(
    out: Annotated[Path, typer.Argument(help="Folder of the data set; made if absent.")],
    scenes: Annotated[int, typer.Option(help="Number of scenes; each is a city of its own.")] = 1,
    seed: Annotated[int, typer.Option(help="Another seed gives other cities: two seeds share no scene.")] = 0,
    size: Annotated[
        str | None,
        typer.Option(
            help="HEIGHTxWIDTH of the images, pixels, default 450x800; of random rigs their number of pixels. Your own "
            "rig says it itself."
        ),
    ] = None,
    keyframes: Annotated[int, typer.Option(help="Keyframes per scene, 2 a second.")] = 40,
    sweeps: Annotated[
        bool, typer.Option(help="Also write what lies between keyframes: images at --rate, LiDAR at 20 Hz.")
    ] = False,
    rate: Annotated[int, typer.Option(help="Images a second and camera, with --sweeps; an even number.")] = 12,
    rig: Annotated[
        str,
        typer.Option(
            help="nuscenes: its six cameras. random: another robot in each city, with 1 to 8 cameras of other lenses, "
            "places, directions and aspects, which may see its body. A rig file (YAML, as the node's rig_file): your "
            "own cameras."
        ),
    ] = "nuscenes",
    like: Annotated[
        Path | None, typer.Option(help="The cameras of this recording: ROS 2 bag, or data set in nuScenes layout.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Scenes rendered at the same time; 0 = one per core.")] = 0,
) -> None:
    """Simulate drives and write them as a nuScenes v1.0 data set.

    The folder opens in the nuscenes-devkit (version v1.0-mini). Beside the usual files it holds gts/ (exact voxels in
    Occ3D's format) and truth/ (exact depth and class of every pixel, for oracle teachers). Stop it whenever you like:
    the same command goes on where it stood.

    Example:  occ world make city --scenes 4 --seed 7 --keyframes 10
              occ world make mine --rig my_rig.yaml --scenes 4
    """
    import os

    from occ_core.errors import InvalidInput
    from occ_core.world.make import make_world
    from occ_core.world.own_rig import own_rig
    from occ_core.world.scene import Settings

    own = own_rig(rig, like)
    if own is not None and size is not None:
        raise InvalidInput(f"--size {size}: the images of your own rig are as large as it says; leave --size out")
    height, width = size_of(size or "450x800")
    named = rig if own is None else own.fingerprint
    settings = Settings(scenes, seed, width, height, keyframes, sweeps, named, rate)
    make_world(out, settings, workers or os.cpu_count() or 1, rig=own)
    typer.echo(f"{scenes} scenes of {keyframes} keyframes in {out}")


@app.command()
def show(
    out: Annotated[Path, typer.Argument(help="Data set from `occ world make`.")],
    scene: Annotated[str | None, typer.Option(help="Name of the scene; default: the first.")] = None,
    sample: Annotated[int, typer.Option(help="Number of the keyframe, from 0.")] = 0,
    picture: Annotated[Path, typer.Option("--output", "-o", help="PNG to write.")] = Path("world.png"),
) -> None:
    """Draw one keyframe: the images, exact classes and depths, and the voxels.

    Example:  occ world show city --scene scene-0002 --sample 5 -o look.png
    """
    from occ_core.show.city import sheet
    from occ_core.show.pictures import save_png

    save_png(picture, sheet(out, scene, sample))
    typer.echo(str(picture))


@app.command()
def stats(
    out: Annotated[Path, typer.Argument(help="Data set from `occ world make`.")],
    real: Annotated[Path | None, typer.Option(help="Folder of the real samples to set beside it.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write all figures to this file.")] = None,
) -> None:
    """Set the figures of a simulated data set beside those of real ones: is the city as hard as reality?

    Class shares, observed voxels, depths, LiDAR returns, brightness, moving objects, and how far the colour of a single
    pixel gives its class away (it should not).

    Example:  occ world stats city --real ../shared/data
    """
    from occ_core.world.stats import report

    report(out, real, json_file)


def size_of(text: str) -> tuple[int, int]:
    """Parse 'HEIGHTxWIDTH' to (height, width)."""
    from occ_core.errors import InvalidInput

    parts = text.lower().split("x")
    if len(parts) != 2 or not all(p.isdigit() for p in parts):
        raise InvalidInput(f"--size must be HEIGHTxWIDTH in pixels, such as 450x800, got '{text}'")
    return int(parts[0]), int(parts[1])
