"""Scores of labels against counts made by hand and by loops."""

from __future__ import annotations

import json

import numpy as np
import pytest
from label_fixtures import MADE_WITH, scene_label

from occ_core.cli.main import app
from occ_core.errors import MissingInput
from occ_core.evaluation.report import PROTOCOLS, evaluate_folders
from occ_core.grid import VoxelGrid
from occ_core.labels.scene import SceneLabel
from occ_core.labels.score import LabelScores, PointScores, score_store
from occ_core.labels.store import LabelStore
from occ_core.occupancy import Occupancy, load_occ3d
from occ_core.taxonomy import OCC3D

GRID = VoxelGrid((0.0, 0.0, 0.0), 1.0, (4, 3, 2))
FREE = OCC3D.free_id


def occupancy(seed: int, **masks) -> Occupancy:
    rng = np.random.default_rng(seed)
    labels = rng.choice([1, 4, 11, FREE, FREE], GRID.shape).astype(np.uint8)
    observed = rng.random(GRID.shape) < 0.7
    labels[~observed] = FREE
    return Occupancy(GRID, OCC3D, labels, observed, **masks)


def test_decided_and_free_precision_by_a_loop():
    scores = LabelScores()
    cells, decided, free, rightly = ({"camera": 0, "camera_and_lidar": 0, "full": 0} for _ in range(4))
    for seed in range(3):
        lidar = np.random.default_rng(90 + seed).random(GRID.shape) < 0.5
        truth, label = occupancy(seed, mask_lidar=lidar), occupancy(40 + seed)
        scores.add(truth, label)
        for at in np.ndindex(GRID.shape):
            counted = {"full"} | ({"camera"} if truth.observed[at] else set())
            counted |= {"camera_and_lidar"} if truth.observed[at] and lidar[at] else set()
            for name in counted:
                cells[name] += 1
                decided[name] += bool(label.observed[at])
                if label.observed[at] and label.labels[at] == FREE:
                    free[name] += 1
                    rightly[name] += truth.labels[at] == FREE
    report = scores.report()
    for name in cells:
        assert report[name]["decided"] == pytest.approx(100 * decided[name] / cells[name])
        assert report[name]["free_precision"] == pytest.approx(100 * rightly[name] / free[name])


def test_a_label_that_decides_nothing_has_no_free_precision():
    nothing = Occupancy(GRID, OCC3D, np.full(GRID.shape, FREE, np.uint8), np.zeros(GRID.shape, bool))
    scores = LabelScores()
    scores.add(occupancy(0), nothing)
    assert scores.report()["full"]["decided"] == 0
    assert scores.report()["full"]["free_precision"] is None


def test_points_by_hand():
    """A car cell, a free cell with one of three points, an undecided cell, one point outside the grid."""
    labels = np.full(GRID.shape, FREE, np.uint8)
    labels[0, 0, 0] = 4
    observed = np.zeros(GRID.shape, bool)
    observed[0, 0, 0] = observed[1, 0, 0] = observed[2, 0, 0] = True
    points = np.array([[0.5, 0.5, 0.5], [0.9, 0.1, 0.2], [0.1, 0.1, 0.1], [1.5, 0.5, 0.5], [3.5, 2.5, 1.5], [9, 0, 0]])
    scores = PointScores()
    scores.add(Occupancy(GRID, OCC3D, labels, observed), points, np.array([4, 4, 10, 4, 4, 4], np.uint8))
    report = scores.report()
    assert report["points"] == 5
    assert [report[f"in_{where}"] for where in ("occupied", "free", "undecided")] == pytest.approx([60, 20, 20])
    assert report["free_cells_hit"] == pytest.approx(50)  # two cells are called free
    assert report["class_agreement"] == pytest.approx(100 * 2 / 3)
    assert report["per_class"] == {"car": 100, "truck": 0}


def test_points_of_unknown_class_do_not_count():
    label = Occupancy(GRID, OCC3D, np.full(GRID.shape, 4, np.uint8), np.ones(GRID.shape, bool))
    scores = PointScores()
    scores.add(label, np.full((3, 3), 0.5), np.array([255, FREE, 4], np.uint8))
    assert scores.report()["class_agreement"] == 100
    assert scores.report()["points"] == 3
    without = PointScores()
    without.add(label, np.full((3, 3), 0.5))
    assert without.report()["class_agreement"] is None


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set with truth and LiDAR, and a store whose labels are its truth with one class wrong."""
    import small_nuscenes

    root = tmp_path_factory.mktemp("data")
    tokens = small_nuscenes.make(root / "city", keyframes=2)
    store = LabelStore(root / "labels")
    store.claim(MADE_WITH, {"scene-0001": [*tokens, "not-made-yet"]})
    for token in tokens:
        truth = load_occ3d(root / "city/gts/scene-0001" / token / "labels.npz")
        labels = truth.labels.copy()
        labels[100:, :, 2] = OCC3D.id_of("sidewalk")
        everywhere = np.ones(labels.shape, bool)
        guess = Occupancy(truth.grid, OCC3D, labels, everywhere, confidence=everywhere.astype(np.float32))
        store.write("scene-0001", token, SceneLabel(token, guess, scene_label(token).votes, ()))
    return root


def test_store_scores_are_those_of_occ_eval_and_a_count_of_points(data):
    report = score_store(data / "labels", data / "city")
    expected, samples = evaluate_folders(data / "labels", data / "city/gts")
    assert (report["samples"], report["lacking"]) == (samples, 1)
    for protocol in PROTOCOLS:
        for key, value in expected[protocol].items():
            assert report[protocol][key] == value
    assert report["full"]["decided"] == 100
    assert report["camera"]["per_class"]["driveable_surface"] == pytest.approx(50, abs=1)
    inside = occupied = 0
    for path in sorted((data / "city/samples/LIDAR_TOP").iterdir()):
        points = np.fromfile(path, np.float32).reshape(-1, 5)[:, :3]
        points = points[np.linalg.norm(points, axis=1) > 3]
        ego = np.stack([points[:, 1] + 0.9, -points[:, 0], points[:, 2] + 1.8], axis=1)  # the mounting in the tables
        cell = np.floor((ego - (-40, -40, -1)) / 0.4).astype(int)
        cell = cell[((cell >= 0) & (cell < (200, 200, 16))).all(axis=1)]
        inside += len(cell)
        occupied += int((cell[:, 2] == 2).sum())
        occupied += sum(1 for x, y, z in cell if x == 120 and 90 <= y < 100 and 3 <= z < 7)
    assert report["lidar"]["points"] == inside > 30
    assert report["lidar"]["in_occupied"] == pytest.approx(100 * occupied / inside)
    assert report["lidar"]["in_undecided"] == 0


def test_command_prints_and_writes_the_scores(data, tmp_path):
    from typer.testing import CliRunner

    out = tmp_path / "scores.json"
    result = CliRunner().invoke(app, ["labels", "score", str(data / "labels"), str(data / "city"), "--json", str(out)])
    assert result.exit_code == 0, result.output
    for words in ("precision of free", "mIoU, 15 classes", "in occupied", "2 labels"):
        assert words in result.output
    assert json.loads(out.read_text())["full"]["decided"] == 100


def test_nothing_to_score_is_said(data, tmp_path):
    empty = LabelStore(tmp_path / "empty")
    empty.claim(MADE_WITH, {"scene-0001": ["a"]})
    with pytest.raises(MissingInput, match="none of its 1 labels"):
        score_store(empty.folder, data / "city")
