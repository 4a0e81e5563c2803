"""The nouns: grid, taxonomy, camera, rig, frame, occupancy, and the geometry beneath them."""

from __future__ import annotations

import zipfile

import cv2
import numpy as np
import pytest
from scipy.ndimage import binary_erosion
from scipy.spatial.transform import Rotation

from occ_core import geometry
from occ_core.camera import Camera, Rig
from occ_core.errors import CorruptInput, InvalidInput, MissingInput, MissingPackage, OccError, need
from occ_core.frame import Frame
from occ_core.grid import OCC3D_GRID, VoxelGrid
from occ_core.occupancy import Occupancy, load_occ3d, save_occ3d
from occ_core.taxonomy import OCC3D, SEMANTIC_KITTI, Taxonomy

K = np.array([[560.0, 0, 399.5], [0, 561.0, 224.5], [0, 0, 1]])
LENSES = {
    "none": (),
    "plumb_bob": (-0.25, 0.06, 1e-3, -5e-4, 0.002),
    "rational_polynomial": (0.3, 0.02, 1e-4, 2e-4, 1e-3, 0.6, 0.05, 2e-3),
    "equidistant": (0.03, -0.004, 0.002, -0.0005),
}


def random_pose(random: np.random.Generator) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.random(random_state=int(random.integers(1 << 30))).as_matrix()
    matrix[:3, 3] = random.normal(size=3) * 10
    return matrix


# ---------------------------------------------------------------- geometry


def test_quaternions_agree_with_scipy():
    random = np.random.default_rng(0)
    for _ in range(200):
        matrix = random_pose(random)
        wxyz = geometry.quaternion_from_rotation(matrix[:3, :3])
        x, y, z, w = Rotation.from_matrix(matrix[:3, :3]).as_quat()
        assert np.allclose(wxyz, np.array([w, x, y, z]) * (1 if w >= 0 else -1), atol=1e-9)
        assert np.allclose(geometry.rotation_from_quaternion(3.7 * wxyz), matrix[:3, :3], atol=1e-9)


def test_inverse_and_apply_agree_with_numpy():
    random = np.random.default_rng(1)
    a_from_b, points = random_pose(random), random.normal(size=(50, 3))
    assert np.allclose(geometry.inverse(a_from_b), np.linalg.inv(a_from_b))
    homogeneous = np.c_[points, np.ones(50)] @ a_from_b.T
    assert np.allclose(geometry.apply(a_from_b, points), homogeneous[:, :3])


def test_interpolation_agrees_with_scipy_slerp():
    from scipy.spatial.transform import Slerp

    random = np.random.default_rng(2)
    for fraction in (0.0, 0.25, 0.9, 1.0):
        a, b = random_pose(random), random_pose(random)
        slerp = Slerp([0, 1], Rotation.from_matrix(np.stack([a[:3, :3], b[:3, :3]])))
        middle = geometry.interpolate(a, b, fraction)
        assert np.allclose(middle[:3, :3], slerp(fraction).as_matrix(), atol=1e-8)
        assert np.allclose(middle[:3, 3], (1 - fraction) * a[:3, 3] + fraction * b[:3, 3])


@pytest.mark.parametrize("quaternion", [(0, 0, 0, 0), (1, 0, 0), (np.nan, 0, 0, 1)])
def test_bad_quaternions_are_refused(quaternion):
    with pytest.raises(InvalidInput, match="four finite numbers"):
        geometry.rotation_from_quaternion(quaternion)


# ---------------------------------------------------------------- grid and taxonomy


def test_grid_index_against_brute_force_and_never_clamps():
    grid = VoxelGrid((-2.0, -1.0, 0.5), 0.5, (8, 4, 3))
    random = np.random.default_rng(3)
    points = random.uniform(-3, 3, size=(2000, 3))
    index, inside = grid.index_of(points)
    for point, cell, within in zip(points, index, inside, strict=True):
        lower = np.array(grid.origin_m) + cell * 0.5
        expected = bool(np.all(point >= grid.origin_m) and np.all(point < grid.upper_m))
        assert within == expected
        if within:
            assert np.all(lower <= point) and np.all(point < lower + 0.5)


def test_centers_index_to_their_own_cells():
    index, inside = OCC3D_GRID.index_of(OCC3D_GRID.centers_m().reshape(-1, 3))
    assert inside.all()
    assert np.array_equal(index, np.stack(np.unravel_index(np.arange(OCC3D_GRID.cells), OCC3D_GRID.shape), axis=1))
    assert OCC3D_GRID.upper_m == pytest.approx((40.0, 40.0, 5.4))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (((0, 0, np.nan), 0.4, (2, 2, 2)), "nan"),
        (((0, 0, 0), 0.0, (2, 2, 2)), "0.0"),
        (((0, 0, 0), 0.4, (2, 0, 2)), r"\(2, 0, 2\)"),
        (((0, 0, 0), 0.4, (1 << 20, 1 << 20, 1 << 20)), "268435456"),
    ],
)
def test_bad_grids_name_the_value(arguments, named):
    with pytest.raises(InvalidInput, match=named):
        VoxelGrid(*arguments)


