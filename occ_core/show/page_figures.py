"""The figures of a report page as text and numbers: scores, reliability, confusion, the curves of trainings."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from occ_core.errors import CorruptInput
from occ_core.show.album import spread

if TYPE_CHECKING:
    from occ_core.sources.bag_report import CameraRow

CURVE_POINTS = 1000


class PageTable(NamedTuple):
    """Figures of a page as text."""

    title: str
    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Figures:
    """What a page shows below the voxels.

    Attributes:
        tables: in this order.
        notes: texts to show as they are, such as what the doctor says.
        logs: log.csv of a training by what it is called; their curves are drawn over each other.
        reports: of `occ eval`, by what they are called: how reliable confidence is, and which class is taken for which.
    """

    tables: Sequence[PageTable] = ()
    notes: Sequence[str] = ()
    logs: Mapping[str, Path] = field(default_factory=dict)
    reports: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    def packed(self) -> dict[str, Any]:
        """JSON values, as `page_files/figures.js` reads them.

        Raises:
            CorruptInput: a log without numbers.
        """
        of = {
            key: [{"name": name, **report[key]} for name, report in self.reports.items() if key in report]
            for key in ("reliability", "confusion")
        }
        return {
            "tables": [table._asdict() for table in self.tables],
            "notes": list(self.notes),
            "curves": [{"name": name, **curve_of(log)} for name, log in self.logs.items()],
            "reliability": [{"name": row["name"], **row["bins"]} for row in of["reliability"]],
            "confusion": of["confusion"],
        }


def doctor_table(title: str, rows: Sequence[CameraRow]) -> PageTable:
    """The cameras of a recording, as `occ bag check` judges them; what is wrong, in the last column."""
    header = ["camera", "verdict", "topic", "images", "Hz", "stamps off, ms", "size", "encoding", "lens", "TF", "found"]
    cells = [
        [r.name, r.verdict, r.topic, r.images, r.rate_hz, r.offset_ms, r.size, r.encoding, r.lens, r.path, _found(r)]
        for r in rows
    ]
    return PageTable(title, header, cells)


def _found(row: CameraRow) -> str:
    return "\n".join(f"{problem}; cure: {problem.cure}" for problem, _ in row.problems)


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
