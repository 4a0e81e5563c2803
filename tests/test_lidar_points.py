"""LiDAR as networks get it: one cloud from sweeps by their own poses; which sweeps each kind of data set has."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_nuscenes
from small_kitti import CALIBRATION, ROW

from occ_core.errors import CorruptInput, InvalidInput, MissingInput, MissingTransform
from occ_core.frame import LidarSweep
from occ_core.geometry import apply, inverse, pose
from occ_core.lidar_points import lidar_points
from occ_core.sources.kitti import SemanticKittiSource
from occ_core.sources.nuscenes import NuScenesSource
from occ_core.sources.nuscenes_tables import NuScenesTables
from occ_core.sources.open import open_source

S = 10**9
LIDAR_ON_ROOF = pose((0.9, 0, 1.8), (np.sqrt(0.5), 0, 0, -np.sqrt(0.5)))


def world_at(stamp_ns: int) -> np.ndarray:
    """A left turn at 8 m/s, far from the world's origin."""
    s = stamp_ns / S
    return pose((5000 + 8 * s, -3000 + s * s, 0.1 * s), (np.cos(0.1 * s), 0, 0, np.sin(0.1 * s)))


def sweep_of(points_world_m: np.ndarray, stamp_ns: int, intensity: float = 51) -> LidarSweep:
    """What a LiDAR sees of points that stand still."""
    seen = apply(inverse(world_at(stamp_ns) @ LIDAR_ON_ROOF), points_world_m)
    n = len(seen)
    return LidarSweep(
        seen.astype(np.float32), np.full(n, intensity, np.float32), np.zeros(n, np.int32), LIDAR_ON_ROOF, stamp_ns,
        world_at(stamp_ns),
    )  # fmt: skip


