"""OUT/report.html: the held-out frames as the cameras saw them, what both networks and the labels say, the figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from occ_core.adapt.judge import true_voxels
from occ_core.adapt.label import LABELS
from occ_core.grid import OCC3D_GRID
from occ_core.occupancy import Occupancy, load_occ3d
from occ_core.show.album import spread
from occ_core.show.page import FRAMES, write_page
from occ_core.show.page_data import PageFrame
from occ_core.show.page_figures import Figures, PageTable, doctor_table
from occ_core.show.predicted_frames import doctor_rows, predicted_of
from occ_core.sources.bag_frames import BagFrames
from occ_core.sources.scenes import Recording, SceneFrames
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
    scenes = [recording.scene(name) for recording in map(Recording, stretches) for name in recording.scenes]
    bags = [(s.path.name, s.source) for s in scenes if isinstance(s.source, BagFrames)]
    tables += [doctor_table(f"cameras of {name}", doctor_rows(source)) for name, source in bags]
    logs = {"": (out / report["trained"]["checkpoint"]).with_name("log.csv")}
    judged = {name: report[name].get("truth") or report[name].get("labels") or {} for name in ("before", "after")}
    path = out / "report.html"
    write_page(path, out.resolve().name, _frames(out, scenes), Figures(tables, notes, logs, judged))
    return path


def summary_rows(report: dict[str, Any]) -> list[list[str]]:
    """What decides and what is shown, one row a number: its name, before, after."""
    scores = [report[part]["summary"] for part in ("before", "after")]
    return [
        [name.replace("_", " "), *(f"{of[name]:.1f}" if name in of else "-" for of in scores)]
        for name in scores[0] | scores[1]
    ]


def _frames(out: Path, scenes: Sequence[SceneFrames]) -> Iterator[PageFrame]:
    """At most FRAMES of all stretches."""
    every = [(frames, i) for frames in scenes for i in range(len(frames))]
    for position in spread(range(len(every)), FRAMES):
        frames, index = every[position]
        frame = frames[index]
        volumes = {name: _predicted(out / "judged" / name / f"{frame.token}.npz") for name in ("after", "before")}
        label = frames.path / LABELS / frame.scene / frame.token / "labels.npz"
        volumes["labels"] = load_occ3d(label) if label.is_file() else None
        volumes["true"] = true_voxels(frames.path, OCC3D_GRID, OCC3D).of(frame)
        yield PageFrame(frame, volumes)


def _predicted(path: Path) -> Occupancy | None:
    return predicted_of(path, OCC3D_GRID, OCC3D) if path.is_file() else None
