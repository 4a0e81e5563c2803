"""Curves of a training as a picture (PNG)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from occ_core.errors import need
from occ_core.files import write_atomically
from occ_core.show.page_figures import curve_of

BESIDE = frozenset({"seconds", "step_seconds", "waiting", "learning_rate"})
"""Columns of a log that are no losses."""


def plot_curves(path: Path, logs: Mapping[str, Path]) -> None:
    """Write `path`: one picture beside the other of each log, every column over its first one, the step; losses on a
    logarithmic scale where all are above 0.

    Raises:
        MissingPackage: matplotlib is not installed. CorruptInput: a log without numbers. CannotWrite.
    """
    figure = need("matplotlib.figure", "viz").Figure(figsize=(7 * len(logs), 4.5), layout="constrained")
    for axes, (title, log) in zip(figure.subplots(1, len(logs), squeeze=False)[0], logs.items(), strict=True):
        curve = curve_of(log)
        for name, values in curve["lines"].items():
            if name not in BESIDE:
                there = [(x, y) for x, y in zip(curve["x"]["values"], values, strict=True) if y is not None]
                axes.plot(*zip(*there, strict=True), label=name, marker="." if len(there) < 20 else "")
        if "total" in curve["lines"] and all(min(line.get_ydata()) > 0 for line in axes.lines):
            axes.set_yscale("log")
        axes.set(title=title, xlabel=curve["x"]["name"])
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    write_atomically(path, picture.getvalue())
