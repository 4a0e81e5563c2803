"""Cameras that can be used and hardly are right: lenses, mounts, frames, pictures and poses that are named."""

import math

import cv2
import numpy as np
import pytest

pytest.importorskip("rosbags")

from bag_robot import T0, H, S, W, base_from, picture, robot

from occ_core.bags import messages as msg
from occ_core.camera import Camera
from occ_core.errors import MissingInput
from occ_core.geometry import pose, quaternion_from_rotation
from occ_core.sensor_messages import lens_problem, mount_problems
from occ_core.sources.bag import BagSource
from occ_core.sources.bag_report import BagReport

K = np.array([[20.0, 0, 15.5], [0, 21, 11.5], [0, 0, 1]])


def looking(azimuth_deg=0.0, elevation_deg=0.0, roll_deg=0.0, at_m=(0.5, 0.0, 1.0), name="cam", k=K, d=()):
    """A camera on the vehicle, its rotation worked out by hand: roll about the axis, then up, then to the left."""
    a, e, r = (math.radians(v) for v in (azimuth_deg, elevation_deg, roll_deg))
    optical = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    left = np.array([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]])
    up = np.array([[math.cos(e), 0, -math.sin(e)], [0, 1, 0], [math.sin(e), 0, math.cos(e)]])
    about = np.array([[math.cos(r), -math.sin(r), 0], [math.sin(r), math.cos(r), 0], [0, 0, 1]])
    ego_from_cam = np.eye(4)
    ego_from_cam[:3, :3], ego_from_cam[:3, 3] = left @ up @ optical @ about, at_m
    return Camera(name, k, (W, H), ego_from_cam, "plumb_bob" if d else "none", tuple(d))


def kinds(camera, frame="cam_optical"):
    return [problem.kind for problem in mount_problems(camera, frame)]


@pytest.mark.parametrize("azimuth_deg", [-160, -69, 0, 90])
@pytest.mark.parametrize("elevation_deg", [-60, -10, 0, 45])
@pytest.mark.parametrize(("roll_deg", "named"), [(0, []), (20, []), (-20, []), (45, ["rolled"]), (180, ["rolled"])])
def test_a_roll_is_told_wherever_the_camera_looks(azimuth_deg, elevation_deg, roll_deg, named):
    camera = looking(azimuth_deg, elevation_deg, roll_deg)
    assert kinds(camera) == named
    if named:
        (problem,) = mount_problems(camera, "")
        assert f"rolled by {roll_deg} degrees" in problem.found or f"rolled by -{roll_deg} degrees" in problem.found


@pytest.mark.parametrize(
    ("name", "azimuth_deg", "wrong"),
    [
        ("left", -69, True), ("left", 69, False), ("left", 0, False), ("camera/right", 90, True),
        ("RIGHT_CAM", -20, False), ("cam_front", 180, True), ("front", 100, False), ("rear", 10, True),
        ("back_left", 140, False), ("back_left", -140, True), ("front_right", 60, True), ("front_right", -60, False),
        ("left_right", -90, False), ("straight", 180, False),
        ("cleft", -90, False), ("rear_stereo_left", 180, False), ("front_rear", 0, False), ("right", 116, True),
    ],
)  # fmt: skip
def test_a_camera_that_looks_to_the_other_side_than_its_name_says(name, azimuth_deg, wrong):
    assert kinds(looking(azimuth_deg, name=name)) == (["side"] if wrong else [])


@pytest.mark.parametrize(
    ("at_m", "named"),
    [
        ((1000, 0, 1600), ["far"]), ((0, -51, 1), ["far"]), ((0, 20, 2), []), ((0, 0, 0), ["below"]),
        ((1, 0, -0.4), ["below"]), ((0.1, 0, 0.04), []),
    ],
)  # fmt: skip
def test_mounts_in_millimetres_and_a_base_frame_that_is_not_on_the_ground(at_m, named):
    assert kinds(looking(at_m=at_m)) == named


@pytest.mark.parametrize(
    ("k", "d", "kind"),
    [
        (K, (), None),
        (K, (-0.3, 0.09, 0, 0, 0), None),
        (K, (-0.9, 0, 0, 0, 0), "folds"),
        ([[20, 0, 15.5], [0, 21, 20], [0, 0, 1]], (), "centre"),
        ([[20, 0, 0], [0, 21, 0], [0, 0, 1]], (), "centre"),
        ([[20, 0, 700], [0, 21, 11], [0, 0, 1]], (), "centre"),
    ],
)
def test_lenses_that_are_hardly_right(k, d, kind):
    problem = lens_problem(looking(k=np.array(k, dtype=float), d=d))
    assert (problem.kind if problem else None) == kind


