"""Predictions say what made them; stale ones are refused, cut ones are made anew."""

import os
import shutil
import tempfile

import numpy as np
import pytest
import small_nuscenes

from occ_core.errors import CannotWrite, InvalidInput
from occ_core.evaluation.predictions import read_observed, read_prediction
from occ_core.files import content_key, default_cache, require_writable
from occ_core.grid import OCC3D_GRID
from occ_core.inference import predictor
from occ_core.inference.predictions import MadeBy, lacking, made_by, model_key, remove_others, save_prediction
from occ_core.numba_cache import provide_numba_cache
from occ_core.sources.open import frame_key, open_source

LABELS = np.full(OCC3D_GRID.shape, 11, dtype=np.uint8)
OURS = MadeBy("model", "images")


def test_a_prediction_says_what_made_it_and_reads_as_before(tmp_path):
    path = tmp_path / "token.npz"
    save_prediction(path, LABELS, LABELS == 0, OURS)
    assert made_by(path) == OURS
    assert np.array_equal(read_prediction(path, OCC3D_GRID), LABELS) and not read_observed(path, OCC3D_GRID).any()
    with np.load(path) as archive:  # as other people's evaluators do
        assert archive["pred"].dtype == np.uint8


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (MadeBy("another", "images"), "was made by another model"),
        (MadeBy("another", "other"), "was made by another model"),
        (MadeBy("model", "other"), "was made of other images"),
        (None, "does not say which model made it"),
    ],
)
def test_stale_predictions_are_refused(tmp_path, other, why):
    files = [tmp_path / f"{i}.npz" for i in range(3)]
    save_prediction(files[0], LABELS, None, OURS)
    assert lacking(files, "model", lambda _: "images") == [False, True, True]
    save_prediction(files[1], LABELS, None, other)
    with pytest.raises(InvalidInput, match=rf"1\.npz: {why}.*--overwrite"):
        lacking(files, "model", lambda _: "images")


def test_overwriting_removes_what_other_models_predicted_and_nothing_else(tmp_path):
    for name, made in {"a": OURS, "b": MadeBy("another", "images"), "c": None, "d": MadeBy("another", "x")}.items():
        save_prediction(tmp_path / f"{name}.npz", LABELS, None, made)
    (tmp_path / "cut.npz").write_bytes(b"PK")
    assert remove_others(tmp_path, OURS.model) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "c.npz", "cut.npz"]


def test_a_folder_holds_one_model_but_frames_of_several_runs(tmp_path):
    """Scene by scene with --scene: another model's predictions of other frames would be scored with ours."""
    save_prediction(tmp_path / "earlier.npz", LABELS, None, MadeBy("model", "of another scene"))
    (tmp_path / "._earlier.npz").write_bytes(b"Mac OS X")
    assert lacking([tmp_path / "new.npz"], "model", lambda _: pytest.fail("nothing to compare")) == [True]
    with pytest.raises(InvalidInput, match=r"earlier\.npz: was made by another model"):
        lacking([tmp_path / "new.npz"], "another", lambda _: "images")


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "foreign"])
def test_a_damaged_prediction_is_made_anew(tmp_path, damage):
    path = tmp_path / "token.npz"
    save_prediction(path, np.random.default_rng(0).integers(0, 18, OCC3D_GRID.shape, np.uint8), None, OURS)
    data = path.read_bytes()
    half = len(data) // 2
    flipped = data[:half] + bytes([data[half] ^ 255]) + data[half + 1 :]
    path.write_bytes({"cut": data[:half], "empty": b"", "flipped": flipped, "foreign": b"no archive"}[damage])
    assert made_by(path) is None and lacking([path], "model", lambda _: "images") == [True]


def test_the_key_of_a_model_is_of_its_bytes_its_json_and_its_settings(tmp_path):
    path = tmp_path / "m.safetensors"
    keys = set()
    for weights, record in ((b"a", "{}"), (b"b", "{}"), (b"b", "{ }")):
        path.write_bytes(weights)
        path.with_suffix(".json").write_text(record)
        keys.add(model_key(path))
    assert len(keys) == 3 and model_key(path, "alone") not in keys
    shutil.copytree(tmp_path, tmp_path / "moved")
    assert model_key(tmp_path / "moved" / "m.safetensors") == model_key(path)


