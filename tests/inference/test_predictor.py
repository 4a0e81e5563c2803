"""Preprocessing, look-up table, backends and predictor."""

import os
import pickle
import subprocess
import sys

import cv2
import numpy as np
import pytest
import small_nuscenes
from model_fixtures import SMALL, camera, ring_rig, write_checkpoint
from typer.testing import CliRunner

from occ_core.camera import Camera, Rig
from occ_core.cli.main import app
from occ_core.errors import CorruptInput, InvalidInput, MissingInput, OccError
from occ_core.geometry import apply
from occ_core.models.easyocc.config import STRIDE, EasyOccConfig
from occ_core.models.easyocc.table import LOWEST_M, NEAREST, RAY_CHANNELS, build_table, feature_rays, mirrored
from occ_core.network_input.preprocess import Preprocess

FISHEYE = {"distortion_model": "equidistant", "distortion": (0.05, -0.01, 0.002, -0.001)}
BARREL = {"distortion_model": "plumb_bob", "distortion": (-0.3, 0.1, 0.001, -0.002, 0.0)}


# --- preprocessing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(800, 450), (1600, 900), (1936, 1216), (640, 480), (352, 128), (400, 100)])
def test_a_point_drawn_in_the_image_lies_where_the_new_calibration_says(size):
    preprocess = Preprocess(352, 128)
    cam = camera("c", 0, size, focal_px=0.8 * size[0])
    scaled = preprocess.camera(cam)
    assert scaled.size == (352, 128)
    for point in ((0.2, 0.3, 3.0), (-0.6, 0.2, 4.0), (0.5, 0.15, 5.0)):
        (u, v), (u2, v2) = cam.project(np.array([point]))[0][0], scaled.project(np.array([point]))[0][0]
        image = np.zeros((size[1], size[0], 3), dtype=np.uint8)
        radius = max(3, size[0] // 100)
        shift = 4
        center = round(u * 2**shift), round(v * 2**shift)
        cv2.circle(image, center, radius * 2**shift, (255, 255, 255), -1, cv2.LINE_AA, shift)
        spot = preprocess.image(image)[..., 0].astype(float)
        vs, us = np.mgrid[: spot.shape[0], : spot.shape[1]]
        found = (us * spot).sum() / spot.sum(), (vs * spot).sum() / spot.sum()
        assert np.hypot(found[0] - u2, found[1] - v2) < 0.1


@pytest.mark.parametrize("size", [(800, 450), (1600, 900), (1936, 1216), (640, 480)])
def test_the_horizon_of_a_level_camera_keeps_its_row_whatever_the_images_shape(size):
    k = Preprocess(352, 128).camera(camera("c", 0, size)).intrinsics
    assert abs(k[1, 2] - 28.5) <= 1 and abs(k[0, 2] - 175.5) <= 0.5


def test_the_bottom_of_a_wide_image_stays():
    image = np.zeros((450, 800, 3), dtype=np.uint8)
    image[-1] = 255
    out = Preprocess(352, 128).image(image)
    assert out.shape == (128, 352, 3) and out[-1].min() > 0 and out[:-1].max() == 0


def test_an_image_of_the_networks_size_is_unchanged_and_grey_is_refused():
    image = np.random.default_rng(0).integers(0, 255, (128, 352, 3), dtype=np.uint8)
    assert np.array_equal(Preprocess(352, 128).image(image), image)
    with pytest.raises(InvalidInput, match="float32"):
        Preprocess(352, 128).image(image.astype(np.float32))
    with pytest.raises(InvalidInput, match=r"\(128, 352\)"):
        Preprocess(352, 128).image(image[..., 0])


# --- table -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lens", [{}, BARREL, FISHEYE], ids=["pinhole", "plumb_bob", "fisheye"])
def test_table_equals_projecting_cell_by_cell(lens):
    """Of three cameras, two of which overlap. A cell above the input is told by the highest that the input shows of its
    column, in each camera's own input; of the cameras that show it, the one in whose middle that lies counts."""
    rig = Rig(tuple(camera(name, yaw, **lens) for name, yaw in (("f", 0), ("l", 60), ("b", 170))))
    table = build_table(rig, SMALL)
    w, h = SMALL.feature_size
    bins, edges = SMALL.depth_bins, SMALL.depth_edges_m
    preprocess = Preprocess(SMALL.input_width, SMALL.input_height)
    centers = SMALL.grid.centers_m()
    inputs = [preprocess.camera(whole) for whole in rig]

    def seen_by(cam, cell):
        """Pixel, whether it is in the image, and distance."""
        point = np.linalg.inv(cam.ego_from_cam) @ np.append(centers[cell], 1)
        pixel, visible = cam.project(point[None, :3])
        return pixel[0], bool(visible[0]), np.linalg.norm(point[:3])

    index = table.voxel_index.reshape(SMALL.grid_shape)
    seen = above = contested = 0
    for number in np.random.default_rng(0).choice(index.size, 1500, replace=False):
        x, y, z = np.unravel_index(number, index.shape)
        best, expected, cameras = np.inf, 3 * h * w * bins, 0
        for i, (whole, cam) in enumerate(zip(rig, inputs, strict=True)):
            shown = [k for k in range(z + 1) if seen_by(cam, (x, y, k))[1]]
            if not shown or not seen_by(whole, (x, y, z))[1]:
                continue
            pixel, _, distance = seen_by(cam, (x, y, shown[-1]))
            cameras, above = cameras + 1, above + (shown[-1] < z)
            off = abs(pixel[0] - (SMALL.input_width - 1) / 2)
            if off >= best:
                continue
            column, row = (int(np.floor((p + 0.5) / STRIDE)) for p in pixel)
            best = off
            nth = [k for k in range(bins) if edges[k] <= distance < edges[k + 1]]
            expected = ((i * h + row) * w + column) * bins + nth[0] if nth else 3 * h * w * bins
        assert index[x, y, z] == expected
        seen, contested = seen + (expected < 3 * h * w * bins), contested + (cameras > 1)
    assert seen > 300 and above > 10 and contested > 30, (seen, above, contested)
    assert index.dtype == table.pillar_index.dtype == np.int32
    assert table.pillar_index.shape == (20 * 20 * 4,) and table.rays.shape == (3, RAY_CHANNELS, h, w)


def test_a_cells_viewing_ray_points_at_it():
    rig = ring_rig()
    table = build_table(rig, SMALL)
    w, h = SMALL.feature_size
    pixel = table.voxel_index // SMALL.depth_bins
    centers_m = SMALL.grid.centers_m().reshape(-1, 3)
    shown = np.zeros(len(pixel), dtype=bool)  # in the input, not above it
    for c in rig:
        own = Preprocess(SMALL.input_width, SMALL.input_height).camera(c)
        shown |= own.project(apply(np.linalg.inv(c.ego_from_cam), centers_m))[1]
    seen = np.flatnonzero(shown & (pixel < len(rig) * h * w))
    cam, v, u = np.unravel_index(pixel[seen], (len(rig), h, w))
    rays = table.rays[cam, :3, v, u]
    origins = np.stack([c.ego_from_cam[:3, 3] for c in rig])[cam]
    towards = centers_m[seen] - origins
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    half_diagonal = np.hypot(STRIDE / 2, STRIDE / 2) / (200 * SMALL.input_width / 320)
    assert np.degrees(np.arccos(np.clip((rays * towards).sum(1), -1, 1))).max() < np.degrees(half_diagonal) * 1.01


def test_mirrored_table_is_the_table_of_the_mirrored_rig():
    rig = Rig((*ring_rig().cameras[:1], camera("x", 47.3, at=(0.3, 0.45, 1.4))))
    flip_y = np.diag([1.0, -1, 1, 1])
    flip_x = np.diag([-1.0, 1, 1, 1])  # the mirror also swaps left and right of the camera's own frame
    twins = []
    for cam in rig:
        k = cam.intrinsics.copy()
        k[0, 2] = cam.size[0] - 1 - k[0, 2]
        twins.append(Camera(cam.name, k, cam.size, flip_y @ cam.ego_from_cam @ flip_x))
    expected, got = build_table(Rig(tuple(twins)), SMALL), mirrored(build_table(rig, SMALL), SMALL)
    assert (
        expected.voxel_index == got.voxel_index
    ).mean() > 0.995  # cells on the border of two pixels or bins may flip
    assert (expected.pillar_index == got.pillar_index).mean() > 0.99
    np.testing.assert_allclose(expected.rays, got.rays, atol=1e-5)


def test_missing_cameras_leave_their_cells_to_others_or_unseen():
    rig = ring_rig()
    table, without = build_table(rig, SMALL), build_table(rig, SMALL, frozenset({"f"}))
    w, h = SMALL.feature_size
    rows = h * w * SMALL.depth_bins
    assert (table.voxel_index // rows == 0).any() and not (without.voxel_index // rows == 0).any()
    others = (table.voxel_index >= rows) & (table.voxel_index < 4 * rows)
    assert np.array_equal(table.voxel_index[others], without.voxel_index[others])
    taken_over = (table.voxel_index < rows) & (without.voxel_index < 4 * rows)
    assert taken_over.any()  # where views overlap, the neighbour steps in


def test_rays_say_where_they_meet_the_ground():
    """Through any lens, at any height: the point at that distance along the ray lies on z = 0."""
    for height_m in (0.4, 2.3):
        table = build_table(Rig((camera("a", 30, at=(0.2, 0.1, height_m)),)), SMALL)
        direction, ground = np.moveaxis(table.rays[0, :3], 0, -1).astype(float), table.rays[0, 4].astype(float)
        down = direction[..., 2] < -1e-3
        met = down & (ground < NEAREST)
        assert met.any() and (ground[~down] < 1e-2).all()
        np.testing.assert_allclose(height_m + direction[met][:, 2] / ground[met], 0, atol=1e-4)
        assert np.allclose(table.rays[0, 5], height_m)
    buried = build_table(Rig((camera("a", 0, at=(0, 0, -0.5)),)), SMALL).rays[0, 4]
    assert np.isfinite(buried).all() and buried.max() <= min(NEAREST, 1 / LOWEST_M)


def test_feature_rays_of_a_level_camera():
    cam = Preprocess(SMALL.input_width, SMALL.input_height).camera(camera("c", 0))
    rays = feature_rays(cam, SMALL)
    assert rays[:, 0, 1].min() > 0 > rays[:, -1, 1].max()  # left of the image is left of the car
    assert np.allclose(np.linalg.norm(rays, axis=2), 1)


# --- checkpoint, backends, predictor ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch = pytest.importorskip("torch")
    return write_checkpoint(torch, SMALL, tmp_path_factory.mktemp("model") / "small.safetensors")


@pytest.fixture(scope="module")
def onnx_file(checkpoint):
    pytest.importorskip("onnx")
    from occ_core.inference.export import export_onnx

    return export_onnx(checkpoint, checkpoint.with_suffix(".onnx"))


def images(rig, seed=0):
    rng = np.random.default_rng(seed)
    return {c.name: rng.integers(0, 255, (c.size[1], c.size[0], 3), dtype=np.uint8) for c in rig}


def load(*arguments, **options):
    from occ_core.inference.predictor import Predictor

    return Predictor.load(*arguments, **options)


def test_onnxruntime_agrees_with_torch_for_any_rig_and_number_of_cameras(checkpoint, onnx_file):
    pytest.importorskip("onnxruntime")
    slow, fast = load(checkpoint, "torch"), load(onnx_file)
    six = Rig(tuple(camera(f"c{i}", 60 * i, (400, 300)) for i in range(6)))
    for seed, rig in enumerate((ring_rig(), six, Rig((camera("fish", 10, **FISHEYE),)))):
        a, b = slow.predict(images(rig, seed), rig), fast.predict(images(rig, seed), rig)
        assert len(np.unique(a.labels)) > 3
        assert (a.labels == b.labels).mean() >= 0.999 and (a.observed == b.observed).mean() >= 0.999
        assert np.abs(a.confidence - b.confidence).max() < 0.02
        assert b.labels.dtype == np.uint8 and b.labels.shape == SMALL.grid_shape and 0 < b.observed.mean() < 1


def test_graph_lifts_by_gather_and_keeps_the_table_as_input(onnx_file):
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(str(onnx_file)).graph
    assert {i.name for i in graph.input} == {"images", "voxel_index", "pillar_index", "rays"}
    kinds = {node.op_type for node in graph.node}
    assert not kinds & {"GatherND", "ScatterND", "GridSample", "Loop", "If", "NonZero"}


def test_onnx_runs_without_torch(onnx_file):
    pytest.importorskip("onnxruntime")
    code = (
        "import sys, numpy as np\n"
        "from model_fixtures import ring_rig\n"
        "from occ_core.inference.predictor import Predictor\n"
        f"p, rig = Predictor.load({str(onnx_file)!r}), ring_rig()\n"
        "p.predict({c.name: np.zeros((c.size[1], c.size[0], 3), np.uint8) for c in rig}, rig)\n"
        "assert not {'torch', 'onnx', 'pandas', 'rclpy'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(small_nuscenes.__file__)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=60)


def test_auto_exports_once_into_the_users_cache(checkpoint, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load(checkpoint)
    (kept,) = (tmp_path / "occ_core" / "onnx").glob("*.onnx")
    before = kept.stat().st_mtime_ns
    load(checkpoint, "auto")
    assert kept.stat().st_mtime_ns == before


def test_steps_one_by_one_equal_predict_and_a_missing_camera_is_an_absent_key(checkpoint):
    predictor, rig = load(checkpoint, "torch"), ring_rig()
    predictor.prepare(rig)
    pictures = images(rig)
    whole = predictor.predict(pictures, rig)
    ready = {name: predictor.preprocess_one(image, rig[name]) for name, image in pictures.items()}
    assert ready["f"].dtype == np.uint8 and ready["f"].shape == (64, 128, 3)
    assert np.array_equal(predictor.predict_preprocessed(ready, rig).labels, whole.labels)
    del pictures["l"]
    assert not np.array_equal(predictor.predict(pictures, rig).labels, whole.labels)


def test_a_changed_calibration_changes_the_answer(checkpoint):
    predictor, rig = load(checkpoint, "torch"), ring_rig()
    turned = Rig(tuple(camera(c.name, yaw + 5) for c, yaw in zip(rig, (0, 75, 180, -80), strict=True)))
    assert not np.array_equal(predictor.predict(images(rig), rig).labels, predictor.predict(images(rig), turned).labels)


def test_bad_images_are_refused_by_name(checkpoint):
    predictor, rig = load(checkpoint, "torch"), ring_rig()
    with pytest.raises(InvalidInput, match="no image at all"):
        predictor.predict({}, rig)
    with pytest.raises(InvalidInput, match="'f' is 10 x 20"):
        predictor.predict({"f": np.zeros((20, 10, 3), np.uint8)}, rig)
    with pytest.raises(InvalidInput, match="no camera 'zoom'"):
        predictor.predict({"zoom": np.zeros((180, 320, 3), np.uint8)}, rig)
    with pytest.raises(InvalidInput, match="'zoom'"):
        predictor.predict_preprocessed({"zoom": np.zeros((64, 128, 3), np.uint8)}, rig)
    with pytest.raises(InvalidInput, match="must be uint8"):
        predictor.predict_preprocessed({"f": np.zeros((64, 128, 3))}, rig)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_what_is_no_checkpoint_is_refused_in_one_line_and_never_unpickled(checkpoint, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    cases = {
        "pickle.safetensors": pickle.dumps(Bomb()),
        "empty.safetensors": b"",
        "text.safetensors": b"hello, this is text and no tensors",
        "truncated.safetensors": checkpoint.read_bytes()[:100_000],
        "pickle.onnx": pickle.dumps(Bomb()),
    }
    for name, content in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        path.with_suffix(".json").write_bytes(checkpoint.with_suffix(".json").read_bytes())
        with pytest.raises(CorruptInput, match=name) as caught:
            load(path)
        assert "\n" not in str(caught.value)
    torch.save({"model": Bomb()}, tmp_path / "torch.safetensors")
    with pytest.raises(CorruptInput, match="not a safetensors file"):
        load(tmp_path / "torch.safetensors")
    assert not (tmp_path / "exploded").exists()


def test_a_missing_or_foreign_json_is_named(checkpoint, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(checkpoint.read_bytes())
    with pytest.raises(MissingInput, match="m.json"):
        load(path, "torch")
    for text in ("{", '{"format": "other"}', "[]"):
        path.with_suffix(".json").write_text(text)
        with pytest.raises(CorruptInput, match="m.json"):
            load(path, "torch")
    record = checkpoint.with_suffix(".json").read_text()
    path.with_suffix(".json").write_text(record.replace('"neck_channels": 16', '"neck_channels": 17'))
    with pytest.raises(CorruptInput, match="do not fit"):
        load(path, "torch")
    path.with_suffix(".json").write_text(record.replace('"depth_bins": 16', '"depth_bins": 999'))
    with pytest.raises(InvalidInput, match="depth_bins"):
        load(path, "torch")
    with pytest.raises(MissingInput):
        load(tmp_path / "nothing.onnx")
    with pytest.raises(InvalidInput, match="'cuda'"):
        load(checkpoint, "cuda")


def test_an_onnx_file_of_somebody_else_is_refused(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    value = onnx.helper.make_tensor_value_info("x", 1, [1])
    out = onnx.helper.make_tensor_value_info("y", 1, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value], [out])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "foreign.onnx"))
    with pytest.raises(CorruptInput, match="not exported by"):
        load(tmp_path / "foreign.onnx")


def test_command_line_predicts_exports_and_goes_on(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    config = EasyOccConfig(**{**SMALL.model_dump(), "grid_shape": (200, 200, 16), "grid_origin_m": (-40, -40, -1)})
    config = config.model_copy(update={"voxel_size_m": 0.4})
    checkpoint = write_checkpoint(torch, config, tmp_path / "m.safetensors")
    tokens = small_nuscenes.make(tmp_path / "set", keyframes=2, sweeps=0)
    run = CliRunner()
    result = run.invoke(app, ["export", str(checkpoint), str(tmp_path / "m.onnx")])
    assert result.exit_code == 0, result.output
    arguments = ["predict", str(tmp_path / "m.onnx"), str(tmp_path / "set"), str(tmp_path / "out")]
    result = run.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert sorted(p.stem for p in (tmp_path / "out").iterdir()) == sorted(tokens)
    first = tmp_path / "out" / f"{tokens[0]}.npz"
    first.unlink()
    stamp = (tmp_path / "out" / f"{tokens[1]}.npz").stat().st_mtime_ns
    again = run.invoke(app, arguments)
    assert again.exit_code == 0 and "2 predictions" in again.output and "1 of them were there" in again.output
    assert first.is_file() and (tmp_path / "out" / f"{tokens[1]}.npz").stat().st_mtime_ns == stamp
    assert run.invoke(app, ["eval", str(tmp_path / "out"), str(tmp_path / "set/gts")]).exit_code == 0
    other = run.invoke(app, ["predict", str(checkpoint), *arguments[2:]])
    assert isinstance(other.exception, InvalidInput) and "was made by another model" in str(other.exception)
    image = next((tmp_path / "set/samples/CAM_FRONT").iterdir())
    image.write_bytes(next((tmp_path / "set/samples/CAM_BACK").iterdir()).read_bytes())
    other = run.invoke(app, arguments)
    assert isinstance(other.exception, InvalidInput) and "of other images than are here now" in str(other.exception)
    other = run.invoke(app, [*arguments, "--overwrite"])
    assert other.exit_code == 0 and "already" not in other.output
    bad = run.invoke(app, ["predict", str(tmp_path / "no.onnx"), str(tmp_path / "set"), str(tmp_path / "out")])
    assert isinstance(bad.exception, OccError)
