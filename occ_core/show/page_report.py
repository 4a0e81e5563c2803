"""A report of `occ eval` as the figures of a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from occ_core.evaluation.in_words import in_words
from occ_core.show.page_figures import Figures, PageTable

if TYPE_CHECKING:
    from rich.table import Table


def figures_of(report: dict[str, Any], remarks: Sequence[str] = ()) -> Figures:
    """All of a report of `occ eval`: its tables, what else it says as one text of some lines, its reliability and
    confusion."""
    items = list(in_words(report))
    lines = [item for item in items if isinstance(item, str)]
    tables = [table_of(item) for item in items if not isinstance(item, str)]
    return Figures(tables, [*(["\n".join(lines)] if lines else []), *remarks], {}, {"": report})


def table_of(table: Table) -> PageTable:
    """A rich table, as commands print it, without its colours."""
    from rich.text import Text

    def plain(cell: Any) -> str:
        return Text.from_markup(cell).plain if isinstance(cell, str) else str(cell)

    columns = [[plain(cell) for cell in column.cells] for column in table.columns]
    header = [plain(column.header) for column in table.columns]
    return PageTable(plain(table.title or ""), header, [list(row) for row in zip(*columns, strict=True)])
