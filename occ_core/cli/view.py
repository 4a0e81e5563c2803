"""`occ view`: look at predictions and bags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def view(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="[BAG|PRED]", help="A ROS 2 bag, or a folder of predictions (one npz a frame)."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="What PRED are predictions of: nuScenes layout, SemanticKITTI, or ROS 2 bag.")
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="Table folder of --data in nuScenes layout; default: the only one there is.")
    ] = None,
    truth: Annotated[Path | None, typer.Option(help="Folder of labels to show instead of the data set's own.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures and the recording.")] = Path("view"),
    pictures: Annotated[int, typer.Option(help="At most this many pictures, spread over the scenes.", min=0)] = 4,
    recording: Annotated[bool, typer.Option(help="Write a rerun recording of every frame.")] = True,
    animation: Annotated[
        Path | None,
        typer.Option(metavar="OUT.webp", help="Write an animation instead: cameras, voxels, fused map."),
    ] = None,
    foxglove: Annotated[bool, typer.Option("--foxglove", help="Serve to Foxglove instead of writing files.")] = False,
    live: Annotated[bool, typer.Option("--live", help="Serve a page of the running node to browsers.")] = False,
    node: Annotated[str, typer.Option(help="With --live: name of the occupancy node.")] = "occupancy_node",
    host: Annotated[str, typer.Option(help="Address to serve on; 0.0.0.0 lets the whole network look.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to serve on; 0: any that is free.", min=0, max=65535)] = 8765,
    rate: Annotated[float, typer.Option(help="Speed of serving; 2 is twice as fast.", min=0.01, max=100)] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="End after the last frame instead of starting over.")] = False,
    camera: Annotated[list[str] | None, typer.Option(help="Of a bag: camera to use, by name or topic; repeat.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Of a bag: camera to leave out; repeat.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Of a bag: stop at the first problem.")] = False,
) -> None:
    """Cameras and voxels, predicted and true, as pictures, as a recording, or live in Foxglove.

    Without options it writes pictures (PNG) and an interactive recording; a bag shows what it holds of images and of
    the topics .../occupancy that the node and `occ bag make` publish. Examples:

        occ view predictions --data city --out view

        rerun view/recording.rrd

        occ view predictions --data city --animation drive.webp

        occ view drive --foxglove

        occ view --live

    The last two serve until Ctrl-C: in Foxglove choose "Open connection", "Foxglove WebSocket", ws://localhost:8765,
    and import the layout config/foxglove_layout.json; what the running node sees and answers stands on
    http://localhost:8765 for any browser.
    """
    from occ_core.errors import InvalidInput, MissingInput

    if live:
        if path is not None:
            raise InvalidInput(f"--live shows the running node, not {path}")
        raise typer.Exit(_live(node, host, port))
    if path is None:
        raise MissingInput("name a bag or a folder of predictions, or --live for the running node")
    from occ_core.show.predicted_frames import PredictedFrames, write_pictures
    from occ_core.sources.open import Choice

    frames = PredictedFrames(path, data, truth, version, Choice(tuple(camera or ()), tuple(exclude or ()), strict))
    for line in frames.left_out:
        typer.echo(f"left out: {line}", err=True)
    if animation is not None:
        from occ_core.show.animation import write_animation

        write_animation(frames, animation)
        typer.echo(f"{animation} ({animation.stat().st_size / 1e6:.1f} MB)")
        return
    if not foxglove:
        for written in write_pictures(frames, out, pictures, recording):
            typer.echo(written)
        return
    from occ_core.show.foxglove import FoxgloveServer, play

    with FoxgloveServer(frames.title, frames[0].frame.rig.names, host, port) as server:
        typer.echo(f"{len(frames)} frames on {server.url} (Ctrl-C ends)")
        try:
            play(server, frames, rate, loop=not once)
        except KeyboardInterrupt:
            typer.echo("ended")


def _live(node: str, host: str, port: int) -> int:
    from occ_core.errors import need
    from occ_core.show.live import LiveServer

    need("rclpy", "ros")
    viewer = need("occ_ros.live", "ros")
    with LiveServer(node, host, port) as server:
        code: int = viewer.show(node, server, typer.echo)
    return code
