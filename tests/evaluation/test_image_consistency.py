"""Held-out images against maps of a painted room: right ones, wrong ones, and what cannot be judged."""

from __future__ import annotations

import json

import numpy as np
import pytest
import small_nuscenes
from typer.testing import CliRunner

pytest.importorskip("numba")
from painted_room import LOOKS, WALL_M, H, K, W, at

from occ_core.camera import Camera, Rig
from occ_core.cli.main import app
from occ_core.evaluation.image_consistency import ImageConsistency, _of_images, outlines
from occ_core.frame import Frame
from occ_core.geometry import pose
from occ_core.grid import OCC3D_GRID
from occ_core.taxonomy import OCC3D
from occ_core.teachers.nearby_images import NearbyImage

STEP_M = 1.0
EGO_FROM_CAM = pose((0.0, 0.0, 1.5))
EGO_FROM_CAM[:3, :3] = LOOKS["left"]
CAMERA = Camera("CAM", K, (W, H), EGO_FROM_CAM)


def rgb(x_m: float) -> np.ndarray:
    return np.repeat(at("left", x_m)[0].grey[..., None], 3, axis=2)


class Drive:
    """The images one step before and after."""

    def __init__(self, step_m: float) -> None:
        self.step_m = step_m

    def around(self, frame, name):
        sides = []
        for x_m in (-self.step_m, self.step_m):
            sides.append([NearbyImage(CAMERA, pose((x_m, 0, 0)) @ EGO_FROM_CAM, lambda x_m=x_m: rgb(x_m))])
        return tuple(sides)


def room(wall_m: float) -> np.ndarray:
    """The road, and a wall on the left whose near face is at `wall_m`."""
    labels = np.full(OCC3D_GRID.shape, OCC3D.free_id, dtype=np.uint8)
    labels[:, :, 2] = OCC3D.id_of("driveable_surface")
    labels[:, int(np.floor((wall_m + 40) / 0.4 + 0.5)), 3:] = OCC3D.id_of("manmade")
    return labels


def scored(labels: np.ndarray, step_m: float = STEP_M) -> dict:
    frame = Frame(1, np.eye(4), Rig((CAMERA,)), {"CAM": rgb(0.0)}, {"CAM": 1}, {"CAM": np.eye(4)})
    scores = ImageConsistency(OCC3D, OCC3D_GRID)
    scores.add(labels, frame, Drive(step_m))
    return scores.report()


def test_images_fit_the_right_map_and_no_other():
    right, near = (scored(room(wall_m))["photometric"]["above"] for wall_m in (WALL_M, WALL_M - 5))
    assert right["10-20m"]["pixels"] > 5000 and right["10-20m"]["fits"] > 85
    wrong = [row for row in near.values() if row["pixels"]]
    assert wrong and all(row["fits"] < 50 for row in wrong)


def test_images_fit_the_right_map_better_than_the_same_map_beside_its_place():
    right, near, far = (scored(room(wall_m), 4.0)["shifted"] for wall_m in (WALL_M, WALL_M - 1, WALL_M + 1))
    assert right["above"]["images"] == 1 and right["above"]["better"] == 100 and right["above"]["bits"] > 2
    assert right["above"]["bits_low"] == right["above"]["bits"] == right["above"]["bits_high"]  # of one image alone
    for wrong in (near, far):  # a metre off: one of the ways to shift it is the way to the truth
        assert wrong["above"]["better"] == 0 and wrong["above"]["bits"] < -1


def test_of_many_images_the_interval_is_that_of_their_mean():
    bits = np.random.default_rng(1).normal(0.5, 2.0, 400)
    found = _of_images(np.stack([bits, [1, 4] * 200], axis=1))
    assert found["images"] == 400 and found["better"] == pytest.approx(100 * (bits > 0).mean())
    assert found["by_chance"] == pytest.approx(100 * (1 / 2 + 1 / 5) / 2)
    half = 1.96 * bits.std() / 20  # of a mean, by the normal law
    assert found["bits_low"] == pytest.approx(bits.mean() - half, abs=0.03)
    assert found["bits_high"] == pytest.approx(bits.mean() + half, abs=0.03)


def test_a_map_that_knows_nothing_wins_as_often_as_chance():
    """Walls of the painted room at distances drawn blindly: each shifted one is as likely to be the best."""
    rng = np.random.default_rng(0)
    rows = [
        row for wall_m in rng.uniform(10, 18, 24) if (row := scored(room(wall_m), 4.0)["shifted"]["above"])["images"]
    ]
    won, chance = (np.mean([row[key] for row in rows]) for key in ("better", "by_chance"))
    assert len(rows) > 15 and won < chance + 20


def test_a_map_of_nothing_is_not_judged():
    report = scored(np.full(OCC3D_GRID.shape, OCC3D.free_id, dtype=np.uint8))
    counted = [row["pixels"] for bands in report["photometric"].values() for row in bands.values()]
    assert sum(counted) == 0 and report["outlines"]["pixels"] == 0 and np.isnan(report["outlines"]["near_edge"])
    assert report["images"] == 1 and report["images_alone"] == 0
    assert all(row["images"] == 0 and np.isnan(row["bits"]) for row in report["shifted"].values())


def test_outlines_are_of_what_stands_in_front():
    depth_m = np.full((3, 8), 20.0)
    depth_m[:, 3:5], depth_m[:, 7] = 10.0, np.inf
    assert outlines(depth_m)[1].tolist() == [False, False, False, True, True, False, True, False]


def test_the_command_needs_images_that_moved(tmp_path):
    tokens = small_nuscenes.make(tmp_path / "set", keyframes=2, sweeps=0, boxes=False)
    (tmp_path / "predicted").mkdir()
    np.savez(tmp_path / f"predicted/{tokens[0]}.npz", pred=room(6.0))
    out = tmp_path / "scores.json"
    command = ["eval", str(tmp_path / "predicted"), "--images", str(tmp_path / "set"), "--json", str(out)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert json.loads(out.read_text())["images"]["images"] == 2 and "mirrored" in result.output
    small_nuscenes.make(tmp_path / "one", keyframes=1, sweeps=0, boxes=False)
    result = CliRunner().invoke(app, ["eval", str(tmp_path / "predicted"), "--images", str(tmp_path / "one")])
    assert result.exit_code != 0 and "0.5 m away" in str(result.exception or result.output)
