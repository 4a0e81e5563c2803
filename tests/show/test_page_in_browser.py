"""The report page in a real browser, without a window: it draws, plays and toggles, and shows the numbers it should."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import small_nuscenes
from browser import open_page

from occ_core.grid import OCC3D_GRID
from occ_core.occupancy import Occupancy
from occ_core.show.page import write_page
from occ_core.show.page_data import PageFrame, visible
from occ_core.show.page_figures import Figures, PageTable
from occ_core.sources.open import open_source
from occ_core.taxonomy import OCC3D

CAR, HIGHEST = 4, 9
VISITOR = Path(__file__).parents[1] / "fixtures" / "page_visitor.js"


def volume(seed: int) -> Occupancy:
    rng, shape = np.random.default_rng(seed), OCC3D_GRID.shape
    labels = np.where(rng.random(shape) < 0.02, rng.integers(0, 17, shape), 17).astype(np.uint8)
    return Occupancy(OCC3D_GRID, OCC3D, labels, rng.random(shape) < 0.8, rng.random(shape).astype(np.float32))


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    root = tmp_path_factory.mktemp("browser") / "city"
    small_nuscenes.make(root, keyframes=2)
    source = open_source(root)
    return [PageFrame(source[i], {"predicted": volume(i), "true": volume(i + 2)}) for i in range(2)]


def figures(folder: Path) -> Figures:
    """Two trainings, and a report of two classes and one full bin."""
    logs = {}
    for name, text in {"a": "step,total,depth\n1,2,\n2,1,5\n3,1.5,4\n", "b": "step,total\n1,3\n2,2\n"}.items():
        logs[name] = folder / f"{name}.csv"
        logs[name].write_text(text)
    bins = [{"cells": 100 * (i == 7), "confidence": 70.0, "right": 60.0} for i in range(10)]
    confusion = {"protocol": "camera", "classes": ["car", "bus", "tram"], "cells": [[3, 1, 0], [0, 0, 0], [0, 0, 0]]}
    report = {"reliability": {"bins": {"occupied": bins, "free": bins}}, "confusion": confusion}
    return Figures([PageTable("scores", ["", "IoU"], [["all", "12.3"]])], ["a note"], logs, {"": report})


@pytest.fixture(scope="module")
def visit(frames, tmp_path_factory):
    folder = tmp_path_factory.mktemp("visit")
    write_page(folder / "report.html", "visited", frames, figures(folder))
    with open(folder / "report.html", "a") as file:
        file.write(f"<script>{VISITOR.read_text()}</script>")
    with open_page(folder / "profile", (folder / "report.html").as_uri()) as page:
        return json.loads(page.until("document.querySelector('pre#visit')?.textContent", 240))


def expected(page_frame: PageFrame, keep) -> list[int]:
    return [int((o.occupied & keep(o)).sum()) for o in page_frame.volumes.values()]


@pytest.mark.slow
def test_it_shows_what_is_chosen(visit, frames):
    first, layer = frames[0], np.arange(OCC3D_GRID.shape[2])
    assert visit["problem"] == ""
    assert visit["start"]["counts"] == expected(first, lambda o: True)
    assert visit["without cars"]["counts"] == expected(first, lambda o: o.labels != CAR)
    assert visit["nothing"]["counts"] == [0, 0]
    assert visit["only cars"]["counts"] == expected(first, lambda o: o.labels == CAR)
    assert visit["low"]["counts"] == expected(first, lambda o: layer <= HIGHEST)
    assert visit["certain"]["counts"] == expected(first, lambda o: np.rint(255 * o.confidence) >= 0.6 * 255)
    camera, centers = first.frame.rig_at_stamps["CAM_BACK"], OCC3D_GRID.centers_m().reshape(-1, 3)
    seen = visible(camera, centers).reshape(OCC3D_GRID.shape)
    assert visit["camera"]["counts"] == expected(first, lambda o: seen)


@pytest.mark.slow
def test_it_draws(visit):
    for panel in (0, 1):
        drawn = {name: step["pixels"][panel]["n"] for name, step in visit.items() if "pixels" in step}
        assert drawn["nothing"] < 100 < 3000 < drawn["only cars"] < drawn["start"]  # the arrow has soft edges
        assert drawn["turned"] > 20_000 and drawn["turned"] != drawn["start"]
        red, green, blue = visit["only cars"]["pixels"][panel]["rgb"]
        assert 0.6 < green / red < 0.8 and blue < 0.4 * red  # (255, 166, 1), its edges mixed with white


@pytest.mark.slow
def test_it_plays(visit, frames):
    assert visit["when"].startswith("2 of 2: ")
    assert visit["second"]["counts"] == expected(frames[1], lambda o: True)
    assert visit["images"] == [small_nuscenes.SIZE[0]] * 2


@pytest.mark.slow
def test_figures_are_drawn(visit):
    shown = visit["figures"]
    assert shown["options"] == ["total", "depth"] and shown["points"] == [3, 2] and shown["points of depth"] == [2, 0]
    assert shown["circles"] == ["100 cells"] * 2
    assert shown["confusion"] == [["", "car", "bus"], ["car", "75", "25"], ["bus", "", ""]]  # no tram anywhere
    assert shown["scores"] == "all12.3" and shown["notes"] == ["a note"]
