"""Which sweeps belong to a set of images, and how long a set waits for one; no DDS."""

from __future__ import annotations

import math
import threading
import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (pip install -e '.[ros]')")
pytest.importorskip("tf2_msgs.msg", reason="needs tf2_msgs (python tools/build_messages.py)")

from occ_core.camera import Camera, Rig
from occ_core.clouds import LIDAR_POINT
from occ_core.errors import InvalidInput, MissingTransform, TransformNotYet
from occ_core.frame import Frame
from occ_core.geometry import pose
from occ_core.models.config import LidarInput
from occ_core.sources.clouds import lidar_of
from occ_core.sync import MAX_OPEN_SETS, SyncedSet
from occ_core.transforms import TransformTree
from occ_ros.lidar import LidarTopic, lidar_problems
from occ_ros.messages import cloud_of
from occ_ros.odometry import PATIENCE, Odometry
from occ_ros.sensors import ERROR, WARN, Found, Surroundings
from occ_ros.sweeps import SPARE, Sweeps, SweepWait

S, MS = 10**9, 10**6
START = 1_700_000_000 * S
FORWARD = (1.0, 0.0, 0.0, 0.0)


def sweep(stamp_ns: int, *points_m, frame: str = "lidar", intensity: float = 100.0):
    points = np.zeros(len(points_m), dtype=LIDAR_POINT)
    for point, xyz in zip(points, points_m, strict=True):
        point["x"], point["y"], point["z"], point["intensity"] = *xyz, intensity
    return cloud_of(points, stamp_ns, frame)


def driving(odometry: bool = True) -> TransformTree:
    """A LiDAR 2 m above base_link; odometry drives 10 m/s along x, from START - 1 s to START + 1.9 s."""
    tree = TransformTree()
    tree.set("base_link", "lidar", 0, pose((0.0, 0.0, 2.0), FORWARD), static=True)
    for tenth in range(-10, 20) if odometry else ():
        tree.set("odom", "base_link", START + tenth * 100 * MS, pose((float(tenth), 0.0, 0.0), FORWARD))
    return tree


def sweeps(odometry: bool = True, asked: LidarInput | None = None, intensity_max: float = 255.0) -> Sweeps:
    asked, there = asked or LidarInput(sweeps=3), Odometry(driving(odometry), "base_link", "odom")
    return Sweeps(LidarTopic("/points"), asked, there, 0.15, 0.05, intensity_max)


def group(stamp_ns: int, arrival_ns: int) -> SyncedSet:
    return SyncedSet(stamp_ns, {}, {}, True, arrival_ns, arrival_ns)


def test_sweeps_are_brought_to_the_moment_by_their_own_poses():
    kept = sweeps()
    for age_ms in (250, 150, 50):
        kept.add(sweep(START - age_ms * MS, (5.0, 0.0, 1.0)))
    cloud = kept.cloud(START)
    by_age = {round(float(age), 3): (x, y, z) for x, y, z, _, age in cloud}
    # 10 m/s: what was 5 m ahead so long ago is nearer now
    assert by_age == {age: pytest.approx((5.0 - 10 * age, 0.0, 3.0), abs=1e-5) for age in (0.05, 0.15, 0.25)}
    np.testing.assert_allclose(cloud[:, 3], 100 / 255, rtol=1e-6)


def test_past_sweeps_end_where_odometry_begins():
    kept = sweeps()
    for age_ms in (1050, 950, 50):
        kept.add(sweep(START - age_ms * MS, (5.0, 0.0, 1.0)))
    assert sorted(kept.cloud(START)[:, 4]) == pytest.approx([0.05, 0.95])


def test_past_sweeps_end_at_a_gap():
    """A LiDAR that was away for a second: what it saw before is not what the network was trained on."""
    kept = sweeps()
    for age_ms in (-100, -1050, -1150):
        kept.add(sweep(START - age_ms * MS, (5.0, 0.0, 1.0)))
    assert len(kept.cloud(START + 1200 * MS)) == 3
    gap = sweeps()
    for age_ms in (-100, -1101, -1150):
        gap.add(sweep(START - age_ms * MS, (5.0, 0.0, 1.0)))
    assert sorted(gap.cloud(START + 1200 * MS)[:, 4]) == pytest.approx([0.05, 0.099])


