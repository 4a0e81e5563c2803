"""The loop on a camera network: learning, resuming after a kill, several processes."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from occ_core.camera import Rig
from occ_core.cli.main import app
from occ_core.errors import InvalidInput
from occ_core.grid import VoxelGrid

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

import tiny_camera_network as tiny  # noqa: E402
from model_fixtures import COARSE_NANO  # noqa: E402

from occ_core.inference.predictor import Predictor  # noqa: E402
from occ_core.models import build  # noqa: E402
from occ_core.training import loop, state  # noqa: E402
from occ_core.training.config import load_config  # noqa: E402
from occ_core.training.counts import cell_weights  # noqa: E402
from occ_core.training.log import Clock, Log  # noqa: E402
from occ_core.training.task import TrainingTask  # noqa: E402

pytestmark = pytest.mark.usefixtures("tiny_network")
torch.set_num_threads(1)


def program(tmp_path: Path, out: str, data: Path, *launcher: str, **asked) -> subprocess.CompletedProcess:
    """Train in processes of their own."""
    run = tmp_path / f"{out}.json"
    run.write_text(json.dumps({"data": str(data), **asked}))
    path = os.pathsep.join([str(Path(tiny.__file__).parent), str(Path(loop.__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, tiny.__file__, str(run), str(tmp_path / out)]
    return subprocess.run(command, env=environment, timeout=300, capture_output=True, text=True)


def test_training_learns_logs_and_its_checkpoint_predicts(data, tmp_path):
    path = loop.train(tiny.run_config(data, steps=30), tmp_path / "out")
    curve = [float(row["total"]) for row in tiny.rows(path.parent)]
    assert len(curve) == 30 and curve[-1] < 0.5 * curve[0]
    assert all(0 <= float(row["waiting"]) <= 1 and float(row["step_seconds"]) > 0 for row in tiny.rows(path.parent))
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["model"]["kind"] == "tiny" and record["training"]["step"] == 30
    assert record["training"]["metrics"]["iou"] == 100.0  # the ground is all there is to learn
    assert record["training"]["data"]["held_out_scenes"] == ["scene-0003"]
    assert record["training"]["data"]["cells_per_class"][11] == 4 * 18 * 20  # four samples, 18 of 20 rows observed
    assert record["training"]["host"]["peak_memory_mb"] > 50 and str(data.parent) not in json.dumps(record)
    from occ_core.sources.nuscenes import NuScenesSource

    frame = NuScenesSource(data)[0]
    predictor = Predictor.load(path)
    both = predictor.predict(frame.images, frame.rig)
    assert (both.labels[:, :, 0] == 11).mean() > 0.9
    assert predictor.predict({"CAM_BACK": frame.images["CAM_BACK"]}, frame.rig).labels.shape == both.labels.shape
    assert record["training"]["data"]["cameras"] == 2
    back = Rig((frame.rig["CAM_BACK"],))
    assert "trained on 2 cameras, this rig has 1 (CAM_BACK)" in predictor.caution(back)
    assert predictor.predict({"CAM_BACK": frame.images["CAM_BACK"]}, back).observed.any()
    with pytest.raises(InvalidInput, match="no camera 'CAM_SIDE'"):
        predictor.predict({"CAM_SIDE": frame.images["CAM_BACK"]}, frame.rig)
    with pytest.raises(InvalidInput, match="kind 'tiny', which cannot be exported"):
        Predictor.load(path, "onnxruntime")


def test_killed_and_resumed_it_ends_with_the_same_bits_as_an_unbroken_run(data, tmp_path):
    changes = {"steps": 7, "checkpoint_every": 2, "camera_dropout": 0.3, "accumulate": 2, "workers": 1}
    killed = program(tmp_path, "killed", data, die_at=5, changes=changes)
    assert killed.returncode == -9, killed.stderr
    assert int(tiny.weights(tmp_path / "killed")["run.step"]) == 4 and len(tiny.rows(tmp_path / "killed")) == 5
    config = tiny.run_config(data, **{**changes, "workers": 0})  # who reads the data changes nothing either
    loop.train(config, tmp_path / "killed", resume=True)
    loop.train(config, tmp_path / "unbroken")
    resumed, unbroken = tiny.weights(tmp_path / "killed"), tiny.weights(tmp_path / "unbroken")
    assert set(resumed) == set(unbroken)
    for name, tensor in unbroken.items():
        assert torch.equal(resumed[name], tensor), name
    curves = [[row["total"] for row in tiny.rows(tmp_path / name)] for name in ("killed", "unbroken")]
    assert curves[0] == curves[1] and len(curves[0]) == 7


def test_two_processes_learn_what_one_learns_from_twice_as_many_samples(data, tmp_path):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    changes = {"steps": 3, "accumulate": 1, "validation_scenes": 2}
    done = program(tmp_path, "two", data, *torchrun, changes=changes)
    assert done.returncode == 0, done.stderr
    loop.train(tiny.run_config(data, **{**changes, "accumulate": 2}), tmp_path / "one")
    two, one = tiny.weights(tmp_path / "two"), tiny.weights(tmp_path / "one")
    for name, tensor in one.items():
        if "running" not in name and "num_batches" not in name:  # statistics of batches are each process's own
            torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    record = json.loads((tmp_path / "two/last.json").read_text())["training"]
    assert record["config"]["processes"] == 2 and record["data"]["held_out_samples"] == 4
    assert len(tiny.rows(tmp_path / "two")) == 3  # only one process writes


def test_two_processes_teach_nano_what_one_learns_from_twice_as_many_samples(tmp_path):
    """Images alone, then all; the processes make the cache together."""
    tiny.make_data(tmp_path / "set", scenes=4, keyframes=2, grid=COARSE_NANO.grid)
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29618")
    nano = {"image_steps": 1, "image_batch": 2, "columns": 60, "threshold_scenes": 1}
    changes = {"model": COARSE_NANO.model_dump(mode="json"), "nano": nano, "cache": str(tmp_path / "cache")}
    changes |= {"steps": 2, "learning_rate": 1e-3, "ema_decay": 0.0, "warmup_steps": 0}
    done = program(tmp_path, "two", tmp_path / "set", *torchrun, changes=changes)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "cache").iterdir())) == 4
    config = tiny.run_config(tmp_path / "set", **{**changes, "accumulate": 2})
    loop.train(config, tmp_path / "one")
    torch.manual_seed(config.seed)
    start = {f"model.{name}": tensor for name, tensor in build.build_model(config.model).named_parameters()}
    two, one = tiny.weights(tmp_path / "two"), tiny.weights(tmp_path / "one")
    learned = torch.cat([(one[name] - tensor).flatten() for name, tensor in start.items()])
    apart = torch.cat([(one[name] - two[name]).flatten() for name in start])
    assert learned.norm() > 0 and apart.norm() < 0.05 * learned.norm()
    record = json.loads((tmp_path / "two/model.json").read_text())["training"]
    assert record["config"]["processes"] == 2 and record["data"]["threshold_scenes"] == ["scene-0003"]
    assert record["metrics"]["step"] == 3 and len(tiny.rows(tmp_path / "two")) == 3


def test_confusion_is_shared_among_processes_and_counts_observed_cells_once(tmp_path):
    """Rank 0 and rank 1 together judge what one process judges alone, against the validation's own labels."""
    tokens = tiny.make_data(tmp_path)
    tiny.write_labels(tmp_path, "other", tokens, 2, ground=13)
    config = tiny.run_config(tmp_path, validation_labels="other", validation_scenes=2)
    average = tiny.Tiny(tiny.TinyConfig()).eval()
    parts = []
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        task = TrainingTask(config, loop.Ranks(0, 1, torch.device("cpu")), lambda what: None)
        task.ranks = loop.Ranks(rank, world, torch.device("cpu"))
        parts.append(task.confusion(average))
    assert np.array_equal(parts[0], parts[1] + parts[2]) and parts[1].any() and parts[2].any()
    assert parts[0].sum() == 4 * 18 * 20 * 2 and parts[0][13].sum() == 4 * 18 * 20 and parts[0][11].sum() == 0


