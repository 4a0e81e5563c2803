"""A run on little data, in a used folder, with files that lack, without a cache; and what `--steps` counts."""

import json
import zipfile

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from occ_core.cli.main import app
from occ_core.errors import CorruptInput, InvalidInput, MissingInput
from occ_core.training.file_check import fault_of, require_files
from occ_core.training.hold_out import HoldOut, hold_out

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors.torch")

import small_nuscenes  # noqa: E402
import tiny_camera_network as tiny  # noqa: E402
from model_fixtures import COARSE_NANO, SMALL  # noqa: E402
from nano_fixtures import open_scenes  # noqa: E402

from occ_core.training import cache, loop  # noqa: E402
from occ_core.training.config import TrainingConfig, with_steps  # noqa: E402
from occ_core.training.data_sets import open_data  # noqa: E402
from occ_core.training.state import recorded_steps  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture
def tiny_data(tmp_path, monkeypatch):
    tiny.use_tiny(monkeypatch.setattr)
    tiny.make_data(tmp_path / "set", scenes=2, keyframes=1)
    return tmp_path / "set"


# --- what is held out -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenes", [17, 20, 700])
def test_numbers_mean_what_they_say_where_a_scene_is_left(scenes, caplog):
    assert hold_out(scenes, 10, 6) == (10, 6) and hold_out(scenes, scenes - 1) == (scenes - 1, 0)
    assert not caplog.records


@pytest.mark.parametrize(
    ("scenes", "chosen"), [(1, (0, 0)), (2, (1, 0)), (3, (1, 0)), (4, (1, 1)), (6, (1, 2)), (8, (2, 2)), (16, (5, 3))]
)
def test_fewer_scenes_are_shared_and_one_line_says_how(scenes, chosen, caplog):
    assert hold_out(scenes, 10, 6) == HoldOut(*chosen)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{scenes} scenes are fewer than the run holds out: {scenes - sum(chosen)} train, {chosen[0]} of 10 validate, "
        f"{chosen[1]} of 6 fit thresholds"
    )


