"""What a recording must have, how it is cut, what decides between two networks; stages that are done once."""

from __future__ import annotations

import json
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="bags need rosbags: pip install 'occ_ros[bags]'")
pytest.importorskip("torch")

from bag_robot import T0, S, robot
from model_fixtures import camera
from typer.testing import CliRunner

from occ_core.adapt import doctor
from occ_core.adapt.cut import GAP, cut, folders, write_cut
from occ_core.adapt.deploy import fastest
from occ_core.adapt.doctor import LEAST_KEYFRAMES, SHORTEST, examine, recipe_for, teacher_for
from occ_core.adapt.judge import TrueVoxels, change_of
from occ_core.adapt.stage import Stages
from occ_core.bags import messages as msg
from occ_core.camera import Rig
from occ_core.cli.main import app
from occ_core.clouds import truth_points
from occ_core.ego_mask import write_mask
from occ_core.errors import CannotWrite, CorruptInput, InvalidInput, MissingInput, OccError
from occ_core.geometry import pose
from occ_core.grid import OCC3D_GRID
from occ_core.occupancy import Occupancy
from occ_core.rig_file import load_rig_file, rig_text
from occ_core.sources.open import frame_key, open_source
from occ_core.sources.scenes import Recording
from occ_core.sources.stretch import Stretch
from occ_core.taxonomy import OCC3D

SECONDS = 16


def drive(
    tmp_path: Path, name: str = "drive", seconds: float = SECONDS, metres: float = 1.0, odom: bool = True
) -> Path:
    """Cameras at 10 Hz, `metres` a second ahead."""
    made = robot(images=round(10 * seconds), tf=False)
    made.static("left", "right")
    for step in range(round(10 * seconds) + 2) if odom else ():
        stamp = T0 + step * S // 10
        made.add("/tf", stamp, msg.transforms(stamp, [("odom", "base_link", pose((step * metres / 10, 0, 0)))]))
    return made.write(tmp_path / name)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return drive(tmp_path_factory.mktemp("good"))


def test_a_drive_that_will_do(good):
    found = examine(good)
    assert found.scene == "drive" and found.cameras == ("left", "right") and not found.lidar and not found.truth
    assert found.seconds == pytest.approx(SECONDS - 0.1, abs=0.2) and found.metres == pytest.approx(15.5, abs=0.6)
    assert len(found.keyframes_ns) == 2 * SECONDS and np.diff(found.keyframes_ns).tolist() == [S // 2] * 31


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"odom": False}, "no poses: neither TF above 'base_link' nor odometry"),
        ({"seconds": 5}, r"too short: [45]\.\d s .*10 s are needed"),
        ({"metres": 0.0}, r"the robot stands: it moves 0\.0 m in all, 5 m are needed"),
        ({"seconds": 11, "metres": 0.0001}, "the robot stands"),
    ],
)
def test_a_drive_that_will_not_is_one_line_before_any_work(tmp_path, changes, why):
    bag = drive(tmp_path, **changes)
    with pytest.raises(InvalidInput, match=why):
        examine(bag)
    said = CliRunner().invoke(app, ["adapt", str(bag), str(tmp_path / "out"), "--teacher", "files:nowhere"])
    assert isinstance(said.exception, InvalidInput) and "\n" not in str(said.exception)
    assert not (tmp_path / "out").exists()


def test_a_short_drive_is_taken_where_that_is_said(tmp_path):
    bag = drive(tmp_path, seconds=2)
    with pytest.raises(InvalidInput, match="too short"):
        examine(bag)
    found = examine(bag, short=True)
    count = len(found.keyframes_ns)
    assert SHORTEST < count < LEAST_KEYFRAMES
    assert cut(count) == (range(count - 1), range(count - 1, count - 1), range(count - 1, count))
    said = CliRunner().invoke(
        app, ["adapt", str(bag), str(tmp_path / "out"), "--teacher", "oracle", "--short", "--dry-run"]
    )
    assert said.exit_code == 0, said.output
    assert "too short to tell what adapting gains: its last keyframe alone judges" in said.output
    made = write_cut(tmp_path / "out", [found])
    parts = {part: Recording(tmp_path / "out" / made[part][0]).scene("drive").tokens for part in ("learn", "judge")}
    assert len(parts["learn"]) == count - 1 and len(parts["judge"]) == 1 and parts["judge"][0] not in parts["learn"]
    with pytest.raises(InvalidInput, match="1 keyframes, 2 are needed"):
        examine(drive(tmp_path, "moment", seconds=0.3), short=True)