def test_bfloat16_learns_as_well(data, tmp_path):
    loop.train(tiny.run_config(data, steps=20, precision="bf16", warmup_steps=0), tmp_path / "out")
    curve = [float(row["total"]) for row in tiny.rows(tmp_path / "out")]
    assert curve[-1] < 0.6 * curve[0]
    assert all(t.dtype != torch.bfloat16 for t in tiny.weights(tmp_path / "out").values())


def test_backbone_learns_at_its_own_rate_and_only_matrices_decay(data):
    made = state.new_state(tiny.run_config(data, backbone_lr_scale=0.1), torch.device("cpu"))
    names = {id(parameter): name for name, parameter in made.model.named_parameters()}
    found = {names[id(p)]: (g["lr_scale"], g["weight_decay"]) for g in made.optimizer.param_groups for p in g["params"]}
    assert found == {
        "head.weight": (1.0, 0.02), "head.bias": (1.0, 0.0), "position_weight": (1.0, 0.02),
        "backbone.0.weight": (0.1, 0.02), "backbone.0.bias": (0.1, 0.0),
        "backbone.1.weight": (0.1, 0.0), "backbone.1.bias": (0.1, 0.0),
    }  # fmt: skip


def test_learning_rate_rises_and_falls_in_every_phase():
    rates = [state.learning_rate(step, 2.0, 5, (20, 45)) for step in range(1, 66)]
    assert rates[4] == pytest.approx(2.0) and rates[19] == pytest.approx(0.02) and rates[0] == pytest.approx(0.4)
    assert rates[24] == pytest.approx(2.0) and rates[64] == pytest.approx(0.02)
    assert rates[20 + 5 + 20 - 1] == pytest.approx(2.0 * 0.505)  # half of the cosine


