"""`occ doctor`: what is wrong with the cameras of a running node."""

from __future__ import annotations

from typing import Annotated

import typer


def doctor(
    seconds: Annotated[float, typer.Option(help="Longest wait for the first diagnostics.", min=0.1, max=600)] = 10.0,
    node: Annotated[str, typer.Option(help="Name of the occupancy node. Default: any that is there.")] = "",
) -> None:
    """The table of `occ bag check` for live topics: each camera with verdict, cause and cure.

    Listens on /diagnostics to a running occupancy node; needs no `ros2` command. Exit code 1 if a camera is not well, 2
    if no node says anything. Example:

        occ doctor
    """
    from occ_core.cli.doctor_table import make_console, print_cameras
    from occ_core.errors import MissingInput, need

    need("rclpy", "ros")
    live = need("occ_ros.doctor", "ros")
    heard = live.listen(seconds, node)
    rows = live.camera_rows(heard)
    if not heard.last:
        raise MissingInput(
            f"nothing on /diagnostics in {seconds:g} s: is an occupancy node running, with this ROS_DOMAIN_ID?"
        )
    console = make_console()
    print_cameras(console, "cameras", rows)
    for line in live.other_lines(heard):
        console.print(line, markup=False, highlight=False)
    if not rows or not live.well(rows):
        raise typer.Exit(1)