def test_without_odometry_the_newest_alone_as_it_is():
    kept = sweeps(odometry=False)
    for age_ms in (150, 50):
        kept.add(sweep(START - age_ms * MS, (5.0, 0.0, 1.0)))
    np.testing.assert_allclose(kept.cloud(START), [[5.0, 0.0, 3.0, 100 / 255, 0.05]], rtol=1e-6)
    assert "no transform 'odom' <- 'base_link'" in kept.topic.odometry_error
    alone = sweeps(odometry=False, asked=LidarInput(sweeps=1))
    alone.add(sweep(START, (5.0, 0.0, 1.0)))
    assert len(alone.cloud(START)) == 1 and not alone.topic.odometry_error
    late = sweeps(asked=LidarInput(sweeps=1))
    late.add(sweep(START + 2 * S, (5.0, 0.0, 1.0)))
    assert len(late.cloud(START + 2 * S)) == 1
    assert late.topic.odometry_error.startswith("the sweep is used as it came: no transform 'odom' <- 'base_link'")


@pytest.mark.parametrize("offset_ms, belongs", [(-151, False), (-150, True), (0, True), (50, True), (51, False)])
def test_the_window_of_a_set(offset_ms, belongs):
    kept = sweeps()
    kept.add(sweep(START + offset_ms * MS, (5.0, 0.0, 1.0)))
    assert kept.settled(START) is (offset_ms >= -150)
    assert not kept.settled(START + (offset_ms - 1001) * MS)  # the images of a bag that began anew
    if belongs:
        assert kept.cloud(START)[0, 4] == pytest.approx(max(0, -offset_ms) / 1e3)
        return
    side = "older than the images (lidar_max_age_s 0.15)" if offset_ms < 0 else "newer than the images (max_spread_s"
    with pytest.raises(InvalidInput, match=r"the newest sweep is 0\.") as caught:
        kept.cloud(START)
    assert side in str(caught.value) and side in kept.topic.apart


def test_an_unusable_sweep_does_not_displace_the_one_before():
    kept = sweeps()
    kept.add(sweep(START - 100 * MS, (5.0, 0.0, 1.0)))
    kept.add(sweep(START, (math.nan, 0.0, 0.0), (0.1, 0.0, 0.0), (1e30, 0.0, 0.0)))
    assert kept.cloud(START)[:, 4] == pytest.approx([0.1])
    assert kept.topic.rejected == 1
    kept.cloud(START)
    assert kept.topic.rejected == 1  # looked at once
    assert "none of its 3 points" in kept.topic.sweep_error  # though the one before it served
    kept.add(sweep(START + 50 * MS, (5.0, 0.0, 1.0), frame=""))
    kept.cloud(START + 50 * MS)
    assert kept.topic.sweep_error == "its frame_id is empty"
    kept.add(sweep(START + 200 * MS, (5.0, 0.0, 1.0)))
    kept.cloud(START + 200 * MS)
    assert not kept.topic.sweep_error


def test_a_frame_without_transform_is_named_and_never_the_identity():
    kept = sweeps()
    kept.add(sweep(START, (5.0, 0.0, 1.0), frame="attic"))
    with pytest.raises(MissingTransform, match="attic"):
        kept.cloud(START)
    assert "attic" in kept.topic.transform_error
    kept.add(sweep(START + MS, (5.0, 0.0, 1.0)))
    kept.cloud(START)
    assert not kept.topic.transform_error


def test_time_set_back_and_memory():
    kept = sweeps()
    for i in range(100):
        kept.add(sweep(START + i * 10 * MS, (5.0, 0.0, 1.0)))
    assert len(kept._held) == 3 + SPARE
    kept.add(sweep(START - 100 * MS, (6.0, 0.0, 1.0)))
    assert len(kept._held) == 1
    assert kept.cloud(START)[0, 0] == pytest.approx(5.0)


def test_sweeps_in_a_wrong_order_are_sorted_and_repeated_ones_left_out():
    kept = sweeps()
    for age_ms in (50, 250, 150, 250, 50):
        kept.add(sweep(START - age_ms * MS, (5.0, 0.0, 1.0)))
    assert sorted(kept.cloud(START)[:, 4]) == pytest.approx([0.05, 0.15, 0.25])
    assert (kept.topic.repeated, kept.topic.rejected) == (2, 0)


def test_a_sweep_older_than_all_that_is_kept_does_not_grow_it():
    kept = sweeps()
    for i in range(3 + SPARE):
        kept.add(sweep(START + i * 10 * MS, (5.0, 0.0, 1.0)))
    kept.add(sweep(START - 10 * MS, (5.0, 0.0, 1.0)))
    assert [held.stamp_ns for held in kept._held] == [START + i * 10 * MS for i in range(3 + SPARE)]


def test_a_set_keeps_its_sweeps_however_long_it_waits():
    """20 Hz of sweeps, and an answer that comes 2 s after its set: calibration was awaited."""
    kept = sweeps()
    for i in range(-4, 1):
        kept.add(sweep(START + i * 50 * MS, (5.0, 0.0, 1.0)))
    taken = kept.taken(START)
    for i in range(1, 40):
        kept.add(sweep(START + i * 50 * MS, (6.0, 0.0, 1.0)))
    with pytest.raises(InvalidInput, match="newer than the images"):
        kept.cloud(START)
    assert sorted(kept.cloud(START, taken)[:, 4]) == pytest.approx([0.0, 0.05, 0.1])


