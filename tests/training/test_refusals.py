"""What training refuses, in one line that names both sides: numbers that are none, other models, other data."""

import json

import pytest

from occ_core.errors import CorruptInput, InvalidInput, MissingInput

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors.torch")

import tiny_camera_network as tiny  # noqa: E402
from model_fixtures import SMALL  # noqa: E402

from occ_core.inference.predictor import Predictor  # noqa: E402
from occ_core.models.config import Phase  # noqa: E402
from occ_core.training import loop  # noqa: E402

pytestmark = pytest.mark.usefixtures("tiny_network")
torch.set_num_threads(1)


def test_a_loss_that_is_no_number_ends_training_and_overwrites_nothing(data, tmp_path, monkeypatch):
    config = tiny.run_config(data, steps=5, checkpoint_every=2)
    original = tiny.Tiny.forward

    def failing(self, rig_images, targets, progress):
        losses = original(self, rig_images, targets, progress)
        return {**losses, "extra": losses["cells"] * (float("inf") if progress >= 3 / 5 else 0.1)}

    monkeypatch.setattr(tiny.Tiny, "forward", failing)
    with pytest.raises(InvalidInput, match=r"diverged at step 4: extra, total not finite") as caught:
        loop.train(config, tmp_path / "out")
    assert "\n" not in str(caught.value)
    saved = tiny.weights(tmp_path / "out")
    assert int(saved["run.step"]) == 2 and all(torch.isfinite(tensor).all() for tensor in saved.values())


def test_a_gradient_that_is_no_number_ends_training_too(data, tmp_path, monkeypatch):
    def rooted(self, rig_images, targets, progress):
        return {"cells": (self.logits(rig_images) * 0).abs().sqrt().sum()}  # 0, with slope infinity times 0

    monkeypatch.setattr(tiny.Tiny, "forward", rooted)
    with pytest.raises(InvalidInput, match="step 1: gradient not finite"):
        loop.train(tiny.run_config(data), tmp_path / "out")
    assert not (tmp_path / "out/last.safetensors").exists()


def test_a_gradient_that_never_fits_half_precision_ends_training(data, tmp_path, monkeypatch):
    """The scaler alone: it skips steps 1 and 2, and halves."""

    def scaled(*given):
        made = new_state(*given)
        made.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        return made

    def rooted(self, rig_images, *_):
        return {"cells": (self.logits(rig_images) * 0).abs().sqrt().sum()}

    new_state = loop.new_state
    monkeypatch.setattr(loop, "new_state", scaled)
    monkeypatch.setattr(tiny.Tiny, "forward", rooted)
    with pytest.raises(InvalidInput, match=r"diverged at step 3: gradient not finite even .* scaled by 0\.5"):
        loop.train(tiny.run_config(data), tmp_path / "out")
    assert not (tmp_path / "out/last.safetensors").exists()


def test_losses_that_teach_nothing_are_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny.Tiny, "forward", lambda self, *_: {"cells": torch.zeros(())})
    with pytest.raises(InvalidInput, match="step 1 teaches nothing"):
        loop.train(tiny.run_config(data), tmp_path / "out")


def test_a_checkpoint_of_another_model_is_refused_by_both_kinds(data, tmp_path):
    loop.train(tiny.run_config(data, steps=1), tmp_path / "out")
    record = json.loads((tmp_path / "out/last.json").read_text())
    record["model"] = {"name": "easyocc_nano"}  # of before kinds were written
    (tmp_path / "out/last.json").write_text(json.dumps(record))
    with pytest.raises(InvalidInput, match="kind 'easyocc-nano', this run trains one of kind 'tiny'"):
        loop.train(tiny.run_config(data, steps=1), tmp_path / "out", resume=True)
    record["model"] = {"kind": "voxelnet"}
    (tmp_path / "out/last.json").write_text(json.dumps(record))
    with pytest.raises(InvalidInput, match="'voxelnet' is not one of easyocc-nano, easyocc, occnerf, selfocc"):
        Predictor.load(tmp_path / "out/last.safetensors", "torch")


def test_a_resumed_run_must_have_the_same_settings(data, tmp_path):
    loop.train(tiny.run_config(data, steps=1), tmp_path / "out")
    for changes, words in (
        ({"accumulate": 2}, "accumulate 1, this one 2"),
        ({"model": tiny.TinyConfig(input_height=64)}, "input_height 32, this one 64"),
    ):
        with pytest.raises(InvalidInput, match=words):
            loop.train(tiny.run_config(data, steps=1, **changes), tmp_path / "out", resume=True)