@pytest.mark.parametrize("validation", [0, 1, 3, 50])
@pytest.mark.parametrize("thresholds", [0, 1, 6])
def test_half_of_the_scenes_train_whatever_is_asked(validation, thresholds):
    for scenes in range(1, 12):
        held = hold_out(scenes, validation, thresholds)
        assert 0 <= held.validation <= validation and 0 <= held.thresholds <= thresholds
        assert scenes - sum(held) >= (1 if validation + thresholds < scenes else -(-scenes // 2))


COARSE_TINY = tiny.TinyConfig(voxel_size_m=COARSE_NANO.voxel_size_m, grid_shape=COARSE_NANO.grid_shape)


def test_both_kinds_train_on_two_scenes(tiny_data, tmp_path, monkeypatch):
    path = loop.train(tiny.run_config(tiny_data, steps=1, validation_scenes=10), tmp_path / "out")
    data = json.loads(path.with_suffix(".json").read_text())["training"]["data"]
    assert (data["scenes"], data["held_out_scenes"]) == (1, ["scene-0002"])
    tiny.make_data(tmp_path / "coarse", scenes=2, keyframes=1, grid=COARSE_NANO.grid)
    run = TrainingConfig(model=COARSE_NANO, data=(tmp_path / "coarse",), cache=tmp_path)
    held = open_data(run, COARSE_NANO.needs, print)
    assert [len(part) for part in held[:3]] == [1, 0, 1] and held.held_out_scenes == ["scene-0002"]


@pytest.mark.parametrize("asked", [2, ("scene-0002",)])
def test_a_data_set_that_is_named_twice_teaches_twice_and_is_held_out_in_both(tmp_path, monkeypatch, asked):
    tiny.use_tiny(monkeypatch.setattr)
    tiny.make_data(tmp_path / "set", scenes=5, keyframes=2, grid=COARSE_NANO.grid)
    for model in (COARSE_TINY, COARSE_NANO):
        run = TrainingConfig(model=model, data=(tmp_path / "set",) * 2, validation_scenes=asked, cache=tmp_path / "c",
                             nano={"threshold_scenes": 1})  # fmt: skip
        held = open_data(run, frozenset({"labels"}), print)
        names, judged = held.training.names, held.validation.names
        scenes = 5 - len(held.held_out_scenes) - len(held.fitting_scenes)
        assert len(names) == 2 * 2 * scenes and sorted([*set(names)] * 2) == sorted(names)
        assert len(judged) == len(set(judged)) == 2 * len(held.held_out_scenes)
        assert not set(names) & {*judged, *held.fitting.names}
        expected = ["scene-0002"] if asked != 2 else ["scene-0004", "scene-0005"]
        assert held.held_out_scenes == expected and held.fitting_scenes == (
            [] if model is not COARSE_NANO else ["scene-0005" if asked != 2 else "scene-0003"]
        )


def test_scenes_without_labels_are_none_of_the_run_but_where_others_judge_it(tmp_path, monkeypatch):
    tiny.use_tiny(monkeypatch.setattr)
    tokens = tiny.make_data(tmp_path / "set", scenes=4, keyframes=1, grid=COARSE_NANO.grid)
    (tmp_path / "set/gts").rename(tmp_path / "set/truth")
    tiny.write_labels(tmp_path / "set", "gts", tokens[:3], 1, grid=COARSE_NANO.grid)
    for model in (COARSE_TINY, COARSE_NANO):
        run = TrainingConfig(model=model, data=(tmp_path / "set",), validation_scenes=1, cache=tmp_path / "cache",
                             nano={"threshold_scenes": 0})  # fmt: skip
        held = open_data(run, frozenset({"labels"}), print)
        assert held.held_out_scenes == ["scene-0003"] and held.training.names == tokens[:2]
        held = open_data(run.model_copy(update={"validation_labels": "truth"}), frozenset({"labels"}), print)
        assert held.held_out_scenes == ["scene-0004"] and held.training.names == tokens[:3]
        assert held.validation.names == tokens[3:]


# --- steps ------------------------------------------------------------------------------------------------------------


def lengths(config: TrainingConfig) -> list[int]:
    return [phase.steps for phase in config.model.phases(config.steps, config.nano)]


@pytest.mark.parametrize("total", [1, 2, 3, 7, 220, 22000, 44000])
def test_steps_are_those_of_all_phases(total):
    config = TrainingConfig(model=SMALL, steps=8000, nano={"image_steps": 14000})
    asked = with_steps(config, total)
    assert sum(lengths(asked)) == total and asked.steps >= 1
    assert asked.nano.image_steps == 14000 * total // 22000
    remembers = TrainingConfig(
        model=SMALL.model_copy(update={"memory_channels": 4}), steps=100, nano={"image_steps": 50, "memory_steps": 30}
    )
    phases = lengths(with_steps(remembers, total))
    assert sum(phases) == total and phases[2] >= 1 and phases[1] >= 0


def test_steps_of_other_networks_are_all_their_steps():
    assert with_steps(TrainingConfig(model=tiny.TinyConfig(), steps=8), 3).steps == 3


def test_a_run_begun_when_steps_did_not_count_those_on_images_goes_on(tmp_path):
    config = TrainingConfig(model=SMALL, steps=8000, nano={"image_steps": 200})
    assert recorded_steps(tmp_path) is None
    for steps, image_steps, expected in ((1000, 200, (1000, 200)), (976, 24, (976, 24))):
        run = {"training": {"config": {"steps": steps, "nano": {"image_steps": image_steps}}}}
        (tmp_path / "last.json").write_text(json.dumps(run))
        begun = with_steps(config, 1000, recorded_steps(tmp_path))
        assert (begun.steps, begun.nano.image_steps) == expected
    (tmp_path / "last.json").write_text(json.dumps({"training": {"config": {"steps": 3}}}))
    assert recorded_steps(tmp_path) is None


# --- used folders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", ["model.safetensors", "last.safetensors"])
def test_a_folder_with_a_run_is_refused_and_stays_as_it_is(tmp_path, there):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / there).write_bytes(b"a week of work")
    (tmp_path / "run.yaml").write_text("steps: 1\n")
    run = ["train", str(tmp_path / "run.yaml"), "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, run)
    assert isinstance(result.exception, InvalidInput)
    for words in (f"holds a run ({there})", "--resume", "--overwrite", "--out"):
        assert words in str(result.exception)
    result = CliRunner().invoke(app, [*run, "--resume", "--overwrite"])
    assert isinstance(result.exception, InvalidInput) and "one of them" in str(result.exception)
    result = CliRunner().invoke(app, [*run, "--overwrite"])  # without data there is nothing to overwrite it with
    assert isinstance(result.exception, MissingInput)
    assert [p.name for p in (tmp_path / "run").iterdir()] == [there]


def test_overwriting_leaves_nothing_of_the_run_before(tiny_data, tmp_path):
    loop.train(tiny.run_config(tiny_data, steps=3), tmp_path / "out")
    path = loop.train(tiny.run_config(tiny_data, steps=2, seed=5), tmp_path / "out", overwrite=True)
    loop.train(tiny.run_config(tiny_data, steps=2, seed=5), tmp_path / "new")
    assert path.read_bytes() == (tmp_path / "new/model.safetensors").read_bytes()
    assert [row["step"] for row in tiny.rows(tmp_path / "out")] == ["1", "2"]


@pytest.mark.parametrize("at", [2, 4])
def test_a_run_killed_in_a_validation_loses_no_step_and_ends_the_same(tiny_data, tmp_path, monkeypatch, at):
    config = tiny.run_config(tiny_data, steps=4, validate_every=2, checkpoint_every=100)
    loop.train(config, tmp_path / "unbroken")

    def killed(state, *rest):
        if state.step == at:
            raise MemoryError("killed")
        validate(state, *rest)

    validate = loop.validate
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(loop, "validate", killed)
        loop.train(config, tmp_path / "out")
    assert int(tiny.weights(tmp_path / "out")["run.step"]) == at
    loop.train(config, tmp_path / "out", resume=True)
    for name in ("model", "last"):
        files = [tmp_path / out / f"{name}.safetensors" for out in ("out", "unbroken")]
        assert files[0].read_bytes() == files[1].read_bytes()
        records = [json.loads(file.with_suffix(".json").read_text())["training"] for file in files]
        assert records[0]["metrics"] == records[1]["metrics"] and "not_validated" not in records[0]


# --- files ------------------------------------------------------------------------------------------------------------


def spoil(path, how):
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "cut": data[: len(data) * 2 // 3], "foreign": b"<html>404</html>"}[how])


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".npz"])
@pytest.mark.parametrize("how", ["gone", "empty", "cut", "foreign"])
def test_a_file_that_cannot_be_read_is_found_by_its_ends(tmp_path, suffix, how):
    path = tmp_path / f"file{suffix}"
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    if suffix == ".npz":
        np.savez_compressed(path, semantics=image)
    else:
        cv2.imwrite(str(path), image)
    assert fault_of(path) is None
    spoil(path, how)
    assert fault_of(path) is not None


def test_what_follows_an_image_does_not_make_it_a_cut_one(tmp_path):
    path = tmp_path / "image.jpg"
    cv2.imwrite(str(path), np.zeros((60, 80, 3), np.uint8))
    path.write_bytes(path.read_bytes() + b"\0" * 5000)
    assert fault_of(path) is None


def test_faults_are_counted_and_the_first_is_named(tmp_path):
    paths = [tmp_path / f"{i}.npz" for i in range(4)]
    for path in paths[:2]:
        with zipfile.ZipFile(path, "w"):
            pass
    require_files(paths[:2])
    with pytest.raises(MissingInput, match=r"2\.npz: is missing or empty; 2 of the 4 files that the run reads"):
        require_files([*paths, *paths])
    paths[1].write_bytes(b"PK")
    with pytest.raises(CorruptInput, match=r"1\.npz: is cut short or no npz file; 1 of the 2 files"):
        require_files(paths[:2])


@pytest.mark.parametrize(
    ("which", "how"),
    [("samples/CAM_BACK/*", "gone"), ("samples/CAM_FRONT/*", "cut"), ("gts/scene-0002/*/labels.npz", "cut")],
)
def test_no_step_is_made_where_a_file_lacks(tiny_data, tmp_path, monkeypatch, which, how):
    monkeypatch.setattr(loop, "train_step", lambda *_: pytest.fail("a step was made"))
    path = sorted(tiny_data.glob(which))[-1]
    spoil(path, how)
    with pytest.raises((MissingInput, CorruptInput), match=f"{path.name}.* 1 of the 6 files that the run reads"):
        loop.train(tiny.run_config(tiny_data), tmp_path / "out")


# --- a cache that cannot be written -----------------------------------------------------------------------------------


def test_arrays_that_cannot_be_kept_are_held_in_memory(tmp_path, caplog):
    tokens = small_nuscenes.make(tmp_path / "set", keyframes=2, sweeps=0)
    config = SMALL.model_copy(
        update={"grid_shape": (200, 200, 16), "grid_origin_m": (-40.0, -40.0, -1.0), "voxel_size_m": 0.4}
    )
    (tmp_path / "file").write_text("")
    (held,) = open_scenes(tmp_path / "set", "gts", config, tmp_path / "file")
    assert f"{tmp_path / 'file'}" in caplog.text and "kept in memory" in caplog.text
    (kept,) = open_scenes(tmp_path / "set", "gts", config, tmp_path / "cache")
    assert held.tokens == kept.tokens == tokens
    assert all(np.array_equal(held[name], kept[name]) for name in cache.ARRAYS)


def test_a_disk_that_is_full_leaves_no_half_of_a_scene(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        cache._write({"images": np.zeros(3)}, ["token"], tmp_path / "scene")
    assert list(tmp_path.iterdir()) == []
