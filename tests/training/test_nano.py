"""Losses against their definitions, ray targets against geometry, cache, batches and the loop."""

import json
import os
import signal

import numpy as np
import pytest
from model_fixtures import SMALL, camera, ring_rig
from nano_fixtures import CAR, FREE, ROAD, UNSEEN, WALL, hand_made, judged, use_scenes
from typer.testing import CliRunner

from occ_core.camera import Rig
from occ_core.cli.main import app
from occ_core.errors import CorruptInput, InvalidInput, MissingInput

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from occ_core.losses.ray import depth_loss, pixel_class_loss  # noqa: E402
from occ_core.losses.voxel import class_weights, geometry_loss, lovasz_softmax, semantic_loss  # noqa: E402
from occ_core.models.easyocc import thresholds  # noqa: E402
from occ_core.models.easyocc.model import Answer, EasyOcc  # noqa: E402
from occ_core.models.easyocc.thresholds import (  # noqa: E402
    BORDERS,
    LEAST_PRECISION,
    MEAN_COUNTS,
    SLACK,
    PredictedCells,
    best_thresholds,
    fit_classes,
    fit_thresholds,
    in_sight,
)
from occ_core.training import loop  # noqa: E402
from occ_core.training.config import TrainingConfig, load_config  # noqa: E402
from occ_core.training.data_sets import open_data  # noqa: E402
from occ_core.training.rays import ray_targets  # noqa: E402

torch.set_num_threads(1)  # small tensors: more threads only wait for each other


# --- losses ----------------------------------------------------------------------------------------------------------


def jaccard_loss_of_set(wrong: frozenset, truth: np.ndarray) -> float:
    """1 - IoU of one class when the cells in `wrong` are misjudged: the set function whose extension Lovasz is."""
    missed = sum(1 for i in wrong if truth[i])
    false_alarms = len(wrong) - missed
    total = int(truth.sum())
    return 1 - (total - missed) / (total + false_alarms)


def test_lovasz_is_the_lovasz_extension_of_the_jaccard_loss():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), 12)
    target = np.array([0, 0, 1, 1, 1, 2, 2, -1, -1, 0, 1, -1])
    expected = []
    for c in range(3):
        truth = target == c
        errors = np.abs(truth - p[:, c])
        order = np.argsort(-errors)
        value, before, sequence = 0.0, 0.0, frozenset()
        for i in order:  # the definition: sum of sorted errors times the growth of the set function along the sequence
            sequence |= {int(i)}
            now = jaccard_loss_of_set(sequence, truth)
            value, before = value + errors[i] * (now - before), now
        expected.append(value)
    got = lovasz_softmax(torch.from_numpy(p), torch.from_numpy(target))
    assert got.item() == pytest.approx(np.mean(expected))


def test_lovasz_of_certain_answers_is_one_minus_iou():
    target = torch.tensor([0, 0, 0, 1, 1])
    answers = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 1, 1]), 2).double()
    assert lovasz_softmax(answers, target).item() == pytest.approx(1 - (2 / 3 + 2 / 3) / 2)
    assert lovasz_softmax(answers, torch.full((5,), -1)).item() == 0


def test_geometry_and_semantic_losses_by_hand():
    logit, occupied = torch.tensor([2.0, -1.0, 0.0]), torch.tensor([True, False, True])
    s = 1 / (1 + np.exp(-logit.numpy()))
    assert geometry_loss(logit, occupied).item() == pytest.approx(-np.log([s[0], 1 - s[1], s[2]]).mean())
    logits, target, w = torch.randn(4, 3), torch.tensor([0, 2, 2, 1]), torch.tensor([1.0, 5.0, 0.5])
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    picked = [w[t].item() for t in target.tolist()]
    expected = sum(-w[t].item() * np.log(p[i, t]) for i, t in enumerate(target.tolist())) / sum(picked)
    assert semantic_loss(logits, target, w).item() == pytest.approx(expected, rel=1e-5)
    assert semantic_loss(logits[:0], target[:0], w).item() == 0


