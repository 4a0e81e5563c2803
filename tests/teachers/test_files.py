"""`files:DIR`: maps that others wrote, in every form, against the arrays that were written; and a real network's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from label_scenes import CAR, ROAD, SMALL_GRID, WALL, camera, drive, frame, look_at_street

from occ_core.errors import InvalidInput, MissingInput
from occ_core.frame import Frame
from occ_core.labels.recipes import Recipe
from occ_core.labels.scene import label_scene
from occ_core.sources.kitti import SemanticKittiSource
from occ_core.taxonomy import OCC3D, SEMANTIC_KITTI, UNLABELED
from occ_core.teachers.base import NoMaps
from occ_core.teachers.lidar import project, read_kitti_labels
from occ_core.teachers.load import load_parts, load_teachers
from occ_core.teachers.names import is_network, parts_of
from occ_core.teachers.vocabulary import ID_LISTS, MEANS, class_id_of

IDS = np.arange(96 * 64).reshape(64, 96) % 5  # of the test camera's size
MEANT = np.array([ROAD, CAR, OCC3D.free_id, UNLABELED, UNLABELED], dtype=np.uint8)[IDS]
CLASSES = "classes: {0: road, 1: car, 2: sky, 3: unknown}\n"
DEPTH_M = np.linspace(1, 60, 96 * 64).reshape(64, 96)


@pytest.fixture
def one() -> Frame:
    """A frame whose image has a file."""
    return replace(frame(3), image_files={"CAM_FRONT": "samples/CAM_FRONT/a.b.jpg"})


def png(array: np.ndarray) -> bytes:
    return cv2.imencode(".png", array)[1].tobytes()


def put(folder: Path, name: str, content, settings: str | None = CLASSES) -> Path:
    """A file of maps: bytes as they are, arrays as .npy, dicts as .npz."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if settings is not None:
        (folder / "maps.yaml").write_text(settings)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content) if isinstance(content, dict) else np.save(path, content)
    return path


def palette_png() -> bytes:
    image = pytest.importorskip("PIL.Image", reason="palette pictures need Pillow: pip install 'occ_ros[teachers]'")
    import io

    picture, out = image.fromarray(IDS.astype(np.uint8), mode="P"), io.BytesIO()
    picture.putpalette([7, 7, 7, 200, 0, 0] * 128)
    picture.save(out, "PNG")
    return out.getvalue()


def classes(folder: Path, of: Frame, taxonomy=OCC3D):
    return load_teachers(f"files:{folder}+lidar", folder, taxonomy).classes.classes(of)


def depth(folder: Path, of: Frame):
    return load_teachers(f"lidar+files:{folder}", folder, OCC3D).depth.depth(of)["CAM_FRONT"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("samples/CAM_FRONT/a.b.png", lambda: png(IDS.astype(np.uint8))),
        ("samples/CAM_FRONT/a.b.png", lambda: png(IDS.astype(np.uint16))),
        ("samples/CAM_FRONT/a.b.png", palette_png),
        ("samples/CAM_FRONT/a.b.npy", lambda: IDS),
        ("samples/CAM_FRONT/a.b.npz", lambda: {"anything": IDS.astype(np.int16)}),
        ("samples/CAM_FRONT/a.b_mask.bin", lambda: IDS.astype(np.int8).tobytes()),
        ("CAM_FRONT/1500000000.png", lambda: png(IDS.astype(np.uint8))),
        ("cam_front/1500000000.npy", lambda: IDS.astype(np.uint8)),
        ("classes/samples/CAM_FRONT/a.b.png", lambda: png(IDS.astype(np.uint8))),
    ],
)
def test_class_maps_are_found_and_read_in_every_form(tmp_path, one, name, content):
    put(tmp_path, name, content())
    found = classes(tmp_path, one)["CAM_FRONT"]
    np.testing.assert_array_equal(found.class_id, MEANT)
    np.testing.assert_array_equal(found.score, MEANT != UNLABELED)


