"""What an adaption came to, on a page: held-out moments before and after, their labels, and all numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from occ_core.adapt.doctor import Drive
from occ_core.adapt.judge import TrueVoxels
from occ_core.adapt.label import LABELS
from occ_core.evaluation.predictions import read_observed, read_prediction
from occ_core.occupancy import Occupancy, load_occ3d
from occ_core.show.album import spread
from occ_core.show.page import MOMENTS, write_page
from occ_core.show.page_data import PageMoment
from occ_core.show.page_tables import PageTable, figures_of
from occ_core.sources.scenes import Recording

PAGE = "report.html"


def write_adapt_page(
    out: Path, drives: Sequence[Drive], judged: Sequence[Path], report: dict[str, Any]
) -> dict[str, Any]:
    """Write OUT/report.html.

    Args:
        judged: stretches; answers of their keyframes are in OUT/judged/before and after.
        report: with `before`, `after`, `why` and `speed`.

    Returns:
        what a stage says: `page`, the file's name in OUT, and `bytes`.
    """
    tables = [_summary(report)]
    for name in ("after", "before"):
        scores = report[name]
        for what, found in (("", scores), ("labels: ", scores.get("labels")), ("truth: ", scores.get("truth"))):
            named = figures_of(found)[0] if found else []
            tables += [table._replace(title=f"{name}: {what}{table.title}") for table in named]
    notes = ["\n".join([report["why"], *(d.line() for d in drives), *(line for d in drives for line in d.left_out)])]
    log = out / "train" / "log.csv"
    title = f"{', '.join(drive.scene for drive in drives)}: before and after"
    write_page(out / PAGE, title, _moments(out / "judged", judged), tables, log if log.is_file() else None, notes)
    return {"page": PAGE, "bytes": (out / PAGE).stat().st_size}


def _summary(report: dict[str, Any]) -> PageTable:
    before, after = report["before"]["summary"], report["after"]["summary"]
    rows = [
        [name.replace("_", " "), *(f"{of[name]:.1f}" if name in of else "-" for of in (before, after))]
        for name in before | after
    ]
    return PageTable("held-out stretch, percent", ["", "before", "after"], rows)


def _moments(answers: Path, judged: Sequence[Path]) -> Iterator[PageMoment]:
    """Evenly spread over all stretches."""
    recordings = [Recording(stretch) for stretch in judged]
    scenes = [recording.scene(recording.scenes[0]) for recording in recordings]
    places = [(number, index) for number, frames in enumerate(scenes) for index in range(len(frames))]
    for number, index in spread(places, MOMENTS):
        frames, (grid, taxonomy) = scenes[number], (recordings[number].grid, recordings[number].taxonomy)
        frame = frames[index]
        volumes: dict[str, Occupancy | None] = {}
        for name in ("before", "after"):
            path = answers / name / f"{frame.token}.npz"
            volumes[name] = Occupancy(grid, taxonomy, read_prediction(path, grid), read_observed(path, grid))
        label = frames.path / LABELS / frame.scene / frame.token / "labels.npz"
        volumes["labels"] = load_occ3d(label, grid, taxonomy) if label.is_file() else None
        volumes["true"] = TrueVoxels(frames.path, grid, taxonomy).at(frame.stamp_ns)
        yield PageMoment(frame, volumes)
