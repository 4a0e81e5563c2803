"""What is said of a camera, what was lost on its way, and rigs from a file."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (pip install -e '.[ros]')")

from pathlib import Path

import cv2
from geometry_msgs.msg import TransformStamped
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from occ_core.errors import CorruptInput, InvalidInput, MissingInput
from occ_core.geometry import inverse
from occ_core.problems import Problem
from occ_core.rig_file import load_rig_file
from occ_ros import messages
from occ_ros.calibration import FIXED_S, Calibration
from occ_ros.cameras import CameraInput, ImageSlot, lags_s, problems
from occ_ros.sensors import ERROR, WARN, Surroundings
from occ_ros.transport_watch import RECENT_NS, WAIT_NS, TransportWatch

S = 1_000_000_000
EXAMPLE = Path(__file__).parents[2] / "config" / "rig_example.yaml"


def info(**changes):
    message = CameraInfo(width=64, height=48)
    message.header.frame_id = "cam"
    message.k = [50.0, 0.0, 31.5, 0.0, 50.0, 23.5, 0.0, 0.0, 1.0]
    for key, value in changes.items():
        setattr(message, key, value)
    return message


def calibrated(frame_known=True, **changes):
    calibration = Calibration({"a": ("/a/camera_info", False)}, "base_link")
    if frame_known:
        calibration.tree.set("base_link", "cam", 0, AHEAD, static=True)
    calibration.add_info("a", info(**changes))
    return calibration


def camera(**state):
    made = CameraInput("a", "/a/image", "/a/camera_info", True)
    made.came(5 * S, 5 * S, 100.0)
    for key, value in state.items():
        setattr(made, key, value)
    return made


def around(**what):
    return Surroundings(
        **{"now_s": 100.1, "stale_s": 0.7, "max_age_s": 0.0, "types": frozenset({"CompressedImage"}), **what}
    )


AHEAD = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
NEVER = {"arrival_s": None, "stamp_ns": 0}


@pytest.mark.parametrize(
    "state, what, level, words",
    [
        (NEVER, {"types": frozenset()}, ERROR, "no publisher on /a/image"),
        (NEVER, {"types": frozenset({"String"})}, ERROR, "has type String, not CompressedImage"),
        (NEVER, {"reliable_only": True}, ERROR, "set image_reliability:=best_effort"),
        (NEVER, {}, ERROR, "no image on /a/image, though it has a publisher"),
        ({"problem": Problem("damaged image", "/a/image", "JPEG is cut")}, {}, ERROR, "image rejected: JPEG is cut"),
        ({"stamp_ns": 0}, {}, ERROR, "carry no stamp"),
        ({}, {"unused": True, "lag_s": 3.0}, ERROR, "3.000 s behind the other cameras'"),
        ({}, {"unused": True, "lag_s": -3.0}, ERROR, "3.000 s ahead of the other cameras'"),
        ({"age_ns": -31_536_000 * S}, {}, WARN, "31536000.0 s in the future"),
        ({"age_ns": 3 * S}, {"max_age_s": 2.0}, WARN, "3.0 s old"),
        ({}, {"lost": 7}, WARN, "7 images were lost on their way"),
        ({}, {"lost": 7}, WARN, "FASTDDS_DEFAULT_PROFILES_FILE=config/fastdds.xml"),
        ({}, {"rivals": {"/a/image": ["bag", "usb"]}}, WARN, "2 publishers on /a/image: bag, usb"),
        ({}, {"rivals": {"/a/camera_info": ["usb"] * 3}}, WARN, "3 publishers on /a/camera_info: usb, usb, usb"),
        ({}, {"now_s": 101.0}, WARN, "no image for 1.0 s (limit 0.7 s): its publisher is silent"),
        ({}, {"now_s": 101.0, "types": frozenset()}, WARN, "its publisher is gone"),
    ],
)
def test_each_cause_is_named(state, what, level, words):
    (found,) = problems(camera(**state), calibrated(), around(**what))
    assert found[0] == level
    assert words in found[1]


def test_nothing_wrong():
    assert problems(camera(age_ns=3 * S), calibrated(), around()) == []


def test_calibration_faults_are_named():
    nothing = Calibration({"a": ("/a/camera_info", False)}, "base_link")
    (found,) = problems(camera(), nothing, around())
    assert found == (ERROR, "no CameraInfo on /a/camera_info: no publisher", "no CameraInfo")
    ((level, text, kind),) = problems(camera(), calibrated(k=[0.0] * 9), around())
    assert (level, kind) == (ERROR, "uncalibrated")
    assert text.startswith("CameraInfo rejected: '/a/camera_info'")
    ((level, text, kind),) = problems(camera(), calibrated(frame_known=False), around())
    assert (level, kind) == (ERROR, "place")
    assert "no transform 'base_link' <- 'cam'" in text


def test_a_refused_transform_is_named_where_it_matters():
    TFMessage = pytest.importorskip("tf2_msgs.msg", reason="run tools/build_messages.py").TFMessage
    for child, words in (("cam", "transform refused: 'base_link' -> 'cam': "), ("elsewhere", "no transform")):
        bad = TransformStamped(child_frame_id=child)
        bad.header.frame_id, bad.transform.translation.x = "base_link", math.nan
        calibration = calibrated(frame_known=False)
        assert len(calibration.add_transforms(TFMessage(transforms=[bad]), static=True)) == 1
        assert problems(camera(), calibration, around())[0][1].startswith(words)


def test_a_camera_that_jumps_is_named_and_one_that_stands_keeps_its_table():
    calibration = calibrated(frame_known=False)
    away = AHEAD.copy()
    away[2, 3] = 1.0
    for i in range(8):
        away[0, 3] = 0.1 + 0.2 * (i % 2)
        calibration.tree.set("base_link", "cam", i * S, away, static=False)
        calibration.rig({"a": i * S})
    ((level, text, _),) = problems(camera(), calibration, around(now_s=100.1))
    assert level == WARN
    assert "changed 7 times in 2 s, by up to 0.200 m" in text

    standing = calibrated(frame_known=False)
    away[:3, 3] = 0.1, 0.2, 0.3
    for i in range(5):
        standing.tree.set("base_link", "cam", i * S, away, static=False)
    rigs = {id(standing.rig({"a": round(t * S)})) for t in (0.1, 0.7, 1.3, 2.9)}  # interpolated: last digits differ
    assert len(rigs) == 1
    assert standing.moves("a") == (0, 0.0, 0.0)


@pytest.mark.parametrize("moved", ["01010101", "0011100110", "000110011"])
def test_a_camera_that_moves_is_named_by_a_slow_machine_too(monkeypatch, moved):
    """One image a second, whose camera is asked for twice: three moves within two seconds are hardly ever seen."""
    now_s = 0.0
    monkeypatch.setattr("occ_ros.calibration.time.monotonic", lambda: now_s)
    calibration, away = calibrated(frame_known=False), AHEAD.copy()
    for i, elsewhere in enumerate("0" * 10 + moved):
        now_s = float(i)
        away[:3, 3] = 0.1 + 0.2 * int(elsewhere), 0.0, 1.0
        calibration.tree.set("base_link", "cam", i * S, away, static=False)
        for _ in range(2):
            calibration.rig({"a": i * S})
    times, _, farthest_m = calibration.moves("a")
    assert times >= 3 and farthest_m == pytest.approx(0.2)


def test_errors_come_before_warnings():
    found = problems(camera(), calibrated(frame_known=False), around(lost=2))
    assert [level for level, *_ in found] == [ERROR, WARN]


def test_a_camera_is_behind_the_middle_of_the_others():
    rig = [CameraInput(name, "", "", True) for name in "abcd"]
    for one, stamp_s in zip(rig, (50, 50, 47, 50), strict=True):
        one.came(stamp_s * S, 0, 200.0)
    assert lags_s(rig, 200.1, 0.7) == {"a": 0.0, "b": 0.0, "c": 3.0, "d": 0.0}
    assert lags_s(rig[:2], 200.1, 0.7) == {}


def test_size_and_damage_are_found_before_decoding():
    state = camera()
    png = cv2.imencode(".png", np.zeros((48, 64, 3), dtype=np.uint8))[1].tobytes()
    assert ImageSlot(state, CompressedImage(data=png), 0.0).pixels((64, 40), (1, 1)) is None
    assert state.problem.found == "image is 64 x 48 px, its calibration says 64 x 40 px"
    assert ImageSlot(state, Image(encoding="mono16", width=64, height=48), 0.0).pixels((64, 48), (1, 1)) is None
    assert "'mono16'" in state.problem.found
    assert "only 8 bits a sample" in state.problem.found
    assert ImageSlot(state, CompressedImage(data=png), 0.0).pixels((64, 48), (1, 1)).shape == (48, 64, 3)
    assert (state.problem, state.rejected) == (None, 2)


def test_images_that_change_between_grey_and_colour_are_named():
    """Found by odd_robots.py: a file of one channel among colours."""
    state, rgb = camera(), picture()
    for number, (image, named) in enumerate([(rgb, False), (rgb, False), (rgb[..., 0], True), (rgb, True)]):
        png = CompressedImage(data=cv2.imencode(".png", image)[1].tobytes())
        assert ImageSlot(state, png, 100.0 + number).pixels((64, 48), (1, 1)).shape == (48, 64, 3)
        found = problems(state, calibrated(), around(now_s=100.1 + number, stale_s=10.0))
        assert [one.kind for one in found] == ["grey"] * named
    assert problems(state, calibrated(), around(now_s=109.0, stale_s=10.0)) == []


def picture():
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


# --- what is lost on its way ------------------------------------------------------------------------------------------


def drive(watch, frames, lost=(), cameras="ab", period_ns=S // 10):
    """Infos of all cameras of each frame; images unless (frame, camera) is lost."""
    for i in range(frames):
        stamp_ns = 10 * S + i * period_ns
        for name in cameras:
            watch.info(name, stamp_ns, stamp_ns)
            if (i, name) not in lost:
                watch.image(name, stamp_ns, stamp_ns)
        watch.poll(stamp_ns)
    return stamp_ns


def test_nothing_lost():
    watch = TransportWatch("ab", 0.05)
    drive(watch, 30)
    watch.finish()
    assert (watch.lost_frames, dict(watch.lost_images)) == (0, {})


def test_lost_images_and_frames_are_told_apart():
    watch = TransportWatch("ab", 0.05)
    end_ns = drive(watch, 30, lost={(5, "a"), (9, "b"), (9, "a"), (12, "b")})
    watch.poll(end_ns + 2 * WAIT_NS)
    assert watch.lost_frames == 1
    assert watch.lost_images == {"a": 2, "b": 2}
    assert watch.recently_lost("a", end_ns + 2 * WAIT_NS) > 0
    assert watch.recently_lost("a", end_ns + 2 * WAIT_NS + RECENT_NS) == 0


def test_all_frames_lost_and_a_bag_that_starts_over():
    watch = TransportWatch("ab", 0.05)
    everything = {(i, name) for i in range(8) for name in "ab"}
    drive(watch, 8, lost=everything)
    drive(watch, 8, lost=everything)
    watch.finish()
    assert 14 <= watch.lost_frames <= 16  # an open set may go with the jump
    assert not watch.lost_images  # no image ever came: the camera is not connected


def test_info_stamped_apart_is_no_loss():
    watch = TransportWatch("a", 0.05)
    for i in range(20):
        watch.info("a", 10 * S + i * S // 10 + 3_000_000, 10 * S + i * S // 10)
        watch.image("a", 10 * S + i * S // 10, 10 * S + i * S // 10)
    watch.finish()
    assert (watch.lost_frames, dict(watch.lost_images)) == (0, {})


def test_camera_info_at_a_rate_of_its_own_is_no_loss():
    """Three CameraInfos an image, as where images are throttled; the gaps of the images tell."""
    watch = TransportWatch("a", 0.05)
    for i in range(120):
        stamp_ns = 10 * S + i * S // 10
        watch.info("a", stamp_ns, stamp_ns)
        if i % 3 == 0 and i not in (60, 63):
            watch.image("a", stamp_ns, stamp_ns)
        watch.poll(stamp_ns)
    watch.finish()
    assert (watch.lost_frames, watch.lost_images) == (0, {"a": 2})


@pytest.mark.parametrize("more, late_ms", [(2, 0), (2, 30), (3, 30), (5, 10)])
def test_camera_info_between_images_announces_none(more, late_ms):
    """Several an image, some of them near the image before or after; found by a robot whose timer ran late."""
    watch, period_ns = TransportWatch("a", 0.1), S // 4 + late_ms * 1_000_000
    for i in range(60):
        stamp_ns = 10 * S + i * period_ns
        if i not in (30, 41):
            watch.image("a", stamp_ns, stamp_ns)
        for step in range(more):
            watch.info("a", stamp_ns + step * (S // 4) // more, stamp_ns)
        watch.poll(stamp_ns)
    watch.finish()
    assert watch.lost_images["a"] >= 2  # of those that are lost, more than one CameraInfo may tell
    quiet = TransportWatch("a", 0.1)
    for i in range(60):
        stamp_ns = 10 * S + i * period_ns
        quiet.image("a", stamp_ns, stamp_ns)
        for step in range(more):
            quiet.info("a", stamp_ns + step * (S // 4) // more, stamp_ns)
        quiet.poll(stamp_ns)
    assert (quiet.lost_frames, dict(quiet.lost_images)) == (0, {})


@pytest.mark.parametrize("images", [3, 4, 5, 30])
@pytest.mark.parametrize("more", [2, 3, 5])
@pytest.mark.parametrize("wait", [False, True])
def test_a_robot_that_stops_after_its_last_camera_infos_lost_nothing(images, more, wait):
    """The last CameraInfos come after the last image, and no image follows them."""
    watch = TransportWatch("a", 0.1)
    for i in range(images):
        for step in range(more):
            stamp_ns = 10 * S + i * S // 4 + step * (S // 4) // more
            if step == 0:
                watch.image("a", stamp_ns, stamp_ns)
            watch.info("a", stamp_ns, stamp_ns)
            watch.poll(stamp_ns)
    if wait:
        watch.poll(stamp_ns + 3 * WAIT_NS)
        watch.poll(stamp_ns + 5 * WAIT_NS)
    watch.finish()
    assert (watch.lost_frames, dict(watch.lost_images)) == (0, {})


def test_images_that_end_while_camera_infos_go_on_are_lost():
    watch = TransportWatch("a", 0.05)
    end_ns = drive(watch, 40, lost={(i, "a") for i in range(30, 40)}, cameras="a")
    watch.poll(end_ns + 2 * WAIT_NS)
    watch.finish()
    assert watch.lost_images == {"a": 10}


def test_every_second_image_lost_by_chance_is_told():
    watch, rng = TransportWatch("a", 0.05), np.random.default_rng(0)
    gone = {(i, "a") for i in range(60) if rng.random() < 0.5 and i > 4}
    drive(watch, 60, lost=gone, cameras="a")
    watch.finish()
    assert watch.lost_images["a"] > len(gone) / 2


def test_stamps_that_coincide_by_chance_make_no_driver_exact():
    watch = TransportWatch("a", 0.05)
    for i in range(60):
        stamp_ns = 10 * S + i * S // 10
        watch.info("a", stamp_ns + (i * 7919 % 20) * 1_000_000, stamp_ns)
        watch.image("a", stamp_ns, stamp_ns)
        watch.poll(stamp_ns)
    watch.finish()
    assert (watch.lost_frames, dict(watch.lost_images)) == (0, {})


def test_without_camera_infos_gaps_between_stamps_count():
    watch = TransportWatch("a", 0.05, announced=False)
    for i in (*range(12), *range(14, 20), *range(21, 30)):
        watch.image("a", 10 * S + i * S // 10, 10 * S + i * S // 10)
    assert watch.lost_images == {"a": 3}


# --- a rig in a file --------------------------------------------------------------------------------------------------


def test_example_rig_sees_what_it_says():
    front, rear = (entry.camera for entry in load_rig_file(EXAMPLE))
    ahead = np.array([[10.0, 1.0, 1.2, 1.0]])  # a metre to the left of the axis
    pixel, visible = front.project((ahead @ inverse(front.ego_from_cam).T)[:, :3])
    assert visible[0]
    assert pixel[0, 0] < front.intrinsics[0, 2]
    assert not rear.project((ahead @ inverse(rear.ego_from_cam).T)[:, :3])[1][0]
    assert rear.distortion_model == "equidistant"


def test_a_fixed_rig_needs_no_message():
    cameras = {entry.camera.name: entry.camera for entry in load_rig_file(EXAMPLE)}
    calibration = Calibration({name: ("", False) for name in cameras}, "base_link", cameras)
    known = calibration.rig({})
    assert known.complete
    assert known.rig.cameras == tuple(cameras.values())
    assert calibration.rig({"front": 5 * S}) is known
    assert problems(camera(name="front"), calibration, around()) == []


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("focal_px", "focal", "unknown field 'focal'"),
        ("size_px: [1600, 900]", "size_px: [1600]", "'size_px' must be 2 finite numbers"),
        ("size_px: [1600, 900]", "size_px: [1600, .nan]", "'size_px' must be 2 finite numbers"),
        ("size_px: [1600, 900]", "size_px: [1600, 900000]", "1..16384 px"),
        ("equidistant", "magic", "'magic' is not one of"),
        ("cameras:", "kameras:", "needs 'cameras:'"),
        ("cameras:", "cameras: [", "not readable as YAML"),
    ],
)
def test_faults_of_a_rig_file_are_named(tmp_path, old, new, words):
    path = tmp_path / "rig.yaml"
    path.write_text(EXAMPLE.read_text().replace(old, new, 1))
    with pytest.raises((InvalidInput, CorruptInput), match=words.replace("[", r"\[")) as error:
        load_rig_file(path)
    assert str(path) in str(error.value)


def test_a_rig_file_that_is_not_there(tmp_path):
    with pytest.raises(MissingInput, match="no such rig file"):
        load_rig_file(tmp_path / "rig.yaml")


# --- cv_bridge --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", sorted(messages.BRIDGED))
def test_cv_bridge_and_numpy_agree(encoding):
    pytest.importorskip("cv_bridge", reason="cv_bridge comes with a ROS 2 installation (apt), not from PyPI")
    from occ_core.images import ENCODINGS, decode_image

    step = 48 * ENCODINGS[encoding][0]
    data = np.random.default_rng(0).integers(0, 256, (32, step), dtype=np.uint8).tobytes()
    message = Image(encoding=encoding, width=48, height=32, step=step, data=data)
    ours = decode_image(encoding, 48, 32, step, data)
    np.testing.assert_array_equal(messages.image_of(message), ours)


def test_a_fixed_mount_that_is_stated_elsewhere_once_is_named():
    """Found by odd_robots.py: two nodes state it by turns, slower than a moving mount would be."""
    TFMessage = pytest.importorskip("tf2_msgs.msg", reason="run tools/build_messages.py").TFMessage
    calibration = Calibration({"a": ("/a/camera_info", False)}, "base_link")
    calibration.add_info("a", info())
    link = TransformStamped()
    link.header.frame_id, link.child_frame_id = "base_link", "cam"
    for y, named in ((0.0, False), (0.0, False), (0.5, True)):
        link.transform.translation.y = y
        assert calibration.add_transforms(TFMessage(transforms=[link]), static=True) == []
        assert calibration.rig({}) is not None
        assert (calibration.moves("a") == (1, FIXED_S, 0.5)) is named