def test_a_sweep_that_comes_after_its_set_was_handed_on_is_used():
    kept = sweeps()
    kept.add(sweep(START - 100 * MS, (5.0, 0.0, 1.0)))
    taken = kept.taken(START)
    kept.add(sweep(START, (5.0, 0.0, 1.0)))
    assert sorted(kept.cloud(START, taken)[:, 4]) == pytest.approx([0.0, 0.1])


def test_an_unusable_sweep_that_two_sets_keep_is_counted_once():
    kept = sweeps()
    kept.add(sweep(START - 100 * MS, (5.0, 0.0, 1.0)))
    kept.add(sweep(START, (math.nan, 0.0, 0.0)))
    first, second = kept.taken(START), kept.taken(START + 10 * MS)
    assert kept.cloud(START, first)[:, 4] == pytest.approx([0.1])
    assert kept.cloud(START + 10 * MS, second)[:, 4] == pytest.approx([0.11])
    assert kept.topic.rejected == 1


def test_intensity_is_scaled_and_clipped():
    kept = sweeps(intensity_max=2.0)
    kept.add(sweep(START - 20 * MS, (5.0, 0.0, 1.0), intensity=1.0))
    kept.add(sweep(START - 10 * MS, (5.0, 0.0, 1.0), intensity=7.0))
    kept.add(sweep(START, (5.0, 0.0, 1.0), intensity=math.nan))
    assert sorted(kept.cloud(START)[:, 3].tolist()) == pytest.approx([0.0, 0.5, 1.0])


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda cloud: setattr(cloud.header, "frame_id", ""), "frame_id is empty"),
        (lambda cloud: setattr(cloud, "width", 0), "empty: 0 x 1 points"),
        (lambda cloud: setattr(cloud, "width", 2**31), "2147483648 points, a sweep has at most 1048576"),
        (lambda cloud: setattr(cloud.fields[0], "name", "q" * 10_000), "(10023 characters)"),
    ],
)
def test_a_header_that_cannot_be_is_refused_before_its_points(spoil, words):
    kept, cloud = sweeps(), sweep(START, (5.0, 0.0, 1.0))
    spoil(cloud)
    kept.add(cloud)
    assert words in kept.topic.sweep_error and kept.topic.rejected == 1
    assert len(kept.topic.sweep_error) < 250
    with pytest.raises(InvalidInput, match="sweep rejected"):
        kept.cloud(START)


def test_fields_that_come_twice_are_refused():
    cloud = sweep(START, (5.0, 0.0, 1.0))
    cloud.fields[4].name = "x"
    with pytest.raises(InvalidInput, match="point field 'x' comes twice"):
        lidar_of(cloud)


def waiting(stale_s: float = 0.7) -> tuple[Sweeps, SweepWait]:
    kept = sweeps()
    return kept, SweepWait(kept, 0.15, lambda: stale_s)


def test_a_set_goes_on_with_its_sweep_or_at_its_deadline():
    kept, wait = waiting()
    first, second, third = (group(START + i * 200 * MS, i * 200 * MS) for i in range(3))
    assert wait.ready([first], 0, 0.0) == []
    kept.add(sweep(START, (5.0, 0.0, 1.0)))
    assert wait.ready([], 10 * MS, 0.01) == [first]
    assert wait.ready([second], 200 * MS, 0.2) == []
    assert wait.ready([], 349 * MS, 0.349) == []
    assert wait.ready([], 350 * MS, 0.35) == [second]
    assert wait.ready([third], 400 * MS, 0.4) == []
    assert wait.flush() == [third]


def test_a_sweep_frees_older_sets_too_in_their_order():
    kept, wait = waiting()
    groups = [group(START + i * 200 * MS, i * MS) for i in range(2)]
    assert wait.ready(groups, 2 * MS, 0.0) == []
    kept.add(sweep(START + 200 * MS, (5.0, 0.0, 1.0)))
    assert wait.ready([], 3 * MS, 0.0) == groups


def test_nothing_waits_for_a_lidar_that_is_gone_nor_for_a_clock_set_back():
    kept, wait = waiting()
    kept.topic.came(START, START, 10.0)
    late = group(START + 10 * S, 0)
    assert wait.ready([late], 0, 10.8) == [late]
    assert wait.ready([late], 0, 10.5) == []
    assert wait.ready([], -1, 10.5) == [late]