def test_class_weights():
    w = class_weights(torch.tensor([10000, 400, 1, 0]), ratio_limit=20).numpy()
    assert w[3] == 0 and w[1] / w[0] == pytest.approx(5) and w[2] / w[0] == pytest.approx(20)
    assert (w * [10000, 400, 1, 0]).sum() / 10401 == pytest.approx(1)


def test_ray_losses_ignore_the_unknown_and_know_beyond():
    logits = torch.randn(1, 3, 1, 2)
    hazard = 1 / (1 + np.exp(-logits[0, :, 0, 0].numpy()))
    for k, p in enumerate((hazard[0], (1 - hazard[0]) * hazard[1], None, np.prod(1 - hazard))):  # 3 = beyond the bins
        if p is not None:
            target = torch.tensor([[[k, 255]]], dtype=torch.uint8)
            assert depth_loss(logits, target).item() == pytest.approx(-np.log(p), rel=1e-5)
    assert depth_loss(logits, torch.full((1, 1, 2), 255, dtype=torch.uint8)).item() == 0
    weights = torch.tensor([1.0, 0.0, 3.0])
    two = torch.tensor([[[2, 0]]], dtype=torch.uint8)
    minus_log = -torch.log_softmax(logits[0], 0)[:, 0]
    expected = (3 * minus_log[2, 0] + minus_log[0, 1]).item() / 4
    assert pixel_class_loss(logits, two, weights).item() == pytest.approx(expected, rel=1e-5)
    one = torch.tensor([[[2, 255]]], dtype=torch.uint8)
    assert pixel_class_loss(logits, one, weights).item() == pytest.approx(minus_log[2, 0].item(), rel=1e-5)
    for nothing in (255, 1):  # unknown, or of no weight
        assert pixel_class_loss(logits, torch.full_like(one, nothing), weights).item() == 0


# --- ray targets -----------------------------------------------------------------------------------------------------


def test_ray_targets_meet_a_road_and_a_wall_where_geometry_says():
    labels = np.full(SMALL.grid_shape, FREE, dtype=np.uint8)
    labels[:, :, 0] = ROAD  # z from -1.0 to -0.2
    labels[30:, :, 1:] = WALL  # x from 8.0 on, z from -0.2
    cam = camera("c", 0)
    depth, classes = ray_targets(labels, Rig((cam,)), SMALL, step_m=0.05)
    w, h = SMALL.feature_size
    from occ_core.models.easyocc.table import feature_rays
    from occ_core.network_input.preprocess import Preprocess

    rays = feature_rays(Preprocess(128, 64).camera(cam), SMALL)
    origin = cam.ego_from_cam[:3, 3]
    edges = SMALL.depth_edges_m
    for v, u in np.ndindex(h, w):
        ray = rays[v, u]
        to_road = (-0.2 - origin[2]) / ray[2] if ray[2] < 0 else np.inf
        to_wall = (8.0 - origin[0]) / ray[0] if ray[0] > 0 else np.inf
        nearest = min(to_road, to_wall)
        point = origin + ray * nearest
        if not (np.abs(point[:2]) < 15.9).all() or point[2] > 5.3 or abs(to_road - to_wall) < 0.2:
            continue
        assert abs(int(depth[0, v, u]) - (np.searchsorted(edges, nearest, "right") - 1)) <= 1
        assert classes[0, v, u] == (ROAD if to_road < to_wall else WALL)


def test_rays_lost_in_the_unobserved_are_unknown_and_free_ones_go_beyond():
    cam = Rig((camera("c", 0),))
    labels = np.full(SMALL.grid_shape, FREE, dtype=np.uint8)
    depth, classes = ray_targets(labels, cam, SMALL)
    assert (depth == SMALL.depth_bins).all() and (classes == UNSEEN).all()
    labels[25:, :, :] = UNSEEN
    labels[35:, :, :] = WALL
    depth, classes = ray_targets(labels, cam, SMALL)
    assert (depth[0, 3, 4:12] == UNSEEN).all() and (classes == UNSEEN).all()


