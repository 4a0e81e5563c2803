"""The label store: Occ3D's format, equal bytes, damage found, full disks survived."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import label_fixtures
import numpy as np
import pytest
from label_fixtures import MADE_WITH, hashes, scene_label

from occ_core.errors import CannotWrite, CorruptInput, InvalidInput, MissingInput
from occ_core.evaluation.report import evaluate_folders
from occ_core.labels.store import LabelStore
from occ_core.occupancy import load_occ3d

SCENES = {"scene-0001": ["a", "b"], "scene-0002": ["c"]}


@pytest.fixture
def store(tmp_path) -> LabelStore:
    """Complete, with three labels."""
    store = LabelStore(tmp_path / "labels")
    store.claim(MADE_WITH, SCENES)
    for number, (scene, token) in enumerate(store.samples):
        store.write(scene, token, scene_label(token, number, ("CAM_BACK: no image",)))
    return store


def test_numpy_alone_reads_occ3d_arrays_and_ours(store):
    label = scene_label("c", 2)
    with np.load(store.path("scene-0002", "c")) as arrays:
        assert {name: (array.dtype.name, array.shape) for name, array in arrays.items()} == {
            "semantics": ("uint8", (200, 200, 16)),
            "mask_lidar": ("uint8", (200, 200, 16)),
            "mask_camera": ("uint8", (200, 200, 16)),
            "confidence": ("float16", (200, 200, 16)),
            "votes": ("uint16", (200, 200, 16)),
        }
        assert (arrays["semantics"] == label.occupancy.labels).all()
        assert (arrays["mask_camera"] == label.occupancy.observed).all()
        assert (arrays["votes"] == label.votes).all()


def test_read_gives_back_what_was_written(store):
    label, back = scene_label("b", 1), store.read("scene-0001", "b")
    assert (back.occupancy.labels == label.occupancy.labels).all()
    assert (back.occupancy.observed == label.occupancy.observed).all()
    assert np.allclose(back.occupancy.confidence, label.occupancy.confidence, atol=1e-3)
    assert (back.votes == label.votes).all()
    assert store.skipped("scene-0001", "b") == ["CAM_BACK: no image"]
    assert list(store.check()) == []


def test_equal_labels_give_equal_bytes_in_another_process_and_second(store, tmp_path):
    """A zip archive usually holds the time of day: after two seconds its bytes would differ."""
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(label_fixtures.__file__).parent)!r})
from label_fixtures import MADE_WITH, scene_label
from occ_core.labels.store import LabelStore
time.sleep(2.1)
store = LabelStore(sys.argv[1])
store.claim(MADE_WITH, {SCENES!r})
for number, (scene, token) in reversed(list(enumerate(store.samples))):
    store.write(scene, token, scene_label(token, number, ("CAM_BACK: no image",)))
"""
    other = tmp_path / "other"
    subprocess.run([sys.executable, "-c", code, str(other)], check=True, timeout=60)
    assert hashes(other) == hashes(store.folder)


def test_record_says_hash_provenance_and_cells(store):
    record = json.loads((store.folder / "scene-0001/a/labels.json").read_text())
    assert record["recipe"] == "best"
    assert record["teacher"] == "oracle"
    assert sum(record["cells"].values()) == 640_000
    observed = load_occ3d(store.path("scene-0001", "a")).observed
    assert record["cells"]["unobserved"] == 640_000 - observed.sum()
    assert record["sha256"] == hashes(store.folder)["scene-0001/a/labels.npz"]


def test_the_evaluator_reads_a_store(store):
    report, samples = evaluate_folders(store.folder, store.folder)
    assert samples == 3
    assert report["full"]["iou"] == 100


@pytest.mark.parametrize(
    "made_with, said",
    [
        ({**MADE_WITH, "teacher": "realistic"}, "teacher oracle .asked for realistic"),
        ({**MADE_WITH, "settings": {"past": 3, "min_points": 4}}, "settings.past 13 .asked for 3"),
        ({**MADE_WITH, "seed": 1}, "seed None .asked for 1"),
    ],
)
def test_a_store_made_otherwise_is_refused_in_one_line(store, made_with, said):
    before = hashes(store.folder)
    with pytest.raises(InvalidInput, match=said) as caught:
        LabelStore(store.folder).claim(made_with, SCENES)
    assert "\n" not in str(caught.value)
    assert hashes(store.folder) == before


def test_other_files_are_not_taken_for_a_store(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InvalidInput, match="not empty"):
        LabelStore(tmp_path).claim(MADE_WITH, SCENES)
    with pytest.raises(MissingInput, match="store.json"):
        list(LabelStore(tmp_path).check())
    (tmp_path / "store.json").write_text('{"format": 99, "scenes": {}, "made_with": {}}')
    with pytest.raises(CorruptInput, match="format 1"):
        LabelStore(tmp_path).claim(MADE_WITH, SCENES)


def test_scenes_of_another_data_set_are_refused(store):
    with pytest.raises(InvalidInput, match="another data set's scene-0002"):
        LabelStore(store.folder).claim(MADE_WITH, {"scene-0001": ["a", "b"], "scene-0002": ["other"]})
    assert list(store.check()) == []


def test_a_record_that_cannot_be_removed_is_a_clear_error(store):
    record = store.folder / "scene-0001/a/labels.json"
    record.unlink()
    record.mkdir()
    assert not store.is_complete("scene-0001", "a")
    with pytest.raises(CannotWrite, match="labels.json: cannot remove"):
        store.write("scene-0001", "a", scene_label("a"))


