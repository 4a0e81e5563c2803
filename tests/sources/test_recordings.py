"""Recordings with one bad part: the rest is used, and the part is named."""

import subprocess
import sys

import cv2
import numpy as np
import pytest

pytest.importorskip("rosbags")

from bag_robot import T0, S, W, base_from, picture, robot

from occ_core.bags import messages as msg
from occ_core.errors import InvalidInput, MissingInput
from occ_core.geometry import pose, quaternion_from_rotation
from occ_core.problems import Unusable
from occ_core.sources.bag import BagSource
from occ_core.sources.bag_report import BagReport
from occ_core.sources.bag_sets import wild_stamps
from occ_core.sources.bag_survey import LogEntry
from occ_core.sources.open import Choice, left_out, open_source


def kinds(source):
    return {(problem.kind, problem.where): count for problem, count in source.tally}


def images_of(source):
    frames = list(source)
    return {name: sum(name in frame.images for frame in frames) for name in frames[0].rig.names}


def restamped(made, topic, change):
    """Stamps of a topic's messages changed, by their number; log times stay."""
    number = 0
    for _, name, message in made.messages:
        if name == topic:
            stamp = message.header.stamp
            stamp_ns = change(number, stamp.sec * S + stamp.nanosec)
            message.header.stamp = msg.header(stamp_ns, "").stamp
            number += 1


def delayed(made, topic, by_ns):
    made.messages = [(log + by_ns * (name == topic), name, message) for log, name, message in made.messages]


# --- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_s", [37, -37, 3600, -18, 1.0])
@pytest.mark.parametrize("camera", ["left", "right"])
def test_a_camera_on_another_clock_costs_the_others_nothing(tmp_path, by_s, camera):
    made = robot(("left", "right", "third"), images=40)
    made.moving(seconds=5)
    restamped(made, f"/{camera}/image_raw", lambda number, stamp_ns: stamp_ns + round(by_s * S))
    source = BagSource(made.write(tmp_path / "bag"))
    good = {"left", "right", "third"} - {camera}
    assert images_of(source) == dict.fromkeys(sorted(good), 40)
    side = "ahead of" if by_s > 0 else "behind"
    assert source.refused[camera].found == f"stamps are {abs(by_s):.1f} s {side} the other cameras'"
    report = BagReport(source)
    assert not report.well
    assert {row.name: row.verdict for row in report.rows}[camera] == "left out"


@pytest.mark.parametrize("late_s", [0.4, 0.9, 1.8, 4.0])
@pytest.mark.parametrize("camera", ["left", "right"])
def test_late_logging_costs_nothing(tmp_path, late_s, camera):
    made = robot()
    delayed(made, f"/{camera}/image_raw", round(late_s * S))
    source = BagSource(made.write(tmp_path / "bag"))
    assert images_of(source) == {"left": 10, "right": 10}
    assert [kind for kind, _ in kinds(source)] == (["late"] if late_s > 1 else ["offset"])


def test_a_clock_that_jumps_once_costs_one_image(tmp_path):
    made = robot()
    restamped(made, "/right/image_raw", lambda number, stamp_ns: stamp_ns + 3600 * S * (number == 3))
    source = BagSource(made.write(tmp_path / "bag"), max_spread_s=0.05)
    assert images_of(source) == {"left": 10, "right": 9}
    assert kinds(source) == {("wild stamp", "/right/image_raw"): 1}