def test_scores_come_from_an_npz_or_a_picture_beside(tmp_path, one):
    score = np.where(IDS == 1, 0.5, 1).astype(np.float32)
    put(tmp_path / "a", "CAM_FRONT/1500000000.npz", {"class_id": IDS, "score": score})
    put(tmp_path / "b", "CAM_FRONT/1500000000.png", png(IDS.astype(np.uint8)), CLASSES + "full: 16\n")
    put(tmp_path / "b", "CAM_FRONT/1500000000.score.png", png((16 * score).astype(np.uint8)), None)
    for folder in ("a", "b"):
        found = classes(tmp_path / folder, one)["CAM_FRONT"]
        np.testing.assert_array_equal(found.score, np.where(MEANT == UNLABELED, 0, score))


def test_the_ids_of_known_label_scripts_need_no_list(tmp_path, one):
    ids = np.full((64, 96), -1, dtype=np.int8)
    ids[:10], ids[10:20], ids[20:30] = 16, 2, 15
    put(tmp_path, "samples/CAM_FRONT/a.b_mask.bin", ids.tobytes(), "classes: occnerf\n")
    found = classes(tmp_path, one)["CAM_FRONT"].class_id
    assert [int(found[row, 0]) for row in (0, 10, 20, 40)] == [17, 11, 8, UNLABELED]
    in_kitti = classes(tmp_path, one, SEMANTIC_KITTI)["CAM_FRONT"].class_id
    assert [int(in_kitti[row, 0]) for row in (0, 10, 20, 40)] == [0, 9, UNLABELED, UNLABELED]


def test_every_known_name_is_a_class_of_both_taxonomies_or_unknown():
    for taxonomy in (OCC3D, SEMANTIC_KITTI):
        for name in {*MEANS, *(n for ids in ID_LISTS.values() for n in ids.values()), "Traffic-Light"}:
            assert class_id_of(name, taxonomy) in (*range(len(taxonomy)), UNLABELED)
    with pytest.raises(InvalidInput, match="'hovercraft' is no class of 'occ3d'"):
        class_id_of("hovercraft", OCC3D)


@pytest.mark.parametrize(
    ("name", "content", "settings", "within"),
    [
        ("samples/CAM_FRONT/a.b.npy", lambda: DEPTH_M.astype(np.float16), None, 0.02),
        ("samples/CAM_FRONT/a.b.npz", lambda: {"depth_m": DEPTH_M.astype(np.float32)}, None, 1e-5),
        ("depth/samples/CAM_FRONT/a.b.bin", lambda: DEPTH_M.astype(np.float16).tobytes(), None, 0.02),
        ("CAM_FRONT/1500000000.png", lambda: png((250 * DEPTH_M).astype(np.uint16)), "depth: {scale_m: 0.004}", 0.01),
        ("CAM_FRONT/1500000000.npy", lambda: 100 * DEPTH_M, "depth: {scale_m: 0.01}", 1e-5),
    ],
)  # fmt: skip
def test_depth_is_found_and_read_in_every_form(tmp_path, one, name, content, settings, within):
    put(tmp_path, name, content(), settings)
    found = depth(tmp_path, one)
    np.testing.assert_allclose(found.depth_m, DEPTH_M, atol=within)
    assert (found.confidence == 1).all()


def test_no_depth_and_sky_stay_what_they_are(tmp_path, one):
    values = np.full((64, 96), 500, np.uint16)
    values[0, :2] = 0, 65535
    put(tmp_path, "CAM_FRONT/1500000000.png", png(values), "depth: {scale_m: 0.01, sky: 65535}")
    found = depth(tmp_path, one).depth_m
    assert np.isnan(found[0, 0]) and np.isposinf(found[0, 1]) and found[1, 1] == np.float32(5)


def test_one_file_may_hold_all_cameras_of_a_sample(tmp_path):
    """As the Metric3D dumps of GaussianFlowOcc's family: <scene>/<token>.npy, float16 (cameras, h, w)."""
    both = frame(2, cameras=(camera("CAM_FRONT"), camera("CAM_BACK")))
    stack = np.stack([DEPTH_M, 2 * DEPTH_M]).astype(np.float16)
    put(tmp_path, "scene/token2.npy", stack, "cameras: [CAM_BACK, CAM_FRONT]\n")
    found = load_teachers(f"lidar+files:{tmp_path}", tmp_path, OCC3D).depth.depth(both)
    np.testing.assert_array_equal(found["CAM_FRONT"].depth_m, stack[1].astype(np.float32))
    np.testing.assert_array_equal(found["CAM_BACK"].depth_m, stack[0].astype(np.float32))