def test_taxonomies_are_those_of_the_benchmarks():
    assert (len(OCC3D), OCC3D.free_id, OCC3D.names[11]) == (18, 17, "driveable_surface")
    assert (len(SEMANTIC_KITTI), SEMANTIC_KITTI.free_id, SEMANTIC_KITTI.unlabeled_id) == (20, 0, 255)
    assert len(OCC3D.occupied_ids) - len(OCC3D.ignored_ids) == 15
    with pytest.raises(InvalidInput, match="'dragon'.*barrier"):
        OCC3D.id_of("dragon")
    with pytest.raises(InvalidInput, match="2 names but 1 colors"):
        Taxonomy("t", ("a", "b"), ((0, 0, 0),), 0)
    with pytest.raises(InvalidInput, match=r"free_id \[7\] not in 0..1"):
        Taxonomy("t", ("a", "b"), ((0, 0, 0), (1, 1, 1)), 7)


# ---------------------------------------------------------------- camera and rig


@pytest.mark.parametrize("model", LENSES)
def test_projection_agrees_with_opencv_and_rays_undo_it(model):
    camera = Camera("c", K, (800, 450), np.eye(4), model, LENSES[model])
    random = np.random.default_rng(4)
    points = np.c_[random.uniform(-0.6, 0.6, 500), random.uniform(-0.35, 0.35, 500), np.ones(500)]
    points *= random.uniform(1, 50, size=(500, 1))
    pixels, visible = camera.project(points)
    zero, coefficients = np.zeros(3), np.array(LENSES[model] or (0, 0, 0, 0), dtype=float)
    if model == "equidistant":
        expected = cv2.fisheye.projectPoints(points[:, None], zero, zero, K, coefficients)[0][:, 0]
    else:
        expected = cv2.projectPoints(points, zero, zero, K, coefficients)[0][:, 0]
    assert visible.sum() > 300
    assert np.allclose(pixels[visible], expected[visible], atol=1e-6)
    rays = camera.rays(pixels[visible])
    assert np.allclose(rays * points[visible, 2:], points[visible], rtol=1e-4, atol=1e-3)


def test_points_behind_and_beside_the_image_are_not_visible():
    camera = Camera("c", K, (800, 450), np.eye(4))
    pixels, visible = camera.project(np.array([[0, 0, -5.0], [0, 0, 5.0], [100.0, 0, 5.0], [0, 0, 0]]))
    assert visible.tolist() == [False, True, False, False]
    assert np.allclose(pixels[1], (399.5, 224.5))


def test_strong_distortion_does_not_fold_far_points_into_the_image():
    camera = Camera("c", K, (800, 450), np.eye(4), "plumb_bob", (-0.3, 0.0, 0, 0))
    _, visible = camera.project(np.array([[2.4, 0, 1.0]]))  # 67 degrees off axis: the polynomial has turned back
    assert not visible[0]


def test_resize_and_crop_keep_what_a_pixel_sees():
    """A pixel block of the big image has the same centre ray as the pixel of the small image that averages it."""
    big = Camera("c", K, (800, 450), np.eye(4))
    small = big.resized((400, 225))
    assert np.allclose(small.rays(np.array([[10.0, 20.0]])), big.rays(np.array([[20.5, 40.5]])))
    crop = big.cropped(100, 50, (200, 100))
    assert np.allclose(crop.rays(np.array([[3.0, 4.0]])), big.rays(np.array([[103.0, 54.0]])))
    assert crop.size == (200, 100)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"intrinsics": np.zeros((3, 3))}, "focal lengths must be > 0"),
        ({"intrinsics": np.full((3, 3), np.nan)}, "finite"),
        ({"size": (0, 450)}, "0 x 450"),
        ({"ego_from_cam": 2 * np.eye(4)}, "rigid"),
        ({"distortion_model": "kannala"}, "'kannala'.*plumb_bob"),
        ({"distortion_model": "plumb_bob", "distortion": (1.0,)}, "4 or 5"),
    ],
)
def test_bad_cameras_name_camera_and_value(change, named):
    good = {"name": "left", "intrinsics": K, "size": (800, 450), "ego_from_cam": np.eye(4)}
    with pytest.raises(InvalidInput, match=f"'left'.*{named}"):
        Camera(**{**good, **change})


def test_fingerprint_changes_with_everything_that_changes_a_projection():
    def rig(**change) -> str:
        base = {"name": "c", "intrinsics": K, "size": (800, 450), "ego_from_cam": np.eye(4)}
        return Rig((Camera(**{**base, **change}),)).fingerprint

    moved = geometry.pose((1e-4, 0, 0))
    variants = [rig(), rig(size=(801, 450)), rig(ego_from_cam=moved), rig(intrinsics=K + np.diag([1e-3, 0, 0]))]
    variants.append(rig(distortion_model="plumb_bob", distortion=(0.1, 0, 0, 0)))
    assert len(set(variants)) == len(variants)
    assert rig() == rig(distortion_model="plumb_bob", distortion=(0, 0, 0, 0))  # no distortion is no distortion
    with pytest.raises(InvalidInput, match="at least one camera"):
        Rig(())


