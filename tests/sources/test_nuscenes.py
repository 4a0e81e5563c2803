"""nuScenes source on real sets and on a small written one, damaged in every way."""

import json
import shutil

import cv2
import numpy as np
import pytest
import small_nuscenes

from occ_core.errors import CorruptInput, InvalidInput, MissingInput
from occ_core.geometry import inverse, pose
from occ_core.sources.nuscenes import NuScenesSource
from occ_core.sources.nuscenes_tables import NuScenesTables

REAL = {
    "nuscenes_scene0103_4kf": ("scene-0103", 4, None),
    "nuscenes_scene0061_1kf": ("scene-0061", 1, 34688),
    "ddad_dgp_scene02/nuscenes_style": ("scene-9002", 3, 47230),
}


@pytest.fixture
def small(tmp_path):
    small_nuscenes.make(tmp_path / "set")
    return tmp_path / "set"


@pytest.mark.parametrize("name", REAL)
def test_real_sets(shared_data, name):
    scene, keyframes, points = REAL[name]
    source = NuScenesSource(shared_data(name))
    assert (source.scenes, len(source), source.check()) == ([scene], keyframes, [])
    frames = list(source)
    assert [frame.token for frame in frames] == source.tokens
    assert all(len(frame.images) == 6 and frame.rig is frames[0].rig for frame in frames)
    assert all(a.stamp_ns < b.stamp_ns for a, b in zip(frames, frames[1:], strict=False))
    assert frames[0].rig.names[0] == "CAM_FRONT"
    if points is None:
        assert frames[0].lidar is None
    else:
        lidar = frames[0].lidar
        assert lidar.points_lidar_m.shape == (points, 3)
        assert lidar.stamp_ns == frames[0].stamp_ns
        np.testing.assert_array_equal(lidar.world_from_ego, frames[0].world_from_ego)


@pytest.mark.parametrize("name", REAL)
def test_stamps_poses_and_pixels_are_those_of_the_tables(shared_data, name):
    root = shared_data(name)
    tables = {table: {row["token"]: row for row in json.loads((root / f"v1.0-mini/{table}.json").read_text())}
              for table in ("sample_data", "calibrated_sensor", "ego_pose", "sensor")}  # fmt: skip
    frame = NuScenesSource(root)[0]
    checked = 0
    for row in tables["sample_data"].values():
        calibration = tables["calibrated_sensor"][row["calibrated_sensor_token"]]
        channel = tables["sensor"][calibration["sensor_token"]]["channel"]
        if row["sample_token"] != frame.token or not channel.startswith("CAM"):
            continue
        assert frame.camera_stamp_ns[channel] == row["timestamp"] * 1000
        ego = tables["ego_pose"][row["ego_pose_token"]]
        np.testing.assert_allclose(frame.camera_world_from_ego[channel][:3, 3], ego["translation"])
        np.testing.assert_allclose(frame.rig[channel].intrinsics, calibration["camera_intrinsic"])
        np.testing.assert_allclose(frame.rig[channel].ego_from_cam[:3, 3], calibration["translation"])
        expected = cv2.imread(str(root / row["filename"]))[:, :, ::-1]
        np.testing.assert_array_equal(frame.images[channel], expected)
        checked += 1
    assert checked == 6


def _opened_by_the_devkit(root):
    devkit = pytest.importorskip("nuscenes.nuscenes", reason="another reader of this layout; `make setup` installs it")
    return devkit.NuScenes(version="v1.0-mini", dataroot=str(root), verbose=False)


@pytest.mark.parametrize("name", [*REAL, "small"])
def test_every_record_and_box_is_that_of_the_devkit(shared_data, small, name):
    root = small if name == "small" else shared_data(name)
    ours, theirs = NuScenesTables(root), _opened_by_the_devkit(root)
    assert ours.scenes == [row["name"] for row in theirs.scene]
    records, boxes = 0, 0
    for scene in theirs.scene:
        token, samples = scene["first_sample_token"], []
        while token:
            samples.append(theirs.get("sample", token))
            token = samples[-1]["next"]
        assert ours.samples(scene["name"]) == [(row["token"], row["timestamp"] * 1000) for row in samples]
        rows = {str(theirs.dataroot) + "/" + row["filename"]: row for row in theirs.sample_data}
        for record in ours.records(scene["name"]):
            row = rows.pop(str(record.path))
            calibration = theirs.get("calibrated_sensor", row["calibrated_sensor_token"])
            ego = theirs.get("ego_pose", row["ego_pose_token"])
            expected = (row["channel"], row["sensor_modality"], row["timestamp"] * 1000, row["is_key_frame"])
            assert (record.channel, record.modality, record.stamp_ns, record.is_keyframe) == expected
            assert (record.sample_token, record.calibration) == (row["sample_token"], calibration["token"])
            np.testing.assert_array_equal(record.ego_from_sensor, _pose_of(calibration))
            np.testing.assert_array_equal(record.world_from_ego, _pose_of(ego))
            records += 1
        assert not rows or len(theirs.scene) > 1
        for sample in samples:
            found = {box.token: box for box in ours.annotations(sample["token"])}
            assert list(found) == sample["anns"]
            for token, box in found.items():
                row = theirs.get("sample_annotation", token)
                assert (box.category, box.instance) == (row["category_name"], row["instance_token"])
                assert list(box.size_wlh_m) == row["size"]
                np.testing.assert_array_equal(box.world_from_box, _pose_of(row))
                boxes += 1
    assert records > 5
    assert boxes or name != "small"


