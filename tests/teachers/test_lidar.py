"""LiDAR as teacher: projection against one point at a time, labels against SemanticKITTI's own files."""

from __future__ import annotations

import numpy as np
import pytest
from teacher_fixtures import EGO_FROM_CAM, make_frame

from occ_core.errors import CorruptInput, InvalidInput, MissingInput
from occ_core.frame import LidarSweep
from occ_core.geometry import pose
from occ_core.taxonomy import OCC3D, SEMANTIC_KITTI, UNLABELED
from occ_core.teachers.lidar import MIN_RANGE_M, LidarClasses, LidarDepth, read_kitti_labels
from occ_core.teachers.load import load_teachers

IMAGE = np.zeros((40, 64, 3), dtype=np.uint8)
EGO_FROM_LIDAR = pose((0.5, 0.1, 1.0), (np.cos(0.05), 0, 0, np.sin(0.05)))
LIDAR_WORLD_FROM_EGO = pose((10.0, 2.0, 0.0), (np.cos(0.1), 0, 0, np.sin(0.1)))
CAMERA_WORLD_FROM_EGO = pose((9.5, 2.1, 0.0), (np.cos(0.08), 0, 0, np.sin(0.08)))


def sweep(points_m: np.ndarray) -> LidarSweep:
    n = len(points_m)
    points, intensity = np.asarray(points_m, np.float32).reshape(n, 3), np.zeros(n, np.float32)
    return LidarSweep(points, intensity, np.zeros(n, np.int32), EGO_FROM_LIDAR, 1, LIDAR_WORLD_FROM_EGO)


def frame_of(points_m: np.ndarray, **kind: str):
    return make_frame({"CAM": IMAGE}, camera_from=CAMERA_WORLD_FROM_EGO, lidar=sweep(points_m), **kind)


def one_by_one(points_m: np.ndarray) -> dict[tuple[int, int], tuple[float, int]]:
    """Pixel -> depth and number of its nearest point."""
    hits: dict[tuple[int, int], tuple[float, int]] = {}
    cam_from_lidar = np.linalg.inv(CAMERA_WORLD_FROM_EGO @ EGO_FROM_CAM) @ LIDAR_WORLD_FROM_EGO @ EGO_FROM_LIDAR
    for number, point in enumerate(points_m):
        x, y, z, _ = cam_from_lidar @ (*point, 1.0)
        if z <= 0 or np.linalg.norm(point) < MIN_RANGE_M:
            continue
        u, v = int(round(32 * x / z + 32)), int(round(32 * y / z + 20))
        if 0 <= u < 64 and 0 <= v < 40 and ((v, u) not in hits or z < hits[v, u][0]):
            hits[v, u] = (z, number)
    return hits


@pytest.fixture(scope="module")
def points_m() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.float32(rng.uniform((-20, -20, -3), (40, 20, 6), (4000, 3)))


def test_depth_is_that_of_the_nearest_point_in_each_pixel(points_m):
    found = LidarDepth().depth(frame_of(points_m))["CAM"]
    hits = one_by_one(points_m)
    assert len(hits) > 500 and np.isfinite(found.depth_m).sum() == len(hits)
    for (v, u), (depth_m, _) in hits.items():
        assert found.depth_m[v, u] == pytest.approx(depth_m, rel=1e-5)
    assert (found.confidence[np.isnan(found.depth_m)] == 0).all()


def test_points_beside_much_nearer_ones_are_doubted():
    wall = np.stack(np.meshgrid([30.0], np.linspace(-12, 12, 200), np.linspace(-2, 6, 60)), -1).reshape(-1, 3)
    pole = np.stack(np.meshgrid([8.0], [0.0], np.linspace(-2, 4, 60)), -1).reshape(-1, 3)
    alone = LidarDepth().depth(frame_of(wall))["CAM"]
    both = LidarDepth().depth(frame_of(np.concatenate([wall, pole])))["CAM"]
    assert (alone.confidence[np.isfinite(alone.depth_m)] == 1).all()
    near = np.isfinite(both.depth_m) & (both.depth_m < 12)
    columns = np.flatnonzero(near.any(axis=0))
    doubted = (both.confidence > 0) & (both.confidence < 1)
    assert near.sum() > 10 and (both.confidence[near] == 1).all() and doubted.any()
    assert np.abs(np.flatnonzero(doubted.any(axis=0))[:, None] - columns).min(axis=1).max() <= 2