def test_thresholds_are_the_tightest_of_those_that_no_single_change_betters(monkeypatch):
    monkeypatch.setattr(thresholds, "LEAST_PRECISION", 0.0)
    rng = np.random.default_rng(0)
    n = 20000
    logit, named = rng.normal(-1, 2, n), rng.integers(0, 2, n)
    truth = np.where(rng.random(n) < 1 / (1 + np.exp(-logit)), named, FREE)  # calibrated
    truth[(named == 1) & (rng.random(n) < 0.8)] = 0  # but class 1 is mostly named wrongly
    place = np.searchsorted(BORDERS, logit)
    said, right, filled = (np.zeros((2, len(BORDERS) + 1)) for _ in range(3))
    np.add.at(said, (named, place), 1)
    np.add.at(right, (named[named == truth], place[named == truth]), 1)
    np.add.at(filled, (named[truth != FREE], place[truth != FREE]), 1)

    def score(thresholds) -> float:
        answer = np.where(logit > np.asarray(thresholds)[named], named, FREE)
        per_class = [((answer == c) & (truth == c)).sum() / ((answer == c) | (truth == c)).sum() for c in range(2)]
        occupied = ((answer != FREE) & (truth != FREE)).sum() / ((answer != FREE) | (truth != FREE)).sum()
        return MEAN_COUNTS * np.mean(per_class) + occupied

    got, claimed, precision = best_thresholds(
        PredictedCells(said, right, filled), np.array([(truth == c).sum() for c in range(2)])
    )
    best = score(got)
    assert claimed == pytest.approx(best)
    called = logit > got[named]
    assert precision == pytest.approx([(truth == named)[called & (named == c)].mean() for c in range(2)])
    assert best >= max(score([t, t]) for t in BORDERS) - 2 * SLACK
    for c, changed in enumerate(([(t, got[1]) for t in BORDERS], [(got[0], t) for t in BORDERS])):
        scores = np.array([score(pair) for pair in changed])
        assert best >= scores.max() - SLACK - 1e-9
        assert (scores[got[c] + 1e-6 < BORDERS] < scores.max() - SLACK + 1e-9).all()
    assert got[0] < 0  # calibrated probabilities: below one half


def test_a_border_rises_until_what_is_above_it_is_right_often_enough():
    """The border of the best IoU may be one above which nearly all is wrong."""
    said, right, filled = (np.zeros((1, len(BORDERS) + 1)) for _ in range(3))
    low, high = 20, 100
    said[0, [low, high]], right[0, [low, high]], filled[0, [low, high]] = [2000, 20], [80, 4], [80, 4]
    fit = best_thresholds(PredictedCells(said, right, filled), np.array([100]))
    assert BORDERS[low] < fit.thresholds[0] < BORDERS[high]
    assert fit.precision == pytest.approx([4 / 20])
    right[0, high] = 1
    never_right = best_thresholds(PredictedCells(said, right, filled), np.array([100]))
    assert never_right.precision[0] < LEAST_PRECISION  # which is then not named at all


def test_a_class_that_is_nearly_always_wrong_is_not_named(monkeypatch):
    """Its cells are called what comes next."""
    model, scene, road = EasyOcc(SMALL).eval(), hand_made("a", 1), torch.eye(17)[ROAD]
    with torch.no_grad():
        for parameter in model.to_class.parameters():
            parameter.zero_()
        model.to_class.bias += (road + 2 * torch.eye(17)[CAR]).repeat(SMALL.grid_shape[2])  # a car in all cells
    fit_thresholds(model, judged(scene), torch.ones(17))
    assert (model.to_class.bias[:17] + model.class_bias).argmax() == ROAD
    monkeypatch.setattr(thresholds, "LEAST_PRECISION", 0.0)
    fit_thresholds(model, judged(scene), torch.ones(17))
    assert (model.to_class.bias[:17] + model.class_bias).argmax() == CAR


