"""The table of cameras that `occ bag check` and `occ doctor` print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from occ_core.sources.bag_report import CameraRow

COLORS = {"ok": "green", "used": "yellow", "left out": "red"}


def camera_table(title: str, rows: Sequence[CameraRow]) -> Table:
    """One line a camera."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left")
    headings = "camera", "topic", "images", "Hz", "stamps off", "size", "encoding", "lens", "looks", "TF", "verdict"
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        cells = row.name, row.topic, row.images, row.rate_hz, row.offset_ms and f"{row.offset_ms} ms", row.size
        color = COLORS[row.verdict]
        rest = row.encoding, row.lens, row.looks, row.path
        table.add_row(*map(escape, (*cells, *rest)), f"[{color}]{row.verdict}[/{color}]")
    table.caption = "looks: azimuth / elevation in degrees, 0 ahead, +90 left, +90 up" if rows else None
    return table


def problem_lines(rows: Sequence[CameraRow]) -> list[str]:
    """Of each camera that is not well: what was found, why, and what helps."""
    from rich.markup import escape

    lines = []
    for row in rows:
        for problem, count in row.problems:
            times = f"{count} x " if count > 1 else ""
            lines.append(
                f"{escape(row.name)}: {times}{escape(str(problem))}\n"
                f"    cause: {escape(problem.cause)}\n    cure:  {escape(problem.cure)}"
            )
    return lines
