"""Bags of other robots: every way in which they differ from ours, and every way in which they are broken."""

import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("rosbags")

from rosbags.rosbag2 import StoragePlugin, Writer

from occ_core.bags import messages as msg
from occ_core.errors import CorruptInput, InvalidInput, MissingInput, MissingTransform
from occ_core.geometry import pose, quaternion_from_rotation
from occ_core.sources.bag import BagSource

S = 10**9
T0 = 1_000 * S
OPTICAL = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
W, H = 32, 24


def base_from(sensor: str) -> np.ndarray:
    """Places of the sensors on this robot."""
    height = {"left": 0.2, "right": -0.2}.get(sensor, 0.0)
    return pose((0.5, height, 1.0), quaternion_from_rotation(OPTICAL))


def picture(seed: int) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return cv2.resize(small, (W, H), interpolation=cv2.INTER_CUBIC)


class Robot:
    """Collects messages and writes them in the order of their log times."""

    def __init__(self):
        self.messages = []

    def add(self, topic, stamp_ns, message, delay_ns=0):
        self.messages.append((stamp_ns + delay_ns, topic, message))

    def image(self, name, stamp_ns, seed, topic="image_raw", **extra):
        self.add(f"/{name}/{topic}", stamp_ns, msg.image(stamp_ns, f"{name}_optical", picture(seed)), **extra)

    def info(self, name, stamp_ns, model="plumb_bob", d=(0.0,) * 5, frame=None, k=None, p=None):
        info = msg.camera_info(stamp_ns, f"{name}_optical", _camera())
        info.distortion_model, info.d = model, np.array(d, dtype=np.float64)
        if frame is not None:
            info.header.frame_id = frame
        if k is not None:
            info.k = np.array(k, dtype=np.float64).ravel()
        if p is not None:
            info.p = np.array(p, dtype=np.float64).ravel()
        self.add(f"/{name}/camera_info", stamp_ns, info)

    def static(self, *names, parent="base_link"):
        links = [(parent, f"{name}_optical", base_from(name)) for name in names]
        self.add("/tf_static", T0, msg.transforms(T0, links))

    def moving(self, parent="odom", child="base_link", seconds=3):
        for step in range(seconds * 10 + 1):
            stamp = T0 + step * S // 10
            self.add("/tf", stamp, msg.transforms(stamp, [(parent, child, pose((step * 0.1, 0, 0)))]))

    def write(self, path, storage=StoragePlugin.MCAP) -> Path:
        with Writer(path, version=8, storage_plugin=storage) as writer:
            connections = {}
            for stamp, topic, message in sorted(self.messages, key=lambda entry: entry[0]):
                if topic not in connections:
                    connections[topic] = writer.add_connection(topic, message.__msgtype__, typestore=msg.store())
                writer.write(connections[topic], stamp, msg.serialize(message))
        return path


def _camera():
    from occ_core.camera import Camera

    return Camera("any", np.array([[20.0, 0, 15.5], [0, 21, 11.5], [0, 0, 1]]), (W, H), np.eye(4))


def robot(names=("left", "right"), images=10, tf=True) -> Robot:
    """10 Hz cameras, the second 20 ms later."""
    made = Robot()
    for number, name in enumerate(names):
        for step in range(images):
            stamp = T0 + step * S // 10 + number * 20_000_000
            made.image(name, stamp, seed=100 * number + step)
            made.info(name, stamp)
    if tf:
        made.static(*names)
        made.moving()
    return made


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_frames_of_a_plain_robot(tmp_path, storage):
    source = BagSource(robot().write(tmp_path / "bag", storage))
    assert (source.world_frame, source.key.name, source.lidar_topic) == ("odom", "left", None)
    frames = list(source)
    assert len(frames) == 10
    assert frames[0].scene == "bag"
    for step, frame in enumerate(frames):
        stamp = T0 + step * S // 10
        assert frame.stamp_ns == stamp
        assert frame.camera_stamp_ns == {"left": stamp, "right": stamp + 20_000_000}
        np.testing.assert_array_equal(frame.images["left"], picture(step))
        np.testing.assert_array_equal(frame.images["right"], picture(100 + step))
        assert frame.world_from_ego[0, 3] == pytest.approx(0.1 * step)
        assert frame.camera_world_from_ego["right"][0, 3] == pytest.approx(0.1 * (step + 0.2))
        np.testing.assert_allclose(frame.rig["right"].ego_from_cam, base_from("right"), atol=1e-12)
        assert frame.rig is frames[0].rig
    assert len(list(source.stamps())) == 10