def test_a_bag_without_calibration_or_images(tmp_path):
    made = robot(images=150)
    made.messages = [entry for entry in made.messages if "camera_info" not in entry[1]]
    with pytest.raises(OccError, match="CameraInfo") as caught:
        examine(made.write(tmp_path / "bare"))
    assert "\n" not in str(caught.value)
    with pytest.raises(MissingInput, match="no such"):
        examine(tmp_path / "nothing")


def test_a_full_disk_is_told_before_any_work(good, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage(10**12, 10**12 - 10**6, 10**6))
    with pytest.raises(CannotWrite, match=r"the disk has 0\.0 GB left, about 0\.3 GB are needed"):
        doctor.require_room(tmp_path, doctor.bytes_of(len(examine(good).keyframes_ns), 2))


def test_a_plan_leaves_nothing_behind(good, tmp_path):
    assert doctor.require_room(tmp_path / "a" / "b", doctor.bytes_of(32, 2, network=True)) > 3e8
    assert list(tmp_path.iterdir()) == []


def test_several_bags_and_a_dry_run(good, tmp_path):
    bags, out = [good, drive(tmp_path, "second", metres=2.0)], tmp_path / "out"
    said = CliRunner().invoke(app, ["adapt", *map(str, bags), str(out), "--teacher", "oracle", "--dry-run"])
    assert said.exit_code == 0 and not out.exists(), said.output
    assert "drive: 16 s, 16 m, 32 keyframes; 2 cameras (left, right), no LiDAR" in said.output
    assert "second: 16 s, 31 m" in said.output and "recipe best, teacher oracle; 12 of them" in said.output
    assert "training from easyocc_nano: 2 h" in said.output
    made = write_cut(out, [examine(bag) for bag in bags])
    assert made["judge"] == ["stretches/drive.judge", "stretches/second.judge"]
    alone = CliRunner().invoke(app, ["adapt", str(good)])
    assert "last the folder to write to" in str(alone.exception)


def test_maps_of_another_drive_and_bags_of_one_name(good, tmp_path):
    for kind in ("classes", "depth"):
        (tmp_path / "maps" / kind / "left").mkdir(parents=True)
    (tmp_path / "maps" / "maps.yaml").write_text("classes: {1: road}\n")
    with pytest.raises(MissingInput, match=r"no classes map of 'drive' \(8 keyframes tried\): no .*left/1000000000000"):
        doctor.require_teacher(f"files:{tmp_path / 'maps'}", [examine(good)], None)
    with pytest.raises(InvalidInput, match="2 bags are called 'drive': rename one"):
        doctor.require_distinct([examine(good), examine(good)])


def test_teacher_and_recipe_by_what_there_is(tmp_path):
    (tmp_path / "both" / "classes").mkdir(parents=True)
    (tmp_path / "both" / "depth").mkdir()
    (tmp_path / "classes" / "classes").mkdir(parents=True)
    (tmp_path / "depth" / "depth").mkdir(parents=True)
    both, classes = f"files:{tmp_path / 'both'}", f"files:{tmp_path / 'classes'}"
    for asked, lidar, teacher, recipe in (
        (None, False, "grounded-sam+metric3d", "best"),
        (None, True, "grounded-sam+metric3d+lidar", "completed"),
        (both, False, both, "best"),
        (both, True, f"{both}+{both}+lidar", "completed"),
        (classes, True, f"{classes}+lidar", "lidar"),
        (classes, False, f"{classes}+motion", "easyocc"),
        (f"{classes}+metric3d", True, f"{classes}+metric3d", "best"),
    ):
        assert teacher_for(asked, lidar) == teacher and recipe_for(teacher)[0] == recipe
    with pytest.raises(InvalidInput, match="holds no class maps"):
        teacher_for(f"files:{tmp_path / 'depth'}", True)