def test_sets_that_wait_are_bounded():
    _, wait = waiting()
    groups = [group(START + i * S, 0) for i in range(MAX_OPEN_SETS + 2)]
    assert wait.ready(groups, 0, 0.0) == groups[:2]


# --- what is said of it ----------------------------------------------------------------------------------------------


def test_a_lidar_that_was_unplugged_is_not_blamed_for_its_last_sweep():
    kept = sweeps()
    kept.topic.came(START, START, 100.0)
    kept.topic.reject("point cloud is empty")
    alive = Surroundings(now_s=100.1, stale_s=0.7, max_age_s=0.0)
    assert lidar_problems(kept.topic, alive) == [Found(ERROR, "sweep rejected: point cloud is empty")]
    gone = Surroundings(now_s=102.0, stale_s=0.7, max_age_s=0.0)
    said = [(found.level, found.text) for found in lidar_problems(kept.topic, gone)]
    assert said == [(WARN, "no sweep for 2.0 s (limit 0.7 s): its publisher is gone")]


# --- odometry --------------------------------------------------------------------------------------------------------


def test_the_next_sample_of_odometry_is_waited_for():
    tree = driving()
    odometry = Odometry(tree, "base_link", "odom")
    sample = "odom", "base_link", START + 2100 * MS, pose((21.0, 0.0, 0.0), FORWARD)
    threading.Timer(0.05, tree.set, sample).start()
    (world_from_ego,) = odometry.world_from_ego([START + 2000 * MS], time.monotonic() + 30.0)
    assert world_from_ego[0, 3] == pytest.approx(20.0)
    assert not odometry.late


def test_odometry_that_stopped_is_not_waited_for():
    odometry, until_s = Odometry(driving(), "base_link", "odom"), time.monotonic() + 30.0
    with pytest.raises(TransformNotYet):
        odometry.world_from_ego([START + 2500 * MS], until_s)
    assert time.monotonic() < until_s
    assert "0.600 s after its last sample" in odometry.late


def test_odometry_that_is_always_late_is_seldom_waited_for():
    tree = driving()
    odometry = Odometry(tree, "base_link", "odom")
    for _ in range(PATIENCE + 1):
        with pytest.raises(TransformNotYet):
            odometry.world_from_ego([START + 2 * S])
    until_s = time.monotonic() + 30.0
    with pytest.raises(TransformNotYet):
        odometry.world_from_ego([START + 2 * S], until_s)
    assert time.monotonic() < until_s
    odometry.world_from_ego([START + 1900 * MS])  # in time again
    threading.Timer(0.05, tree.set, ("odom", "base_link", START + 2 * S, pose((20.0, 0.0, 0.0), FORWARD))).start()
    odometry.world_from_ego([START + 2 * S], until_s)


def test_cameras_are_placed_as_in_training():
    """On a robot that drives and turns: as a source of recorded frames does it."""
    tree, cameras = TransformTree(), []
    for tenth in range(6):
        angle = 0.1 * tenth
        turned = (math.cos(angle / 2), 0.0, 0.0, math.sin(angle / 2))
        tree.set("odom", "base_link", START + tenth * 100 * MS, pose((1.0 * tenth, 0.2 * tenth, 0.0), turned))
    for i, name in enumerate(("early", "newest", "silent")):
        ego_from_cam = pose((1.0, float(i), 1.5), (0.5, -0.5, 0.5, -0.5))
        cameras.append(Camera(name, np.array([[50.0, 0, 31.5], [0, 50, 23.5], [0, 0, 1]]), (64, 48), ego_from_cam))
    rig, stamps_ns = Rig(tuple(cameras)), {"early": START + 130 * MS, "newest": START + 210 * MS}
    moment_ns = stamps_ns["newest"]
    moved = Odometry(tree, "base_link", "odom").rig_at_stamps(rig, stamps_ns, moment_ns)
    then = {name: tree.lookup("odom", "base_link", stamp_ns) for name, stamp_ns in stamps_ns.items()}
    images = {name: np.zeros((48, 64, 3), dtype=np.uint8) for name in stamps_ns}
    recorded = Frame(moment_ns, then["newest"], rig, images, stamps_ns, then).rig_at_stamps
    for name in rig.names:
        np.testing.assert_allclose(moved[name].ego_from_cam, recorded[name].ego_from_cam, atol=1e-9)
    way_m = np.linalg.norm(moved["early"].ego_from_cam[:3, 3] - rig["early"].ego_from_cam[:3, 3])
    assert 0.7 < way_m < 0.9  # 80 ms at 10.2 m/s
    begins = {"early": START - S, "newest": moment_ns}
    assert Odometry(tree, "base_link", "odom").rig_at_stamps(rig, begins, moment_ns) is rig
