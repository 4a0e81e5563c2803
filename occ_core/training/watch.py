"""What a run shows of itself while it learns: curves, pictures of held-out samples, a report page, TensorBoard."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from occ_core.errors import need
from occ_core.frame import Frame
from occ_core.inference.predictions import save_prediction
from occ_core.models.build import ModelConfig
from occ_core.occupancy import Occupancy
from occ_core.show.album import spread
from occ_core.show.page import FRAMES, write_page
from occ_core.show.page_data import PageFrame
from occ_core.show.page_figures import Figures, PageTable
from occ_core.show.pictures import compare, save_png
from occ_core.show.plot import plot_curves
from occ_core.show.predicted_frames import predicted_of
from occ_core.taxonomy import UNLABELED
from occ_core.training.log import Log
from occ_core.training.tabulated import Samples

PICTURES = 2  # at every validation
WRITTEN = (
    "report.html", "loss.png", "scores.csv", "held_out/*.npz", "pictures/step_*.png",
    "tensorboard/events.out.tfevents.*",
)  # fmt: skip
"""Files of a run, beside checkpoints and `log.csv`."""
SCORES = {"iou": "IoU", "miou_15": "mIoU, 15 classes", "miou_17": "mIoU, 17 classes"}


def shown_of(held_out: Sequence[int]) -> list[int]:
    """Which of some held-out samples a run shows."""
    return spread(held_out, FRAMES)


class Watch:
    """Of the process that logs; what cannot be drawn because its package is not installed is left out.

    Args:
        out: folder of the run, with its `log.csv` and, once it was validated, `scores.csv`.
        held_out: what it is validated on.
        model: tells grid and classes.
        step: the run's when this begins; TensorBoard drops what a killed run told of later ones.
    """

    def __init__(self, out: Path, held_out: Samples, model: ModelConfig, step: int) -> None:
        self._out, self._held_out, self._model = out, held_out, model
        self._board: Any = None
        if find_spec("tensorboard") is not None:
            writer = need("torch.utils.tensorboard", "tensorboard").SummaryWriter
            self._board = writer(str(out / "tensorboard"), purge_step=step + 1 if step else None)

    def row(self, step: int, values: Mapping[str, float]) -> None:
        """What a row of the log says."""
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"training/{name}", value, step)
            self._board.flush()

    def validated(self, step: int, metrics: Mapping[str, Any] | None, answers: Mapping[int, Occupancy]) -> None:
        """Curves, scores, and the answers to some held-out samples, which take the place of those before.

        Args:
            metrics: None: nothing is held out.

        Raises:
            CannotWrite. MissingInput, CorruptInput: of a held-out sample.
        """
        if metrics is not None:
            scores = Log(self._out / "scores.csv", step, ("step", "seconds"))
            scores.write(step, {key: metrics[key] for key in SCORES})
        for index, answer in answers.items():
            save_prediction(self._file(index), answer.labels, answer.observed, confidence=answer.confidence)
        pictures = {}
        for index in spread(list(answers), PICTURES):
            frame, truth = self._frame(index), self._label(index)
            name = f"{frame.scene}_{frame.token}"
            pictures[name] = compare(frame.images, answers[index], truth, f"{name}, step {step}")
            save_png(self._out / "pictures" / f"step_{step:07d}_{name}.png", pictures[name])
        if self._board is not None:
            for key, score in (metrics or {}).items():
                if key in SCORES:
                    self._board.add_scalar(f"held_out/{key}", score, step)
            for name, picture in pictures.items():
                self._board.add_image(name, picture[::2, ::2], step, dataformats="HWC")
            self._board.flush()
        self.plot()

    def plot(self) -> None:
        """The curves so far, `loss.png`."""
        if find_spec("matplotlib") is not None and (logs := self._logs()):
            plot_curves(self._out / "loss.png", logs)

    def close(self, metrics: Mapping[str, Any] | None) -> None:
        """The curves and the page of the run as it is.

        Args:
            metrics: of the last validation; None: there was none.

        Raises:
            CannotWrite. MissingInput, CorruptInput: of a held-out sample.
        """
        if self._board is not None:
            self._board.close()
        self.plot()
        figures = Figures([] if metrics is None else [score_table(metrics)], logs=self._logs())
        samples = list(self._samples())
        if samples or any(figures.packed().values()):
            write_page(self._out / "report.html", self._out.resolve().name, samples, figures)

    def _logs(self) -> dict[str, Path]:
        named = {"training": self._out / "log.csv", "held out": self._out / "scores.csv"}
        return {name: path for name, path in named.items() if path.is_file() and _has_rows(path)}

    def _samples(self) -> Iterator[PageFrame]:
        there = [index for index in range(len(self._held_out)) if self._file(index).is_file()]
        for index in spread(there, FRAMES):
            predicted = predicted_of(self._file(index), self._model.grid, self._model.classes)
            yield PageFrame(self._frame(index), {"predicted": predicted, "label": self._label(index)})

    def _frame(self, index: int) -> Frame:
        source, keyframe = self._held_out.keyframe(index)
        return source.frames[keyframe.frame_index]

    def _file(self, index: int) -> Path:
        """The prediction of a held-out sample, called as `occ predict` calls it."""
        source, keyframe = self._held_out.keyframe(index)
        return self._out / "held_out" / f"{source.frames.names[keyframe.frame_index]}.npz"

    def _label(self, index: int) -> Occupancy:
        """What it is scored by."""
        labels, free = self._held_out.labels(index), np.uint8(self._model.classes.free_id)
        known = labels != UNLABELED
        return Occupancy(self._model.grid, self._model.classes, np.where(known, labels, free), known)


def score_table(metrics: Mapping[str, Any]) -> PageTable:
    """Of the last validation, as the record beside the checkpoint has it."""
    rows = [(name, metrics[key]) for key, name in SCORES.items()] + list(metrics["per_class"].items())
    title = f"held out, camera mask, step {metrics['step']}; percent"
    return PageTable(title, ["", "IoU"], [[name, "-" if v is None or v != v else f"{v:.1f}"] for name, v in rows])


def _has_rows(path: Path) -> bool:
    with open(path, newline="") as file:
        return sum(1 for _, _ in zip(csv.reader(file), range(2), strict=False)) == 2
