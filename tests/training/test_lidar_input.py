"""LiDAR from files to a network, in training and prediction; samples without labels. With a network of a few lines."""

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from typer.testing import CliRunner

from occ_core.cli.main import app
from occ_core.errors import InvalidInput, MissingInput
from occ_core.lidar_points import lidar_points
from occ_core.sources.nuscenes import NuScenesSource
from occ_core.sources.nuscenes_tables import NuScenesTables
from occ_core.sources.open import open_source

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors.torch")

import tiny_camera_network as tiny  # noqa: E402
from sky_samples import samples_of  # noqa: E402
from small_kitti import make_kitti  # noqa: E402

from occ_core.inference.predictor import Predictor  # noqa: E402
from occ_core.models import build  # noqa: E402
from occ_core.models.config import LidarInput, parse  # noqa: E402
from occ_core.training import loop  # noqa: E402
from occ_core.training.data_sets import data_record, needs_of, open_data  # noqa: E402
from occ_core.training.samples import Augmentation, collate  # noqa: E402

torch.set_num_threads(1)


class LidarConfig(tiny.TinyConfig):
    takes_lidar: ClassVar[bool] = True
    name: str = "with-lidar"
    lidar: LidarInput | None = LidarInput(sweeps=3)


class LidarNetwork(tiny.Tiny):
    """What it learns of cameras, and class 1 in each cell with a point, nowhere else; asserts what it is promised."""

    def logits(self, rig_images):
        cloud = rig_images.lidar
        assert cloud.dtype == torch.float32 and cloud.shape[0] == len(rig_images.images) and cloud.shape[2] == 5
        barrier = torch.full((len(cloud), *self.config.grid_shape), -50.0)
        for b, rows in enumerate(cloud):
            rows = rows[~rows.isnan().any(dim=1)]
            assert (rows[:, 3] >= 0).all() and (rows[:, 3] <= 1).all() and (rows[:, 4] >= 0).all()
            index, inside = self.config.grid.index_of(rows[:, :3].numpy())
            barrier[b][tuple(index[inside].T)] = 50
        logits = super().logits(rig_images)
        return torch.cat([logits[:, :1], logits[:, 1:2] + barrier[:, None], logits[:, 2:]], dim=1)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr(tiny, "TinyConfig", LidarConfig)
    monkeypatch.setattr(tiny, "Tiny", LidarNetwork)
    tiny.use_tiny(monkeypatch.setattr)