def _pose_of(row):
    return pose(row["translation"], row["rotation"])


def test_reference_pose_without_lidar(shared_data):
    """The poses at LiDAR time were published; ours come from the cameras' ego poses around that time."""
    root = shared_data("nuscenes_scene0103_4kf")
    poses = {row["token"]: row["translation"] for row in json.loads((root / "v1.0-mini/ego_pose.json").read_text())}
    published = json.loads((root / "lidar_time_ego_poses.json").read_text())
    for frame, row in zip(list(NuScenesSource(root)), published, strict=True):
        assert (frame.token, frame.stamp_ns) == (row["sample_token"], row["lidar_timestamp"] * 1000)
        assert np.linalg.norm(frame.world_from_ego[:3, 3] - poses[row["ego_pose_token"]]) < 0.02


def test_sweeps_lie_between_keyframes(small):
    keyframes, everything = NuScenesSource(small), NuScenesSource(small, sweeps=True)
    assert (len(keyframes), len(everything)) == (3, 7)
    frames = list(everything)
    assert [bool(frame.token) for frame in frames] == [frame.is_keyframe for frame in frames]
    assert [frame.is_keyframe for frame in frames] == [True, False, False, True, False, False, True]
    for frame in frames:
        assert set(frame.images) == {"CAM_FRONT", "CAM_BACK"}
        stamps = [*frame.camera_stamp_ns.values(), frame.lidar.stamp_ns]
        assert max(stamps) - min(stamps) == 35_000_000  # the written offsets, so no set mixes two moments
        for name, stamp_ns in frame.camera_stamp_ns.items():
            expected = small_nuscenes.world_from_ego(stamp_ns // 1000)
            np.testing.assert_allclose(frame.camera_world_from_ego[name], expected, atol=1e-9)


def test_points_keep_their_values(small):
    frame = NuScenesSource(small)[0]
    rows = np.fromfile(next((small / "samples/LIDAR_TOP").glob("*.bin")), dtype=np.float32).reshape(-1, 5)
    np.testing.assert_array_equal(frame.lidar.points_lidar_m, rows[:, :3])
    np.testing.assert_array_equal(frame.lidar.intensity, rows[:, 3])
    np.testing.assert_array_equal(frame.lidar.ring, rows[:, 4])
    # x of nuScenes' LiDAR points right, y forward
    ahead = frame.lidar.ego_from_lidar @ (0, 1, 0, 0)
    np.testing.assert_allclose(ahead[:3], (1, 0, 0), atol=1e-12)


def test_truth_and_boxes_are_found(small):
    tables = NuScenesTables(small)
    for token, stamp_ns in tables.samples("scene-0001"):
        assert tables.truth_path("scene-0001", token).is_file()
        (box,) = tables.annotations(token)
        ego = small_nuscenes.world_from_ego(stamp_ns // 1000)
        np.testing.assert_allclose((inverse(ego) @ box.world_from_box)[:3, 3], (12, 3, 0.8), atol=1e-9)
        assert (box.category, box.size_wlh_m) == ("vehicle.car", (1.9, 4.6, 1.7))


def test_large_map_pictures_do_not_matter(small):
    """Real maps have 630 Mpixel; nothing may decode them."""
    (small / "maps/map.png").write_bytes(b"\x89PNG\r\n\x1a\n not an image")
    assert len(NuScenesSource(small)) == 3


def edit(root, table, change):
    path = root / f"v1.0-mini/{table}.json"
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (lambda root: (root / "v1.0-mini/ego_pose.json").unlink(), MissingInput, "ego_pose.json: table is missing"),
        (lambda root: (root / "v1.0-mini/sample.json").write_text("[{"), CorruptInput, "sample.json: not a readable"),
        (lambda root: (root / "v1.0-mini/sensor.json").write_text("{}"), CorruptInput, "sensor.json: a table must"),
        (lambda root: edit(root, "map", list.clear), CorruptInput, "map.json: no rows"),
        (lambda root: (root / "maps/map.png").unlink(), MissingInput, "map.png: map named by map.json"),
        (lambda root: edit(root, "ego_pose", lambda rows: rows.pop(0)), CorruptInput, "ego_pose.json does not have"),
        (lambda root: edit(root, "sensor", lambda rows: rows.pop(0)), CorruptInput, "by sensor_token to"),
        (lambda root: edit(root, "sample", lambda rows: rows.pop(0)), CorruptInput, "sample.json does not have"),
        (lambda root: edit(root, "ego_pose", lambda rows: rows.append(rows[0])), CorruptInput, "each must have one of"),
        (lambda root: edit(root, "sample", lambda rows: rows[0].pop("token")), CorruptInput, "sample.json: row 0 has"),
        (
            lambda root: edit(root, "sample_data", lambda rows: rows[1].pop("filename")),
            CorruptInput,
            "sample_data.json: row .* lacks 'filename'",
        ),
        (
            lambda root: edit(root, "sample_data", lambda rows: rows[1].update(timestamp="noon")),
            CorruptInput,
            "timestamp must be microseconds, got 'noon'",
        ),
        (
            lambda root: edit(root, "sample_data", lambda rows: rows[1].update(width="wide")),
            CorruptInput,
            "width and height must be pixels",
        ),
        (
            lambda root: edit(root, "calibrated_sensor", lambda rows: rows[0].update(camera_intrinsic=[[1], 2])),
            CorruptInput,
            "camera_intrinsic must be a matrix",
        ),
        (
            lambda root: edit(root, "ego_pose", lambda rows: rows[0].update(rotation=[0, 0, 0, 0])),
            CorruptInput,
            "ego_pose.json: row .*norm",
        ),
        (
            lambda root: edit(root, "calibrated_sensor", lambda rows: rows[0].update(translation=[1, 2])),
            CorruptInput,
            "calibrated_sensor.json: row .*three finite numbers",
        ),
    ],
)
def test_broken_tables_are_one_error_that_names_the_file(small, damage, error, words):
    damage(small)
    with pytest.raises(error, match=words) as caught:
        NuScenesSource(small)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda row: row.update(instance_token="x"), "by instance_token to 'x', which instance.json"),
        (lambda row: row.update(sample_token="x"), "by sample_token to 'x', which sample.json"),
        (lambda row: row.update(size=[1, 2]), "size must be three numbers"),
        (lambda row: row.update(rotation=[0, 0, 0, 0]), "norm"),
        (lambda row: row.pop("translation"), "lacks 'translation'"),
    ],
)
def test_broken_boxes_are_named_when_they_are_asked_for(small, damage, words):
    edit(small, "sample_annotation", lambda rows: damage(rows[1]))
    tables = NuScenesTables(small)
    assert NuScenesSource(small)[0].images  # cameras alone do not need them
    with pytest.raises(CorruptInput, match=f"sample_annotation.json: row .*{words}"):
        tables.annotations(tables.samples("scene-0001")[0][0])