def test_class_weights_leave_free_cells_out_of_the_balance():
    counts = torch.zeros(18, dtype=torch.int64)
    counts[[3, 4, 17]] = torch.tensor([100, 400, 1_000_000])
    found = cell_weights(counts, 17)
    assert found[17] == 1 and found[3] == pytest.approx(2 * found[4]) and (found[[0, 5]] == 0).all()
    assert (found * counts)[:17].sum() == pytest.approx(500)


def test_a_log_takes_new_columns_and_drops_repeated_and_torn_rows(tmp_path):
    log = Log(tmp_path / "log.csv", keep_below=1)
    log.write(1, {"total": 3.0})
    log.write(2, {"total": 2.0, "depth": 0.5})
    log.write(3, {"total": 1.0})
    with open(tmp_path / "log.csv", "a") as file:
        file.write("4,1.")
    Log(tmp_path / "log.csv", keep_below=3).write(3, {"total": 9.0})
    found = tiny.rows(tmp_path)
    assert [(row["step"], row["total"], row["depth"]) for row in found] == [
        ("1", "3.0", ""), ("2", "2.0", "0.5"), ("3", "9.0", ""),
    ]  # fmt: skip
    Log(tmp_path / "log.csv", keep_below=1).write(1, {"total": 5.0})  # a new run in the same folder
    assert "depth" not in tiny.rows(tmp_path)[0] and tiny.rows(tmp_path)[0]["total"] == "5.0"


def test_a_clock_tells_means_of_the_lap_and_of_all():
    clock = Clock()
    clock.count(1.0, 0.5)
    assert clock.lap() == {"step_seconds": 1.0, "waiting": 0.5}
    clock.count(2.0, 0.0)
    clock.count(3.0, 1.0)
    assert clock.lap() == {"step_seconds": 2.5, "waiting": 0.2}
    assert clock.whole == {"step_seconds": 2.5, "waiting": 0.2}  # the first step, which is always slow, left out