def test_the_share_that_has_no_ray_is_that_of_the_turning_point():
    """r (1 - k r^2) grows up to r = 1 / sqrt(3 k), where it is 2/3 of that: a circle in the image."""
    k1, f = 0.9, 20.0
    radius_px = f * 2 / 3 / math.sqrt(3 * k1)
    u, v = np.meshgrid(np.linspace(0, W - 1, 17), np.linspace(0, H - 1, 17))
    outside = np.hypot(u - 15.5, v - 11.5) > radius_px
    k = np.array([[f, 0, 15.5], [0, f, 11.5], [0, 0, 1]])
    said = lens_problem(looking(k=k, d=(-k1, 0, 0, 0, 0))).found
    share = int(said.rpartition(" %")[0].rpartition(" ")[2])
    assert abs(share - 100 * outside.mean()) <= 2 and said.startswith("D has no viewing ray for ")


# --- in bags ----------------------------------------------------------------------------------------------------------


def said(report):
    return {row.name: sorted(problem.kind for problem, _ in row.problems) for row in report.rows}


def checked(made, path):
    return BagReport(BagSource(made.write(path)))


def test_camera_info_that_was_copied_from_another_camera(tmp_path):
    """Both cameras have one stamp, so that they once passed for two topics of one device."""
    made = robot(("left", "right"))
    for _, topic, message in made.messages:
        if topic == "/right/camera_info":
            message.header.frame_id = "left_optical"
        if topic == "/right/image_raw":
            stamp = message.header.stamp
            message.header.stamp = msg.header(stamp.sec * S + stamp.nanosec - 20_000_000, "").stamp
    report = checked(made, tmp_path / "bag")
    assert said(report) == {"left": ["one frame"], "right": ["frames", "one frame"]} and not report.well
    assert all(row.used for row in report.rows) and not report.source.roster.views


def test_a_stereo_pair_in_one_frame_is_none_of_that(tmp_path):
    made = robot(("left", "right"))
    for _, topic, message in made.messages:
        if topic.startswith("/right/"):
            message.header.frame_id = "left_optical"
        if topic == "/right/camera_info":
            message.p = np.array([20.0, 0, 15.5, -2.4, 0, 21, 11.5, 0, 0, 0, 1, 0])
    report = checked(made, tmp_path / "bag")
    assert said(report) == {"left": [], "right": []} and report.well


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (0, 135, 0)])
def test_pictures_of_one_colour(tmp_path, color):
    made = robot()
    for _, topic, message in made.messages:
        if topic == "/left/image_raw":
            message.data = np.tile(np.array(color, np.uint8), H * W)
    report = checked(made, tmp_path / "bag")
    assert said(report) == {"left": ["blank"], "right": []} and not report.well


def test_a_camera_that_hangs_while_the_robot_drives(tmp_path):
    for moves, named in ((True, ["frozen"]), (False, [])):
        made = robot(tf=False)
        made.static("left", "right")
        if moves:
            made.moving()
        for _, topic, message in made.messages:
            if topic == "/left/image_raw":
                message.data = picture(7).reshape(-1)
        report = checked(made, tmp_path / f"bag{moves}")
        assert said(report) == {"left": named, "right": []} and report.well is not moves


def test_one_camera_on_two_topics(tmp_path):
    made, pictures = robot(), []
    for _, topic, message in made.messages:
        if topic == "/left/image_raw":
            pictures.append(message.data)
    number = iter(range(10))
    for _, topic, message in made.messages:
        if topic == "/right/image_raw":
            message.data = pictures[next(number)]
    report = checked(made, tmp_path / "bag")
    assert said(report) == {"left": [], "right": ["twins"]} and not report.well


