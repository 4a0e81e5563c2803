"""Writes reliability as a table and a line of text."""

from __future__ import annotations

from typing import Any

TITLE = "confidence, and share that is right; percent"


def reliability_table(scores: dict[str, Any]):
    """A rich table of `Reliability.report`: one row a bin of confidence, then ranges and classes that were called."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    out = Table(title=TITLE, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    out.add_column("", no_wrap=True)
    for name in ("cells", "confidence", "right", "ECE"):
        out.add_column(name, justify="right")

    def add(name: str, row: dict[str, Any]) -> None:
        numbers = (row.get(key) for key in ("confidence", "right", "ece"))
        if row["cells"]:
            out.add_row(name, str(row["cells"]), *("" if n is None else f"{n:.1f}" for n in numbers))

    for called in ("occupied", "free"):
        bins = scores["bins"][called]
        for number, row in enumerate(bins):
            add(f"{called}, {number / len(bins):.1f} to {(number + 1) / len(bins):.1f}", row)
        out.add_section()
    for band, row in scores["per_range"].items():
        add(f"occupied, {band.replace('m', ' m')}", row)
    out.add_section()
    for name, row in scores["per_class"].items():
        add(name, row)
    return out


def reliability_line(scores: dict[str, Any]) -> str:
    """The errors over all cells."""
    shown = {who: scores[who]["ece"] for who in ("all", "occupied", "free")}
    of_all, occupied, free = ("-" if ece is None else f"{ece:.1f}" for ece in shown.values())
    return (
        f"ECE of confidence {of_all} %; of cells called occupied {occupied}, free {free} "
        f"({scores['samples']} samples with confidence)"
    )
