"""Two runs beside each other: their scores with differences, and the same frames as both see them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from occ_core.errors import CorruptInput, InvalidInput, MissingInput
from occ_core.evaluation.predictions import prediction_files
from occ_core.evaluation.report import PROTOCOLS
from occ_core.files import read_json
from occ_core.show.album import spread
from occ_core.show.page import FRAMES
from occ_core.show.page_data import PageFrame
from occ_core.show.page_figures import Figures, PageTable
from occ_core.show.predicted_frames import PredictedFrames

KINDS = "report of `occ eval --json`", "training", "predictions"
SHARES = {"iou": "IoU", "miou_15": "mIoU, 15 classes", "miou_17": "mIoU, 17 classes"}
COMPLETION = {"precision": "precision", "recall": "recall", "iou": "IoU", "miou_19": "mIoU, 19 classes"}


class Run(NamedTuple):
    """One of two runs.

    Attributes:
        kind: of KINDS.
        report: as of `evaluate`; of a training, its scores on what it held out.
        predictions: folder; None: it has none.
        logs: of a training, by what is in them.
        settings: of a training.
    """

    name: str
    kind: str
    report: dict[str, Any]
    predictions: Path | None = None
    logs: Mapping[str, Path] = {}
    settings: Mapping[str, Any] = {}


def open_runs(a: Path, b: Path) -> tuple[Run, Run]:
    """Two runs of one kind: files of `occ eval --json`, folders of `occ train`, or folders of predictions.

    Raises:
        InvalidInput: of two kinds. MissingInput, CorruptInput.
    """
    names = (a.stem, b.stem) if a.stem != b.stem else (str(a), str(b))
    runs = _open(a, names[0]), _open(b, names[1] if a != b else f"{names[1]} again")
    if runs[0].kind != runs[1].kind:
        raise InvalidInput(f"{a} is a {runs[0].kind}, {b} a {runs[1].kind}: only two of a kind can be compared")
    return runs


def _open(path: Path, name: str) -> Run:
    if path.is_file():
        run = Run(name, KINDS[0], read_json(path))
    elif (path / "log.csv").is_file():
        run = _open_training(path, name)
    else:
        prediction_files(path)
        return Run(name, KINDS[2], {}, path)
    try:
        Figures(reports={name: run.report}).packed()
        rows = difference_tables(run, run)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CorruptInput(f"{path}: not a {run.kind} ({type(error).__name__}: {error})") from error
    if not rows and run.kind == KINDS[0]:
        raise CorruptInput(f"{path}: not a {run.kind}: no score in it")
    return run


def _open_training(path: Path, name: str) -> Run:
    record = next((path / file for file in ("model.json", "last.json") if (path / file).is_file()), None)
    if record is None:
        raise MissingInput(f"{path}: a training without a checkpoint: neither model.json nor last.json in it")
    model = read_json(record)
    training = model.get("training")
    if not isinstance(training, dict):
        raise CorruptInput(f"{record}: says nothing of a training")
    logs = {what: path / file for what, file in (("", "log.csv"), (", held out", "scores.csv"))}
    held_out = path / "held_out"
    return Run(
        name,
        KINDS[1],
        {"camera": training["metrics"]} if training.get("metrics") else {},
        held_out if any(held_out.glob("*.npz")) else None,
        {what: log for what, log in logs.items() if log.is_file()},
        {"model": model.get("model"), **{key: training.get(key) for key in ("step", "config", "data", "host")}},
    )


@contextmanager
def on_equal_frames(a: Run, b: Run) -> Iterator[tuple[Path, Path, list[str]]]:
    """Two folders of predictions with the same tokens, those that both runs have, and a line for each that has more.

    Raises:
        InvalidInput: they have no frame in common. MissingInput: a run has no predictions.
    """
    for run in (a, b):
        if run.predictions is None:
            raise MissingInput(f"{run.name}: a {run.kind} without predictions: nothing to score or to show of it")
    files = [prediction_files(run.predictions) for run in (a, b) if run.predictions]
    both = files[0].keys() & files[1].keys()
    if not both:
        raise InvalidInput(
            f"no frame in common: {a.name} predicts {len(files[0])}, first '{min(files[0])}', {b.name} "
            f"{len(files[1])}, first '{min(files[1])}'"
        )
    left_out = [
        f"{run.name}: {len(own) - len(both)} of {len(own)} predictions left out, {other.name} has none of these frames"
        for run, other, own in ((a, b, files[0]), (b, a, files[1]))
        if len(own) > len(both)
    ]
    with TemporaryDirectory() as folder:
        links = Path(folder) / "a", Path(folder) / "b"
        for place, own in zip(links, files, strict=True):
            place.mkdir()
            for token in both:
                (place / f"{token}{own[token].suffix}").symlink_to(own[token].resolve())
        yield *links, left_out


def frames_of_both(names: tuple[str, str], a: PredictedFrames, b: PredictedFrames) -> Iterator[PageFrame]:
    """At most FRAMES, evenly spread, of two folders with the same tokens; the truth third."""
    for index in spread(range(len(a)), FRAMES):
        frame, one, truth = a[index]
        yield PageFrame(frame, {names[0]: one, names[1]: b[index].predicted, "true": truth})


def difference_tables(a: Run, b: Run) -> list[PageTable]:
    """Scores that both or one of them have, with the second less the first; settings that differ."""
    header = ["", a.name, b.name, "difference"]
    parts = (("scores, percent", score_rows), ("classes, IoU, percent", class_rows))
    tables = [PageTable(title, header, _rows(of(a.report), of(b.report))) for title, of in parts]
    settings = _flat(a.settings), _flat(b.settings)
    unlike = [key for key in {**settings[0], **settings[1]} if settings[0].get(key) != settings[1].get(key)]
    rows = [[key, *(str(of.get(key, "-")) for of in settings)] for key in unlike]
    tables.append(PageTable("settings that differ", ["", a.name, b.name], rows))
    return [table for table in tables if table.rows]


def score_rows(report: Mapping[str, Any]) -> dict[str, float | None]:
    """The scores of a report of `evaluate` by what they are, in percent, classes left out."""
    rows: dict[str, float | None] = {}
    for protocol in PROTOCOLS:
        rows |= _named(protocol.replace("_", " "), report.get(protocol), SHARES)
    rows |= _named("ray", report.get("ray"), {f"rayiou_{n}": f"RayIoU, {n} classes" for n in (15, 17)})
    for range_m, scores in (report.get("ssc") or {}).items():
        rows |= _named(range_m, scores, COMPLETION)
    for group, bands in (report.get("lidar") or {}).items():
        for band, scores in bands.items() if isinstance(bands, dict) else ():
            if isinstance(scores, dict):
                rows |= _named(f"LiDAR, {group}, {band}", scores, {"within_1m": "within 1 m"})
    for group, bands in (report.get("images") or {}).get("photometric", {}).items():
        for band, scores in bands.items():
            rows |= _named(f"images, {group}, {band}", scores, {"fits": "fit best"})
    for cells in ("all", "occupied", "free"):
        rows |= _named(f"confidence, {cells} cells", (report.get("reliability") or {}).get(cells), {"ece": "ECE"})
    return rows


def class_rows(report: Mapping[str, Any]) -> dict[str, float | None]:
    """IoU by class, of the first protocol that the report has."""
    completion = list((report.get("ssc") or {}).values())[-1:]
    scores: Mapping[str, Any] = next((s for s in (*(report.get(p) for p in PROTOCOLS), *completion) if s), {})
    return scores.get("per_class", {})


def _named(what: str, scores: Mapping[str, Any] | None, names: Mapping[str, str]) -> dict[str, float | None]:
    return {f"{what}: {name}": scores[key] for key, name in names.items() if key in scores} if scores else {}


def _rows(a: Mapping[str, float | None], b: Mapping[str, float | None]) -> list[list[str]]:
    rows = []
    for name in {**a, **b}:
        one, other = (value if (value := of.get(name)) is not None and value == value else None for of in (a, b))
        change = "-" if one is None or other is None else f"{round(other - one, 1) + 0.0:+.1f}"  # no -0.0
        if one is not None or other is not None:
            rows.append([name.replace("_", " "), *("-" if v is None else f"{v:.1f}" for v in (one, other)), change])
    return rows


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Entries of nested mappings by their path."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return found