def test_one_storage_file_without_its_folder(tmp_path):
    robot(images=2).write(tmp_path / "bag")
    assert len(list(BagSource(tmp_path / "bag/bag.mcap"))) == 2


def test_nearest_images_whatever_arrives_late_or_never(tmp_path):
    made = robot(names=("left",))
    made.static("right", "slow")
    made.add("/tf", T0 - S, msg.transforms(T0 - S, [("odom", "base_link", np.eye(4))]))
    for step in (0, 1, 2, 6, 7):  # silent for a while; and it arrives 250 ms after its stamp
        stamp = T0 + step * S // 10 - 30_000_000
        made.image("right", stamp, seed=100 + step, delay_ns=250_000_000)
        made.info("right", stamp)
    for step in range(4):  # every 300 ms: shared by no set farther than 100 ms
        made.image("slow", T0 + step * 3 * S // 10, seed=200 + step)
        made.info("slow", T0 + step * 3 * S // 10)
    frames = list(BagSource(made.write(tmp_path / "bag"), cameras=["left", "right", "slow"]))
    with_right = [index for index, frame in enumerate(frames) if "right" in frame.images]
    # an image 30 ms before a key joins its set, and also the set 70 ms before it where there is nothing nearer
    assert with_right == [0, 1, 2, 5, 6, 7]
    for index, frame in enumerate(frames):
        stamps = frame.camera_stamp_ns
        assert max(abs(stamp - frame.stamp_ns) for stamp in stamps.values()) <= 100_000_000
        if "slow" in stamps:
            nearest = min(range(4), key=lambda step: abs(step * 3 - index))
            np.testing.assert_array_equal(frame.images["slow"], picture(200 + nearest))
    assert len(frames) == 10


def test_memory_is_bounded_when_a_camera_dies(tmp_path):
    from occ_core.sources import bag

    grouping = bag.Grouping(["a", "b"], "a", 100_000_000)
    closed = []
    for step in range(1000):
        closed += list(grouping.add("a", step * S // 10, step))
        assert sum(len(held) for held in grouping._held.values()) < 16
    assert len(closed) >= 990
    assert [images["a"] for images, _ in closed] == list(range(len(closed)))


def test_odometry_places_the_robot_where_tf_does_not(tmp_path):
    made = robot(tf=False)
    made.static("left", "right")
    made.add("/tf_static", T0, msg.transforms(T0, [("base_footprint", "base_link", pose((0, 0, 0.3)))]))
    for step in range(31):
        message = msg.odometry(T0 + step * S // 10, pose((0, step * 0.5, 0)), np.zeros(3), np.zeros(3))
        message.child_frame_id = "base_footprint"
        made.add("/wheel/odometry", T0 + step * S // 10, message)
    source = BagSource(made.write(tmp_path / "bag"))
    assert source.world_frame == "odom"
    frame = list(source)[2]
    np.testing.assert_allclose(frame.world_from_ego[:3, 3], (0, 1.0, 0.3), atol=1e-12)


def test_without_a_world_the_vehicle_stands_still(tmp_path):
    made = robot(tf=False)
    made.static("left", "right")
    source = BagSource(made.write(tmp_path / "bag"))
    assert source.world_frame is None
    np.testing.assert_array_equal(list(source)[3].world_from_ego, np.eye(4))


def test_camera_models(tmp_path):
    made = Robot()
    models = {
        "fish": ("equidistant", (0.1, 0.01, 0, 0), "equidistant"),
        "fish2": ("fisheye", (0.1, 0.01, 0, 0), "equidistant"),
        "brown": ("plumb_bob", (-0.2, 0.02, 0, 0, 0), "plumb_bob"),
        "rational": ("rational_polynomial", (0.1, 0.01, 0, 0, 0, 0.2, 0, 0), "rational_polynomial"),
        "zero": ("rational_polynomial", (0.0,) * 8, "none"),
        "unnamed": ("", (), "none"),
    }
    for name, (model, d, _) in models.items():
        made.image(name, T0, seed=1)
        made.info(name, T0, model, d)
    made.static(*models)
    made.moving()
    rig = next(iter(BagSource(made.write(tmp_path / "bag")))).rig
    for name, (_, d, expected) in models.items():
        assert rig[name].distortion_model == expected
        assert rig[name].distortion == (tuple(d) if expected != "none" else ())


def test_topic_choice_raw_compressed_rectified(tmp_path):
    made = robot(names=("left",), images=1)
    jpeg = cv2.imencode(".jpg", picture(50)[:, :, ::-1])[1].tobytes()
    compressed = msg.compressed_image(T0, "left_optical", "rgb8; jpeg compressed bgr8", jpeg)
    made.add("/left/image_raw/compressed", T0, compressed)
    made.image("left", T0, seed=60, topic="image_rect")
    made.image("other", T0, seed=70, topic="image_rect_color")
    made.info("other", T0, "plumb_bob", (-0.2, 0, 0, 0, 0), p=[[30, 0, 15, 0], [0, 30, 11, 0], [0, 0, 1, 0]])
    made.static("other")
    path = made.write(tmp_path / "bag")
    frame = next(iter(BagSource(path)))
    expected = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    np.testing.assert_array_equal(frame.images["left"], expected)
    assert frame.rig["other"].distortion_model == "none"
    assert frame.rig["other"].intrinsics[0, 0] == 30
    frame = next(iter(BagSource(path, cameras=["/left/image_raw"])))
    np.testing.assert_array_equal(frame.images["left"], picture(0))


def test_lidar_joins(tmp_path):
    made = robot(images=3)
    layout = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("pad", "<f4"), ("intensity", "u1")])
    points = np.zeros(4, dtype=layout)
    points["x"], points["intensity"] = (1, 2, np.nan, 4), (10, 20, 30, 40)
    made.add("/lidar/points", T0 + 5_000_000, msg.cloud(T0 + 5_000_000, "left_optical", points))
    frames = list(BagSource(made.write(tmp_path / "bag")))
    np.testing.assert_array_equal(frames[0].lidar.points_lidar_m[:, 0], (1, 2, 4))
    np.testing.assert_array_equal(frames[0].lidar.intensity, (10, 20, 40))
    np.testing.assert_array_equal(frames[0].lidar.ring, (0, 0, 0))
    assert frames[0].lidar.world_from_ego[0, 3] == pytest.approx(0.005)
    assert frames[2].lidar is None


def test_sets_outside_tf_are_skipped_and_counted(tmp_path):
    source = BagSource(robot(images=40).write(tmp_path / "bag"))  # images for 4 s, transforms for 3 s
    assert len(list(source)) == 30  # at 3.0 s the second camera is 20 ms past the last transform
    assert source.skipped == {"no transform at its stamp": 10}
    made = robot(tf=False)
    made.static("left", "right")
    made.add("/tf", T0 + 60 * S, msg.transforms(T0 + 60 * S, [("odom", "base_link", np.eye(4))]))
    with pytest.raises(MissingTransform, match=r"none of 10 image sets.*'odom' -> 'base_link' is known from"):
        list(BagSource(made.write(tmp_path / "late")))


def test_third_party_bags_are_read(shared_data):
    from occ_core.sources.bag_reader import BagReader

    root = shared_data("rosbag2_small")
    for name, count in (("talker_mcap", 20), ("talker_sqlite3", 20), ("wbag_mcap", 6074), ("wbag_sqlite3", 6074)):
        reader = BagReader(root / name)
        assert reader.message_count == count
        texts = reader.of_type("std_msgs/msg/String")
        read = sum(1 for _ in reader.messages(texts))
        assert read == sum(reader.counts[topic] for topic in texts) > 0
        with pytest.raises(MissingInput, match="no image topic"):
            BagSource(root / name)


def no_tf(path):
    robot(tf=False).write(path)


def no_info(path):
    made = robot()
    made.messages = [entry for entry in made.messages if not entry[1].endswith("camera_info")]
    made.write(path)


def no_images(path):
    made = robot()
    made.messages = [entry for entry in made.messages if "image" not in entry[1]]
    made.write(path)


def no_base(path):
    made = robot(tf=False)
    made.static("left", "right", parent="chassis")
    made.write(path)


def one_camera_unplaced(path):
    made = robot(tf=False)
    made.static("left")
    made.moving()
    made.write(path)


def empty(path):
    with Writer(path, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        writer.add_connection("/left/image_raw", "sensor_msgs/msg/Image", typestore=msg.store())


def empty_sqlite(path):
    with Writer(path, version=8, storage_plugin=StoragePlugin.SQLITE3) as writer:
        writer.add_connection("/left/image_raw", "sensor_msgs/msg/Image", typestore=msg.store())


def zero_intrinsics(path):
    made = robot(names=("left",))
    made.messages = [entry for entry in made.messages if not entry[1].endswith("camera_info")]
    made.info("left", T0, k=np.zeros((3, 3)))
    made.write(path)


def wrong_size(path):
    made = robot(names=("left",))
    bad = msg.image(T0, "left_optical", np.zeros((H, W + 2, 3), dtype=np.uint8))
    made.messages = [entry for entry in made.messages if "image" not in entry[1]]
    made.add("/left/image_raw", T0, bad)
    made.write(path)


def lying_size(path):
    made = robot(names=("left",))
    bad = msg.image(T0, "left_optical", picture(1))
    bad.width, bad.height, bad.step = 8000, 4000, 48000
    made.messages = [entry for entry in made.messages if "image" not in entry[1]]
    made.add("/left/image_raw", T0, bad)
    made.write(path)


def broken_jpeg(path):
    made = robot(names=("left",))
    made.messages = [entry for entry in made.messages if "image" not in entry[1]]
    data = cv2.imencode(".jpg", picture(1))[1].tobytes()[:-40]
    made.add("/left/image_raw/compressed", T0, msg.compressed_image(T0, "left_optical", "jpeg", data))
    made.write(path)


def no_frame(path):
    made = robot(names=("left",))
    made.messages = [entry for entry in made.messages if not entry[1].endswith("camera_info")]
    made.info("left", T0, frame="")
    made.write(path)


def no_stamp(path):
    made = robot(names=("left",), images=1)
    image = msg.image(0, "left_optical", picture(1))
    made.add("/left/image_raw", T0 + 5, image)
    made.write(path)


def broken_tf(path):
    made = robot()
    links = [("odom", "base_link", np.eye(4))]
    message = msg.transforms(T0, links)
    message.transforms[0].transform.rotation.w = 0.0
    made.add("/tf", T0 + 1, message)
    made.write(path)


def truncated_mcap(path):
    robot().write(path)
    file = path / f"{path.name}.mcap"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def truncated_db3(path):
    robot().write(path, StoragePlugin.SQLITE3)
    file = path / f"{path.name}.db3"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def no_metadata(path):
    robot().write(path)
    (path / "metadata.yaml").unlink()


def bad_metadata(path):
    robot().write(path)
    (path / "metadata.yaml").write_text("rosbag2_bagfile_information: {version: 5}")


def lost_part(path):
    robot().write(path)
    (path / f"{path.name}.mcap").unlink()


def not_a_bag(path):
    path.with_suffix(".txt").write_text("hello")
    shutil.move(path.with_suffix(".txt"), path)


BROKEN = [
    (no_tf, MissingInput, "no TF"),
    (no_info, MissingInput, "no CameraInfo.*'/left/camera_info'"),
    (no_images, MissingInput, "no image topic"),
    (no_base, MissingInput, "names 'base_link', only: chassis"),
    (one_camera_unplaced, MissingTransform, "nobody published 'right_optical'"),
    (empty, MissingInput, "bag is empty"),
    (empty_sqlite, MissingInput, "bag is empty"),
    (zero_intrinsics, InvalidInput, "'/left/camera_info': camera 'left'.*focal"),
    (wrong_size, InvalidInput, "34 x 24 px, '/left/camera_info' says 32 x 24"),
    (lying_size, CorruptInput, "'/left/image_raw' at .*holds 2304 bytes"),
    (broken_jpeg, CorruptInput, "'/left/image_raw/compressed' at .*cut short"),
    (no_frame, InvalidInput, "'/left/camera_info' has an empty frame_id"),
    (no_stamp, InvalidInput, "'/left/image_raw' have no stamp"),
    (broken_tf, CorruptInput, "'/tf', odom -> base_link: quaternion"),
    (truncated_mcap, CorruptInput, "cut short"),
    (truncated_db3, CorruptInput, "cannot be read|damaged bag"),
    (no_metadata, MissingInput, "no metadata.yaml"),
    (bad_metadata, CorruptInput, "metadata key is missing"),
    (lost_part, MissingInput, "bag.mcap"),
    (not_a_bag, CorruptInput, "cannot be read as a ROS 2 bag"),
]


@pytest.mark.parametrize(("make", "error", "words"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_broken_bags_are_one_line_that_says_what(tmp_path, make, error, words):
    make(tmp_path / "bag")
    with pytest.raises(error, match=words) as caught:
        list(BagSource(tmp_path / "bag"))
    assert "\n" not in str(caught.value)
    assert "bag" in str(caught.value)


@pytest.mark.parametrize("make", [no_tf, empty, truncated_mcap, truncated_db3, broken_jpeg])
def test_the_command_line_says_it_too(tmp_path, make):
    make(tmp_path / "bag")
    command = [sys.executable, "-m", "occ_core.cli.main", "bag", "check", str(tmp_path / "bag")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")


def test_no_damage_makes_it_hang_or_crash(tmp_path):
    """Any byte may be wrong: a frame, or one of our errors, and nothing else."""
    for storage in (StoragePlugin.MCAP, StoragePlugin.SQLITE3):
        original = robot(images=3).write(tmp_path / f"bag{storage.name}", storage)
        file = next(path for path in original.iterdir() if path.suffix in (".mcap", ".db3"))
        data = file.read_bytes()
        rng = np.random.default_rng(3)
        for _ in range(25):
            damaged = bytearray(data)
            for at in rng.integers(0, len(data), 4):
                damaged[at] = rng.integers(0, 256)
            file.write_bytes(damaged[: rng.integers(1, len(data) + 1)] if rng.random() < 0.3 else damaged)
            try:
                for frame in BagSource(original):
                    assert frame.images
            except (CorruptInput, InvalidInput, MissingInput, MissingTransform) as error:
                assert str(error)


def test_wanted_things_that_are_not_there(tmp_path):
    path = robot().write(tmp_path / "bag")
    with pytest.raises(MissingInput, match="no images of camera 'rear', only of: left, right"):
        BagSource(path, cameras=["rear"])
    with pytest.raises(MissingInput, match="no point clouds on '/lidar', only on: none"):
        BagSource(path, lidar="/lidar")
    with pytest.raises(MissingInput, match="'base_link' is not below 'map', only: base_link <- odom"):
        BagSource(path, world_frame="map")
    with pytest.raises(MissingInput, match="no such bag"):
        BagSource(tmp_path / "nothing")
