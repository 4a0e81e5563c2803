"""Labels against held-out LiDAR: a written street whose answer is known, poses that lie, and the real samples."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from teacher_fixtures import make_frame

from occ_core.bench import real_labels
from occ_core.bench.real_labels import GEOMETRY, LidarDrive, OneClass, odd_stripes, open_drives, score_drive
from occ_core.cli.main import app
from occ_core.errors import InvalidInput
from occ_core.frame import LidarSweep
from occ_core.geometry import pose
from occ_core.grid import VoxelGrid
from occ_core.labels.scene import SceneLabel
from occ_core.occupancy import Occupancy

GRID = VoxelGrid((0.0, -8.0, -2.2), 0.4, (50, 40, 12))
IMAGE = np.zeros((192, 320, 3), np.uint8)


def street(number: int, claimed_m: float | None = None):
    """Road 1.6 m below, walls at y = -5.8 and 5.8 and across at x = 18.2; 0.7 m a frame, or what the pose claims."""
    at_m = 0.7 * number
    up, left = np.meshgrid(np.deg2rad(np.arange(-30, 20, 0.3)), np.deg2rad(np.arange(-44, 44, 0.4)), indexing="ij")
    rays = np.stack([np.cos(up) * np.cos(left), np.cos(up) * np.sin(left), np.sin(up)], axis=-1).reshape(-1, 3)
    with np.errstate(divide="ignore"):
        walls = [(18.2 - at_m) / rays[:, 0], 5.8 / np.abs(rays[:, 1])]
        reach = np.minimum.reduce([*walls, np.where(rays[:, 2] < 0, -1.6 / rays[:, 2], np.inf)])
    points, none = np.float32(rays * reach[:, None]), np.zeros(len(rays), np.float32)
    world_from_ego = pose((at_m if claimed_m is None else claimed_m, 0, 0))
    sweep = LidarSweep(points, none, none.astype(np.int32), np.eye(4), number, world_from_ego)
    return make_frame({"CAM": IMAGE}, f"t{number}", "street", world_from_ego, focal_px=160, lidar=sweep)


def drive(frames) -> LidarDrive:
    return LidarDrive("street", frames, GRID, GEOMETRY, OneClass(), None)


@pytest.mark.parametrize(("split", "labels"), [("stripes", 5), ("frames", 3)])
def test_labels_of_a_street_agree_with_what_was_held_out(split, labels):
    row = score_drive(drive([street(number) for number in range(5)]), split)
    assert row["labels"] == labels and row["held_out"]["points"] > 5000
    assert row["held_out"]["in_occupied"] > 80
    assert row["held_out"]["occupied_of_decided"] > 97
    assert row["held_out"]["free_cells_hit"] < 1 and row["occupied_cells_passed"] < 5
    assert row["given"]["in_occupied"] > 97
    shares = [row["held_out"][f"in_{where}"] for where in ("occupied", "free", "undecided")]
    assert sum(shares) == pytest.approx(100)


def test_poses_that_lie_are_found_out():
    row = score_drive(drive([street(number, claimed_m=3.1 * number) for number in range(5)]), "frames")
    honest = score_drive(drive([street(number) for number in range(5)]), "frames")
    assert row["occupied_cells_passed"] > honest["occupied_cells_passed"] + 1


def test_calling_everything_occupied_does_not_pay(monkeypatch):
    full = Occupancy(GRID, GEOMETRY, np.zeros(GRID.shape, np.uint8), np.ones(GRID.shape, bool))
    votes = np.ones(GRID.shape, np.uint16)
    monkeypatch.setattr(
        real_labels, "label_scene", lambda frames, *_: (SceneLabel(f.token, full, votes, ()) for f in frames)
    )
    row = score_drive(drive([street(0)]), "stripes")
    assert row["held_out"]["in_occupied"] == 100
    assert row["occupied_cells_passed"] > 70


def test_no_held_out_point_reaches_the_teachers(monkeypatch):
    """Neither its depth nor, where points have classes, its class."""
    frames, seen = [street(number) for number in range(3)], []
    asked = OneClass().classes
    monkeypatch.setattr(OneClass, "classes", lambda self, frame: seen.append(frame) or asked(frame))
    monkeypatch.setattr(
        real_labels, "_passed", lambda *_: np.array([1, 0])
    )  # it asks about the held-out half, knowingly
    score_drive(drive(frames), "stripes")
    assert len(seen) == 3
    for frame, given in zip(frames, seen, strict=True):
        held_out = odd_stripes(frame)
        assert 0.3 < held_out.mean() < 0.7
        assert not given.lidar.points_lidar_m[held_out].any()
        np.testing.assert_array_equal(given.lidar.points_lidar_m[~held_out], frame.lidar.points_lidar_m[~held_out])
    seen.clear()
    score_drive(drive(frames), "frames")
    assert [frame.token for frame in seen] == ["t0", "t2"]


def test_stripes_are_degrees_seen_from_the_cameras():
    points = np.float32([[10, 0, np.tan(np.deg2rad(angle)) * 10] for angle in (-1.5, -0.5, 0.5, 1.5, 2.5)])
    frame = street(0)
    sweep = LidarSweep(points, np.zeros(5, np.float32), np.zeros(5, np.int32), np.eye(4), 0, np.eye(4))
    assert odd_stripes(replace(frame, lidar=sweep)).tolist() == [False, True, False, True, False]


def test_what_cannot_be_split_is_refused():
    with pytest.raises(InvalidInput, match="at least 2 frames, street has 1"):
        score_drive(drive([street(0)]), "frames")
    with pytest.raises(InvalidInput, match="one of stripes, frames, got 'halves'"):
        score_drive(drive([street(0)]), "halves")


def test_a_set_without_lidar_is_refused(shared_data):
    with pytest.raises(InvalidInput, match="of scene-0103 has no LiDAR sweep"):
        open_drives(shared_data("nuscenes_scene0103_4kf"))


def test_real_sequence_agrees_with_its_own_held_out_frames(shared_data, tmp_path):
    """The command, on three frames of SemanticKITTI."""
    from typer.testing import CliRunner

    sequence, there = tmp_path / "sequences/08", shared_data("semantickitti_seq08_10f") / "sequences/08"
    sequence.mkdir(parents=True)
    for name in ("image_2", "velodyne", "labels", "calib.txt"):
        (sequence / name).symlink_to(there / name)
    for name in ("poses.txt", "times.txt"):
        (sequence / name).write_text("".join((there / name).read_text().splitlines(keepends=True)[:3]))
    out = tmp_path / "real.json"
    result = CliRunner().invoke(app, ["bench", "real-labels", str(tmp_path), "--json", str(out)])
    assert result.exit_code == 0, result.output
    assert "| sequence 08 | frames | 2 |" in result.output
    stripes, frames = json.loads(out.read_text())["rows"]
    assert frames["held_out"]["in_occupied"] > 50 and frames["held_out"]["occupied_of_decided"] > 95
    assert frames["held_out"]["class_agreement"] > 96 and stripes["held_out"]["class_agreement"] > 96
    assert frames["occupied_cells_passed"] < 8 and frames["held_out"]["free_cells_hit"] < 0.2
