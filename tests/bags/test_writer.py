"""Bags written from nuScenes sets, read back by rosbags, by plain SQL and (where installed) by the mcap library."""

import importlib.util
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import small_nuscenes
import yaml

pytest.importorskip("rosbags")

from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore

from occ_core.bags.writer import BagOptions, write_bag
from occ_core.clouds import LIDAR_POINT, occupancy_of
from occ_core.errors import CorruptInput, InvalidInput, MissingInput, OccError
from occ_core.grid import OCC3D_GRID
from occ_core.occupancy import load_occ3d
from occ_core.sources.bag import BagSource
from occ_core.sources.clouds import points_of
from occ_core.sources.nuscenes_tables import NuScenesTables
from occ_core.taxonomy import OCC3D

STORE = get_typestore(Stores.ROS2_KILTED)  # not the one that wrote
REAL = {
    "nuscenes_scene0103_4kf": "scene-0103",
    "nuscenes_scene0061_1kf": "scene-0061",
    "ddad_dgp_scene02/nuscenes_style": "scene-9002",
}


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
    root = tmp_path_factory.mktemp("small")
    small_nuscenes.make(root)
    return root


@pytest.fixture
def small(small_set, tmp_path):
    """A copy that may be damaged."""
    shutil.copytree(small_set, tmp_path / "set")
    return tmp_path / "set"


def write(root, out, **options):
    tables = NuScenesTables(root)
    return write_bag(tables, tables.scenes[0], out, BagOptions(**options))


def read(path):
    """[(topic, log time, message)] in file order."""
    with Reader(path) as reader:
        return [(c.topic, stamp, STORE.deserialize_cdr(raw, c.msgtype)) for c, stamp, raw in reader.messages()]