def test_level_ground_is_not_doubted_but_what_a_post_on_it_hides():
    """However obliquely it is seen."""
    x, y = np.meshgrid(np.arange(3, 25, 0.1), np.arange(-5, 5, 0.1))
    ground = np.stack([x, y, np.full_like(x, -1.6)], axis=-1).reshape(-1, 3)
    post = np.stack(np.meshgrid([6.0], [0.0], np.linspace(-1.6, 2, 150)), axis=-1).reshape(-1, 3)

    def seen_from_camera(points_m: np.ndarray) -> np.ndarray:
        lidar_from_world = np.linalg.inv(LIDAR_WORLD_FROM_EGO @ EGO_FROM_LIDAR)
        world_m = points_m @ CAMERA_WORLD_FROM_EGO[:3, :3].T + CAMERA_WORLD_FROM_EGO[:3, 3]
        points_lidar_m = world_m @ lidar_from_world[:3, :3].T + lidar_from_world[:3, 3]
        images = {"CAM": np.zeros((400, 640, 3), np.uint8)}
        return (
            LidarDepth()
            .depth(make_frame(images, camera_from=CAMERA_WORLD_FROM_EGO, lidar=sweep(points_lidar_m)))["CAM"]
            .confidence
        )

    alone = seen_from_camera(ground)
    assert (alone > 0).sum() > 5000 and set(np.unique(alone)) == {0, 1}
    rows, columns = np.nonzero(seen_from_camera(np.concatenate([ground, post])) == np.float32(0.2))
    assert len(rows) > 20 and (np.abs(columns - 320) <= 8).all()
    foot = 200 + 320 * 1.6 / 6  # the post's lowest row; ground in front of it is not behind it
    assert rows.max() <= foot + 1


def test_a_frame_without_sweep_is_refused():
    with pytest.raises(InvalidInput, match="'t0' has none"):
        LidarDepth().depth(make_frame({"CAM": IMAGE}))


def test_labels_lie_where_their_points_do(tmp_path, points_m):
    raw = np.random.default_rng(1).choice([10, 40, 252, 0, 52], len(points_m)).astype(np.uint32)
    path = tmp_path / "sequences/08/labels/000003.label"
    path.parent.mkdir(parents=True)
    (raw | np.uint32(77 << 16)).tofile(path)  # the upper half numbers the object
    teacher = load_teachers("lidar", tmp_path, SEMANTIC_KITTI).classes
    found = teacher.classes(frame_of(points_m, scene="08", token="000003"))["CAM"]
    names = {10: "car", 40: "road", 252: "car"}
    expected = np.full(found.class_id.shape, UNLABELED)
    for (v, u), (_, number) in one_by_one(points_m).items():
        if raw[number] in names:
            expected[v, u] = SEMANTIC_KITTI.id_of(names[raw[number]])
    np.testing.assert_array_equal(found.class_id, expected)
    np.testing.assert_array_equal(found.score, expected != UNLABELED)
    as_occ3d = LidarClasses(tmp_path, OCC3D).classes(frame_of(points_m, scene="08", token="000003"))["CAM"]
    assert (as_occ3d.class_id[expected == SEMANTIC_KITTI.id_of("road")] == OCC3D.id_of("driveable_surface")).all()
    assert ((as_occ3d.class_id == UNLABELED) == (expected == UNLABELED)).all()
    with pytest.raises(MissingInput, match="000004.label"):
        teacher.classes(frame_of(points_m, scene="08", token="000004"))
    with pytest.raises(CorruptInput, match="4000 labels for 3999 points"):
        teacher.classes(frame_of(points_m[1:], scene="08", token="000003"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptInput, match="15999 bytes"):
        teacher.classes(frame_of(points_m, scene="08", token="000003"))


def test_without_labels_the_classes_say_nothing(tmp_path, points_m):
    found = load_teachers("lidar", tmp_path, OCC3D).classes.classes(frame_of(points_m))["CAM"]
    assert (found.class_id == UNLABELED).all() and (found.score == 0).all()


def test_real_labels_name_the_ground_road_and_the_height_building(shared_data):
    folder = shared_data("semantickitti_seq08_10f") / "sequences/08"
    labels = read_kitti_labels(folder / "labels/000000.label")
    points = np.fromfile(folder / "velodyne/000000.bin", "<f4").reshape(-1, 4)
    assert len(labels) == len(points) and (labels != UNLABELED).mean() > 0.9
    road, building = (points[labels == SEMANTIC_KITTI.id_of(name), 2] for name in ("road", "building"))
    assert len(road) > 5000 and np.median(road) == pytest.approx(-1.73, abs=0.2)  # the LiDAR's height above ground
    assert len(building) > 1000 and np.median(building) > np.median(road) + 1
