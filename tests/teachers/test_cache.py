"""The cache of teachers' maps: what comes back, how exact, and what happens to broken files."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from teacher_fixtures import make_frame

from occ_core.frame import Frame, LidarSweep
from occ_core.taxonomy import OCC3D, UNLABELED
from occ_core.teachers.base import ClassMap, DepthMap, seen_key
from occ_core.teachers.cache import CachedClasses, CachedDepth, decode_depth, encode_depth
from occ_core.teachers.completed import CompletedDepth
from occ_core.teachers.lidar import LidarClasses, LidarDepth
from occ_core.teachers.load import load_teachers

IMAGES = {"A": np.zeros((40, 60, 3), np.uint8), "B": np.zeros((30, 50, 3), np.uint8)}


class Teacher:
    """Random maps that depend on frame and camera; counts how often it is asked."""

    version = "random 1"

    def __init__(self) -> None:
        self.asked = 0

    def _rng(self, frame: Frame, name: str) -> np.random.Generator:
        return np.random.default_rng([*frame.token.encode(), *name.encode()])

    def classes(self, frame: Frame) -> dict[str, ClassMap]:
        self.asked += 1
        maps = {}
        for name, image in frame.images.items():
            rng, shape = self._rng(frame, name), image.shape[:2]
            class_id = rng.choice(np.array([0, 4, 11, 17, UNLABELED], np.uint8), shape)
            maps[name] = ClassMap(class_id, rng.random(shape).astype(np.float32))
        return maps

    def depth(self, frame: Frame) -> dict[str, DepthMap]:
        self.asked += 1
        return {name: depth_map(self._rng(frame, name), image.shape[:2]) for name, image in frame.images.items()}


def depth_map(rng: np.random.Generator, shape: tuple[int, int] = (40, 60)) -> DepthMap:
    depth_m = np.exp(rng.uniform(np.log(0.3), np.log(300), shape)).astype(np.float32)
    depth_m[rng.random(shape) < 0.1] = np.inf
    depth_m[rng.random(shape) < 0.1] = np.nan
    return DepthMap(depth_m, rng.random(shape).astype(np.float32))


def same(first, second) -> bool:
    pairs = [
        (getattr(first[n], f.name), getattr(second[n], f.name)) for n in first for f in dataclasses.fields(first[n])
    ]
    return list(first) == list(second) and all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs)


def test_depth_comes_back_within_its_step():
    given = depth_map(np.random.default_rng(0))
    found = decode_depth(*encode_depth(given))
    finite = np.isfinite(given.depth_m)
    np.testing.assert_array_equal(np.isposinf(found.depth_m), np.isposinf(given.depth_m))
    np.testing.assert_array_equal(np.isnan(found.depth_m), np.isnan(given.depth_m))
    assert np.abs(np.log(found.depth_m[finite] / given.depth_m[finite])).max() < 0.00172
    assert np.abs(found.confidence - given.confidence).max() <= 1 / 32 + 1e-6


def test_depth_out_of_range():
    depth_m = np.array([[0.0, 0.05, -3.0, 0.3, 300.0, 5000.0]], np.float32)
    found = decode_depth(*encode_depth(DepthMap(depth_m, np.ones_like(depth_m)))).depth_m[0]
    assert np.isnan(found[:3]).all()
    np.testing.assert_allclose(found[3:], (0.3, 300, 300), rtol=1e-4)


def test_classes_come_back_as_they_are(tmp_path):
    given = Teacher().classes(make_frame(IMAGES))
    found = CachedClasses(Teacher(), tmp_path).classes(make_frame(IMAGES))
    for name in IMAGES:
        np.testing.assert_array_equal(found[name].class_id, given[name].class_id)
        assert np.abs(found[name].score - given[name].score).max() <= 1 / 32 + 1e-6


@pytest.mark.parametrize("kind", ["classes", "depth"])
def test_a_teacher_is_asked_once_and_the_answer_does_not_change(tmp_path, kind):
    teacher = Teacher()
    frames = [make_frame(IMAGES, token=token) for token in ("t0", "t1")]
    first, again = ((CachedClasses if kind == "classes" else CachedDepth)(teacher, tmp_path) for _ in range(2))
    fresh = [getattr(first, kind)(frame) for frame in frames]
    cached = [getattr(again, kind)(frame) for frame in frames]
    assert teacher.asked == 2 and all(same(a, b) for a, b in zip(fresh, cached, strict=True))
    assert not same(fresh[0], fresh[1])
    teacher.version = "random 2"
    getattr(CachedDepth(teacher, tmp_path) if kind == "depth" else CachedClasses(teacher, tmp_path), kind)(frames[0])
    assert teacher.asked == 3
    getattr(first, kind)(make_frame(IMAGES, token="t0", focal_px=99.0))  # another calibration, another depth
    assert teacher.asked == 4


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "foreign", "one camera less"])
def test_a_broken_file_is_made_anew(tmp_path, damage):
    teacher = Teacher()
    cached, frame = CachedDepth(teacher, tmp_path), make_frame(IMAGES)
    whole = cached.depth(frame)
    (path,) = tmp_path.rglob("*.zip")
    data = path.read_bytes()
    if damage == "one camera less":
        CachedDepth(Teacher(), tmp_path / "b").depth(make_frame({"A": IMAGES["A"]}))
        (other,) = (tmp_path / "b").rglob("*.zip")
        path.write_bytes(other.read_bytes())
    else:
        middle = len(data) // 3
        flipped = data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]
        path.write_bytes({"cut": data[:middle], "empty": b"", "flipped": flipped, "foreign": b"PK" * 99}[damage])
    assert same(cached.depth(frame), whole) and teacher.asked == 2
    assert same(cached.depth(frame), whole) and teacher.asked == 2
    assert not [p for p in tmp_path.rglob("*") if p.suffix == ".tmp"]


def test_a_cache_that_cannot_be_written_says_so_once_and_goes_on(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    teacher, frame = Teacher(), make_frame(IMAGES)
    cached = CachedDepth(teacher, tmp_path / "file")
    assert same(cached.depth(frame), CachedDepth(Teacher(), tmp_path / "good").depth(frame))
    cached.depth(frame)
    assert teacher.asked == 2
    (message,) = [record.getMessage() for record in caplog.records]
    assert "not kept" in message and str(tmp_path / "file") in message


@pytest.mark.parametrize("kind", ["classes", "depth"])
def test_other_images_of_the_same_name_are_asked_anew(tmp_path, kind):
    """nuScenes-C and the like: same tokens, same calibration, other images."""
    teacher = Teacher()
    cached = (CachedClasses if kind == "classes" else CachedDepth)(teacher, tmp_path)
    changed = {name: image.copy() for name, image in IMAGES.items()}
    changed["A"][0, 0, 0] ^= 1
    for images in (IMAGES, changed, {name: image.copy() for name, image in IMAGES.items()}, changed):
        getattr(cached, kind)(make_frame(images))
    assert teacher.asked == 2


class Knowing(Teacher):
    """Reads a file and an array beside the images."""

    def __init__(self, path, array) -> None:
        super().__init__()
        self.path, self.array = path, array

    def reads(self, frame: Frame) -> list:
        return [self.path, self.array]


def test_what_else_a_teacher_reads_is_part_of_the_key(tmp_path):
    path, array, frame = tmp_path / "known.bin", np.arange(3.0), make_frame(IMAGES)
    keys = [seen_key(Teacher(), frame), seen_key(Knowing(path, array), frame)]
    for data in (b"one", b"two"):
        path.write_bytes(data)
        keys.append(seen_key(Knowing(path, array), frame))
    keys.append(seen_key(Knowing(path, array + 1), frame))
    assert len(set(keys)) == 5
    path.touch()
    assert seen_key(Knowing(path, array + 1), frame) == keys[-1]  # a copied data set is the same data set
    completed = CompletedDepth(CachedDepth(Knowing(path, array), tmp_path), Teacher())
    assert seen_key(completed, frame) == seen_key(Knowing(path, array), frame) != seen_key(Teacher(), frame)


def test_the_lidar_teachers_keys_change_with_points_poses_and_labels(tmp_path):
    sweep = LidarSweep(
        np.ones((4, 3), np.float32), np.ones(4, np.float32), np.ones(4, np.int32), np.eye(4), 0, np.eye(4)
    )
    moved = np.eye(4)
    moved[0, 3] = 1
    frames = [
        dataclasses.replace(make_frame(IMAGES), lidar=s)
        for s in (
            sweep,
            dataclasses.replace(sweep, points_lidar_m=2 * sweep.points_lidar_m),
            dataclasses.replace(sweep, world_from_ego=moved),
        )
    ]
    assert len({seen_key(LidarDepth(), frame) for frame in frames}) == 3
    assert len({seen_key(LidarClasses(tmp_path, OCC3D), frame) for frame in frames}) == 1  # it says nothing
    path = tmp_path / "sequences" / frames[0].scene / "labels" / f"{frames[0].token}.label"
    path.parent.mkdir(parents=True)
    keys = []
    for label in (10, 40):
        path.write_bytes(np.full(4, label, "<u4").tobytes())
        keys.append(seen_key(LidarClasses(tmp_path, OCC3D), frames[0]))
    assert keys[0] != keys[1]


def test_loading_with_a_cache(tmp_path):
    (tmp_path / "truth").mkdir()
    teachers = load_teachers("oracle", tmp_path, OCC3D, cache=tmp_path / "cache")
    assert teachers.classes.version == "oracle-1 cached-1" and isinstance(teachers.depth, CachedDepth)