def test_a_resumed_run_must_have_the_same_samples_and_labels(tmp_path):
    config, root = tiny.run_config(tmp_path / "set", steps=1), tmp_path / "set"
    tokens = tiny.make_data(root)
    loop.train(config, tmp_path / "out")
    (root / "gts/scene-0001" / tokens[0] / "labels.npz").rename(tmp_path / "labels.npz")
    with pytest.raises(InvalidInput, match=r"its run has samples [0-9a-f]{64}, this one [0-9a-f]{64}; a run"):
        loop.train(config, tmp_path / "out", resume=True)
    (tmp_path / "labels.npz").rename(root / "gts/scene-0001" / tokens[0] / "labels.npz")
    made = {"format": 1, "made_with": {"recipe": "best"}, "scenes": {}}
    (root / "gts/store.json").write_text(json.dumps(made))
    with pytest.raises(InvalidInput, match=r"has labels made as \[{'folder': 'gts'}\], this one .*'recipe': 'best'"):
        loop.train(config, tmp_path / "out", resume=True)


def test_settings_that_do_not_fit_data_or_machine_are_named(data, tmp_path):
    store = tmp_path / "store"
    made_with = {"grid": {"origin_m": [-40.0, -40.0, -1.0], "voxel_size_m": 0.4, "shape": [200, 200, 16]}}

    def stored(**changes) -> str:
        store.mkdir(exist_ok=True)
        record = {"format": 1, "made_with": {**made_with, "taxonomy": "occ3d", **changes}, "scenes": {}}
        (store / "store.json").write_text(json.dumps(record))
        return str(store)

    model = tiny.TinyConfig()
    same = {"origin_m": model.grid_origin_m, "voxel_size_m": 4.0, "shape": model.grid_shape}
    cases = [
        ({"labels": stored()}, r"shape \[200, 200, 16\].*the model's is .*shape \[20, 20, 2\]"),
        ({"data": ()}, "no training data"),
        ({"validation_scenes": ("scene-0001", "scene-0002", "scene-0003")}, "no scene is left to train on of 3"),
        ({"validation": (data,)}, "in training and validation"),
        ({"model": tiny.TinyConfig(needs=("labels", "depth_m"))}, "need depth_m, which a teacher gives"),
        ({"precision": "fp16"}, "'fp16' needs device 'cuda'"),
    ]
    if not torch.cuda.is_available():
        cases.append(({"device": "cuda"}, "finds no CUDA device"))
    for changes, words in cases:
        with pytest.raises(InvalidInput, match=words) as caught:
            loop.train(tiny.run_config(data, **changes), tmp_path / "out")
        assert "\n" not in str(caught.value)
    with pytest.raises(InvalidInput, match="taxonomy 'semantic_kitti', the model's is 'occ3d'"):
        loop.train(tiny.run_config(data, labels=stored(grid=same, taxonomy="semantic_kitti")), tmp_path / "out")
    with pytest.raises(InvalidInput, match="no sample to train on has labels: none of 3 scenes"):
        loop.train(tiny.run_config(data, labels=stored(grid=same)), tmp_path / "out")
    with pytest.raises(MissingInput, match="no labels"):
        loop.train(tiny.run_config(data, labels="nowhere"), tmp_path / "out")
    with pytest.raises(MissingInput, match="backbone_weights"):
        lost = tiny.TinyConfig(backbone_weights=tmp_path / "lost.safetensors")
        loop.train(tiny.run_config(data, model=lost), tmp_path / "out")


def test_phases_and_samples_that_a_network_cannot_learn_from_are_named(data, tmp_path, monkeypatch):
    with pytest.raises(InvalidInput, match="'small' learns from labels alone, the run has 'unlabelled: true'"):
        loop.train(tiny.run_config(data, model=SMALL, unlabelled=True), tmp_path / "out")
    monkeypatch.setattr(tiny.TinyConfig, "phases", lambda *_: (Phase("images", 1), Phase("samples", 1)))
    with pytest.raises(InvalidInput, match="'tiny' asks for a phase on images, which only networks by table have"):
        loop.train(tiny.run_config(data), tmp_path / "out")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_in_one_line_whoever_reads_it(tmp_path, workers):
    tiny.make_data(tmp_path / "set", scenes=2)
    broken = sorted((tmp_path / "set/samples/CAM_FRONT").iterdir())[0]
    broken.write_bytes(b"no image")
    with pytest.raises(CorruptInput, match=broken.name) as caught:
        loop.train(tiny.run_config(tmp_path / "set", workers=workers), tmp_path / "out")
    assert "\n" not in str(caught.value)
