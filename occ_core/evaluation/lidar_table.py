"""Writes the LiDAR-ray score as tables and lines of text."""

from __future__ import annotations

import math
from typing import Any

from occ_core.evaluation.lidar_rays import BANDS, EDGES_M, GROUPS, MET_M, WITHIN_M
from occ_core.lidar_points import OWN_BODY_M

TITLE = "LiDAR returns by the first occupied cell on their ray; percent"


def _shown(number: float | None, form: str) -> str:
    """Format a number; a missing one, which is None where scores come from JSON, becomes a dash."""
    return "-" if number is None or not math.isfinite(number) else format(number, form)


def lidar_table(scores: dict[str, Any], title: str = TITLE):
    """A rich table of `score_lidar_rays`: one row a group and band."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    out = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    out.add_column("", no_wrap=True)
    within = [f"within {limit_m:g} m" for limit_m in WITHIN_M]
    for name in ("returns", *within, "too near", "missed", "median error, m", "in free"):
        out.add_column(name, justify="right", min_width=max(map(len, name.split())))  # headers break between words
    for group in GROUPS:
        for band in BANDS:
            returns, *shares, median_m, free, _ = scores[group][band].values()
            cells = [*(_shown(share, ".1f") for share in shares), _shown(median_m, "+.2f"), _shown(free, ".1f")]
            out.add_row(f"{group}, {band.replace('m', ' m')}", str(returns), *cells)
        out.add_section()
    return out


def class_table(scores: dict[str, Any]):
    """A rich table of the returns' own classes; None where points have none."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    if "classes" not in scores:
        return None
    title = f"LiDAR points with a class; met: the first cell is within {MET_M:g} m; agree: of these, it has the class"
    out = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("class", "returns", "met", "agree"):
        out.add_column(name, justify="left" if name == "class" else "right")
    for name, row in scores["classes"].items():
        agree = f"{row['agree']:.1f}" if row["met"] else "-"
        out.add_row(name, str(row["returns"]), f"{row['met']:.1f}", agree)
    return out


def summary(scores: dict[str, Any]) -> list[str]:
    """Lines of text that say what the table of `score_lidar_rays` counts and what it leaves out."""
    left_out, near, far = scores["left_out"], WITHIN_M[-1], EDGES_M[-1]
    lines = [
        f"within {near:g} m, too near (by more) and missed (farther by more, or nothing) add up to 100",
        f"{scores['frames']} frames; returns not counted: {left_out['own_body']} within {OWN_BODY_M:g} m of the LiDAR, "
        f"{left_out['off_grid']} off the grid, {left_out['out_of_view']} in no camera's image, {left_out['far']} "
        f"beyond {far} m",
    ]
    for key, what in (
        ("frames_without_prediction", "frames of the data have no prediction"),
        ("predictions_without_frame", "predictions are of no frame of the data"),
        ("frames_without_lidar", "frames have a prediction but no LiDAR sweep"),
        ("frames_without_lidar_place", "frames do not say where their LiDAR is: rays start amid the cameras"),
    ):
        if scores[key]:
            lines.append(f"{scores[key]} {what}")
    return lines
