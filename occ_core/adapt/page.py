"""OUT/report.html: the held-out moments as the cameras saw them, what both networks and the labels say, the figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from occ_core.adapt.judge import true_voxels
from occ_core.adapt.label import LABELS
from occ_core.evaluation.predictions import read_observed, read_prediction
from occ_core.grid import OCC3D_GRID
from occ_core.occupancy import Occupancy, load_occ3d
from occ_core.show.album import spread
from occ_core.show.page import MOMENTS, write_page
from occ_core.show.page_data import PageMoment
from occ_core.show.page_tables import PageTable
from occ_core.sources.scenes import Recording
from occ_core.taxonomy import OCC3D

SPEED = ("p50_ms", "p95_ms", "equal_percent", "same_percent")


def write_report_page(out: Path, stretches: Sequence[Path], report: dict[str, Any]) -> Path:
    """Write the page of what `line.run` returns, of a network on Occ3D's grid.

    Raises:
        CorruptInput: of a prediction or label. CannotWrite.
    """
    tables = [
        PageTable("held-out stretch, percent", ["", "before", "after"], summary_rows(report)),
        PageTable("runtimes", ["", *SPEED], [[n, *(str(row[k]) for k in SPEED)] for n, row in report["speed"].items()]),
    ]
    notes = [report["why"], f"runs as {report['runs']}: {report['node']['run']}", *report["labels"]["lacking"]]
    log = out / report["trained"]["checkpoint"]
    path = out / "report.html"
    write_page(path, out.resolve().name, _moments(out, stretches), tables, log.with_name("log.csv"), notes)
    return path


def summary_rows(report: dict[str, Any]) -> list[list[str]]:
    """What decides and what is shown, one row a number: its name, before, after."""
    scores = [report[part]["summary"] for part in ("before", "after")]
    return [
        [name.replace("_", " "), *(f"{of[name]:.1f}" if name in of else "-" for of in scores)]
        for name in scores[0] | scores[1]
    ]


def _moments(out: Path, stretches: Sequence[Path]) -> Iterator[PageMoment]:
    """At most MOMENTS of all stretches."""
    recordings = [Recording(stretch) for stretch in stretches]
    scenes = [recording.scene(name) for recording in recordings for name in recording.scenes]
    every = [(frames, i) for frames in scenes for i in range(len(frames))]
    for place in spread(range(len(every)), MOMENTS):
        frames, index = every[place]
        frame = frames[index]
        volumes = {name: _predicted(out / "judged" / name / f"{frame.token}.npz") for name in ("after", "before")}
        label = frames.path / LABELS / frame.scene / frame.token / "labels.npz"
        volumes["labels"] = load_occ3d(label) if label.is_file() else None
        volumes["true"] = true_voxels(frames.path, OCC3D_GRID, OCC3D).of(frame)
        yield PageMoment(frame, volumes)


def _predicted(path: Path) -> Occupancy | None:
    if not path.is_file():
        return None
    return Occupancy(OCC3D_GRID, OCC3D, read_prediction(path, OCC3D_GRID), read_observed(path, OCC3D_GRID))