def test_what_stands_still_is_in_one_place_whichever_sweep_saw_it():
    rng, now = np.random.default_rng(0), 3 * S
    points_ego_m = rng.uniform((-40, -40, -1), (40, 40, 5), (50, 3))
    points_ego_m = points_ego_m[np.linalg.norm(points_ego_m[:, :2], axis=1) > 20]
    world = apply(world_at(now), points_ego_m)
    stamps = (now, now - S // 10, now - S, now + S // 20)
    cloud = lidar_points([sweep_of(world, at) for at in stamps], now, world_at(now), 10_000)
    assert cloud.dtype == np.float32 and cloud.shape == (4 * len(world), 5)
    for part, age_s in zip(np.split(cloud, 4), (0, 0.1, 1, 0), strict=True):
        np.testing.assert_allclose(part[:, :3], points_ego_m, atol=1e-3)
        np.testing.assert_allclose(part[:, 3:], [[0.2, age_s]] * len(part), atol=1e-6)


def test_of_more_points_than_the_limit_as_many_of_every_beam_are_kept():
    beams = np.repeat(np.arange(32), 500)  # beam by beam, as some files have them, or in turns
    for order in (beams, beams.reshape(32, 500).T.ravel()):
        points = np.stack([np.full(16_000, 20), np.arange(16_000) / 1000, order], axis=1).astype(np.float32)
        sweep = LidarSweep(points, np.zeros(16_000, np.float32), order.astype(np.int32), np.eye(4), 0, np.eye(4))
        few = lidar_points([sweep], 0, np.eye(4), 4000)
        assert few.shape == (4000, 5) and len(np.unique(few[:, 1])) == 4000
        assert np.isin(few[:, 1], points[:, 1]).all() and (np.diff(few[:, 1]) > 0).all()
        assert np.bincount(few[:, 2].astype(int)).min() > 80  # of 125
        np.testing.assert_array_equal(few, lidar_points([sweep], 0, np.eye(4), 4000))


def test_the_vehicle_itself_no_sweep_and_broken_points():
    points = np.float32([[0, 0, 0], [0.5, 0.5, 0], [2, 0, 0]])
    sweep = LidarSweep(points, np.float32([0, 0, 300]), np.zeros(3, np.int32), np.eye(4), 7, np.eye(4))
    np.testing.assert_array_equal(lidar_points([sweep], 7, np.eye(4), 10), np.float32([[2, 0, 0, 1, 0]]))
    assert lidar_points([], 7, np.eye(4), 10).shape == (0, 5)
    near, far = (replace(sweep, stamp_ns=at, points_lidar_m=points * size) for at, size in ((9, 0.1), (7, 1)))
    assert len(lidar_points([far, near], 9, np.eye(4), 10)) == 0  # an older sweep never stands in for the newest
    dim = replace(sweep, intensity=np.float32([0, 0, np.nan]))
    np.testing.assert_array_equal(lidar_points([dim], 7, np.eye(4), 10), np.float32([[2, 0, 0, 0, 0]]))
    points[1, 2] = np.nan
    with pytest.raises(InvalidInput, match="LiDAR sweep at 7 ns: 1 of 3 points are not finite"):
        lidar_points([sweep], 7, np.eye(4), 10)


# --- which sweeps -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def city(tmp_path_factory) -> Path:
    """Three keyframes with two sweeps of each sensor after each of the first two."""
    root = tmp_path_factory.mktemp("city") / "set"
    small_nuscenes.make(root, keyframes=3, sweeps=2, scenes=2, truth=False)
    return root


def lidar_files(root: Path) -> list[Path]:
    """In time order, read without any table."""
    paths = [*root.glob("samples/LIDAR_TOP/*.bin"), *root.glob("sweeps/LIDAR_TOP/*.bin")]
    return sorted(paths, key=lambda path: int(path.name.split("__")[-1].split(".")[0]))


def test_sweeps_of_nuscenes_are_the_files_before_a_keyframe_in_its_scene(city):
    source, files = NuScenesSource(city), lidar_files(city)
    for index, last in ((0, 0), (1, 3), (2, 6), (4, 10)):  # two scenes of seven files
        begin = 7 * (index // 3)
        for count in (1, 3, 50):
            expected = files[begin : last + 1][::-1][:count]
            found = source.sweeps_before(index, count)
            assert len(found) == len(expected)
            for sweep, path in zip(found, expected, strict=True):
                np.testing.assert_array_equal(sweep.points_lidar_m, np.fromfile(path, np.float32).reshape(-1, 5)[:, :3])
                assert str(sweep.stamp_ns // 1000) in path.name
    frame = source[2]
    np.testing.assert_array_equal(source.sweeps_before(2, 1)[0].points_lidar_m, frame.lidar.points_lidar_m)


def test_files_of_nuscenes_that_are_absent_or_broken(tmp_path):
    small_nuscenes.make(tmp_path, keyframes=2, sweeps=2, truth=False)
    files, source = lidar_files(tmp_path), NuScenesSource(tmp_path)
    files[2].unlink()  # a sweep that was not downloaded
    assert [sweep.stamp_ns // 1000 for sweep in source.sweeps_before(1, 3)] == [
        int(files[i].name.split("__")[-1].split(".")[0]) for i in (3, 1, 0)
    ]
    rows = np.fromfile(files[3], np.float32)
    rows[7] = np.inf
    rows.tofile(files[3])
    with pytest.raises(CorruptInput, match=rf"{files[3].name}: 1 of 200 points are not finite"):
        source.sweeps_before(1, 1)
    files[3].write_bytes(b"")
    with pytest.raises(MissingInput, match=files[3].name):
        source.sweeps_before(1, 1)
    small_nuscenes.make(tmp_path / "dark", keyframes=1, lidar=False, truth=False)
    assert NuScenesSource(tmp_path / "dark").sweeps_before(0, 3) == []


def test_sweeps_of_kitti_are_the_scans_before_in_the_sequence(tmp_path):
    for scene in ("03", "04"):
        folder = tmp_path / "sequences" / scene
        (folder / "velodyne").mkdir(parents=True)
        (folder / "calib.txt").write_text(CALIBRATION)
        (folder / "poses.txt").write_text("".join(ROW.format(x=0, z=2 * n) for n in range(3)))
        (folder / "times.txt").write_text("0\n0.1\n0.2\n")
        for n in range(3):
            np.float32([[int(scene), n, 2, 0.5]]).tofile(folder / f"velodyne/{n:06d}.bin")
    source = SemanticKittiSource(tmp_path)  # there is not one image
    for index, expected in ((0, [(3, 0)]), (2, [(3, 2), (3, 1)]), (4, [(4, 1), (4, 0)])):
        sweeps = source.sweeps_before(index, 2)
        assert [tuple(sweep.points_lidar_m[0, :2]) for sweep in sweeps] == expected
    cloud = lidar_points(source.sweeps_before(2, 3), 200_000_000, source.sweeps_before(2, 1)[0].world_from_ego, 9)
    np.testing.assert_allclose(cloud, [[3, 2, 2, 0.5, 0], [1, 1, 2, 0.5, 0.1], [-1, 0, 2, 0.5, 0.2]], atol=1e-6)
    np.float32([[1, np.nan, 0, 0]]).tofile(folder / "velodyne/000001.bin")
    with pytest.raises(CorruptInput, match="04/velodyne/000001.bin: 1 of 1 points are not finite"):
        source.sweeps_before(4, 1)


def test_real_scans_seven_frames_apart_meet(shared_data):
    """The vehicle drove 4.9 m in between; the ground, whose rings look alike from everywhere, is left out."""
    trees = pytest.importorskip("scipy.spatial")
    source = SemanticKittiSource(shared_data("semantickitti_seq08_10f"))
    sweeps = source.sweeps_before(9, 8)
    now, pose_now = sweeps[0].stamp_ns, sweeps[0].world_from_ego
    cloud = lidar_points(sweeps, now, pose_now, 10**6)
    assert cloud[:, 4].max() == pytest.approx(0.73, abs=0.01) and 0 <= cloud[:, 3].min() < cloud[:, 3].max() <= 1
    old = lidar_points([sweeps[-1]], now, pose_now, 10**6)
    as_seen = lidar_points([sweeps[-1]], sweeps[-1].stamp_ns, sweeps[-1].world_from_ego, 10**6)
    near = (as_seen[:, 2] > -0.9) & (np.linalg.norm(as_seen[:, :2], axis=1) < 40)
    new = trees.cKDTree(cloud[cloud[:, 4] == 0, :3])
    apart_m = [np.median(new.query(points[near, :3][::5])[0]) for points in (old, as_seen)]
    assert apart_m[0] < 0.15 and apart_m[1] > 0.8


def test_sweeps_of_a_bag_are_those_of_the_data_set_that_it_was_made_from(city, tmp_path):
    pytest.importorskip("rosbags")
    from occ_core.bags.writer import write_bag

    write_bag(NuScenesTables(city), "scene-0001", tmp_path / "scene-0001")
    layout, bag = NuScenesSource(city), open_source(tmp_path / "scene-0001")
    keyframes = [bag.names.index(token) for token in layout.tokens[:3]]
    for place, index in enumerate(keyframes):
        # A frame's cloud is the one nearest to its front camera's image, which is the keyframe's own.
        ours, theirs = bag.sweeps_before(index, 50), layout.sweeps_before(place, 50)
        assert [sweep.stamp_ns for sweep in ours] == [sweep.stamp_ns for sweep in theirs]
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a.points_lidar_m, b.points_lidar_m)
            np.testing.assert_allclose(a.world_from_ego, b.world_from_ego, atol=1e-6)
        assert [sweep.stamp_ns for sweep in bag.sweeps_before(index, 2)] == [sweep.stamp_ns for sweep in theirs[:2]]


def test_a_frame_of_a_bag_without_a_sweep_of_its_own_has_none(tmp_path):
    pytest.importorskip("rosbags")
    from bag_robot import T0, robot

    from occ_core.bags import messages as msg

    made = robot(images=9)
    for step in (1, 6):
        stamp_ns = T0 + step * S // 10
        points = np.zeros(1, [("x", "f4"), ("y", "f4"), ("z", "f4")])
        made.add("/points", stamp_ns, msg.cloud(stamp_ns, "left_optical", points))
    bag = open_source(made.write(tmp_path / "bag"))
    ages = [[(bag[i].stamp_ns - sweep.stamp_ns) * 10 // S for sweep in bag.sweeps_before(i, 9)] for i in range(9)]
    assert ages == [[-1], [0], [1], [], [], [-1, 4], [0, 5], [1, 6], []]  # within 0.1 s of its images
    assert all((bag[i].lidar is None) == (not found) for i, found in enumerate(ages))


def test_a_lidar_without_a_pose_is_named(tmp_path):
    pytest.importorskip("rosbags")
    from bag_robot import T0, robot

    from occ_core.bags import messages as msg

    made = robot(images=6)
    points = np.zeros(4, [("x", "f4"), ("y", "f4"), ("z", "f4")])
    points["x"] = 9
    for step, frame in enumerate(("lost_lidar", "left_optical", "left_optical", "lost_lidar")):
        made.add("/points", T0 + step * S // 10, msg.cloud(T0 + step * S // 10, frame, points))
    bag = open_source(made.write(tmp_path / "bag"))
    assert [sweep.stamp_ns - T0 for sweep in bag.sweeps_before(2, 9)] == [S // 5, S // 10]  # the first cannot be placed
    with pytest.raises(MissingTransform, match=rf"'/points' at {T0 + 3 * S // 10} ns: no pose for the LiDAR sweep"):
        bag.sweeps_before(3, 9)