def test_the_key_of_a_frame_is_of_what_its_images_are(tmp_path):
    small_nuscenes.make(tmp_path / "set")
    shutil.copytree(tmp_path / "set", tmp_path / "copy", copy_function=shutil.copy)  # other times
    source, copy = open_source(tmp_path / "set"), open_source(tmp_path / "copy")
    keys = [frame_key(tmp_path / "set", source, i) for i in range(3)]
    assert len(set(keys)) == 3 and keys == [frame_key(tmp_path / "copy", copy, i) for i in range(3)]
    sweep = copy.files(1, lidar=True)[-1]
    before = frame_key(tmp_path / "copy", copy, 1, lidar=True)
    sweep.write_bytes(sweep.read_bytes()[:-20])
    assert frame_key(tmp_path / "copy", copy, 1) == keys[1]
    assert frame_key(tmp_path / "copy", copy, 1, lidar=True) != before
    shutil.copy(copy.files(2)[1], copy.files(1)[1])
    assert frame_key(tmp_path / "copy", copy, 1) != keys[1]


def test_the_key_of_a_bags_frame_is_of_its_files(tmp_path):
    (tmp_path / "metadata.yaml").write_text("")
    bag = tmp_path / "drive.mcap"
    bag.write_bytes(b"bag")
    keys = {frame_key(tmp_path, None, 0), frame_key(tmp_path, None, 7), frame_key(bag, None, 0)}
    assert len(keys) == 1
    bag.write_bytes(b"another")
    assert frame_key(tmp_path, None, 0) not in keys


def test_absent_files_have_a_key(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    assert content_key([tmp_path / "a"]) == content_key([tmp_path / "b" / "a"]) != content_key([tmp_path / "b"])


# --- caches that cannot be written ------------------------------------------------------------------------------------


def test_a_cache_that_cannot_be_written_costs_speed_alone(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(predictor, "_can_export", lambda path: True)
    monkeypatch.setattr(predictor, "_torch_session", lambda *given: given)
    monkeypatch.setattr(predictor.importlib.util, "find_spec", lambda name: True)
    path = tmp_path / "m.safetensors"

    def cannot_export(checkpoint):
        require_writable(default_cache() / "onnx")

    monkeypatch.setattr(predictor, "cached_export", cannot_export)
    assert predictor._session(path, "auto", 1) == (path, "torch", 1)
    assert "not kept, the model runs in torch" in caplog.text and str(tmp_path / "file") in caplog.text
    with pytest.raises(CannotWrite):  # who asks for a runtime gets it or an error
        predictor._session(path, "onnxruntime", 1)


def test_the_cache_of_a_user_without_home_is_a_path_all_the_same(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it does without an entry in /etc/passwd
    assert default_cache().is_absolute()
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # set and empty counts as not set
    assert default_cache().is_absolute()


def test_require_writable(tmp_path):
    require_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite, match="file/below: cannot be written"):
        require_writable(tmp_path / "file" / "below")


def test_numba_finds_a_cache_where_neither_code_nor_home_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    environ = {"XDG_CACHE_HOME": str(tmp_path / "file" / "below")}
    provide_numba_cache(tmp_path, environ)  # beside the code
    assert "NUMBA_CACHE_DIR" not in environ
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for kept in ({"XDG_CACHE_HOME": str(tmp_path / "users")}, {"NUMBA_CACHE_DIR": "chosen"}):
        before = dict(kept)
        provide_numba_cache(tmp_path / "package", kept)
        assert kept == before
    provide_numba_cache(tmp_path / "package", environ)
    assert os.path.isdir(environ["NUMBA_CACHE_DIR"]) and environ["NUMBA_CACHE_DIR"].startswith(str(tmp_path))