@pytest.mark.parametrize(
    ("factor", "jump_m", "line", "well"),
    [
        (1, 0, "", True),
        (20, 0, "", True),
        (1000, 0, "the vehicle moves at 1000 m/s", False),
        (1, 7, "the vehicle jumps by up to 7.0 m in 1 places", True),
        (10, -3, "the vehicle jumps by up to 3.0 m in 1 places", True),
        (1, 0.3, "", True),
    ],
)
def test_poses_that_no_vehicle_has(tmp_path, factor, jump_m, line, well):
    """1 m/s as it is: in millimetres, or with a correction on the way."""
    made = robot(tf=False, images=20)
    made.static("left", "right")
    for step in range(31):
        stamp, x_m = T0 + step * S // 10, 0.1 * step * factor + jump_m * (step >= 11)
        made.add("/tf", stamp, msg.transforms(stamp, [("odom", "base_link", pose((x_m, 0, 0)))]))
    report = checked(made, tmp_path / "bag")
    lines = report.motion_lines()
    assert any(line in each for each in lines) if line else len(lines) == 1
    assert report.well is well


def test_odom_is_preferred_for_it_does_not_jump(tmp_path):
    made = robot()
    for step in range(31):
        stamp = T0 + step * S // 10
        made.add("/tf", stamp, msg.transforms(stamp, [("map", "odom", pose((7.0 * (step > 5), 0, 0)))]))
    path = made.write(tmp_path / "bag")
    source = BagSource(path)
    assert source.world_frame == "odom" and len(BagReport(source).motion_lines()) == 1
    by_map = BagSource(path, world_frame="map")
    assert "jumps by up to 7.0 m" in BagReport(by_map).motion_lines()[1]


def test_an_odom_in_which_nothing_moves_is_not(tmp_path):
    """A localisation that publishes map -> odom alone, over a fixed odom -> base_link."""
    made = robot(tf=False)
    made.static("left", "right")
    made.add("/tf_static", T0, msg.transforms(T0, [("odom", "base_link", pose((0, 0, 0)))]))
    made.moving("map", "odom")
    source = BagSource(made.write(tmp_path / "bag"))
    assert source.world_frame == "map"
    np.testing.assert_allclose(list(source)[5].world_from_ego[:3, 3], [0.5, 0, 0], atol=1e-9)


def test_a_mount_that_is_upside_down_is_named_and_used(tmp_path):
    made = robot(tf=False)
    made.moving()
    made.static("right")
    over = base_from("left")
    over[:3, :3] = over[:3, :3] @ cv2.Rodrigues(np.array([0, 0, np.pi]))[0]
    mount = pose(over[:3, 3], quaternion_from_rotation(over[:3, :3]))
    made.add("/tf_static", T0, msg.transforms(T0, [("base_link", "left_optical", mount)]))
    report = checked(made, tmp_path / "bag")
    assert said(report) == {"left": ["rolled"], "right": []} and report.well


VIDEO = "foxglove_msgs/msg/CompressedVideo"


def add_video(bag, topic):
    """A topic of a type that rosbags has no definition of, into an mcap bag that is there."""
    from rosbags.rosbag2 import Reader, StoragePlugin, Writer
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    fields = "builtin_interfaces/Time timestamp\nstring frame_id\nuint8[] data\nstring format\n"
    store.register(get_types_from_msg(fields, VIDEO))
    out = bag.with_name("with_video")
    with Reader(bag) as reader, Writer(out, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        kept = {c.id: writer.add_connection(c.topic, c.msgtype, typestore=store) for c in reader.connections}
        for connection, stamp_ns, raw in reader.messages():
            writer.write(kept[connection.id], stamp_ns, raw)
        video, time = writer.add_connection(topic, VIDEO, typestore=store), store.types["builtin_interfaces/msg/Time"]
        message = store.types[VIDEO](time(1000, 0), "front", np.array([0, 0, 0, 1], np.uint8), "h264")
        writer.write(video, T0, store.serialize_cdr(message, VIDEO))
    return out


def test_a_video_is_named(tmp_path):
    made = robot()
    for step in range(10):
        made.info("front", T0 + step * S // 10)
    report = BagReport(BagSource(add_video(made.write(tmp_path / "bag"), "/front/image_raw/ffmpeg")))
    assert said(report) == {"left": [], "right": [], "front": ["file"]} and not report.well
    (row,) = (row for row in report.rows if row.name == "front")
    assert f"its images are a video ({VIDEO})" in row.problems[0][0].found


def test_a_bag_of_videos_alone(tmp_path):
    made = robot()
    made.messages = [entry for entry in made.messages if not entry[1].endswith("image_raw")]
    bag = add_video(made.write(tmp_path / "bag"), "/front/video")
    with pytest.raises(MissingInput, match="videos are not read: /front/video"):
        BagSource(bag)
