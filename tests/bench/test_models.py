"""Comparisons of models: plans, runs that are kept, tables; rendered depth against truth; a step on real images."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from model_fixtures import camera

from occ_core.bench.models import PlannedRun, _step_seconds, bench_models, markdown, merged, read_plan, run_one
from occ_core.camera import Rig
from occ_core.errors import InvalidInput, MissingInput, OccError
from occ_core.frame import Frame, LidarSweep
from occ_core.geometry import apply, inverse

torch = pytest.importorskip("torch")

from occ_core.bench.rendered_depth import _at_pixels, _lidar_truth, rendered_views  # noqa: E402
from occ_core.bench.training_step import bench_step  # noqa: E402
from occ_core.evaluation.depth import SELFOCC, DepthScores  # noqa: E402
from occ_core.show.depth import colored, depth_picture  # noqa: E402
from occ_core.training.config import TrainingConfig, load_config  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]


def test_merging_keeps_what_is_not_replaced():
    under = {"a": 1, "model": {"loss": {"x": 1, "y": 2}, "name": "n"}, "list": [1, 2]}
    over = {"model": {"loss": {"y": 3}}, "list": [4]}
    assert merged(under, over) == {"a": 1, "model": {"loss": {"x": 1, "y": 3}, "name": "n"}, "list": [4]}
    assert under["model"]["loss"]["y"] == 2


def test_a_plans_base_goes_over_config_files_and_a_run_over_both(tmp_path):
    (tmp_path / "file.yaml").write_text("{steps: 1, seed: 1, threads: 1}")
    (tmp_path / "plan.yaml").write_text("base: {steps: 2, seed: 2}\nruns: {a: {config: file.yaml, steps: 3}}")
    assert read_plan(tmp_path / "plan.yaml") == {"a": {"steps": 3, "seed": 2, "threads": 1}}


def test_plan_of_the_repository_names_valid_runs():
    configs = read_plan(REPOSITORY / "benchmarks/models/plan.yaml")
    assert {"OccNeRF", "OccNeRF + labels", "EasyOcc", "SelfOcc", "SelfOcc + labels"} <= set(configs)
    assert configs["OccNeRF + labels"]["model"]["loss"]["labels"] == 1.0
    assert configs["OccNeRF"]["model"]["kind"] == "occnerf"
    assert len({config["steps"] for config in configs.values()}) == 1  # same steps


@pytest.mark.parametrize("plan", ["plan", "parts"])
def test_plans_of_occle_name_valid_runs(plan):
    configs = read_plan(REPOSITORY / f"benchmarks/occle/{plan}.yaml")
    parsed = {name: TrainingConfig(**config) for name, config in configs.items()}
    assert {"10 %"} < set(parsed) and len({config.steps for config in parsed.values()}) == 1
    for name, config in parsed.items():
        taught = config.model.needs
        assert (name.endswith("%, labels alone")) is (taught == {"labels"} and not config.model.mean_teacher)


def test_bad_plans_name_the_fault(tmp_path):
    path = tmp_path / "plan.yaml"
    with pytest.raises(MissingInput, match=r"plan\.yaml"):
        read_plan(path)
    for text, words in (("[1]", "mapping"), ("base: {}", "keys base and runs"), ("base: {}\nruns: {a: {}}", "'a'")):
        path.write_text(text)
        with pytest.raises(InvalidInput, match=words):
            read_plan(path)


def test_failed_run_names_its_log_and_finished_run_is_kept_while_its_config_is_the_same(tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({"steps": 1}))
    plan = tmp_path / "plan.yaml"
    plan.write_text("base: {data: [nowhere]}\nruns: {a: {config: tiny.yaml}}")
    with pytest.raises(InvalidInput, match="no run 'b'"):
        bench_models(plan, tmp_path, tmp_path / "out", 1, 1, ["b"])
    run = PlannedRun("a", 0, read_plan(plan)["a"], tmp_path / "a-0", tmp_path)
    stale = tmp_path / "a-0/predictions/old.npz"
    stale.parent.mkdir(parents=True)
    stale.touch()
    with pytest.raises(OccError, match=r"run a, seed 0: `occ train` failed, see .*log\.txt"):
        run_one(run, lambda: None)
    assert "nowhere" in (tmp_path / "a-0/log.txt").read_text() and not stale.exists()
    (tmp_path / "a-0/scores.json").write_text(json.dumps({"seed": 0}))
    assert run_one(run, lambda: None) == {"seed": 0}
    changed = replace(run, config=merged(run.config, {"steps": 2}))
    with pytest.raises(OccError, match=r"a-0: its run has steps 1, this one 2; delete the folder.*--out"):
        run_one(changed, lambda: None)


def test_seconds_a_step_leave_out_the_first_steps_and_waiting():
    def row(step, seconds, waiting=0.0):
        return {"step": str(step), "step_seconds": str(seconds), "waiting": str(waiting)}

    assert _step_seconds([row(2, 9.0), row(4, 8.0), row(6, 7.0), row(8, 2.0, 0.25), row(9, 1.0)]) == [1.5, 1.0]
    assert _step_seconds([row(20, 3.0, 0.5), row(40, 1.0)]) == [1.0]
    assert _step_seconds([row(20, 3.0, 0.5)]) == [1.5]  # nothing else is known


def test_table_gives_mean_and_deviation():
    def record(miou):
        part = {"iou": 40.0, "miou_15": miou, "miou_17": 9.0}
        ray = {"rayiou_15": 1.0, "rayiou_17": 2.0}
        return {"scores": {"camera": part, "full": part, "ray": ray}, "step_s": 0.5, "peak_memory_mb": 2048}

    row = markdown({"runs": {"m": [record(10.0), record(14.0)]}}).splitlines()[-1]
    assert row.startswith("| m | 40.00 ± 0.00 | 12.00 ± 2.83 |") and row.endswith("| 0.50 ± 0.00 | 2.00 ± 0.00 |")


def wall_frame(distance_m: float) -> Frame:
    """One camera that looks along x; LiDAR points on a wall across x, in view and beside it."""
    front = camera("f", 0, size=(320, 180), at=(0.0, 0.0, 1.5))
    y, z = np.meshgrid(np.linspace(-20, 20, 41), np.linspace(-1, 4, 11))
    points = np.stack([np.full(y.size, distance_m), y.ravel(), z.ravel()], axis=1)
    n = len(points)
    sweep = LidarSweep(
        points.astype(np.float32), np.zeros(n, np.float32), np.zeros(n, np.int32), np.eye(4), 0, np.eye(4)
    )
    image = np.full((180, 320, 3), 90, np.uint8)
    return Frame(0, np.eye(4), Rig((front,)), {"f": image}, {"f": 0}, {"f": np.eye(4)}, lidar=sweep, scene="s")


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_rendered_depth_of_a_wall_is_scored(factor):
    frame = wall_frame(12.0)
    config = SimpleNamespace(input_width=128, input_height=64)
    model = SimpleNamespace(
        config=config, rendered_depth=lambda images, size: torch.full((1, 1, size[1], size[0]), 12.0 * factor)
    )
    (view,) = rendered_views(model, frame, _lidar_truth)
    assert len(view.truth_m) > 50 and view.depth_m.shape == (32, 64)
    scores = DepthScores(SELFOCC)
    scores.add(view.camera, _at_pixels(view), view.truth_m)
    report = scores.report()
    assert report["raw"]["abs_rel"] == pytest.approx(factor - 1, abs=1e-6)
    assert report["median"]["abs_rel"] == pytest.approx(0, abs=1e-6)
    assert depth_picture([view]).shape[1] == 3 * 420


def test_lidar_pixels_of_the_input_are_where_the_cropped_camera_sees_the_points():
    from occ_core.network_input.preprocess import Preprocess

    frame, preprocess = wall_frame(9.0), Preprocess(128, 64)
    pixels, depth_m = _lidar_truth(frame, "f", preprocess)
    cropped = preprocess.camera(frame.rig["f"])
    points = apply(inverse(cropped.ego_from_cam), frame.lidar.points_ego_m.astype(np.float64))
    expected, visible = cropped.project(points)
    np.testing.assert_allclose(pixels, expected[visible], atol=1e-6)
    np.testing.assert_allclose(depth_m, points[visible, 2], atol=1e-6)


def test_near_is_red_and_far_is_blue():
    near, far = colored(np.array([2.0, 60.0])).astype(int)
    assert near[0] > near[2] and far[2] > far[0]


def test_one_step_on_real_images(shared_data):
    config = load_config(REPOSITORY / "config/easyocc_small.yaml", threads=1, precision="bf16", batch_size=2)
    lines: list[str] = []
    figures = bench_step(config, shared_data("nuscenes_scene0061_1kf"), 2, lines.append)
    assert len(lines) == 2 and figures["samples_per_s"] == pytest.approx(2 / figures["step_s"])
    assert np.isfinite(list(figures["losses"].values())).all() and figures["losses"]["cross_entropy"] > 0
    assert figures["peak_memory_mb"] > 100 and 0 <= figures["occupied"] <= config.model.grid.cells
    with pytest.raises(InvalidInput, match="no LiDAR sweep"):
        bench_step(config, shared_data("nuscenes_scene0103_4kf"))
    with pytest.raises(InvalidInput, match="camera networks"):
        bench_step(load_config(REPOSITORY / "config/easyocc_nano.yaml"), shared_data("nuscenes_scene0061_1kf"))
