"""The table of recipes against labels made and scored one by one; and that its rows are what their names say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba", reason="ray casting needs numba: pip install 'occ_ros[world]'")

from label_fixtures import make_city
from typer.testing import CliRunner

from occ_core.bench import recipes
from occ_core.bench.recipes import PARTS, ROWS, bench_recipes, markdown
from occ_core.cli.main import app
from occ_core.errors import MissingInput
from occ_core.grid import OCC3D_GRID
from occ_core.labels.recipes import PRESETS, Recipe
from occ_core.labels.scene import label_scene
from occ_core.labels.score import LabelScores
from occ_core.occupancy import Occupancy, load_occ3d, save_occ3d
from occ_core.sources.nuscenes import NuScenesSource
from occ_core.taxonomy import OCC3D
from occ_core.teachers.load import load_teachers

SCENES, KEYFRAMES = 2, 2
ALONE = ("shelf", "easyocc + road correction", "best", "best without vote")
DIFFERENT = ("easyocc", "best without past", "best without sky", "best without ground filling")
PROTOCOLS = ("camera", "camera_and_lidar", "full")


@pytest.fixture(scope="module")
def city(tmp_path_factory) -> Path:
    """Two scenes with pixel truth and a street of voxels; the last image is broken."""
    root = tmp_path_factory.mktemp("city")
    tokens = make_city(root, scenes=SCENES, keyframes=KEYFRAMES)
    rng = np.random.default_rng(5)
    for place, token in enumerate(tokens):
        labels = np.full(OCC3D_GRID.shape, OCC3D.free_id, dtype=np.uint8)
        labels[60:140, 60:140, 2] = OCC3D.id_of("driveable_surface")
        labels[118:122, 60:140, 3:8] = 14 + place // KEYFRAMES
        masks = (rng.random(OCC3D_GRID.shape) < share for share in (0.5, 0.3))
        truth = Occupancy(OCC3D_GRID, OCC3D, labels, next(masks), mask_lidar=next(masks))
        save_occ3d(root / "gts" / f"scene-{place // KEYFRAMES + 1:04d}" / token / "labels.npz", truth)
    sorted(root.glob("samples/CAM_BACK/*.jpg"))[-1].write_bytes(b"not an image")
    return root


@pytest.fixture(scope="module")
def figures(city) -> dict:
    rows = {name: ROWS[name] for name in (*ALONE, *DIFFERENT)}
    return bench_recipes(city, "realistic", seed=3, rows=rows, show_progress=False)


def one_by_one(city: Path, recipe: Recipe) -> LabelScores:
    """The same by `label_scene`, as `occ labels make` does it."""
    scores = LabelScores()
    teachers = load_teachers("realistic", city, OCC3D, seed=3)
    for scene in ("scene-0001", "scene-0002"):
        source = NuScenesSource(city, scenes=[scene])
        for label in label_scene(source, teachers, recipe):
            scores.add(load_occ3d(source.tables.truth_path(scene, label.token)), label.occupancy)
    return scores


@pytest.mark.parametrize("name", ALONE)
def test_every_figure_is_that_of_labels_made_alone(city, figures, name):
    """`best without vote` shares its evidence with `best`."""
    found, alone = figures["rows"][name], one_by_one(city, ROWS[name])
    assert found["samples"] == alone.voxels.samples == SCENES * KEYFRAMES - 1  # one keyframe is broken
    for protocol in PROTOCOLS:
        np.testing.assert_equal(found[protocol], alone.report()[protocol])
    assert found["full"]["iou"] > 1


def test_rows_differ_where_their_recipes_do(figures):
    assert set(PRESETS) - {"lidar", "completed"} < set(ROWS)
    best = figures["rows"]["best"]
    for name in (*DIFFERENT, "best without vote"):
        assert any(figures["rows"][name][protocol] != best[protocol] for protocol in PROTOCOLS), name


def test_broken_frames_are_listed_once(figures):
    ((scene, reasons),) = figures["left_out"].items()
    assert scene == "scene-0002" and len(reasons) == 1 and "CAM_BACK" in reasons[0]


@pytest.mark.parametrize("part", PARTS)
def test_an_ablation_switches_one_part_off_and_nothing_else(part):
    best, without, off = PRESETS["best"], ROWS[f"best without {part}"], Recipe()
    for field in Recipe.model_fields:
        expected = off if field in PARTS[part] else best
        assert getattr(without, field) == getattr(expected, field), field
    assert without != best


def test_the_table_and_its_file_say_the_same(city, figures, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "bench_recipes", lambda *arguments: figures)
    result = CliRunner().invoke(app, ["bench", "recipes", str(city), "--json", str(tmp_path / "a/figures.json")])
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "a/figures.json").read_text())
    assert record["seed"] == 3 and record["cores"] >= 1 and record["versions"]["numba"] and record["keyframes"] == 4
    lines = [line for line in result.output.splitlines() if line.startswith("|")]
    assert lines == markdown(figures).splitlines()
    cells = [cell.strip() for cell in next(line for line in lines if line.startswith("| best ")).split("|")[1:-1]]
    row = record["rows"]["best"]
    expected = [row[mask][key] for mask in ("camera", "full")
                for key in ("iou", "miou_15", "miou_17", "decided", "free_precision")]  # fmt: skip
    assert cells[1:] == [f"{value:.2f}" for value in expected]
    assert Recipe(**row["recipe"]) == PRESETS["best"]
    assert "left out in scene-0002: 1 " in result.output


def test_two_processes_give_the_same(city, figures):
    rows = {name: ROWS[name] for name in ("easyocc", "best")}
    found = bench_recipes(city, "realistic", 3, workers=2, rows=rows, show_progress=False)
    np.testing.assert_equal(found["rows"], {name: figures["rows"][name] for name in rows})
    assert found["left_out"] == figures["left_out"]


def test_a_keyframe_without_truth_is_named(city, tmp_path):
    make_city(tmp_path, scenes=1, keyframes=1)
    with pytest.raises(MissingInput, match=r"labels.npz: no truth .* 1 of 1 lack it"):
        bench_recipes(tmp_path, "oracle", show_progress=False)