def test_zero_focal_length_names_the_camera(small):
    edit(small, "calibrated_sensor", lambda rows: rows[0].update(camera_intrinsic=np.zeros((3, 3)).tolist()))
    with pytest.raises(InvalidInput, match="CAM_FRONT.*focal"):
        NuScenesSource(small)[0]


def test_missing_and_broken_sensor_files(small):
    first, second, third = sorted((small / "samples/CAM_FRONT").iterdir())
    cloud = min((small / "samples/LIDAR_TOP").iterdir())
    second.write_bytes(second.read_bytes()[:300])
    first.unlink()
    cloud.write_bytes(cloud.read_bytes()[:-3])
    source = NuScenesSource(small)
    assert source.check() == [first]
    assert source.tables.missing_files() == [first]
    with pytest.raises(MissingInput, match=first.name):
        source[0]
    with pytest.raises(CorruptInput, match=f"{second.name}.*cut short"):
        source[1]
    first.write_bytes(third.read_bytes())
    with pytest.raises(CorruptInput, match=f"{cloud.name}.*3997 bytes"):
        _ = source[0].lidar


def test_version_and_scene_must_exist(small, tmp_path):
    with pytest.raises(MissingInput, match="no folder v1"):
        NuScenesSource(tmp_path)
    with pytest.raises(MissingInput, match="no such folder"):
        NuScenesSource(tmp_path / "nothing")
    with pytest.raises(MissingInput, match="no scene 'scene-9', only: scene-0001"):
        NuScenesSource(small, scenes=["scene-9"])
    with pytest.raises(MissingInput, match="v1.0-test: no such folder"):
        NuScenesSource(small, version="v1.0-test")
    shutil.copytree(small / "v1.0-mini", small / "v1.0-test")
    with pytest.raises(InvalidInput, match="several versions"):
        NuScenesSource(small)
