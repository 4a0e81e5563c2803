"""The table of cameras that `occ bag check` and `occ doctor` print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from occ_core.sources.bag_report import CameraRow

COLORS = {"ok": "green", "used": "yellow", "left out": "red"}
WIDE = 160  # characters that all columns need
FIRST = "images", "Hz", "stamps off", "size", "verdict"
SECOND = "topic", "encoding", "lens", "looks", "TF"


def make_console() -> Console:
    """Make a console of the terminal's width; files and pipes get whole lines."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=240)


def print_cameras(console: Console, title: str, rows: Sequence[CameraRow]) -> None:
    """One line a camera, in two tables where the terminal is narrow; then what is wrong, why, and what helps."""
    from rich.markup import escape
    from rich.table import Table

    for columns in ((*SECOND, *FIRST),) if console.width >= WIDE else (FIRST, SECOND):
        table = Table(title=escape(title), title_justify="left")
        for heading in ("camera", *columns):
            table.add_column(heading, overflow="fold")
        for row in rows:
            cells = _cells(row)
            table.add_row(escape(row.name), *(cells[heading] for heading in columns))
        console.print(table)
    console.print("looks: azimuth / elevation in degrees, 0 ahead, +90 left, +90 up", style="dim")
    for line in problem_lines(rows):
        console.print(line, markup=False, highlight=False)


def _cells(row: CameraRow) -> dict[str, str]:
    from rich.markup import escape

    plain = {
        "topic": row.topic,
        "images": row.images,
        "Hz": row.rate_hz,
        "stamps off": row.offset_ms and f"{row.offset_ms} ms",
        "size": row.size,
        "encoding": row.encoding,
        "lens": row.lens,
        "looks": row.looks,
        "TF": row.path,
    }
    color = COLORS[row.verdict]
    return {name: escape(text) for name, text in plain.items()} | {"verdict": f"[{color}]{row.verdict}[/{color}]"}


def problem_lines(rows: Sequence[CameraRow]) -> list[str]:
    """For each camera with a problem: what was found, why, and what helps."""
    lines = []
    for row in rows:
        for problem, count in row.problems:
            times = f"{count} x " if count > 1 else ""
            lines.append(f"{row.name}: {times}{problem}\n    cause: {problem.cause}\n    cure:  {problem.cure}")
    return lines
