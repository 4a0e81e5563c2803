"""The figures of a report page as text and numbers: scores, and the curves of a training."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from occ_core.errors import CorruptInput
from occ_core.evaluation.in_words import in_words
from occ_core.show.album import spread

if TYPE_CHECKING:
    from rich.table import Table

CURVE_POINTS = 1000


class PageTable(NamedTuple):
    """Figures of a page as text."""

    title: str
    header: list[str]
    rows: list[list[str]]


def figures_of(report: dict[str, Any]) -> tuple[list[PageTable], list[str]]:
    """The tables of a report of `occ eval`, and what else it says, as one text of some lines."""
    told = list(in_words(report))
    lines = [item for item in told if isinstance(item, str)]
    return [table_of(item) for item in told if not isinstance(item, str)], ["\n".join(lines)] if lines else []


def table_of(table: Table) -> PageTable:
    """A rich table, as commands print it, without its colours."""
    from rich.text import Text

    def plain(cell: Any) -> str:
        return Text.from_markup(cell).plain if isinstance(cell, str) else str(cell)

    columns = [[plain(cell) for cell in column.cells] for column in table.columns]
    header = [plain(column.header) for column in table.columns]
    return PageTable(plain(table.title or ""), header, [list(row) for row in zip(*columns, strict=True)])


def curve_of(log: Path) -> dict[str, Any]:
    """Columns of a training's log.csv over its first one, the step; at most CURVE_POINTS rows, evenly spread.

    Returns:
        {x: {name, values}, lines: {name: values}}; None where a row has no number.

    Raises:
        CorruptInput: not a table whose first column are numbers.
    """
    try:
        with open(log, newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file))
        rows = [rows[i] for i in spread(range(len(rows)), CURVE_POINTS)]
        columns = {name: [_number(row[i]) if i < len(row) else None for row in rows] for i, name in enumerate(header)}
    except (OSError, ValueError, IndexError) as error:
        raise CorruptInput(f"{log}: not the log.csv of a training ({type(error).__name__}: {error})") from error
    step = columns.pop(header[0], [])
    if not step or None in step:
        raise CorruptInput(f"{log}: not the log.csv of a training: its first column must be numbers, is '{header[0]}'")
    lines = {name: values for name, values in columns.items() if any(value is not None for value in values)}
    return {"x": {"name": header[0], "values": step}, "lines": lines}


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
