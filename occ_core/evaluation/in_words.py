"""Writes a report of scores for people, as rich tables and lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from occ_core.evaluation.image_consistency import image_lines
from occ_core.evaluation.lidar_table import TITLE, class_table, lidar_table, summary
from occ_core.evaluation.reliability_table import reliability_line, reliability_table
from occ_core.evaluation.report import table

if TYPE_CHECKING:
    from rich.table import Table

CEILING = "The same of the true voxels: the ceiling"


def in_words(report: dict[str, Any]) -> Iterator[Table | str]:
    """Yield tables and lines of what `evaluate` returns, in the order of reading, with warnings last."""
    for name, found in report.get("ssc", {}).items():
        numbers = ", ".join(f"{key} {found[key]:.2f}" for key in ("precision", "recall", "iou", "miou_19"))
        yield f"{name:>5}: {numbers}"
    if "full" in report:
        yield table(report)
    if (confidence := report.get("reliability")) is not None:
        yield reliability_table(confidence)
        yield reliability_line(confidence)
    for name, title in (("lidar", TITLE), ("lidar_of_truth", CEILING)):
        if (scores := report.get(name)) is not None:
            yield lidar_table(scores, title)
            if (classes := class_table(scores)) is not None:
                yield classes
            yield from summary(scores) if name == "lidar" else ()
    for name in ("images", "images_of_truth"):
        if (scores := report.get(name)) is not None:
            yield from [CEILING] if name == "images_of_truth" else []
            yield from image_lines(scores)
    yield from (f"warning: {line}" for line in report.get("warnings", []))
