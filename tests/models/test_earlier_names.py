"""Checkpoints and configs of before: what they called otherwise loads as what it is called today."""

import json

import pytest
from model_fixtures import SMALL

from occ_core.models.build import parse_config
from occ_core.training.config import load_config

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from occ_core.models.checkpoint import describe, load_checkpoint, load_into, save_checkpoint  # noqa: E402
from occ_core.models.easyocc.model import EasyOcc  # noqa: E402

THEN = {"hazard_weight": "trust", "reached_weight": "sight", "observed_threshold": "seen"}


def test_a_checkpoint_with_the_names_of_before_loads_every_tensor(tmp_path):
    torch.manual_seed(0)
    written = EasyOcc(SMALL).state_dict()
    for name in THEN:
        written[name] = torch.rand_like(written[name])
    record = describe(SMALL, {"config": {"nano": {"memory_moments": 3}}})
    then = {THEN.get(name, name): t for name, t in written.items()} | {"survival": torch.tensor(0.4)}  # nobody reads it
    save_checkpoint(tmp_path / "old.safetensors", then, record)
    tensors, read = load_checkpoint(tmp_path / "old.safetensors")
    model = EasyOcc(SMALL)
    load_into(model, tensors, tmp_path / "old.safetensors")
    model_tensors = model.state_dict()
    assert model_tensors.keys() == written.keys()
    assert all(torch.equal(tensor, written[name]) for name, tensor in model_tensors.items())
    assert read["training"]["config"]["nano"] == {"memory_frames": 3}


def test_a_run_that_is_to_go_on_finds_its_optimiser_by_the_names_of_before(tmp_path):
    tensors = {
        f"{part}.{name}": torch.zeros(1) for part in ("model", "average", "adam.exp_avg") for name in ("trust", "a.b")
    }
    save_checkpoint(tmp_path / "last.safetensors", tensors, describe(SMALL, {}))
    read, _ = load_checkpoint(tmp_path / "last.safetensors")
    assert set(read) == {
        f"{part}.{name}" for part in ("model", "average", "adam.exp_avg") for name in ("hazard_weight", "a.b")
    }


def test_a_config_with_the_keys_of_before_is_read(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps({"model": SMALL.model_dump(mode="json"), "nano": {"memory_moments": 7}}))
    assert load_config(config).nano.memory_frames == 7
    assert parse_config(SMALL.model_dump(mode="json")) == SMALL