@pytest.mark.parametrize("keyframes", [LEAST_KEYFRAMES, 26, 80, 394, 400, 1000])
def test_parts_share_no_moment_and_lie_apart(keyframes):
    parts = [part for part in cut(keyframes) if len(part)]
    assert parts[0].start == 0 and parts[-1].stop == keyframes and len(parts[0]) > len(parts[-1]) > 2
    assert all(later.start - before.stop == GAP for before, later in zip(parts, parts[1:], strict=False))
    assert len(parts) == (3 if keyframes >= 400 else 2)


def test_a_stretch_is_a_recording_whose_frames_are_those_of_its_time(good, tmp_path):
    found = examine(good)
    made = write_cut(tmp_path, [found])
    learned, judged = folders(tmp_path, "drive")["learn"], folders(tmp_path, "drive")["judge"]
    assert made == {"learn": ["stretches/drive.learn"], "fit": [], "judge": ["stretches/drive.judge"]}
    whole, parts = Recording(good).scene("drive"), [Recording(path).scene("drive") for path in (learned, judged)]
    numbers = cut(len(whole.tokens))
    assert parts[0].tokens == whole.tokens[: numbers.learn.stop] and parts[1].tokens == whole.tokens[-6:]
    frame, same = parts[1][0], whole[numbers.judge.start]
    assert frame.token == same.token and frame.scene == "drive"
    np.testing.assert_array_equal(frame.images["left"], same.images["left"])
    np.testing.assert_array_equal(frame.world_from_ego, same.world_from_ego)
    between = Recording(learned).scene("drive", between=True)  # no frame of the other, whatever a recipe's window
    assert max(shot.stamp_ns for shot in between.shots(len(between) - 1).values()) < found.keyframes_ns[-6] - S
    keys = [frame_key(path, open_source(path), 0) for path in (good, learned, judged)]
    assert len(set(keys)) == 3


def test_masks_of_a_stretch_lie_in_its_folder(good, tmp_path):
    write_cut(tmp_path, [examine(good)])
    learned = folders(tmp_path, "drive")["learn"]
    mask = np.zeros((24, 32), dtype=bool)
    mask[20:] = True
    write_mask(learned / "masks" / "left.png", mask)
    rig = open_source(learned)[0].rig
    np.testing.assert_array_equal(rig["left"].blind, mask)
    assert rig["right"].blind is None and open_source(good)[0].rig["left"].blind is None


@pytest.mark.parametrize("text", ["{}", '{"bag": "a", "since_ns": 2, "until_ns": 1}', '{"bag": 1, "since_ns": 1.5}'])
def test_a_stretch_that_is_none(tmp_path, text):
    (tmp_path / "stretch.json").write_text(text)
    with pytest.raises(CorruptInput, match=r"stretch\.json"):
        open_source(tmp_path)
    with pytest.raises(InvalidInput):
        Stretch(tmp_path, 5, 5)