def test_pauses_and_loops_are_no_wild_stamps():
    def places(stamps_s):
        return [LogEntry(round(stamp_s * S), round((100 + stamp_s) * S)) for stamp_s in stamps_s]

    paused = [0, 0.1, 60, 60.1, 60.2, 200, 200.1, 200.2, 500]
    assert not wild_stamps(places(paused)).any()
    looped = [LogEntry(p.stamp_ns, (100 + i) * S) for i, p in enumerate(places([5, 6, 7, 8, 9, 5, 6, 7, 8, 9]))]
    assert not wild_stamps(looped).any()
    jumped = places([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    jumped[2] = jumped[2]._replace(stamp_ns=-40 * S)
    assert wild_stamps(jumped).tolist() == [False, False, True, False, False, False]


def test_simulation_time_that_starts_at_zero(tmp_path):
    made = robot()
    for _, _, message in made.messages:
        for header in [message.header] if hasattr(message, "header") else [t.header for t in message.transforms]:
            stamp = header.stamp
            header.stamp = msg.header(max(0, stamp.sec * S + stamp.nanosec - T0), "").stamp
    source = BagSource(made.write(tmp_path / "bag"))
    assert images_of(source) == {"left": 9, "right": 9}
    assert kinds(source) == {("no stamp", "/left/image_raw"): 1}


def test_a_camera_with_few_images_is_no_key_camera(tmp_path):
    made = robot(("front", "left", "right"))
    last = [entry for entry in made.messages if entry[1] == "/front/image_raw"][2:]
    made.messages = [entry for entry in made.messages if entry not in last]
    source = BagSource(made.write(tmp_path / "bag"))
    assert source.key.name == "left" and images_of(source) == {"front": 2, "left": 10, "right": 10}
    assert kinds(source) == {("few images", "/front/image_raw"): 1} and not BagReport(source).well


def test_a_camera_whose_images_were_not_recorded_is_named(tmp_path):
    made = robot(("front", "left", "right"))
    made.messages = [entry for entry in made.messages if entry[1] != "/left/image_raw"]
    path = made.write(tmp_path / "bag")
    source = BagSource(path)
    assert images_of(source) == {"front": 10, "right": 10}
    assert kinds(source) == {("no images", "/left/camera_info"): 1} and set(source.refused) == {"left"}
    report = BagReport(source)
    assert not report.well and [(row.name, row.used) for row in report.rows if row.images == "0"] == [("left", False)]
    assert kinds(BagSource(path, ["front"])) == {}


def test_stamps_that_come_twice_make_one_frame(tmp_path):
    made = robot()
    restamped(made, "/left/image_raw", lambda number, stamp_ns: stamp_ns - (number % 2) * S // 10)
    source = BagSource(made.write(tmp_path / "bag"))
    assert len({frame.stamp_ns for frame in source}) == 5 == len(list(source))
    assert kinds(source) == {("repeated stamp", "/left/image_raw"): 5}


# --- cameras ----------------------------------------------------------------------------------------------------------


def test_a_depth_camera_beside_colour(tmp_path):
    made = robot(("color",))
    for step in range(10):
        stamp = T0 + step * S // 10
        depth = cv2.imencode(".png", np.full((24, W), 900, np.uint16))[1].tobytes()
        message = msg.compressed_image(stamp, "color_optical", "16UC1; png compressed ", depth)
        made.add("/aligned/image_raw/compressed", stamp, message)
        made.info("aligned", stamp, frame="color_optical")
    path = made.write(tmp_path / "bag")
    source = BagSource(path)
    assert images_of(source) == {"color": 10} and source.key.name == "color"
    assert kinds(source) == {("depth", "/aligned/image_raw/compressed"): 10}
    assert not BagReport(source).well
    without = BagSource(path, exclude=["aligned"])
    assert kinds(without) == {} and BagReport(without).well
    assert left_out(open_source(path)) and not left_out(open_source(path, choice=Choice(("color",))))
    with pytest.raises(Unusable, match="16UC1"):
        BagSource(path, strict=True)
    with pytest.raises(InvalidInput, match="no camera can be used.*16UC1"):
        BagSource(path, cameras=["aligned"])
    with pytest.raises(MissingInput, match="no images of camera 'nobody', only of: aligned, color"):
        BagSource(path, exclude=["nobody"])


def test_one_device_under_many_names_is_one_camera(tmp_path):
    """usb_cam at the root, and a ZED with colour and grey, rectified and not, all in one frame and with one stamp."""
    made = robot((), images=0)
    made.static("usb")
    jpeg = cv2.imencode(".jpg", picture(3))[1].tobytes()
    for step in range(6):
        stamp = T0 + step * S // 10
        made.add("/image_raw", stamp, msg.image(stamp, "usb_optical", picture(3)))
        made.add("/image_raw/compressed", stamp, msg.compressed_image(stamp, "usb_optical", "jpeg", jpeg))
        made.info("usb", stamp)
        made.messages[-1] = (stamp, "/camera_info", made.messages[-1][2])
    source = BagSource(made.write(tmp_path / "root"))
    assert images_of(source) == {"image_raw": 6}

    made = robot((), images=0)
    made.static("zed")
    for step in range(6):
        stamp = T0 + step * S // 10
        for space in ("a/gray/raw", "b/color/rect", "c/color/raw", "d/gray/rect"):
            image = msg.image(stamp, "zed_optical", picture(3))
            if "gray" in space:
                image.encoding, image.step, image.data = "mono8", W, picture(3)[..., 0].reshape(-1)
            made.add(f"/{space}/image", stamp, image)
            made.info(space, stamp, frame="zed_optical")
    source = BagSource(made.write(tmp_path / "zed"))
    assert images_of(source) == {"b/color/rect": 6}
    assert set(source.roster.views.values()) == {"b/color/rect"} and BagReport(source).well


def test_cameras_that_share_a_frame_but_not_their_stamps_are_two(tmp_path):
    made = robot(("left", "right"))
    for _, topic, message in made.messages:
        if topic == "/right/camera_info":
            message.header.frame_id = "left_optical"
    assert images_of(BagSource(made.write(tmp_path / "bag"))) == {"left": 10, "right": 10}


def test_infrared_is_left_out_and_grey_is_not(tmp_path):
    made = robot(("left", "grey"))
    for frame, space in (("infra1_optical", "infra1"), ("grey_optical", "grey")):
        made.messages = [entry for entry in made.messages if entry[1] != f"/{space}/image_raw"]
        for step in range(10):
            image = msg.image(T0 + step * S // 10 + 7, frame, picture(step))
            image.encoding, image.step, image.data = "mono8", W, picture(step)[..., 0].reshape(-1)
            made.add(f"/{space}/image_raw", T0 + step * S // 10 + 7, image)
            made.info(space, T0 + step * S // 10)
    made.static("infra1")
    path = made.write(tmp_path / "bag")
    source = BagSource(path)
    assert images_of(source) == {"grey": 10, "left": 10} and source.refused["infra1"].kind == "infrared"
    assert images_of(BagSource(path, cameras=["infra1"])) == {"infra1": 10}


def test_namespaces_say_nothing_of_what_images_are(tmp_path):
    made = robot(("rect_depth",))
    for _, topic, message in made.messages:
        if topic.endswith("camera_info"):
            message.p = np.array([[99.0, 0, 5, 0], [0, 99, 5, 0], [0, 0, 1, 0]]).ravel()
    frame = next(iter(BagSource(made.write(tmp_path / "bag"))))
    assert frame.rig["rect_depth"].intrinsics[0, 0] == 20


def test_calibration_that_comes_later_or_changes(tmp_path):
    made = robot(("left",))
    infos = [message for _, topic, message in made.messages if topic == "/left/camera_info"]
    infos[0].k, infos[0].width, infos[0].height = np.zeros(9), 0, 0
    infos[1].header.frame_id = ""
    for late in infos[6:]:
        late.k = late.k * [2, 1, 1, 1, 2, 1, 1, 1, 1]
    source = BagSource(made.write(tmp_path / "bag"))
    focal = [frame.rig["left"].intrinsics[0, 0] for frame in source]
    assert focal == [20] * 6 + [40] * 4
    assert kinds(source) == {("uncalibrated", "/left/camera_info"): 1, ("camera frame", "/left/camera_info"): 1}


def test_images_that_cannot_be_used_are_left_out_one_by_one(tmp_path):
    made = robot(("left", "right"))
    mine = [message for _, topic, message in made.messages if topic == "/left/image_raw"]
    mine[2].data = mine[2].data[:-1000]
    mine[4].encoding = "16UC1"
    mine[5].height, mine[5].data = 12, mine[5].data[: 12 * 3 * W]
    source = BagSource(made.write(tmp_path / "bag"), cameras=["right", "left"], max_spread_s=0.05)
    assert images_of(source) == {"right": 10, "left": 7}
    topic = "/left/image_raw"
    assert kinds(source) == {("damaged image", topic): 1, ("depth", topic): 1, ("size", topic): 1}


def test_a_body_frame_looks_at_the_sky(tmp_path):
    made = robot(("left", "right"), tf=False)
    made.moving()
    made.static("left")
    body = pose((0.5, 0.0, 1.0), (np.cos(0.4), 0, 0, np.sin(0.4)))
    made.add("/tf_static", T0, msg.transforms(T0, [("base_link", "right_optical", body)]))
    report = BagReport(BagSource(made.write(tmp_path / "bag")))
    (row,) = (row for row in report.rows if row.name == "right")
    assert row.looks.endswith("/ +90") and [problem.kind for problem, _ in row.problems] == ["sky"]
    assert not report.well
    (row,) = (row for row in report.rows if row.name == "left")
    assert (row.looks, row.path, row.verdict) == ("+0 / +0", "base_link > left_optical", "ok")


def test_a_mosaic_that_nobody_names(tmp_path):
    made = robot(("left",))
    for number, (_, topic, message) in enumerate(made.messages):
        if topic == "/left/image_raw":
            rows = np.tile(np.array([[220, 30], [30, 60]], np.uint8), (12, W // 2)) + np.uint8(number)
            message.encoding, message.step, message.data = "mono8", W, rows.reshape(-1)
    report = BagReport(BagSource(made.write(tmp_path / "bag")))
    assert [problem.kind for problem, _ in report.rows[0].problems] == ["mosaic"] and not report.well


# --- places -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grey", [0, 3, 10])
def test_grey_images_among_colours_are_named(tmp_path, grey):
    made = robot()
    for number, (_, _, message) in enumerate([m for m in made.messages if m[1] == "/left/image_raw"]):
        if number < grey:
            message.data = np.repeat(message.data[::3], 3)
    report = BagReport(BagSource(made.write(tmp_path / "bag")))
    said = {row.name: [problem.found for problem, _ in row.problems] for row in report.rows}
    assert said["left"] == (["3 of 10 images are grey, the others in colour"] if grey == 3 else [])
    assert report.well and said["right"] == []


def test_two_robots_in_one_bag(tmp_path):
    made = robot(("front",))
    made.messages = [(log, f"/robot1{topic}", message) for log, topic, message in made.messages]
    elsewhere = pose((0, 0, 9.0), quaternion_from_rotation(np.eye(3)))
    made.add("/robot2/tf_static", T0, msg.transforms(T0, [("base_link", "front_optical", elsewhere)]))
    for step in range(31):
        stamp = T0 + step * S // 10
        made.add("/robot2/tf", stamp + 3, msg.transforms(stamp + 3, [("odom", "base_link", pose((100, 0, 0)))]))
        made.add("/robot2/cam/image_raw", stamp, msg.image(stamp, "front_optical", picture(step)))
        made.info("robot2/cam", stamp, frame="front_optical")
    path = made.write(tmp_path / "bag")
    source = BagSource(path, cameras=["robot1/front"])
    frame = next(iter(source))
    np.testing.assert_allclose(frame.rig["robot1/front"].ego_from_cam, base_from("front"), atol=1e-12)
    assert frame.world_from_ego[0, 3] == 0
    second = BagSource(path, cameras=["robot2/cam", "robot1/front"])
    frame = next(iter(second))
    assert (frame.rig["robot2/cam"].ego_from_cam[2, 3], frame.world_from_ego[0, 3]) == (9.0, 100.0)
    assert second.refused["robot1/front"].kind == "another robot"
    assert "/robot1, /robot2; used: /robot2" in BagReport(second).tf_lines()[0]


def test_two_parents_are_named_and_the_one_with_most_samples_holds(tmp_path):
    made = robot(("left",))
    for step in range(5):
        stamp = T0 + step * S // 2
        made.add("/tf", stamp + 1, msg.transforms(stamp + 1, [("map", "base_link", pose((50, 0, 0)))]))
    source = BagSource(made.write(tmp_path / "bag"))
    assert source.world_frame == "odom"
    assert [frame.world_from_ego[0, 3] for frame in source] == pytest.approx([0.1 * step for step in range(10)])
    ((problem, _),) = list(source.tally)
    assert problem.kind == "two parents" and "'odom' (31 samples on /tf) and 'map' (5 samples on /tf)" in problem.found


def test_the_next_odometry_is_tried(tmp_path):
    made = robot(("left",), tf=False)
    made.static("left")
    for step in range(31):
        stamp = T0 + step * S // 10
        places = ("/a/odom", "", 7), ("/b/odom", "odom", 7), ("/c/odom", "imu", 7), ("/d/odom", "base_link", step)
        for topic, child, x in places:
            message = msg.odometry(stamp, pose((x, 0, 0)), np.zeros(3), np.zeros(3))
            message.child_frame_id = child
            if child == "base_link" and step == 0:
                message.pose.pose.orientation.w = 0.0
            made.add(topic, stamp, message)
    source = BagSource(made.write(tmp_path / "bag"))
    assert source.odometry_topic == "/d/odom"
    assert [frame.world_from_ego[0, 3] for frame in source] == list(range(1, 10))
    assert {where: count for (_, where), count in kinds(source).items()} == {
        "/a/odom": 31, "/b/odom": 31, "/c/odom": 31, "/d/odom": 1
    }  # fmt: skip


@pytest.mark.parametrize("where", ["arm", "camera"])
def test_a_broken_transform_costs_what_needs_it(tmp_path, where):
    made = robot(("left", "right"), tf=False)
    made.moving()
    made.static("left")
    bad = msg.transforms(T0, [("base_link", "right_optical" if where == "camera" else "gripper", base_from("right"))])
    bad.transforms[0].transform.translation.x = np.nan
    made.add("/tf_static", T0, bad)
    if where == "arm":
        made.static("right")
    source = BagSource(made.write(tmp_path / "bag"))
    assert images_of(source) == {"left": 10, **({"right": 10} if where == "arm" else {})}
    assert ("transform", "/tf_static") in kinds(source)
    assert (where == "camera") == ("right" in source.refused)


# --- storage and command line -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["MCAP", "SQLITE3"])
def test_metadata_without_a_storage_id(tmp_path, storage):
    from rosbags.rosbag2 import StoragePlugin

    path = robot(("left",), images=2).write(tmp_path / "bag", StoragePlugin[storage])
    text = (path / "metadata.yaml").read_text()
    lines = ["  storage_identifier: ''" if "storage_identifier" in line else line for line in text.splitlines()]
    (path / "metadata.yaml").write_text("\n".join(lines))
    assert len(list(BagSource(path))) == 2


def test_check_says_what_is_wrong_and_ends_with_1(tmp_path):
    made = robot(("left", "right"))
    for _, topic, message in made.messages:
        if topic == "/right/camera_info":
            message.d = np.array([5.0, 0.0])
    command = [sys.executable, "-m", "occ_core.cli.main", "bag", "check", str(made.write(tmp_path / "bag"))]
    found = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert found.returncode == 1
    said = " ".join(found.stdout.split())
    assert "right: '/right/camera_info': distortion_model 'plumb_bob' with 2 coefficients" in said
    assert "cause:" in said and "cure:" in said and "left out" in said
    good = subprocess.run([*command, "--exclude", "right"], capture_output=True, text=True, timeout=600, check=False)
    assert good.returncode == 0 and "cause:" not in good.stdout


# --- found by odd_bags.py ---------------------------------------------------------------------------------------------


def test_a_stamp_that_no_transform_covers_costs_that_image_alone(tmp_path):
    """Of the second camera; before the first pose of the vehicle."""
    made = robot()
    restamped(made, "/right/image_raw", lambda number, stamp_ns: stamp_ns - (number == 0) * 50_000_000)
    source = BagSource(made.write(tmp_path / "bag"))
    assert images_of(source) == {"left": 10, "right": 9}
    assert source.skipped == {"image of 'right': no transform at its stamp": 1}


@pytest.mark.parametrize(("by_m", "topic"), [(0.0, "/tf_static"), (0.7, "/tf_static"), (0.7, "/tf")])
def test_a_fixed_mount_that_is_stated_again(tmp_path, by_m, topic):
    """On /tf_static at another place: named, the last holds. Twice on /tf: the fixed one holds, both are named."""
    made = robot()
    mount = base_from("right")
    mount[1, 3] += by_m
    for step in range(2):
        made.add(topic, T0 + step, msg.transforms(T0 + step, [("base_link", "right_optical", mount)]))
    source = BagSource(made.write(tmp_path / "bag"))
    assert images_of(source) == {"left": 10, "right": 10}
    expected = [] if not by_m else ["moves" if topic == "/tf_static" else "two parents"]
    assert [problem.kind for problem, _ in source.tally] == expected
    place = mount if topic == "/tf_static" else base_from("right")
    np.testing.assert_allclose(next(iter(source)).rig["right"].ego_from_cam, place, atol=1e-9)


def test_a_camera_that_lacks_in_sets_is_named(tmp_path):
    made = robot(images=20)
    own = [message for _, topic, message in made.messages if topic == "/right/image_raw"]
    lost = {id(message) for message in own[1::2]}
    made.messages = [entry for entry in made.messages if id(entry[2]) not in lost]
    source = BagSource(made.write(tmp_path / "bag"), max_spread_s=0.045)
    assert images_of(source)["left"] == 20
    (problem,) = [problem for problem, _ in source.tally]
    assert problem.kind == "gaps" and "in 10 of 20 sets" in problem.found
    assert BagReport(source).well


def test_a_clock_that_runs_fast_is_named(tmp_path):
    made = robot(images=20)
    restamped(made, "/right/image_raw", lambda number, stamp_ns: stamp_ns + number * 15_000_000)
    source = BagSource(made.write(tmp_path / "bag"))
    found = {problem.kind: problem.found for problem, _ in source.tally}
    assert "offset" in found and "0.1" in found["offset"] or "wander by 0.2 s" in found["offset"]


# --- a rig file beside the recording ----------------------------------------------------------------------------------

RIG = """
cameras:
  left:
    size_px: [32, 24]
    focal_px: [20, 21]
    center_px: [15.5, 11.5]
    position_m: [0.5, 0.2, 1.0]
    quaternion_xyzw: [-0.5, 0.5, -0.5, 0.5]
  fish:
    image_topic: /right/image_raw
    size_px: [32, 24]
    focal_px: [9, 9]
    center_px: [15.5, 11.5]
    distortion_model: equidistant
    distortion: [0.01, 0.0, 0.0, 0.0]
    position_m: [0.5, -0.2, 1.0]
    quaternion_xyzw: [-0.5, 0.5, -0.5, 0.5]
"""


@pytest.mark.parametrize("moves", [True, False])
def test_a_rig_file_stands_for_camera_info_and_mounts(tmp_path, moves):
    made = robot(tf=False)
    made.messages = [entry for entry in made.messages if not entry[1].endswith("camera_info")]
    if moves:
        made.moving()
    bag = made.write(tmp_path / "bag")
    with pytest.raises(MissingInput, match=r"no CameraInfo for any .* rig file rig\.yaml beside the recording"):
        BagSource(bag)
    (bag / "rig.yaml").write_text(RIG)
    source = BagSource(bag)
    assert images_of(source) == {"left": 10, "right": 10} and not len(source.tally)
    assert (source.world_frame is not None) == moves
    frame = list(source)[5]
    np.testing.assert_allclose(frame.rig["left"].ego_from_cam, base_from("left"), atol=1e-9)
    assert frame.rig["right"].distortion_model == "equidistant" and frame.rig["right"].distortion[0] == 0.01
    np.testing.assert_allclose(frame.world_from_ego[:3, 3], [0.5 * moves, 0, 0], atol=1e-9)
    assert BagReport(source).well
    assert images_of(BagSource(bag, exclude=["right"])) == {"left": 10}


def test_a_rig_file_that_does_not_fit_is_refused_by_name(tmp_path):
    bag = robot().write(tmp_path / "bag")
    (bag / "rig.yaml").write_text(RIG.replace("/right/", "/rear/"))
    with pytest.raises(InvalidInput, match="has camera 'fish', and no images are on '/rear/image_raw', only on: /left"):
        BagSource(bag)
    (bag / "rig.yaml").write_text(RIG.replace("[32, 24]", "[64, 48]", 1))
    source = BagSource(bag)
    assert set(source.refused) == {"left"} and source.refused["left"].kind == "size"
