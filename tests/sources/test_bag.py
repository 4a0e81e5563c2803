"""Bags of other robots: every way in which they differ from ours."""

import cv2
import numpy as np
import pytest

pytest.importorskip("rosbags")

from bag_robot import T0, Robot, S, base_from, picture, robot
from rosbags.rosbag2 import StoragePlugin

from occ_core.bags import messages as msg
from occ_core.errors import MissingInput, MissingTransform
from occ_core.geometry import pose
from occ_core.sources.bag import BagSource


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
    assert len(list(source)) == 31  # at 3.0 s the second camera is 20 ms past the last transform
    assert source.skipped == {"no transform at its stamp": 9, "image of 'right': no transform at its stamp": 1}
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