def test_frame_checks_its_images():
    rig = Rig((Camera("c", K, (800, 450), np.eye(4)),))
    image = np.zeros((450, 800, 3), np.uint8)
    poses = {"c": geometry.pose((1.0, 0, 0))}
    frame = Frame(0, np.eye(4), rig, {"c": image}, {"c": 5}, poses)
    assert np.allclose(frame.ego_from_camera_at_its_stamp("c"), poses["c"])
    with pytest.raises(InvalidInput, match="10 x 450 px, its calibration says 800 x 450"):
        Frame(0, np.eye(4), rig, {"c": image[:, :10]}, {"c": 5}, poses)
    with pytest.raises(InvalidInput, match="no camera 'other', only: c"):
        Frame(0, np.eye(4), rig, {"other": image}, {"c": 5}, poses)


# ---------------------------------------------------------------- occupancy and its file


def random_occupancy(seed: int = 0) -> Occupancy:
    random = np.random.default_rng(seed)
    shape = OCC3D_GRID.shape
    labels = random.integers(0, 18, shape).astype(np.uint8)
    return Occupancy(OCC3D_GRID, OCC3D, labels, random.random(shape) > 0.5, mask_lidar=random.random(shape) > 0.7)


def test_occ3d_file_round_trip(tmp_path):
    before = random_occupancy()
    save_occ3d(tmp_path / "scene" / "token" / "labels.npz", before)
    after = load_occ3d(tmp_path / "scene" / "token" / "labels.npz")
    for name in ("labels", "observed", "mask_lidar"):
        assert np.array_equal(getattr(before, name), getattr(after, name))
    assert [path.name for path in (tmp_path / "scene" / "token").iterdir()] == ["labels.npz"]


def test_surface_is_what_erosion_takes_away_and_its_centers_fall_into_it():
    occupied = np.random.default_rng(0).random(OCC3D_GRID.shape) < 0.8
    labels = np.where(occupied, np.uint8(4), np.uint8(OCC3D.free_id))
    occupancy = Occupancy(OCC3D_GRID, OCC3D, labels, np.ones(OCC3D_GRID.shape, dtype=bool))
    np.testing.assert_array_equal(occupancy.surface, occupied & ~binary_erosion(occupied))
    index, inside = OCC3D_GRID.index_of(OCC3D_GRID.centers_of_m(occupancy.surface))
    assert inside.all()
    np.testing.assert_array_equal(index, np.argwhere(occupancy.surface))


def test_real_occ3d_file_reads(shared_data):
    (path,) = shared_data("occ3d_labels").rglob("labels.npz")
    truth = load_occ3d(path)
    assert int((truth.labels != OCC3D.free_id).sum()) == 39_092
    assert (int(truth.observed.sum()), int(truth.mask_lidar.sum())) == (43_355, 56_601)
    assert int((truth.labels == OCC3D.id_of("vegetation")).sum()) == 18_699


def test_damaged_label_files_give_one_clear_error(tmp_path):
    path = tmp_path / "labels.npz"
    with pytest.raises(MissingInput, match=r"labels\.npz: no such file"):
        load_occ3d(path)
    save_occ3d(path, random_occupancy())
    whole = path.read_bytes()
    random = np.random.default_rng(5)
    for cut in (0, 10, len(whole) // 2, len(whole) - 4):
        path.write_bytes(whole[:cut])
        with pytest.raises(CorruptInput, match=r"labels\.npz: not a readable npz"):
            load_occ3d(path)
    for _ in range(30):  # a flipped byte is found by the archive's checksum, or changes nothing that is read
        damaged = bytearray(whole)
        damaged[random.integers(len(damaged))] ^= 0xFF
        path.write_bytes(bytes(damaged))
        try:
            load_occ3d(path)
        except OccError as error:
            assert "labels.npz" in str(error)


def test_label_files_with_wrong_content_are_refused(tmp_path):
    path = tmp_path / "labels.npz"
    good = np.full(OCC3D_GRID.shape, 17, np.uint8)
    cases = {
        "no array 'semantics'": {"labels": good},
        r"shape \(2, 2\)": {"semantics": np.zeros((2, 2), np.uint8)},
        "label 99": {"semantics": np.full(OCC3D_GRID.shape, 99, np.uint8)},
    }
    for named, arrays in cases.items():
        np.savez(path, **arrays)
        with pytest.raises(CorruptInput, match=named):
            load_occ3d(path)
    np.savez(path, semantics=np.array([{"a": 1}], dtype=object))  # a pickle inside
    with pytest.raises(CorruptInput):
        load_occ3d(path)


def test_a_zip_bomb_is_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / "labels.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("semantics.npy", bytes(64 << 20))
    with pytest.raises(CorruptInput, match="67108864 bytes, limit"):
        load_occ3d(path)


def test_missing_package_says_what_to_install():
    with pytest.raises(MissingPackage, match=r"pip install 'occ_ros\[viz\]'"):
        need("a_package_that_nobody_has", "viz")
