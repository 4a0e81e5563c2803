"""The figures of a report page as text and numbers: scores, and the curves of a training."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from occ_core.errors import CorruptInput
from occ_core.evaluation.image_consistency import image_lines
from occ_core.evaluation.lidar_table import TITLE, class_table, lidar_table, summary
from occ_core.evaluation.report import PROTOCOLS
from occ_core.evaluation.report import table as voxel_table
from occ_core.show.album import spread

if TYPE_CHECKING:
    from rich.table import Table

CURVE_POINTS = 1000


class PageTable(NamedTuple):
    """Figures of a page as text."""

    title: str
    header: list[str]
    rows: list[list[str]]


def tables_of_scores(report: dict[str, Any]) -> list[PageTable]:
    """All tables that `occ eval` prints of a report: true voxels, scene completion, LiDAR returns."""
    tables = []
    if any(name in report for name in PROTOCOLS):
        tables.append(table_of(voxel_table(report)))
    if "ssc" in report:
        tables.append(_completion_table(report["ssc"]))
    for key, title in (("lidar", TITLE), ("lidar_of_truth", "The same of the true voxels: the ceiling")):
        if key in report:
            found = (lidar_table(report[key], title), class_table(report[key]))
            tables += [table_of(table) for table in found if table is not None]
    return tables


def notes_of_scores(report: dict[str, Any]) -> list[str]:
    """What else `occ eval` says of a report, in texts of some lines."""
    notes = ["\n".join(summary(report["lidar"]))] if "lidar" in report else []
    notes += ["\n".join(image_lines(report[key])) for key in ("images", "images_of_truth") if key in report]
    return notes + [f"warning: {line}" for line in report.get("warnings", [])]


def _completion_table(ssc: dict[str, dict[str, Any]]) -> PageTable:
    """One row a score, one column a range."""

    def shown(value: float | None) -> str:
        return "-" if value is None or math.isnan(value) else f"{value:.1f}"

    scores = [
        [label, *(shown(found[key]) for found in ssc.values())]
        for key, label in (("precision", "precision"), ("recall", "recall"), ("iou", "IoU"), ("miou_19", "mIoU"))
    ]
    names = next(iter(ssc.values()))["per_class"]
    classes = [[name, *(shown(found["per_class"][name]) for found in ssc.values())] for name in names]
    return PageTable("Scene completion by range; percent", ["", *ssc], scores + classes)


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
