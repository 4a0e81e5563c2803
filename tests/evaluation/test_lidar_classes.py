"""LiDAR rays: what the map says of the returns' own cells, classes of points, both forms of KITTI, the ceiling."""

from __future__ import annotations

import json

import numpy as np
import pytest
from small_kitti import make_kitti
from small_nuscenes import make
from typer.testing import CliRunner

pytest.importorskip("numba")
from ray_maps import ROAD, WALL, empty, only, returns, voxels_of

from occ_core.cli.main import app
from occ_core.errors import CorruptInput
from occ_core.evaluation.lidar_rays import LidarRayScores, score_lidar_rays
from occ_core.grid import OCC3D_GRID, SEMANTIC_KITTI_VOXELS
from occ_core.taxonomy import OCC3D, SEMANTIC_KITTI


def test_a_returns_own_cell_is_called_free_or_not_spoken_of():
    """Four returns at a wall 10 m ahead: its cell is occupied, free, not observed, and free again beside it."""
    points = np.array([[10.1, y_m, 1.0] for y_m in (0.2, 1.0, 1.8, 2.6)])
    index = tuple(OCC3D_GRID.index_of(points)[0].T)
    labels, observed = empty(), np.ones(OCC3D_GRID.shape, dtype=bool)
    labels[index[0][0], index[1][0], index[2][0]] = WALL
    observed[index[0][2], index[1][2], index[2][2]] = False
    scores = LidarRayScores()
    scores.add(labels, returns(points), observed)
    band = only(scores.report(), "above", "0-10m")
    assert (band["returns"], band["called_free"], band["not_observed"]) == (4, 50.0, 25.0)
    scores.add(labels, returns(points))  # who does not say what it has observed speaks of all cells
    band = only(scores.report(), "above", "0-10m")
    assert (band["called_free"], band["not_observed"]) == (62.5, 12.5)


def test_classes_of_points_are_compared_with_the_cells_that_they_meet():
    """A wall that is met, with and without its class; a road that is missed; a point without a class."""
    points = np.array([[8.1, 0.2, 1.0], [8.1, 1.0, 1.0], [8.1, 5.0, 1.0], [8.1, 2.0, 1.0]])
    labels = empty()
    index = OCC3D_GRID.index_of(points)[0]
    for row, label in zip(index[[0, 1, 3]], (WALL, ROAD, WALL), strict=True):
        labels[tuple(row)] = label
    own_classes = np.array([WALL, WALL, ROAD, 255], dtype=np.uint8)
    scores = LidarRayScores()
    scores.add(labels, returns(points)._replace(classes=own_classes))
    classes = scores.report()["classes"]
    assert classes["manmade"] == {"returns": 2, "met": 100.0, "agree": 50.0}
    assert classes["driveable_surface"]["met"] == 0 and np.isnan(classes["driveable_surface"]["agree"])
    assert classes["all"]["returns"] == 3 and set(classes) == {"manmade", "driveable_surface", "all"}
    other = LidarRayScores()
    other.merge(scores)
    assert other.report()["classes"]["manmade"] == classes["manmade"]
    assert "classes" not in LidarRayScores().report()


def test_kitti_points_have_classes_and_predictions_either_form(tmp_path):
    """SemanticKITTI's points with their labels: a map of its own voxels, and one on Occ3D's grid."""
    root, points = make_kitti(tmp_path / "kitti", frames=1), np.float32([[8.1, 1.1, -0.5, 0.5], [9.1, 0.1, 0.1, 1.0]])
    folder = root / "sequences/03"
    points.tofile(folder / "velodyne/000000.bin")
    (folder / "labels").mkdir()
    np.array([50, 40], "<u4").tofile(folder / "labels/000000.label")
    for grid, taxonomy, name in ((SEMANTIC_KITTI_VOXELS, SEMANTIC_KITTI, "building"), (OCC3D_GRID, OCC3D, "manmade")):
        out = tmp_path / taxonomy.name
        out.mkdir()
        cells = voxels_of(points[:, :3].astype(float), grid, taxonomy.free_id, taxonomy.id_of(name))
        np.savez(out / "03_000000.npz", pred=cells)
        found = score_lidar_rays(out, root)["classes"]
        assert found[name] == {"returns": 1, "met": 100.0, "agree": 100.0} and found["all"]["agree"] == 50.0
    np.array([50], "<u4").tofile(folder / "labels/000000.label")
    with pytest.raises(CorruptInput, match="1 labels for 2 LiDAR points"):
        score_lidar_rays(tmp_path / "occ3d", root)


def test_true_voxels_are_the_ceiling_of_the_same_frames(tmp_path):
    """With GTS and --lidar both, the truth is scored on the frames that have a prediction, and on no other."""
    tokens = make(tmp_path / "set", keyframes=3, sweeps=0, boxes=False)
    predicted = tmp_path / "predicted"
    predicted.mkdir()
    np.savez(predicted / f"{tokens[1]}.npz", pred=empty())
    data, out = str(tmp_path / "set"), tmp_path / "scores.json"
    result = CliRunner().invoke(app, ["eval", str(predicted), f"{data}/gts", "--lidar", data, "--json", str(out)])
    assert result.exit_code == 0, result.output
    scores = json.loads(out.read_text())
    assert scores["lidar"]["frames"] == scores["lidar_of_truth"]["frames"] == 1 and "ceiling" in result.output
    own, truth = (scores[key]["above"]["10-20m"] for key in ("lidar", "lidar_of_truth"))
    assert own["returns"] == truth["returns"] > 0 and own["within_2m"] == 0 and own["missed"] == 100