@pytest.mark.parametrize(
    ("name", "content", "settings", "error", "says"),
    [
        ("x/1.png", b"", None, MissingInput, "maps.yaml: must say which class each id is"),
        ("x/1.png", b"", "classes: {0: hovercraft}", InvalidInput, "maps.yaml: id 0: 'hovercraft' is no class"),
        ("x/1.png", b"", "classes: {a: car}", InvalidInput, "maps.yaml: classes"),
        ("x/1.png", b"", "clases: {0: car}", InvalidInput, "clases: Extra inputs"),
        ("x/1.png", b"", "classes: [", InvalidInput, "maps.yaml: not a YAML file"),
        ("x/1.png", b"", CLASSES, NoMaps, r"no classes map for any image of 'token3': .*CAM_FRONT/a.b"),
        ("samples/CAM_FRONT/a.b.png", b"nothing", CLASSES, NoMaps, "a.b.png: no picture"),
        ("samples/CAM_FRONT/a.b.png", png(np.zeros((64, 96, 3), np.uint8)), CLASSES, NoMaps, "one channel"),
        ("samples/CAM_FRONT/a.b_mask.bin", b"12", CLASSES, NoMaps, "must be 6144 bytes, int8 .* 96 x 64 px"),
        ("samples/CAM_FRONT/a.b.npy", b"junk", CLASSES, NoMaps, "a.b.npy: no numpy file"),
        ("samples/CAM_FRONT/a.b.npy", IDS + 7, CLASSES, InvalidInput, r"says what none of its ids is: \[7, 8"),
        ("samples/CAM_FRONT/a.b.npy", DEPTH_M, CLASSES, InvalidInput, "must hold whole numbers, is float64"),
        ("depth/a.npy", DEPTH_M, CLASSES, MissingInput, "holds depth/ and no classes/"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(tmp_path, one, name, content, settings, error, says):
    put(tmp_path, name, content, settings)
    with pytest.raises(error, match=says):
        classes(tmp_path, one)


def test_depth_without_a_unit_and_folders_that_are_not_there_are_named(tmp_path, one):
    put(tmp_path, "CAM_FRONT/1500000000.png", png(np.ones((64, 96), np.uint16)), None)
    with pytest.raises(InvalidInput, match="whole numbers .uint16.; maps.yaml must say 'depth: "):
        depth(tmp_path, one)
    with pytest.raises(MissingInput, match="nowhere: no such folder of maps"):
        load_teachers(f"files:{tmp_path / 'nowhere'}+lidar", tmp_path, OCC3D)


def test_a_frame_without_maps_is_left_out_of_the_labels_and_named(tmp_path):
    """Frames 0 and 2 of 3 have maps, frame 1 an empty file."""
    frames = drive(3)
    for number in (0, 2):
        depth_m, class_id = look_at_street(frames[number], "CAM_FRONT")
        put(tmp_path, f"classes/CAM_FRONT/{number * 500_000_000}.npy", (class_id == WALL).astype(np.uint8), None)
        put(tmp_path, f"depth/CAM_FRONT/{number * 500_000_000}.npy", depth_m, "classes: {0: road, 1: building}")
    put(tmp_path, "classes/CAM_FRONT/500000000.npy", b"", None)
    why: dict[str, str] = {}
    teachers = load_teachers(f"files:{tmp_path}", tmp_path, OCC3D)
    found = list(label_scene(frames, teachers, Recipe(past=1, future=1), None, SMALL_GRID, unlabelled=why))
    assert [label.token for label in found] == ["token0", "token2"]
    assert list(why) == ["token1"] and "500000000.npy: no numpy file" in why["token1"]
    assert all("token1: " in label.skipped[0] for label in found)
    assert {ROAD, WALL} <= set(np.unique(found[0].occupancy.labels))


def test_a_folder_of_one_kind_is_one_part_of_a_teacher(tmp_path, one):
    put(tmp_path / "both", "classes/CAM_FRONT/1.npy", IDS)
    put(tmp_path / "both", "depth/CAM_FRONT/1.npy", DEPTH_M, None)
    put(tmp_path / "classes", "CAM_FRONT/1.npy", IDS)
    put(tmp_path / "depth", "depth/CAM_FRONT/1.npy", DEPTH_M, None)
    put(tmp_path / "bare", "CAM_FRONT/1.npy", DEPTH_M, None)
    for name, has in (("both", (1, 1)), ("classes", (1, 0)), ("depth", (0, 1)), ("bare", (0, 1))):
        parts = load_parts(f"files:{tmp_path / name}", tmp_path, OCC3D)
        assert tuple(part is not None for part in parts) == has, name


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("files:c++/maps+1", ["files:c++/maps+1"]),
        ("files:c++/maps+1+lidar", ["files:c++/maps+1", "lidar"]),
        ("files:c++/maps+1+files:c++/maps+1+lidar", ["files:c++/maps+1", "files:c++/maps+1", "lidar"]),
        ("files:plain+lidar", ["files:plain", "lidar"]),
        ("files:plain+files:c++/maps+1", ["files:plain", "files:c++/maps+1"]),
        ("files:absent+lidar", ["files:absent", "lidar"]),
        ("grounded-sam+metric3d+lidar", ["grounded-sam", "metric3d", "lidar"]),
        ("oracle", ["oracle"]),
        ("lidar+", ["lidar", ""]),
    ],
)
def test_a_folder_may_have_a_plus_in_its_name(tmp_path, monkeypatch, name, parts):
    monkeypatch.chdir(tmp_path)
    for folder in ("c++/maps+1", "plain"):
        (tmp_path / folder).mkdir(parents=True)
    assert parts_of(name) == parts


def test_maps_in_a_folder_with_a_plus_are_read(tmp_path, one):
    folder = tmp_path / "c++" / "maps+1"
    put(folder, "classes/samples/CAM_FRONT/a.b.png", png(IDS.astype(np.uint8)))
    put(folder, "depth/samples/CAM_FRONT/a.b.npy", DEPTH_M, None)
    for name in (f"files:{folder}", f"files:{folder}+files:{folder}"):
        teachers = load_teachers(name, tmp_path, OCC3D)
        np.testing.assert_array_equal(teachers.classes.classes(one)["CAM_FRONT"].class_id, MEANT)
        np.testing.assert_allclose(teachers.depth.depth(one)["CAM_FRONT"].depth_m, DEPTH_M, rtol=1e-6)
    assert not is_network(f"files:{folder}+lidar") and is_network(f"files:{folder}+metric3d")


def test_no_pickle_is_read(tmp_path, one):
    put(tmp_path, "samples/CAM_FRONT/a.b.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(NoMaps, match="no numpy file"):
        classes(tmp_path, one)


def test_a_real_network_agrees_with_real_points(tmp_path, shared_data):
    """ESPNetv2 on SemanticKITTI's image 0: the class under each labelled LiDAR point; of the mirrored map few do."""
    images = shared_data("semantickitti_seq08_10f")
    (tmp_path / "classes").symlink_to(shared_data("class_maps_cityscapes19") / images.name)
    (tmp_path / "maps.yaml").write_text("classes: cityscapes\n")
    source = SemanticKittiSource(images)
    first = source[0]
    found = classes(tmp_path, first, SEMANTIC_KITTI)["image_2"]
    rows, columns, _, index = project(first, "image_2")
    (h, w), (width, height) = found.class_id.shape, first.rig["image_2"].size
    truth = read_kitti_labels(source.labels_path(0))[index]
    shares = []
    for class_id in (found.class_id, found.class_id[:, ::-1]):
        said = class_id[rows * h // height, columns * w // width]
        known = (said != UNLABELED) & (truth != UNLABELED)
        assert known.mean() > 0.6
        shares.append((said == truth)[known].mean())
    assert shares[0] > 0.6 and shares[0] > shares[1] + 0.1