@pytest.fixture(scope="module")
def city(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("city") / "set"
    tiny.make_data(root, scenes=2, keyframes=3, sweeps=2)
    return root


def expected_cloud(root: Path, index: int, sweeps: int = 3) -> np.ndarray:
    source = NuScenesSource(root)
    frame = source[index]
    return lidar_points(source.sweeps_before(index, sweeps), frame.stamp_ns, frame.world_from_ego, 10**6)


def barriers(cloud: np.ndarray) -> set[tuple[int, ...]]:
    index, inside = tiny.GRID.index_of(cloud[:, :3])
    return set(map(tuple, index[inside].tolist()))


# --- training ---------------------------------------------------------------------------------------------------------


def test_a_sample_has_the_cloud_and_a_batch_pads_it(city):
    source = NuScenesSource(city)
    samples = samples_of(source, LidarConfig(), needs=())
    one, two = samples[0, 0], samples[0, 2]
    for sample, index in ((one, 0), (two, 2)):
        np.testing.assert_array_equal(sample.rig_images.lidar.numpy(), expected_cloud(city, index))
    batch = collate([one, two]).rig_images
    few, many = len(one.rig_images.lidar), len(two.rig_images.lidar)
    assert batch.lidar.shape == (2, many, 5) and 190 < few < 210 and many > 590
    assert torch.equal(batch.lidar[0, :few], one.rig_images.lidar) and batch.lidar[0, few:].isnan().all()
    assert torch.equal(batch.lidar[1], two.rig_images.lidar)
    moved = batch.to(torch.device("meta"))
    assert moved.lidar.device.type == "meta" and two.rig_images.batch().lidar.shape == (1, many, 5)
    np.testing.assert_array_equal(batch.first().lidar, batch.lidar[:1])
    few_points = LidarConfig(lidar=LidarInput(sweeps=3, points=50))
    assert samples_of(source, few_points, needs=())[0, 2].rig_images.lidar.shape == (50, 5)
    blind = samples_of(source, LidarConfig(lidar=None), needs=())
    assert blind[0, 0].rig_images.lidar is None and collate([blind[0, 0]] * 2).rig_images.lidar is None


def test_dropout_takes_the_whole_cloud_of_some_samples(city):
    samples = samples_of(NuScenesSource(city), LidarConfig(), needs=())
    samples.augmentation = Augmentation(lidar_dropout=0.3, seed=1)
    absent = [bool(samples[serial, 1].rig_images.lidar.isnan().all()) for serial in range(60)]
    assert 8 <= sum(absent) <= 28
    assert absent == [bool(samples[serial, 1].rig_images.lidar.isnan().all()) for serial in range(60)]
    kept = samples[absent.index(False), 1].rig_images.lidar
    np.testing.assert_array_equal(kept.numpy(), expected_cloud(city, 1))


def test_training_reads_the_cloud_and_names_the_frame_that_has_none(city, tmp_path):
    path = loop.train(tiny.run_config(city, workers=1, steps=2), tmp_path / "out")
    assert Predictor.load(path, "torch", 1).lidar == LidarInput(sweeps=3)
    tiny.make_data(tmp_path / "near", scenes=1, keyframes=2, sweeps=0)
    for file in (tmp_path / "near").glob("samples/LIDAR_TOP/*.bin"):
        np.zeros((9, 5), np.float32).tofile(file)  # returns of the sensor's own housing
    tiny.small_nuscenes.make(tmp_path / "dark", keyframes=2, lidar=False, truth=False)
    tiny.write_labels(tmp_path / "dark", "gts", NuScenesSource(tmp_path / "dark").tokens, 2)
    for name, words in (("near", "LiDAR sweep is empty"), ("dark", "it has no LiDAR sweep")):
        config = tiny.run_config(tmp_path / name, validation_scenes=0)
        with pytest.raises(InvalidInput, match=rf"scene-0001, frame '\w{{32}}': {words}, but 'with-lidar' takes LiDAR"):
            loop.train(config, tmp_path / f"{name}-out")


def test_a_sample_without_a_sweep_ends_training_unless_the_network_learns_to_do_without(tmp_path):
    pytest.importorskip("rosbags")
    bag = open_source(robot_with_clouds(tmp_path / "drive", [0, 4]))
    needs = {"lidar_origin_m"}
    strict = samples_of(bag, LidarConfig(), needs=needs)
    with pytest.raises(InvalidInput, match=rf"drive, frame '{bag.names[2]}': it has no LiDAR sweep, but 'with-lidar'"):
        strict[0, 2]
    learning = samples_of(bag, LidarConfig(lidar=LidarInput(sweeps=3, dropout=0.1)), needs=needs)
    for index, present in ((0, True), (2, False), (4, True)):
        sample = learning[0, index]
        assert bool(sample.rig_images.lidar.isfinite().all()) == present
        assert bool(sample.rig_images.lidar.isnan().all()) != present
        expected = (0.5, 0.2, 1.0) if present else (np.nan,) * 3  # where its left camera is
        np.testing.assert_allclose(sample.targets.lidar_origin_m, expected, atol=1e-5)
    batch = collate([learning[0, 0], learning[0, 2]])
    assert batch.rig_images.lidar.shape == (2, 1, 5) and batch.targets.lidar_origin_m.isnan().any(1).tolist() == [0, 1]


def test_a_network_of_cameras_refuses_lidar_in_its_config():
    easyocc = {"kind": "easyocc", "name": "x", "backbone": "resnet18", "lidar": {"sweeps": 2}}
    with pytest.raises(InvalidInput, match="a network of kind 'easyocc' takes no LiDAR"):
        build.parse_config(easyocc)
    assert build.parse_config(easyocc | {"lidar": None}).lidar is None
    with pytest.raises(InvalidInput, match="lidar.sweeps: .*greater than 0"):
        parse(LidarConfig, {"lidar": {"sweeps": 0}})


def test_intensity_of_a_bag_is_scaled_alike_to_train_and_to_predict(tmp_path, monkeypatch):
    pytest.importorskip("rosbags")
    seen = []

    class Spying(LidarNetwork):
        def logits(self, rig_images):
            seen.append(rig_images.lidar[0, :, 3].tolist())
            return super().logits(rig_images)

    monkeypatch.setattr(tiny, "Tiny", Spying)
    bag = robot_with_clouds(tmp_path / "drive", [0, 1])
    for intensity_max, expected in ((255.0, 0.5 / 255), (1.0, 0.5), (0.25, 1.0)):
        lidar = {"intensity_max": intensity_max}
        config = tiny.run_config(bag, model=LidarConfig(lidar=lidar), validation_scenes=0)
        samples = open_data(config, frozenset(), lambda _: None).training
        assert samples[0, 0].rig_images.lidar[:, 3].tolist() == pytest.approx([expected])
        seen.clear()
        predicted(checkpoint(tmp_path / f"at-{intensity_max}", lidar=lidar), bag, tmp_path / f"of-{intensity_max}")
        assert seen == [pytest.approx([expected])] * 2


def robot_with_clouds(path: Path, steps) -> Path:
    """A bag of a robot at 10 Hz; with the images of `steps` comes one point 9 m ahead, of intensity 0.5."""
    from bag_robot import T0, S, robot

    from occ_core.bags import messages as msg

    made = robot(images=max(steps) + 1)
    point = np.zeros(1, [("x", "f4"), ("y", "f4"), ("z", "f4"), ("intensity", "f4")])
    point["z"], point["intensity"] = 9, 0.5
    for step in steps:
        stamp_ns = T0 + step * S // 10
        made.add("/points", stamp_ns, msg.cloud(stamp_ns, "left_optical", point))
    return made.write(path)


# --- samples without labels -------------------------------------------------------------------------------------------


class WhereLabelled(LidarNetwork):
    def forward(self, rig_images, targets, progress):
        loss = torch.nn.functional.cross_entropy(self.logits(rig_images), targets.labels.long() % 255)
        return {"cells": loss * (targets.labels != 255).any()}


def test_samples_without_labels_are_taken_where_the_run_says_so(city, tmp_path, monkeypatch):
    labels = tmp_path / "labels"
    tokens = NuScenesSource(city).tokens
    tiny.write_labels(tmp_path, "labels", tokens[:1], 3)
    same = {"labels": str(labels), "steps": 6, "validation_labels": "gts"}
    seen: dict[str, set[bool]] = {}

    class Spying(WhereLabelled):
        def forward(self, rig_images, targets, progress):
            seen.setdefault(run, set()).add(bool((targets.labels != 255).any()))
            assert targets.class_weights[11] > 0  # counted where there are labels
            return super().forward(rig_images, targets, progress)

    monkeypatch.setattr(tiny, "Tiny", Spying)
    for run, unlabelled, samples in (("few", False, 1), ("all", True, 3)):
        path = loop.train(tiny.run_config(city, unlabelled=unlabelled, **same), tmp_path / run)
        data = json.loads(path.with_suffix(".json").read_text())["training"]["data"]
        assert data["samples"] == samples and data.get("unlabelled") == (2 if unlabelled else None)
        assert data["held_out_samples"] == 3
    assert seen == {"few": {True}, "all": {True, False}}


def test_samples_without_labels_have_the_pseudo_labels_of_the_run(city, tmp_path):
    tokens = NuScenesSource(city).tokens
    tiny.write_labels(tmp_path, "few", tokens[:1], 3)
    tiny.write_labels(tmp_path, "made", tokens[:2], 3, ground=13)  # of the third keyframe nothing could be made
    model = LidarConfig(needs=("labels", "pseudo_labels"))
    some = {"labels": str(tmp_path / "few"), "unlabelled": True, "pseudo_labels": str(tmp_path / "made")}
    config = tiny.run_config(city, model=model, validation_labels="gts", **some)
    data = open_data(config, needs_of(config), lambda what: None)
    assert data_record(data)["pseudo_labels"][0]["folder"] == "made"
    labelled, made, nothing = (data.training[0, i].targets for i in range(3))
    assert (labelled.labels == 11).any() and (made.labels == 255).all()
    assert (labelled.pseudo_labels == 255).all() and (nothing.pseudo_labels == 255).all()
    assert (made.pseudo_labels == 13).sum() == (labelled.labels == 11).sum()
    assert (made.pseudo_labels == 255).sum() == (labelled.labels == 255).sum()
    model = LidarConfig(needs=("pseudo_labels",))  # no loss reads labels: to the run, no sample has any
    config = tiny.run_config(city, model=model, validation_labels="gts", **some)
    data = open_data(config, needs_of(config), lambda what: None)
    assert data_record(data)["unlabelled"] == len(data.training) == 3
    assert [int((data.training[0, i].targets.pseudo_labels == 13).sum() > 0) for i in range(3)] == [1, 1, 0]
    with pytest.raises(InvalidInput, match="no loss of 'with-lidar' learns from pseudo_labels"):
        needs_of(tiny.run_config(city, **some))
    with pytest.raises(ValueError, match="set unlabelled: true"):
        tiny.run_config(city, model=model, **{**some, "unlabelled": False})


def test_a_run_goes_on_with_pseudo_labels_made_alike_wherever_they_lie(city, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "Tiny", WhereLabelled)
    tokens = NuScenesSource(city).tokens
    tiny.write_labels(tmp_path, "few", tokens[:1], 3)
    tiny.write_labels(tmp_path, "made", tokens[:3], 3)
    store = tmp_path / "made/store.json"
    store.write_text(json.dumps({"format": 1, "made_with": {"recipe": "lidar", "teacher": "oracle"}, "scenes": {}}))

    def run(made, resume=True):
        some = {"labels": str(tmp_path / "few"), "unlabelled": True, "pseudo_labels": str(made), "steps": 2}
        model = LidarConfig(needs=("labels", "pseudo_labels"))
        config = tiny.run_config(city, model=model, validation_labels="gts", **some)
        return loop.train(config, tmp_path / "out", resume)

    path = run(tmp_path / "made", resume=False)
    record = json.loads(path.with_suffix(".json").read_text())["training"]
    assert record["config"]["pseudo_labels"] == "made" and record["data"]["pseudo_labels"][0]["recipe"] == "lidar"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "made").rename(tmp_path / "elsewhere/made")
    run(tmp_path / "elsewhere/made")
    store = tmp_path / "elsewhere/made/store.json"
    store.write_text(store.read_text().replace('"lidar"', '"best"'))
    with pytest.raises(InvalidInput, match="pseudo-labels made as"):
        run(tmp_path / "elsewhere/made")