def test_names_given_too_often_to_rare_classes_are_taken_back(monkeypatch):
    """A network that is right but for the logarithm of its loss's weights in its logits."""
    monkeypatch.setattr(thresholds, "LEAST_PRECISION", 0.0)  # its geometry is untrained
    torch.manual_seed(0)
    model, scene = EasyOcc(SMALL).eval(), hand_made("a", 1)
    weights = torch.ones(17)
    weights[CAR] = 1000.0
    with torch.no_grad():
        for parameter in model.to_class.parameters():
            parameter.zero_()
        model.to_class.bias += torch.eye(17)[ROAD].repeat(SMALL.grid_shape[2]) + weights.log().repeat(
            SMALL.grid_shape[2]
        )
    fit_thresholds(model, judged(scene), weights)
    assert (model.to_class.bias[:17] + model.class_bias).argmax() == ROAD


def test_in_sight_is_what_lies_before_the_end_of_its_ray():
    ((inputs, targets),) = judged(hand_made("a", 1))
    labels, depth = targets.labels[0].numpy(), targets.depth.numpy()
    edges_m, bins = SMALL.depth_edges_m, SMALL.depth_bins
    pixels, expected = depth.size, np.zeros(SMALL.grid_shape, dtype=bool)
    for cell, index in zip(np.ndindex(*SMALL.grid_shape), inputs.voxel_index.tolist(), strict=True):
        if index < pixels * bins and labels[cell] != UNSEEN:
            end = int(depth.reshape(-1)[index // bins])
            lost = end == UNSEEN
            expected[cell] = not lost and edges_m[index % bins] <= edges_m[min(end, bins)] + SMALL.voxel_size_m
    known = labels != UNSEEN
    assert np.array_equal(in_sight(inputs, targets, SMALL), expected)
    assert expected.any() and (known & ~expected).any()


def test_thresholds_are_fitted_on_what_is_deployed():
    """One in a hundred occupied cells in sight is called hidden; cells called hidden are never called occupied."""
    torch.manual_seed(0)
    model, scene = EasyOcc(SMALL).eval(), hand_made("a", 2)
    with torch.no_grad():
        model.to_observed.weight.normal_()
        model.to_observed.bias.normal_(0, 2)
        model.reached_weight.fill_(2.0)
    fit_thresholds(model, judged(scene), torch.ones(17))
    lost, occupied = 0, 0
    for i, (inputs, targets) in enumerate(judged(scene)):
        with torch.no_grad():
            hidden = Answer(model)(inputs.images, *inputs.table, inputs.rays)[2][0].numpy() == 0
        inside = in_sight(inputs, targets, SMALL) & (scene["labels"][i] != FREE)
        lost, occupied = lost + (hidden & inside).sum(), occupied + inside.sum()
    assert 0.005 < lost / occupied < 0.015
    classes = model.threshold.clone()
    model.observed_threshold.fill_(99.0)  # every cell is called hidden, so no border of a class can matter
    fit_classes(model, judged(scene), torch.ones(17))
    assert len(model.threshold.unique()) == 1 and not torch.equal(model.threshold, classes)


# --- loop ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Trains on hand-made scenes: run(steps, resume=...) -> (folder, metrics)."""
    scenes = [hand_made("a", 4, seed=1), hand_made("b", 2, seed=2)]
    use_scenes(monkeypatch, scenes[:1], [], scenes[1:])
    base = {
        "model": SMALL,
        "data": (tmp_path,),
        "validation_scenes": 1,
        "nano": {"threshold_scenes": 0, "columns": 600},
        "threads": 1,
        "seed": 3,
    }
    base |= {"warmup_steps": 5, "ema_decay": 0.9, "color_jitter": 0.0, "log_every": 1, "learning_rate": 4e-3}

    def start(out: str, **changes):
        resume, image_steps = changes.pop("resume", False), changes.pop("image_steps", 0)
        changes["nano"] = base["nano"] | {"image_steps": image_steps}
        path = loop.train(TrainingConfig(**{**base, **changes}), tmp_path / out, resume)
        return tmp_path / out, json.loads(path.with_suffix(".json").read_text())

    return start


def losses(folder) -> list[float]:
    rows = (folder / "log.csv").read_text().splitlines()
    return [float(row.split(",")[2]) for row in rows[1:]]


def test_training_learns_and_its_checkpoint_predicts(run):
    folder, record = run("out", image_steps=10, steps=40)
    assert "observed" in (folder / "log.csv").read_text()
    curve = losses(folder)[10:]
    assert np.mean(curve[-5:]) < 0.7 * np.mean(curve[:3])
    assert record["training"]["metrics"]["iou"] > 20 and record["training"]["data"]["held_out_scenes"] == ["b"]
    from occ_core.inference.predictor import Predictor

    rig = ring_rig()
    dark = {c.name: np.full((180, 320, 3), 40, dtype=np.uint8) for c in rig}
    answer = Predictor.load(folder / "model.safetensors", "torch", threads=1).predict(dark, rig)
    assert (answer.labels != FREE).any()


@pytest.mark.parametrize("at", [0, 3])  # a step on images alone, a step on all
def test_a_resumed_run_ends_where_an_unbroken_one_does(run, monkeypatch, at):
    unbroken, _ = run("a", image_steps=2, steps=4)
    first = safetensors_torch.load_file(unbroken / "model.safetensors")
    original = loop.train_step

    def interrupted(state, *rest):
        if state.step == at:
            os.kill(os.getpid(), signal.SIGINT)
        return original(state, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "train_step", interrupted)
        run("c", image_steps=2, steps=4)
    folder, record = run("c", image_steps=2, steps=4, resume=True)
    assert record["training"]["step"] == 6 and len(losses(folder)) == 6
    second = safetensors_torch.load_file(folder / "model.safetensors")
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def test_a_resumed_run_must_have_the_same_settings(run):
    run("out", image_steps=1, steps=1)
    with pytest.raises(InvalidInput, match="image_steps 1, this one 2"):
        run("out", image_steps=2, steps=1, resume=True)


def test_a_step_on_which_no_camera_has_an_image_teaches_nothing_and_ends_nothing(run):
    folder, _ = run("out", steps=2, camera_dropout=1.0)
    assert all(np.isfinite(losses(folder)))


def test_resume_without_or_with_a_broken_checkpoint_says_so(run, tmp_path):
    with pytest.raises(MissingInput, match="last.safetensors"):
        run("new", steps=2, resume=True)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "last.safetensors").write_bytes(b"garbage garbage garbage")
    with pytest.raises(CorruptInput, match="not a safetensors file"):
        run("bad", steps=2, resume=True)


def test_config_file_and_its_errors(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("steps: 10\nmodel: {depth_bins: 20}\n")
    config = load_config(path, steps=None, threads=1)
    assert (config.steps, config.threads, config.model.depth_bins) == (10, 1, 20)
    wrong = "model: {kind: easyocc-nano, depth_bins: 1}"
    bad = {"stepz: 1": "stepz", wrong: r"c\.yaml: model config: depth_bins", "steps: -1": "steps", "[1]": "mapping"}
    for text, words in (*bad.items(), ("a: [", "YAML")):
        path.write_text(text)
        with pytest.raises(InvalidInput, match=words) as caught:
            load_config(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(MissingInput):
        load_config(tmp_path / "none.yaml")


def test_shipped_config_is_valid_and_needs_data():
    path = loop.Path(__file__).parents[2] / "config" / "easyocc_nano.yaml"
    config = load_config(path)
    with pytest.raises(InvalidInput, match="no training data"):
        open_data(config, config.model.needs, print)
    result = CliRunner().invoke(app, ["train", str(path)])
    assert isinstance(result.exception, InvalidInput)