def stamp_of(message) -> int:
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("name", REAL)
def test_real_sets_come_back_equal(shared_data, tmp_path, name, storage):
    root = shared_data(name)
    summary = write(root, tmp_path / "drive", storage=storage)
    messages = read(tmp_path / "drive")
    sensors = json.loads((root / "v1.0-mini/sensor.json").read_text())
    channels = {row["token"]: row["channel"] for row in sensors}
    calibrations = {row["token"]: row for row in json.loads((root / "v1.0-mini/calibrated_sensor.json").read_text())}
    rows = json.loads((root / "v1.0-mini/sample_data.json").read_text())
    by_key = {(topic, stamp_of(m) // 1000): m for topic, _, m in messages if hasattr(m, "header")}
    for row in rows:
        calibration = calibrations[row["calibrated_sensor_token"]]
        topic = f"/{channels[calibration['sensor_token']].lower()}"
        original = (root / row["filename"]).read_bytes()
        stamp = row["timestamp"]  # microseconds; below them, sensors of one stamp but different poses are told apart
        if row["fileformat"] == "jpg":
            message = by_key[f"{topic}/image_raw/compressed", stamp]
            assert message.data.tobytes() == original
            assert message.format == "jpeg"
            info = by_key[f"{topic}/camera_info", stamp]
            assert info.header.frame_id == message.header.frame_id == f"{topic[1:]}_optical_frame"
            np.testing.assert_array_equal(info.k.reshape(3, 3), calibration["camera_intrinsic"])
            np.testing.assert_array_equal(info.p.reshape(3, 4)[:, :3], calibration["camera_intrinsic"])
            np.testing.assert_array_equal(info.r, np.eye(3).ravel())
            assert (info.width, info.height) == (row["width"], row["height"])
        else:
            message = by_key[f"{topic}/points", stamp]
            points = points_of(message)
            assert points.dtype == LIDAR_POINT
            floats = np.frombuffer(original, dtype=np.float32).reshape(-1, 5)
            for column, field in enumerate(("x", "y", "z", "intensity")):
                np.testing.assert_array_equal(points[field], floats[:, column])
            np.testing.assert_array_equal(points["ring"], floats[:, 4])
    sensor_messages = [topic for topic, _, _ in messages if "/image_raw" in topic or topic.endswith("/points")]
    assert len(sensor_messages) == len(rows)
    assert summary.counts == {t: sum(topic == t for topic, *_ in messages) for t in {topic for topic, *_ in messages}}


def devkit_pixels(devkit, lidar_token, camera_token):
    """Pixels (N, 2) and depth (N,) of all LiDAR points, by the devkit's own classes and its documented chain."""
    from nuscenes.utils.data_classes import LidarPointCloud
    from nuscenes.utils.geometry_utils import view_points
    from pyquaternion import Quaternion

    lidar, camera = devkit.get("sample_data", lidar_token), devkit.get("sample_data", camera_token)
    cloud = LidarPointCloud.from_file(devkit.get_sample_data_path(lidar_token))
    cloud.points = cloud.points.astype(np.float64)  # its float32 rounds world coordinates to 0.2 mm
    for table, token in (
        ("calibrated_sensor", lidar["calibrated_sensor_token"]),
        ("ego_pose", lidar["ego_pose_token"]),
    ):
        row = devkit.get(table, token)
        cloud.rotate(Quaternion(row["rotation"]).rotation_matrix)
        cloud.translate(np.array(row["translation"]))
    for table, token in (
        ("ego_pose", camera["ego_pose_token"]),
        ("calibrated_sensor", camera["calibrated_sensor_token"]),
    ):
        row = devkit.get(table, token)
        cloud.translate(-np.array(row["translation"]))
        cloud.rotate(Quaternion(row["rotation"]).rotation_matrix.T)
    intrinsics = np.array(devkit.get("calibrated_sensor", camera["calibrated_sensor_token"])["camera_intrinsic"])
    return view_points(cloud.points[:3], intrinsics, normalize=True)[:2].T, cloud.points[2]


def projection_errors(root, bag):
    """Distances in pixels between bag and devkit, of all LiDAR points farther than 1 m that are in an image."""
    nuscenes = pytest.importorskip("nuscenes.nuscenes", reason="another reader; `make setup` installs it")
    devkit = nuscenes.NuScenes(version="v1.0-mini", dataroot=str(root), verbose=False)
    errors = []
    for sample, frame in zip(devkit.sample, BagSource(bag), strict=True):
        lidar = frame.lidar
        in_lidar = np.c_[lidar.points_lidar_m.astype(np.float64), np.ones(len(lidar.ring))].T
        world = lidar.world_from_ego @ lidar.ego_from_lidar @ in_lidar
        for camera in frame.rig:
            theirs, depth = devkit_pixels(devkit, sample["data"]["LIDAR_TOP"], sample["data"][camera.name.upper()])
            world_from_cam = frame.camera_world_from_ego[camera.name] @ camera.ego_from_cam
            ours, visible = camera.project((np.linalg.inv(world_from_cam) @ world)[:3].T)
            visible &= depth > 1.0
            errors.append(np.linalg.norm(ours - theirs, axis=1)[visible])
    return np.concatenate(errors)


def test_lidar_lands_where_the_devkit_puts_it(shared_data, small, tmp_path):
    """Through the bag: its CameraInfo, its TF at each stamp. Through the devkit: the tables."""
    root = shared_data("nuscenes_scene0061_1kf")
    for each, points in ((root, 10_000), (small, 50)):
        bag = tmp_path / f"bag_{each.name}"
        write(each, bag, sweeps=False)
        errors = projection_errors(each, bag)
        assert len(errors) > points
        assert errors.max() < 0.01


def test_sensors_of_one_stamp_keep_their_own_poses(shared_data, tmp_path):
    """DDAD gives its cameras one stamp but poses up to 9 mm apart along the way; TF has one pose a stamp."""
    root = shared_data("ddad_dgp_scene02/nuscenes_style")
    write(root, tmp_path / "drive")
    errors = projection_errors(root, tmp_path / "drive")
    assert len(errors) > 100_000
    assert errors.max() < 0.01
    rows = json.loads((root / "v1.0-mini/sample_data.json").read_text())
    microseconds = {row["timestamp"] for row in rows}
    stamps = {stamp for topic, stamp, _ in read(tmp_path / "drive") if topic == "/tf"}
    assert len(stamps) > len(microseconds) and {stamp // 1000 for stamp in stamps} == microseconds


def test_header_log_and_order(small, tmp_path):
    write(small, tmp_path / "drive")
    messages = read(tmp_path / "drive")
    assert messages[0][0] == "/tf_static"
    stamps = [stamp for _, stamp, _ in messages]
    assert stamps == sorted(stamps)
    for topic, stamp, message in messages:
        if hasattr(message, "header"):
            assert stamp_of(message) == stamp, topic
    transforms = [t for topic, _, m in messages if topic == "/tf" for t in m.transforms]
    seen = [(t.header.stamp.sec, t.header.stamp.nanosec) for t in transforms]
    rows = json.loads((small / "v1.0-mini/sample_data.json").read_text())
    wanted = sorted({row["timestamp"] for row in rows})
    assert [s * 10**6 + ns // 1000 for s, ns in seen] == wanted  # every ego pose, none twice
    for t in transforms:
        expected = small_nuscenes.world_from_ego(t.header.stamp.sec * 10**6 + t.header.stamp.nanosec // 1000)
        got = t.transform.translation
        np.testing.assert_allclose((got.x, got.y, got.z), expected[:3, 3], atol=1e-9)
        assert (t.header.frame_id, t.child_frame_id) == ("odom", "base_link")
    static = {(t.header.frame_id, t.child_frame_id) for t in messages[0][2].transforms}
    assert static == {
        ("map", "odom"),
        ("base_link", "cam_front_optical_frame"),
        ("base_link", "cam_back_optical_frame"),
        ("base_link", "lidar_top"),
    }


def test_keyframes_truth_boxes(small, tmp_path):
    write(small, tmp_path / "drive")
    messages = read(tmp_path / "drive")
    tokens = {stamp: m.data for topic, stamp, m in messages if topic == "/keyframe"}
    assert list(tokens.values()) == [token for token, _ in NuScenesTables(small).samples("scene-0001")]
    clouds = {stamp_of(m): m for topic, _, m in messages if topic == "/ground_truth/occupancy"}
    assert clouds.keys() == tokens.keys()
    for stamp, cloud in clouds.items():
        assert cloud.header.frame_id == "base_link"
        label = load_occ3d(small / "gts/scene-0001" / tokens[stamp] / "labels.npz")
        back = occupancy_of(points_of(cloud), OCC3D_GRID, OCC3D)
        np.testing.assert_array_equal(back.labels, label.labels)
        np.testing.assert_array_equal(back.observed, label.observed)
        np.testing.assert_array_equal(back.mask_lidar, label.mask_lidar)
    markers = [m.markers for topic, _, m in messages if topic == "/markers/annotations"]
    assert len(markers) == 3
    for clear, box in markers:
        assert (clear.action, box.action, box.type) == (3, 0, 1)
        assert (box.scale.x, box.scale.y, box.scale.z) == (4.6, 1.9, 1.7)
        assert box.header.frame_id == "map"
        assert box.text.startswith("vehicle.car ")


def test_odometry_twist_is_the_drive_s(small, tmp_path):
    """v = (8, 1.6 t, 0) in the world and 0.2 rad/s: known in closed form. Central differences are exact but for yaw."""
    write(small, tmp_path / "drive")
    odometry = [m for topic, _, m in read(tmp_path / "drive") if topic == "/odom"][2:-2]
    assert len(odometry) > 10
    for message in odometry:
        t = stamp_of(message) / 1e9 - small_nuscenes.START_US / 1e6
        yaw = 0.2 * t
        world = np.array([8.0, 1.6 * t])
        ahead = (np.cos(yaw) * world[0] + np.sin(yaw) * world[1], -np.sin(yaw) * world[0] + np.cos(yaw) * world[1])
        linear, angular = message.twist.twist.linear, message.twist.twist.angular
        np.testing.assert_allclose((linear.x, linear.y), ahead, atol=0.15)  # differences are not centred
        assert angular.z == pytest.approx(0.2, abs=1e-6)
        assert message.child_frame_id == "base_link"


def test_raw_images_are_the_decoded_files(small, tmp_path):
    write(small, tmp_path / "drive", raw=True, sweeps=False)
    images = [m for topic, _, m in read(tmp_path / "drive") if topic == "/cam_front/image_raw"]
    files = sorted((small / "samples/CAM_FRONT").iterdir())
    assert len(images) == len(files) == 3
    for message, path in zip(images, files, strict=True):
        assert (message.encoding, message.step) == ("rgb8", 3 * message.width)
        rgb = message.data.reshape(message.height, message.width, 3)
        np.testing.assert_array_equal(rgb, cv2.imread(str(path))[:, :, ::-1])


def test_metadata_and_qos(small, tmp_path):
    for storage, suffix in (("mcap", "mcap"), ("sqlite3", "db3")):
        out = tmp_path / storage
        summary = write(small, out, storage=storage)
        info = yaml.safe_load((out / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
        assert info["storage_identifier"] == storage
        assert info["relative_file_paths"] == [f"{storage}.{suffix}"]
        assert info["message_count"] == sum(summary.counts.values())
        assert info["compression_mode"] == ""
        assert sorted(path.name for path in out.iterdir()) == sorted(["metadata.yaml", f"{storage}.{suffix}"])
        topics = {row["topic_metadata"]["name"]: row for row in info["topics_with_message_count"]}
        assert all(row["message_count"] for row in topics.values())  # no silent topic
        (qos,) = yaml.safe_load(topics["/tf_static"]["topic_metadata"]["offered_qos_profiles"])
        assert (qos["durability"], qos["reliability"]) == (1, 1)  # transient local, reliable
        (qos,) = yaml.safe_load(topics["/tf"]["topic_metadata"]["offered_qos_profiles"])
        assert qos["durability"] == 2


def test_sqlite_by_plain_sql(small, tmp_path):
    summary = write(small, tmp_path / "drive", storage="sqlite3")
    with sqlite3.connect(tmp_path / "drive/drive.db3") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        query = "SELECT name, count(*) FROM messages JOIN topics ON topic_id = topics.id GROUP BY name"
        assert dict(connection.execute(query)) == summary.counts
        data = connection.execute(
            "SELECT data FROM messages JOIN topics ON topic_id = topics.id "
            "WHERE name = '/cam_front/image_raw/compressed' ORDER BY timestamp"
        ).fetchone()[0]
    assert min((small / "samples/CAM_FRONT").iterdir()).read_bytes() in data  # CDR keeps the file's bytes together


@pytest.mark.skipif(importlib.util.find_spec("mcap_ros2") is None, reason="mcap-ros2-support is not installed")
def test_mcap_by_another_library(small, tmp_path):
    from mcap.reader import make_reader
    from mcap.records import Chunk
    from mcap.stream_reader import StreamReader
    from mcap_ros2.decoder import DecoderFactory

    summary = write(small, tmp_path / "drive")
    path = tmp_path / "drive/drive.mcap"
    counts, images = {}, []
    with path.open("rb") as file:
        reader = make_reader(file, decoder_factories=[DecoderFactory()], validate_crcs=True)
        for _, channel, message, decoded in reader.iter_decoded_messages():
            counts[channel.topic] = counts.get(channel.topic, 0) + 1
            if channel.topic == "/cam_front/image_raw/compressed":
                images.append((message.log_time, decoded.data))
    assert counts == summary.counts
    assert images[0][1] == min((small / "samples/CAM_FRONT").iterdir()).read_bytes()
    with path.open("rb") as file:
        chunks = [record for record in StreamReader(file, emit_chunks=True).records if isinstance(record, Chunk)]
    assert len(chunks) > 1
    assert all(chunk.uncompressed_crc and chunk.compression == "" for chunk in chunks)


def test_a_flipped_bit_is_noticed_by_the_chunk_checksum(small, tmp_path):
    write(small, tmp_path / "drive")
    path = tmp_path / "drive/drive.mcap"
    data = bytearray(path.read_bytes())
    picture = min((small / "samples/CAM_FRONT").iterdir()).read_bytes()
    data[data.index(picture) + len(picture) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptInput, match="checksum"):
        list(BagSource(tmp_path / "drive"))


def test_what_is_absent_is_listed(tmp_path):
    small_nuscenes.make(tmp_path / "set", sweeps=0, lidar=False, boxes=False, truth=False)
    summary = write(tmp_path / "set", tmp_path / "drive")
    left_out = dict(summary.left_out)
    assert left_out["LiDAR"] == "the tables name no LiDAR file"
    assert left_out["sweeps"] == "the tables name none"
    assert "annotations" in left_out
    assert "ground truth of 3 of 3 keyframes" in left_out
    assert {"CAN bus", "map expansion"} < left_out.keys()
    assert not [topic for topic in summary.counts if "points" in topic or "markers" in topic or "truth" in topic]


def test_missing_files(small, tmp_path):
    keyframe, sweep = (sorted((small / kind / "CAM_BACK").iterdir())[1] for kind in ("samples", "sweeps"))
    sweep.unlink()
    summary = write(small, tmp_path / "first")
    assert ("CAM_BACK: 1 sweep files", "missing or empty on disk") in summary.left_out
    assert summary.counts["/cam_back/image_raw/compressed"] == 6
    keyframe.write_bytes(b"")
    with pytest.raises(MissingInput, match=f"{keyframe.name}.*--allow-missing"):
        write(small, tmp_path / "second")
    assert not (tmp_path / "second").exists()
    summary = write(small, tmp_path / "second", allow_missing=True)
    assert ("CAM_BACK: 1 keyframe files", "missing or empty on disk") in summary.left_out
    assert summary.counts["/cam_back/image_raw/compressed"] == 5
    assert len(list(BagSource(tmp_path / "second"))) == 7
    shutil.rmtree(small / "sweeps")
    with pytest.raises(MissingInput, match="no sweep file is there"):
        write(small, tmp_path / "third", allow_missing=True, sweeps=True)
    summary = write(small, tmp_path / "third", allow_missing=True)
    assert summary.counts["/cam_front/image_raw/compressed"] == 3


def test_a_broken_picture_leaves_nothing_behind(small, tmp_path):
    path = sorted((small / "samples/CAM_FRONT").iterdir())[1]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CorruptInput, match=f"{path.name}.*cut short"):
        write(small, tmp_path / "drive")
    assert not list(tmp_path.glob("drive*"))
    cv2.imwrite(str(path), np.zeros((10, 10, 3), dtype=np.uint8))
    with pytest.raises(CorruptInput, match="10 x 10 px, sample_data.json says 64 x 48"):
        write(small, tmp_path / "drive")


def test_an_existing_target_is_only_replaced_when_asked_and_only_if_a_bag(small, tmp_path):
    write(small, tmp_path / "drive", sweeps=False)
    with pytest.raises(InvalidInput, match="exists already"):
        write(small, tmp_path / "drive")
    summary = write(small, tmp_path / "drive", force=True)
    assert summary.counts["/cam_front/image_raw/compressed"] == 7
    (tmp_path / "photos").mkdir()
    with pytest.raises(InvalidInput, match="is not a bag"):
        write(small, tmp_path / "photos", force=True)
    with pytest.raises(InvalidInput, match="'rar' is not one of mcap, sqlite3"):
        write(small, tmp_path / "other", storage="rar")
    (tmp_path / "file").write_text("")
    with pytest.raises(OccError, match="cannot write"):
        write(small, tmp_path / "file" / "drive")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drive", "file", "photos", "set"]


SLOW_WRITE = """
import signal, sys, time
from pathlib import Path
from occ_core.sources.nuscenes_tables import NuScenesTables
from occ_core.bags.writer import BagOptions, write_bag
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
def progress(done, total):
    print(done, flush=True); time.sleep(0.05)
write_bag(NuScenesTables(sys.argv[1]), "scene-0001", Path(sys.argv[2]), BagOptions(storage=sys.argv[3]), progress)
"""


@pytest.mark.parametrize(
    ("how", "storage"), [(signal.SIGINT, "mcap"), (signal.SIGKILL, "mcap"), (signal.SIGKILL, "sqlite3")]
)
def test_interruption_leaves_no_bag(small, tmp_path, how, storage):
    out = tmp_path / "drive"
    command = [sys.executable, "-c", SLOW_WRITE, str(small), str(out), storage]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    process.stdout.readline(), process.stdout.readline()  # in the middle of writing
    os.kill(process.pid, how)
    assert process.wait(timeout=30) != 0
    process.stdout.close()
    assert not out.exists()
    assert (tmp_path / "drive.partial").exists() == (how == signal.SIGKILL)  # a kill cannot clean up
    write(small, out, storage=storage)
    assert not (tmp_path / "drive.partial").exists()
    assert len(list(BagSource(out))) == 7


def occ(*arguments, timeout=60):
    start = time.monotonic()
    command = [sys.executable, "-m", "occ_core.cli.main", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert time.monotonic() - start < timeout
    return done


def test_command_line(small, tmp_path):
    done = occ("bag", "make", small, tmp_path / "drive", "--scene", "scene-0001")
    assert done.returncode == 0, done.stderr
    assert "/ground_truth/occupancy" in done.stdout
    assert "CAN bus" in done.stdout
    done = occ("bag", "check", tmp_path / "drive")
    assert done.returncode == 0, done.stderr
    assert "7 image sets" in done.stdout


def test_command_line_names_the_missing_file_in_one_line(small, tmp_path):
    path = min((small / "samples/LIDAR_TOP").iterdir())
    path.unlink()
    done = occ("bag", "make", small, tmp_path / "drive", "--scene", "scene-0001")
    assert (done.returncode, done.stdout.strip()) == (2, "")
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert Path(path).name in line