def test_accumulated_gradients_are_those_of_one_larger_batch(data, tmp_path, monkeypatch):
    """Without what depends on the batch: norm and dropout."""
    forward = tiny.Tiny.forward
    monkeypatch.setattr(tiny.Tiny, "forward", lambda self, *given: forward(self.eval(), *given))
    for name, changes in (("batch", {"batch_size": 2}), ("accumulated", {"accumulate": 2})):
        loop.train(tiny.run_config(data, steps=2, color_jitter=0, camera_dropout=0, **changes), tmp_path / name)
    batch, accumulated = tiny.weights(tmp_path / "batch"), tiny.weights(tmp_path / "accumulated")
    for name, tensor in batch.items():
        torch.testing.assert_close(accumulated[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_targets_get_weights_counted_over_the_training_labels(data):
    seen = []
    task = TrainingTask(tiny.run_config(data), loop.Ranks(0, 1, torch.device("cpu")), lambda what: None)
    batch = next(task.batches(0))
    task.losses(lambda rig, targets, progress: seen.append(targets) or {}, batch, 0.0, torch.nn.Identity())
    (targets,) = seen
    assert targets.class_weights[11] == 1 and targets.class_weights[17] == 1 and targets.class_weights.sum() == 2
    assert torch.equal(targets.labels, replace(batch.targets).labels)


def test_a_network_that_learns_from_its_average_is_given_it(data, tmp_path, monkeypatch):
    """The averaged one, in eval mode, as it is at that step; other networks are not."""
    given, forward = [], tiny.Tiny.forward

    def remembering(self, rig_images, targets, progress, *teacher):
        given.append([(average.training, average.position_weight.clone()) for average in teacher])
        return forward(self, rig_images, targets, progress)

    monkeypatch.setattr(tiny.Tiny, "forward", remembering)
    loop.train(tiny.run_config(data, steps=2), tmp_path / "alone")
    monkeypatch.setattr(tiny.TinyConfig, "mean_teacher", property(lambda self: True))
    loop.train(tiny.run_config(data, steps=2), tmp_path / "taught")
    assert given[:2] == [[], []]
    ((_, before),), ((training, after),) = given[2:]
    assert not training and not before.any() and after.any()


def test_the_loss_scale_of_half_precision_is_kept(data, tmp_path):
    config = tiny.run_config(data, precision="fp16")
    first, second = (state.new_state(config, torch.device("cpu")) for _ in range(2))
    first.scaler.load_state_dict({**first.scaler.state_dict(), "scale": 512.0, "_growth_tracker": 7})
    record = {"config": {}, "metrics": None}
    state.save(first, tmp_path, record, config, ship=False)
    state.restore(second, tmp_path / "last.safetensors", record, config)
    assert second.scaler.get_scale() == 512.0 and second.scaler.state_dict()["_growth_tracker"] == 7


def test_backbone_weights_are_read_at_the_start_of_training_only(data, tmp_path, monkeypatch):
    def load_backbone(self, path):
        self.backbone[0].load_state_dict(safetensors_torch.load_file(path))

    monkeypatch.setattr(tiny.Tiny, "load_backbone", load_backbone, raising=False)
    given = {"weight": torch.full((8, 3, 4, 4), 0.25), "bias": torch.zeros(8)}
    safetensors_torch.save_file(given, tmp_path / "w.safetensors")
    config = tiny.run_config(data, model=tiny.TinyConfig(backbone_weights=tmp_path / "w.safetensors"))
    assert (state.new_state(config, torch.device("cpu")).model.backbone[0].weight == 0.25).all()
    path = loop.train(config, tmp_path / "out")
    (tmp_path / "w.safetensors").unlink()
    loop.train(config, tmp_path / "out", resume=True)
    assert json.loads(path.with_suffix(".json").read_text())["model"]["backbone_weights"] == "w.safetensors"
    assert Predictor.load(path).config.kind == "tiny"


def test_a_run_can_start_from_what_another_learned_but_not_from_another_network(data, tmp_path):
    path = loop.train(tiny.run_config(data), tmp_path / "first")
    learned = safetensors_torch.load_file(path)
    config = tiny.run_config(data, start_from=path)
    begun = state.new_state(config, torch.device("cpu"))
    for weights in (begun.model.state_dict(), begun.average.state_dict()):
        assert all(torch.equal(weights[name], learned[name]) for name in learned)
    again = loop.train(config, tmp_path / "second")
    assert not torch.equal(safetensors_torch.load_file(again)["head.weight"], learned["head.weight"])
    path.unlink()
    loop.train(config, tmp_path / "second", resume=True)  # reads it no more
    wider = tiny.run_config(data, start_from=again, model=tiny.TinyConfig(input_width=96))
    with pytest.raises(InvalidInput, match="start_from .*input_width 64, this one 96"):
        state.new_state(wider, torch.device("cpu"))


def test_labels_of_a_store_are_named_in_the_record(data, tmp_path):
    tokens = tiny.make_data(tmp_path / "set")
    tiny.write_labels(tmp_path / "set", "pseudo", tokens, 2)
    made_with = {"recipe": "best", "teacher": "realistic"}
    store = {"format": 1, "made_with": made_with, "scenes": {}}
    (tmp_path / "set/pseudo/store.json").write_text(json.dumps(store))
    path = loop.train(tiny.run_config(tmp_path / "set", labels="pseudo", validation_labels="gts"), tmp_path / "out")
    (labels,) = json.loads(path.with_suffix(".json").read_text())["training"]["data"]["labels"]
    assert labels.pop("made_with") and labels == {"folder": "pseudo", **made_with}
    with pytest.raises(InvalidInput, match="none of the 1 held-out scenes has labels in 'empty'"):
        (tmp_path / "set/empty").mkdir()
        loop.train(tiny.run_config(tmp_path / "set", validation_labels="empty"), tmp_path / "other")


def test_ctrl_c_reaches_workers_harmlessly_and_the_run_goes_on(data, tmp_path, monkeypatch):
    config = tiny.run_config(data, steps=5, workers=1)
    original = loop.train_step

    def interrupted(now, *rest):
        if now.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(now, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "train_step", interrupted)
        loop.train(config, tmp_path / "out")
    assert int(tiny.weights(tmp_path / "out")["run.step"]) == 3
    loop.train(config, tmp_path / "out", resume=True)
    assert [row["step"] for row in tiny.rows(tmp_path / "out")] == ["1", "2", "3", "4", "5"]


def test_shipped_configs_are_valid_and_of_the_kind_they_say():
    folder = Path(loop.__file__).parents[2] / "config"
    paths = [path for path in folder.glob("*.yaml") if "\nmodel:" in path.read_text()]
    assert len(paths) >= 4
    for path in paths:
        config = load_config(path)
        assert build.kind_of(config.model) == path.stem.split("_")[0].replace("easyocc", config.model.kind)
        assert build.parse_config(config.model.model_dump(mode="json")) == config.model


EASYOCC = """
model:
  kind: easyocc
  name: least
  grid_origin_m: [-40, -40, -1]
  voxel_size_m: 5.0
  grid_shape: [16, 16, 8]
  input_width: 64
  input_height: 32
  backbone: mobilenetv4-small
  feature_stride: 8
  feature_channels: 4
  hourglass_channels: 4
  hourglass_stacks: 1
steps: 2
validation_scenes: 1
warmup_steps: 0
threads: 1
device: cpu
"""


def test_command_line_trains_and_predicts_with_any_kind_and_refuses_to_export_it(tmp_path):
    tokens = tiny.make_data(
        tmp_path / "set", scenes=2, keyframes=1, grid=VoxelGrid((-40.0, -40.0, -1.0), 5.0, (16, 16, 8))
    )
    (tmp_path / "c.yaml").write_text(EASYOCC)
    arguments = ["train", tmp_path / "c.yaml", "--data", tmp_path / "set", "--out", tmp_path / "out", "--workers", 0]
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.exception
    model = tmp_path / "out/model.safetensors"
    record = json.loads(model.with_suffix(".json").read_text())
    assert record["model"]["kind"] == "easyocc" and record["training"]["metrics"]["step"] == 2
    result = CliRunner().invoke(app, ["predict", str(model), str(tmp_path / "set"), str(tmp_path / "pred")])
    assert result.exit_code == 0, result.exception
    for token in tokens:
        assert np.load(tmp_path / f"pred/{token}.npz")["pred"].shape == (16, 16, 8)
    result = CliRunner().invoke(app, ["export", str(model), str(tmp_path / "x.onnx")])
    assert "cannot be exported yet" in str(result.exception) and not (tmp_path / "x.onnx").exists()