def test_true_voxels_of_a_moment(tmp_path):
    made = robot(images=3)
    labels = [np.full(OCC3D_GRID.shape, 17, dtype=np.uint8) for _ in range(2)]
    for step, label in enumerate(labels):
        label[100 + step, 90:95, 4] = 4
        truth = Occupancy(OCC3D_GRID, OCC3D, label, np.ones(OCC3D_GRID.shape, dtype=bool))
        stamp = T0 + step * S // 5
        made.add("/ground_truth/occupancy", stamp, msg.cloud(stamp, "base_link", truth_points(truth)), delay_ns=10**6)
    Stretch(made.write(tmp_path / "bag"), T0, T0 + S).write(tmp_path / "stretch")
    true = TrueVoxels(tmp_path / "stretch", OCC3D_GRID, OCC3D)
    for stamp, expected in ((T0, 0), (T0 + 10**7, 0), (T0 + S // 5 - 10**7, 1), (T0 + S, None), (T0 + S // 10, None)):
        found = true.at(stamp)
        assert (found is None) == (expected is None)
        if found is not None:
            np.testing.assert_array_equal(found.labels, labels[expected])


def test_what_decides_between_two_networks():
    lidar = {"lidar_above": 10.0, "lidar_ground": 60.0, "labels_iou": 50.0, "truth_iou": 40.0}
    won = change_of(lidar, lidar | {"lidar_above": 20.0, "labels_iou": 1.0, "truth_iou": 1.0})
    assert won.lost == -5 and str(won) == "LiDAR rays: mean score 35.0 % before, 40.0 % after"
    assert change_of(lidar, lidar | {"lidar_ground": 59.0, "labels_iou": 99.0}).lost == 0.5
    labels = {"labels_iou": 30.0, "labels_miou_15": 10.0, "truth_iou": 50.0}
    assert change_of(labels, labels | {"labels_iou": 29.0, "labels_miou_15": 12.0}).lost == -0.5
    assert change_of(labels, labels | {"labels_miou_15": 9.0, "truth_iou": 90.0}).lost == 0.5
    assert change_of(labels, {"labels_iou": 31.0}).lost == -1  # what both have
    assert change_of({"truth_iou": 1.0}, {"truth_iou": 2.0}) is None


def test_what_the_node_runs():
    def row(backend, precision, p50_ms, same_percent):
        return {"backend": backend, "precision": precision, "p50_ms": p50_ms, "same_percent": same_percent}

    rows = {
        "torch fp32": row("torch", "fp32", 90.0, 100.0),
        "a fp32": row("a", "fp32", 60.0, 99.9),
        "a int8": row("a", "int8", 40.0, 93.0),
        "wrong fp32": row("wrong", "fp32", 10.0, 80.0),
        "wrong int8": row("wrong", "int8", 5.0, 80.0),
    }
    assert fastest(rows, int8=False) == "a fp32" and fastest(rows, int8=True) == "a int8"
    assert fastest({name: rows[name] for name in ("torch fp32", "wrong fp32", "wrong int8")}, int8=True) == "torch fp32"


def test_a_stage_is_done_once_until_something_before_it_changes(tmp_path):
    calls = []

    def work(name, result):
        return lambda: calls.append(name) or result

    def run(asked, first):
        stages = Stages(tmp_path, asked)
        return stages.once("a", work("a", first)), stages.once("b", work("b", {"n": (1, 2)}))

    assert run({"x": 1}, {"v": 1}) == ({"v": 1}, {"n": [1, 2]}) == run({"x": 1}, {"v": 7}) and calls == ["a", "b"]
    (tmp_path / "stages" / "b.json").write_text('{"of": "torn')
    run({"x": 1}, {"v": 7})
    assert calls == ["a", "b", "b"]
    (tmp_path / "stages" / "a.json").unlink()
    run({"x": 1}, {"v": 7})  # another result: what follows is done again
    assert calls == ["a", "b", "b", "a", "b"]
    run({"x": 2}, {"v": 7})
    assert calls[5:] == ["a", "b"] and json.loads((tmp_path / "stages" / "a.json").read_text())["result"] == {"v": 7}


def test_a_rig_as_a_file_is_the_rig(tmp_path):
    lens = {"distortion_model": "equidistant", "distortion": (0.02, -0.01, 0.003, -0.001)}
    rig = Rig((camera("front", 3.0), camera("side/left", 91.0, size=(64, 48), focal_px=30.0, at=(0, 1, 2), **lens)))
    mask = np.zeros((180, 320), dtype=bool)
    mask[150:] = True
    write_mask(tmp_path / "masks" / "front.png", mask)
    (tmp_path / "rig.yaml").write_text(rig_text(rig, {"front": "/front/image_raw"}, {"front": "masks/front.png"}))
    front, left = load_rig_file(tmp_path / "rig.yaml")
    assert (front.image_topic, left.image_topic) == ("/front/image_raw", "")
    np.testing.assert_array_equal(front.camera.blind, mask)
    for entry, true in ((front, rig["front"]), (left, rig["side/left"])):
        assert entry.camera.size == true.size and entry.camera.distortion_model == true.distortion_model
        assert entry.camera.name == true.name and entry.camera.distortion == true.distortion
        np.testing.assert_allclose(entry.camera.ego_from_cam, true.ego_from_cam, atol=1e-12)
        np.testing.assert_allclose(entry.camera.intrinsics, true.intrinsics)