def test_no_label_at_all_is_refused_by_the_folders_name(city, tmp_path):
    (tmp_path / "nothing").mkdir()
    for unlabelled in (False, True):
        config = tiny.run_config(city, labels=str(tmp_path / "nothing"), unlabelled=unlabelled, validation_scenes=0)
        with pytest.raises(InvalidInput, match="no sample to train on has labels: none of 2 scenes in .*nothing"):
            loop.train(config, tmp_path / "out")
    with pytest.raises(MissingInput, match="no labels: neither"):
        loop.train(tiny.run_config(city, labels="nowhere", unlabelled=True), tmp_path / "out")


# --- prediction -------------------------------------------------------------------------------------------------------


def checkpoint(folder: Path, **changes) -> Path:
    """Of an untrained network, made the way training saves."""
    from occ_core.models.checkpoint import describe, save_checkpoint

    config = LidarConfig(**changes)
    torch.manual_seed(0)
    path = folder / "model.safetensors"
    save_checkpoint(path, LidarNetwork(config).state_dict(), describe(config, {}))
    return path


def predicted(path: Path, data: Path, out: Path) -> dict[str, np.ndarray]:
    result = CliRunner().invoke(app, ["predict", str(path), str(data), str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return {file.stem: np.load(file)["pred"] for file in out.iterdir()}


def test_occ_predict_gives_the_network_the_sweeps_of_any_data_set(city, tmp_path):
    pytest.importorskip("rosbags")
    from occ_core.bags.writer import write_bag

    path = checkpoint(tmp_path)
    answers = predicted(path, city, tmp_path / "layout")
    source = NuScenesSource(city)
    for index, token in enumerate(source.tokens):
        assert set(map(tuple, np.argwhere(answers[token] == 1).tolist())) == barriers(expected_cloud(city, index))
    (city / "gts").rename(city / "labels")  # of a grid of their own, which a bag does not take along
    write_bag(NuScenesTables(city), "scene-0001", tmp_path / "scene-0001")
    (city / "labels").rename(city / "gts")
    of_bag = predicted(path, tmp_path / "scene-0001", tmp_path / "recorded")
    bag = open_source(tmp_path / "scene-0001")
    assert sorted(of_bag) == sorted(bag.names)
    for token in source.tokens[:3]:  # the bag's sample is its front camera's, 35 ms earlier
        cells, there = (set(map(tuple, np.argwhere(a[token] == 1).tolist())) for a in (of_bag, answers))
        assert len(cells & there) > 0.8 * len(cells | there)
    kitti = make_kitti(tmp_path / "kitti")
    grid = {"grid_origin_m": (0, -25.6, -2.2), "voxel_size_m": 1.6, "grid_shape": (32, 32, 4)}
    own = checkpoint(tmp_path / "k", taxonomy="semantic_kitti", lidar={"sweeps": 2}, **grid)
    of_kitti = predicted(own, kitti, tmp_path / "of-kitti")
    cells = {name: set(map(tuple, np.argwhere(labels == 1).tolist())) for name, labels in of_kitti.items()}
    now = {(3, 16, 0), (5, 16, 1)}  # (5, 1, -1) and (9, 0, 0)
    before = {(1, 16, 0), (4, 16, 0)}  # the same, 2 m farther back and 1 m deeper
    assert cells == {"03_000000": now, "03_000001": now | before, "03_000002": now | before}


def test_a_cloud_is_needed_unless_training_dropped_it(city, tmp_path):
    frame = NuScenesSource(city)[0]
    cloud, empty = expected_cloud(city, 0), np.zeros((0, 5), np.float32)
    strict = Predictor.load(checkpoint(tmp_path / "strict"), "torch", 1)
    strict.prepare(frame.rig)
    assert barriers(cloud) == set(map(tuple, np.argwhere(strict.predict_frame(frame).labels == 1).tolist()))
    for lidar, words in (
        (None, "model 'with-lidar' needs LiDAR, got no LiDAR cloud"),
        (empty, "model 'with-lidar' needs LiDAR, got a LiDAR cloud of 0 points"),
        (cloud[:, :4], r"LiDAR cloud must be float32 \(P, 5\) of x_m, .*, got float32 \(200, 4\)"),
        (cloud.astype(float), r"got float64 \(200, 5\)"),
        (np.where(np.arange(5) == 1, np.float32(np.nan), cloud), "LiDAR cloud: 200 of 200 points are not finite"),
    ):
        with pytest.raises(InvalidInput, match=words):
            strict.predict(frame.images, frame.rig, lidar)
    alone = Predictor.load(checkpoint(tmp_path / "alone", lidar={"dropout": 0.2}), "torch", 1)
    answers = [alone.predict(frame.images, frame.rig, lidar).labels for lidar in (None, empty, cloud)]
    assert np.array_equal(answers[0], answers[1]) and (answers[2] == 1).sum() > (answers[0] == 1).sum()
    blind = Predictor.load(checkpoint(tmp_path / "blind", lidar=None), "torch", 1)
    with pytest.raises(InvalidInput, match="model 'with-lidar' takes no LiDAR, got a cloud of 200 points"):
        blind.predict(frame.images, frame.rig, cloud)


def test_occ_predict_names_the_frame_without_points(tmp_path):
    tiny.small_nuscenes.make(tmp_path / "dark", keyframes=1, lidar=False, truth=False)
    arguments = ["predict", str(checkpoint(tmp_path)), str(tmp_path / "dark"), str(tmp_path / "out")]
    error = CliRunner().invoke(app, arguments).exception
    assert isinstance(error, InvalidInput) and "dark, frame '" in str(error) and "needs LiDAR" in str(error)