def test_scenes_are_added_to_a_store(store):
    again = LabelStore(store.folder)
    again.claim(MADE_WITH, {"scene-0003": ["d"]})
    assert ("scene-0003", "d") in again.samples
    assert ("scene-0001", "a") in again.samples
    assert again.is_complete("scene-0001", "a")
    assert not again.is_complete("scene-0003", "d")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def from_elsewhere(path: Path) -> None:
    path.write_text(path.read_text().replace(json.loads(path.read_text())["made_with"], "0" * 16))


DAMAGES = {
    "no label": ("labels.npz", Path.unlink, "no such file"),
    "no record": ("labels.json", Path.unlink, "no such file"),
    "empty label": ("labels.npz", lambda path: path.write_bytes(b""), "its 0 bytes"),
    "cut off": ("labels.npz", cut, "hash"),
    "one bit": ("labels.npz", flip_a_bit, "hash"),
    "broken record": ("labels.json", lambda path: path.write_text("{"), "not a JSON file"),
    "record of bytes": ("labels.json", lambda path: path.write_bytes(b"\xff\xfe\x00"), "not a JSON file"),
    "record is a list": ("labels.json", lambda path: path.write_text("[]"), "must be a JSON object"),
    "other recipe": ("labels.json", from_elsewhere, "made with other settings"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_by_check_and_by_resume(store, name):
    file, damage, said = DAMAGES[name]
    damage(store.folder / "scene-0001/b" / file)
    (problem,) = store.check()
    assert said in problem
    assert "scene-0001/b" in problem
    assert not store.is_complete("scene-0001", "b")
    assert store.is_complete("scene-0001", "a")


def rewrite(store: LabelStore, change) -> None:
    """Another writer's label with a hash that fits: only its content is wrong."""
    import hashlib

    path = store.path("scene-0001", "a")
    with np.load(path) as arrays:
        content = change(dict(arrays))
    np.savez_compressed(path, **content)
    record = json.loads(path.with_suffix(".json").read_text())
    record["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".json").write_text(json.dumps(record))


WRONG_CONTENT = {
    "no votes": (lambda c: {k: v for k, v in c.items() if k != "votes"}, "no array 'votes'"),
    "wrong shape": (lambda c: {**c, "semantics": c["semantics"][:100]}, "shape"),
    "votes of floats": (lambda c: {**c, "votes": c["votes"].astype(np.float32)}, "'votes' must be uint8 or uint16"),
    "no such class": (lambda c: {**c, "semantics": np.full_like(c["semantics"], 18)}, "label 18 is not in"),
    "class where nobody looked": (lambda c: {**c, "mask_camera": 0 * c["mask_camera"]}, "not observed"),
    "confidence of 2": (lambda c: {**c, "confidence": c["confidence"] + 2}, "confidence must be 0..1"),
    "confidence NaN": (lambda c: {**c, "confidence": c["confidence"] * np.float16(np.nan)}, "confidence must be 0..1"),
}


@pytest.mark.parametrize("name", WRONG_CONTENT)
def test_check_finds_wrong_content_under_a_right_hash(store, name):
    change, said = WRONG_CONTENT[name]
    rewrite(store, change)
    (problem,) = store.check()
    assert said in problem
    assert "scene-0001/a" in problem


def test_check_finds_what_does_not_belong(store):
    (store.folder / "scene-0001/a/.labels.npz.77.tmp").write_bytes(b"half")
    (store.folder / "scene-0009/z").mkdir(parents=True)
    (store.folder / "scene-0009/z/labels.npz").write_bytes(b"?")
    problems = list(store.check())
    assert len(problems) == 2
    assert any("left by a killed run" in problem for problem in problems)
    assert any("scene-0009/z/labels.npz: not of this store" in problem for problem in problems)


def test_what_a_killed_run_left_is_swept_away_by_the_next(store):
    stale = store.folder / "scene-0001/a/.labels.npz.77.tmp"
    stale.write_bytes(b"half")
    store.write("scene-0001", "a", scene_label("a", 0))
    assert not stale.exists()
    assert list(store.check()) == []


def on_a_small_disk(store: LabelStore, limit: int) -> None:
    """In a child: no file may grow beyond `limit` bytes, which fails in the middle of a write as a full disk does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        store.write("scene-0001", "a", scene_label("a", 9))
    except CannotWrite as error:
        os._exit(7 if "labels.npz: cannot write" in str(error) else 8)
    os._exit(0)


def test_a_write_that_fails_half_way_leaves_no_half_label(store):
    pid = os.fork()
    if pid == 0:
        on_a_small_disk(store, 4096)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert not store.is_complete("scene-0001", "a")
    assert not list(store.folder.rglob("*.tmp"))
    store.write("scene-0001", "a", scene_label("a", 0, ("CAM_BACK: no image",)))
    assert list(store.check()) == []


def test_a_full_disk_is_a_clear_error(small_disk):
    store = LabelStore(small_disk / "labels")
    store.claim(MADE_WITH, {"scene-0001": [str(i) for i in range(100)]})
    with pytest.raises(CannotWrite, match=os.strerror(errno.ENOSPC)):
        for number in range(100):
            store.write("scene-0001", str(number), scene_label(str(number), number))
    assert store.is_complete("scene-0001", "0")
    assert not list(store.folder.rglob("*.tmp"))
    whole = [token for _, token in store.samples if store.path("scene-0001", token).is_file()]
    for token in whole:
        load_occ3d(store.path("scene-0001", token))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root; a limit on file size stands in for it in another test")
    yield disk
    subprocess.run(["umount", disk], check=True)
