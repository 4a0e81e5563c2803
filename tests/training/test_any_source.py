"""Training and prediction from bags and SemanticKITTI, against the files and the nuScenes layout they are made from."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from occ_core.cli.main import app
from occ_core.errors import InvalidInput, MissingInput, MissingTransform
from occ_core.grid import SEMANTIC_KITTI_GRID
from occ_core.sources.kitti import SemanticKittiSource
from occ_core.sources.nuscenes import NuScenesSource
from occ_core.sources.nuscenes_tables import NuScenesTables
from occ_core.sources.open import open_source
from occ_core.taxonomy import SEMANTIC_KITTI

torch = pytest.importorskip("torch")
pytest.importorskip("rosbags")

import tiny_camera_network as tiny  # noqa: E402
from bag_robot import T0, S, robot  # noqa: E402
from model_fixtures import COARSE_NANO  # noqa: E402
from nano_fixtures import open_scenes  # noqa: E402
from sky_samples import samples_of  # noqa: E402
from small_kitti import make_kitti  # noqa: E402
from tiny_camera_network import kitti_config  # noqa: E402
from tiny_models import EASYOCC, OCCNERF, SELFOCC  # noqa: E402

from occ_core.bags import messages as msg  # noqa: E402
from occ_core.bags.writer import write_bag  # noqa: E402
from occ_core.models.build import build_model, parse_config  # noqa: E402
from occ_core.occupancy import Occupancy, save_occ3d  # noqa: E402
from occ_core.sources.bag import BagSource  # noqa: E402
from occ_core.sources.bag_frames import BagFrames  # noqa: E402
from occ_core.training import loop  # noqa: E402
from occ_core.training.config import load_config  # noqa: E402
from occ_core.training.data_sets import open_data  # noqa: E402
from occ_core.training.label_files import LabelFiles, open_labels  # noqa: E402
from occ_core.training.samples import NEEDS, collate  # noqa: E402

pytestmark = pytest.mark.usefixtures("tiny_network")
torch.set_num_threads(1)
BY_NAME = [1, 0]  # cameras of a bag are in the order of their names: back, front


@pytest.fixture(scope="module")
def city(tmp_path_factory) -> Path:
    """Labelled, in nuScenes layout."""
    root = tmp_path_factory.mktemp("city") / "set"
    tiny.make_data(root, scenes=1, keyframes=3, sweeps=2)
    (root / "gts").rename(root / "labels")  # of a grid of their own, which a bag does not take along
    return root


@pytest.fixture(scope="module")
def bag(city) -> Path:
    """The same drive, as a bag named after its scene, so that the labels are found by scene and token."""
    write_bag(NuScenesTables(city), "scene-0001", city.parent / "scene-0001")
    return city.parent / "scene-0001"


# --- which kind of data it is ----------------------------------------------------------------------------------------


def test_the_content_of_a_path_says_what_it_is(city, bag, tmp_path):
    assert isinstance(open_source(city), NuScenesSource)
    assert isinstance(open_source(bag), BagFrames) and isinstance(open_source(bag / "scene-0001.mcap"), BagFrames)
    kitti = open_source(make_kitti(tmp_path / "kitti", ("03", "04")))
    assert isinstance(kitti, SemanticKittiSource) and kitti.names[3] == "04_000000" and len(set(kitti.names)) == 6
    assert len(open_source(tmp_path / "kitti", ["04"])) == 3
    with pytest.raises(MissingInput, match=r"metadata\.yaml .*sequences/ .*v1\.0-\*"):
        open_source(tmp_path)
    with pytest.raises(MissingInput, match="nothing: no such folder"):
        open_source(tmp_path / "nothing")
    with pytest.raises(MissingInput, match="no scene 'scene-0002', a bag is the one scene 'scene-0001'"):
        open_source(bag, ["scene-0002"])


# --- a bag by number -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["MCAP", "SQLITE3"])
def test_frames_by_number_are_those_of_the_stream_in_any_order(tmp_path, storage):
    made = robot(images=38)  # for 3.8 s, transforms for 3 s
    for message in [entry for entry in made.messages if entry[1] == "/right/image_raw"][::3]:
        made.messages.remove(message)
        made.messages.append((message[0] + 70_000_000, *message[1:]))  # comes late
    points = np.zeros(5, [("x", "f4"), ("y", "f4"), ("z", "f4")])
    for step in range(0, 30, 2):
        points["x"] = step
        made.add("/points", T0 + step * S // 10, msg.cloud(T0 + step * S // 10, "left_optical", points))
    from rosbags.rosbag2 import StoragePlugin

    path = made.write(tmp_path / "bag", StoragePlugin[storage])
    streamed, by_number = list(BagSource(path)), open_source(path)
    assert len(by_number) == len(streamed) and 29 <= len(streamed) <= 31
    for i in (17, 3, 29, 0, 16):
        found, expected = by_number[i], streamed[i]
        assert (found.stamp_ns, found.camera_stamp_ns) == (expected.stamp_ns, expected.camera_stamp_ns)
        assert found.scene == "bag" and found.token == f"bag_{expected.stamp_ns}" == by_number.names[i]
        for name, image in expected.images.items():
            np.testing.assert_array_equal(found.images[name], image)
            np.testing.assert_array_equal(found.camera_world_from_ego[name], expected.camera_world_from_ego[name])
        assert (found.lidar is None) == (expected.lidar is None)
        if expected.lidar is not None:
            np.testing.assert_array_equal(found.lidar.points_lidar_m, expected.lidar.points_lidar_m)
    assert by_number[16].lidar is not None and len(by_number[0].images) == 2


def test_a_bag_that_cannot_be_placed_or_names_a_token_like_a_path(tmp_path):
    lost = robot(images=3, tf=False)
    lost.static("left", "right")
    lost.add("/tf", T0 + 90 * S, msg.transforms(T0 + 90 * S, [("odom", "base_link", np.eye(4))]))
    with pytest.raises(MissingTransform):
        open_source(lost.write(tmp_path / "lost"))
    made = robot(images=3)
    made.add("/keyframe", T0 + 90_000_000, msg.new("std_msgs/msg/String", data="good-1"))
    made.add("/keyframe", T0 + 210_000_000, msg.new("std_msgs/msg/String", data="../../evil"))
    made.add("/keyframe", T0 + 900_000_000, msg.new("std_msgs/msg/String", data="far"))
    frames = open_source(made.write(tmp_path / "bag"))
    assert frames.names == [f"bag_{T0}", "good-1", f"bag_{T0 + 200_000_000}"]


def test_a_sample_of_a_bag_is_that_of_the_data_set_it_was_made_from(city, bag):
    labels = LabelFiles(city / "labels")
    layout, frames = NuScenesSource(city), open_source(bag)
    theirs = samples_of(layout, tiny.TinyConfig(), labels)
    ours = samples_of(frames, tiny.TinyConfig(), labels)
    place = {token: i for i, token in enumerate(frames.names)}
    assert len(ours) == 7 and [layout.names[0], layout.names[2]] == [frames.names[0], frames.names[6]]
    for i, token in enumerate(layout.names):
        expected, found = theirs[0, i], ours[0, place[token]]
        assert torch.equal(found.rig_images.images, expected.rig_images.images[BY_NAME])
        torch.testing.assert_close(found.rig_images.intrinsics, expected.rig_images.intrinsics[BY_NAME])
        # a bag's sample is that of its key camera, a keyframe's that of its LiDAR: one motion lies between all cameras
        moved = found.rig_images.ego_from_cam @ expected.rig_images.ego_from_cam[BY_NAME].inverse()
        torch.testing.assert_close(moved, moved[:1].expand_as(moved), atol=1e-4, rtol=0)
        assert moved[0, :3, 3].norm() < 0.5 and (moved[0, :3, :3] - torch.eye(3)).abs().max() < 0.02
        assert torch.equal(found.targets.labels, expected.targets.labels)
        assert torch.equal(found.targets.neighbour_present, expected.targets.neighbour_present[BY_NAME])
        assert torch.equal(found.targets.neighbours, expected.targets.neighbours[BY_NAME])
        moved = expected.targets.neighbour_from_cam[BY_NAME]
        torch.testing.assert_close(found.targets.neighbour_from_cam, moved, atol=1e-4, rtol=0)


def test_a_slow_cameras_image_is_no_neighbour_of_itself(tmp_path):
    made = robot(images=6)
    made.messages = [
        entry for entry in made.messages
        if entry[1] != "/right/image_raw" or (entry[0] - T0) // (S // 10) % 4 == 1
    ]  # fmt: skip
    samples = samples_of(open_source(made.write(tmp_path / "bag")), tiny.TinyConfig(), needs={"neighbours"})
    present = torch.stack([samples[0, i].targets.neighbour_present for i in range(6)])
    assert present[:, 0].tolist() == [[False, True], *[[True, True]] * 4, [True, False]]
    assert not present[:, 1].any()  # its only images are 0.4 s apart: frames beside each other share one or have none


# --- SemanticKITTI ---------------------------------------------------------------------------------------------------


def test_a_sample_of_kitti_has_its_voxels_and_the_frames_beside_it(tmp_path):
    frames, config = open_source(make_kitti(tmp_path)), kitti_config()
    files = open_labels(tmp_path, frames, "voxels", config)
    there = [files.path(scene, token).is_file() for scene, token in frames.samples]
    assert there == [True, False, True]
    samples = samples_of(frames, config, files)
    labels = samples.labels(0)
    assert (labels[:128, :, :-1] == SEMANTIC_KITTI.id_of("road")).all() and (labels[128:, :, :-1] == 0).all()
    assert (labels[:, :, -1] == 255).all()
    ends = samples_of(frames, config, needs={"neighbours"})
    assert [ends[0, i].targets.neighbour_present[0].tolist() for i in (0, 1, 2)] == [
        [False, True], [True, True], [True, False],
    ]  # fmt: skip
    targets, before = ends[0, 1].targets, ends[0, 0].rig_images
    assert torch.equal(targets.neighbours[0, 0], before.images[0])
    expected = torch.eye(4).repeat(2, 1, 1)
    expected[:, 1, 3], expected[:, 2, 3] = torch.tensor([-1.0, 1.0]), torch.tensor([2.0, -2.0])  # a point comes nearer
    torch.testing.assert_close(targets.neighbour_from_cam[0], expected, atol=1e-5, rtol=0)


def test_neighbours_of_real_frames_move_as_poses_txt_says(shared_data):
    root = shared_data("semantickitti_seq08_10f")
    samples = samples_of(open_source(root), kitti_config(), needs={"neighbours"})
    poses = [np.vstack([row.reshape(3, 4), (0, 0, 0, 1)]) for row in np.loadtxt(root / "sequences/08/poses.txt")]
    p2 = next(x for x in (root / "sequences/08/calib.txt").read_text().splitlines() if x.startswith("P2"))
    p2 = np.array(p2.split()[1:], dtype=float).reshape(3, 4)
    beside = np.eye(4)
    beside[:3, 3] = np.linalg.inv(p2[:, :3]) @ p2[:, 3]  # camera 2 from camera 0
    moved = samples[0, 4].targets.neighbour_from_cam[0].double().numpy()
    for side, there in enumerate((3, 5)):
        expected = beside @ np.linalg.inv(poses[there]) @ poses[4] @ np.linalg.inv(beside)
        np.testing.assert_allclose(moved[side], expected, atol=1e-4)
    assert samples[0, 4].targets.neighbour_present.all() and 0.3 < np.linalg.norm(moved[0][:3, 3]) < 3


def test_voxels_of_another_grid_or_taxonomy_than_the_models_are_refused(city, tmp_path):
    make_kitti(tmp_path)
    for changes, words in (
        ({"voxel_size_m": 0.4}, r"voxels are of grid .*voxel_size_m=0\.2.*the model's is .*voxel_size_m=0\.4"),
        ({"taxonomy": "occ3d"}, "voxels are of taxonomy semantic_kitti, the model's is occ3d"),
    ):
        with pytest.raises(InvalidInput, match=words):
            open_labels(tmp_path, open_source(tmp_path), "voxels", kitti_config(**changes))
    with pytest.raises(MissingInput, match="set/voxels nor voxels"):
        open_labels(city, NuScenesSource(city), "voxels", tiny.TinyConfig())


COARSE = {"grid_origin_m": (0.0, -25.6, -2.0), "voxel_size_m": 3.2, "grid_shape": (16, 16, 8)}
NETWORKS = {
    "easyocc": EASYOCC | {"head": "hourglass", "cells_per_feature": 2},
    "occnerf": OCCNERF | {"input_width": 64, "input_height": 32, "loss": {"labels": 1.0}},
    "selfocc": SELFOCC | {"loss": {"labels": 1.0}},
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_network_learns_from_one_camera_ahead_of_it(tmp_path, kind):
    """A grid that begins at the ego, a free class that is the first, no camera to the sides."""
    fields = NETWORKS[kind] | COARSE | {"name": "kitti", "kind": kind, "taxonomy": "semantic_kitti"}
    config = parse_config(fields)
    sample = collate([samples_of(open_source(make_kitti(tmp_path)), config, needs=NEEDS - {"labels"})[0, 1]])
    labels = torch.zeros(1, *config.grid_shape, dtype=torch.uint8)
    labels[..., 0], labels[:, -1] = SEMANTIC_KITTI.id_of("road"), 255
    ones = torch.ones(len(SEMANTIC_KITTI))
    torch.manual_seed(0)
    network = build_model(config).train()
    targets = replace(sample.targets, labels=labels, class_weights=ones, pixel_weights=ones)
    losses = network(sample.rig_images, targets, 0.5)
    assert len(losses) >= 2 and all(torch.isfinite(loss) for loss in losses.values()), losses
    sum(losses.values()).backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in network.parameters())
    answer = network.eval().answer(sample.rig_images)
    assert answer.labels.shape == labels.shape and answer.labels.max() < 20
    seen = answer.observed[0].bool()
    assert (answer.labels[0][~seen] == 0).all() and seen[4:12, 8, 1].any()


# --- a step from each of the three -----------------------------------------------------------------------------------


class Flat(tiny.Tiny):
    """Of the largest grid, one answer for all cells: the mean colour decides."""

    def __init__(self, config):
        super().__init__(config.model_copy(update={"grid_shape": (1, 1, 1)}))
        self.config = config

    def logits(self, rig_images):
        features = self.backbone(rig_images.images.flatten(0, 1).permute(0, 3, 1, 2).float() / 255).mean(dim=(0, 2, 3))
        return self.head(features)[None, :, None, None, None].expand(1, -1, *self.config.grid_shape)


def total(folder: Path) -> list[float]:
    with open(folder / "log.csv", newline="") as file:
        return [float(row["total"]) for row in csv.DictReader(file)]


def predicted(checkpoint: Path, data: Path, out: Path) -> dict[str, np.ndarray]:
    result = CliRunner().invoke(app, ["predict", str(checkpoint), str(data), str(out)])
    assert result.exit_code == 0, result.output
    return {path.stem: np.load(path)["pred"] for path in out.iterdir()}


def test_a_bag_and_its_data_set_teach_the_same_and_are_answered_alike(city, bag, tmp_path, monkeypatch):
    """One step on one sample without chance, but for the order of the cameras, which this network does not see."""
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, features: features)
    same = {"steps": 1, "validation_scenes": 0, "color_jitter": 0, "camera_dropout": 0, "labels": str(city / "labels")}
    layout = loop.train(tiny.run_config(city, **same), tmp_path / "layout")
    recorded = loop.train(tiny.run_config(bag, workers=1, **same), tmp_path / "recorded")
    assert total(recorded.parent) == pytest.approx(total(layout.parent), rel=1e-3)  # other samples of reference
    theirs, ours = (predicted(recorded, data, tmp_path / data.name) for data in (city, bag))
    assert len(theirs) == 3 and len(ours) == 7 and set(theirs) < set(ours)
    assert all(name.startswith("scene-0001_1700000000") for name in set(ours) - set(theirs))
    for token, cells in theirs.items():
        assert (ours[token] == cells).mean() > 0.95  # cameras up to 0.3 m beside their places in the other


def test_sequences_that_are_held_out_can_be_named(tmp_path):
    root = make_kitti(tmp_path / "kitti", ("03", "04", "05"))
    run = tmp_path / "run.yaml"
    for asked, held_out in (("['04']", {"04"}), ("['05', '03']", {"03", "05"}), ("1", {"05"}), ("0", set())):
        run.write_text(f"validation_scenes: {asked}\n")
        config = load_config(run, data=(root,), labels="voxels", model=kitti_config())
        held = open_data(config, frozenset({"labels"}), lambda _: None)
        parts = [{name[:2] for name in samples.names} for samples in (held.training, held.validation)]
        assert parts == [{"03", "04", "05"} - held_out, held_out] and set(held.held_out_scenes) == held_out
    run.write_text("validation_scenes: ['08']\n")
    with pytest.raises(InvalidInput, match=r"validation_scenes names '08', which is none of the 3: 03 \.\. 05"):
        open_data(load_config(run, data=(root,), labels="voxels", model=kitti_config()), frozenset(), lambda _: None)
    for wrong in ("-1", "[8]", "many"):
        run.write_text(f"validation_scenes: {wrong}\n")
        with pytest.raises(InvalidInput, match="run.yaml: validation_scenes"):
            load_config(run)


def test_kitti_teaches_and_is_answered_on_its_own_grid(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "Tiny", Flat)
    root = make_kitti(tmp_path / "kitti")
    config = tiny.run_config(root, model=kitti_config(), labels="voxels", steps=1, validation_scenes=0)
    path = loop.train(config, tmp_path / "out")
    assert all(np.isfinite(total(path.parent)))
    answers = predicted(path, root, tmp_path / "predictions")
    assert sorted(answers) == ["03_000000", "03_000001", "03_000002"]
    assert {cells.shape for cells in answers.values()} == {SEMANTIC_KITTI_GRID.shape}
    other = tiny.run_config(root, model=kitti_config(), labels="voxels", validation=(root,))
    with pytest.raises(InvalidInput, match="2 samples are in training and validation data, first: 03_000000"):
        loop.train(other, tmp_path / "twice")


def test_a_bag_whose_lens_distorts_is_trained_on(tmp_path):
    made = robot(names=("left",), images=3)
    made.messages = [entry for entry in made.messages if not entry[1].endswith("camera_info")]
    made.info("left", T0, d=(0.1, 0.0, 0.0, 0.0, 0.0))
    bag = made.write(tmp_path / "bag")
    tiny.write_labels(tmp_path, "gts", open_source(bag).names, 3)
    (tmp_path / "gts/scene-0001").rename(tmp_path / "gts/bag")
    config = tiny.run_config(bag, labels=str(tmp_path / "gts"), validation_scenes=0)
    assert loop.train(config, tmp_path / "out").is_file()


def nano(data: Path, labels: str, out: Path, **model) -> Path:
    """Train EasyOcc nano by the command line, an image step and one on all; the checkpoint."""
    fields = COARSE_NANO.model_copy(update=model).model_dump(mode="json")
    run = {"model": fields, "validation_scenes": 0, "steps": 1, "threads": 1, "device": "cpu"}
    run["nano"] = {"image_steps": 1, "image_batch": 2, "columns": 60, "threshold_scenes": 0}
    (out.parent / "run.json").write_text(json.dumps(run))
    given = ["train", out.parent / "run.json", "--data", data, "--labels", labels, "--out", out, "--cache", out / "c"]
    result = CliRunner().invoke(app, [str(a) for a in given])
    assert result.exit_code == 0, result.exception
    return out / "model.safetensors"


def test_nano_learns_from_a_bag_what_it_learns_from_its_data_set(city, bag, tmp_path):
    tokens = NuScenesSource(city).names
    tiny.write_labels(tmp_path, "gts", tokens, 3, grid=COARSE_NANO.grid)
    theirs, ours = (open_scenes(data, str(tmp_path / "gts"), COARSE_NANO, tmp_path / "c")[0] for data in (city, bag))
    assert theirs.tokens == ours.tokens == tokens and ours.name == "scene-0001"
    assert np.array_equal(ours["images"], theirs["images"][:, BY_NAME])
    assert np.array_equal(ours["labels"], theirs["labels"])
    pixels = [scene["pixel_class"][:, order] for scene, order in ((ours, [0, 1]), (theirs, BY_NAME))]
    assert (pixels[0] == pixels[1]).mean() > 0.9  # a bag's sample is that of its key camera: all is shifted a little
    path = nano(bag, str(tmp_path / "gts"), tmp_path / "out")
    assert all(np.isfinite(total(path.parent)))
    record = json.loads(path.with_suffix(".json").read_text())["training"]["data"]
    assert record["samples"] == 3 and record["cameras"] == 2
    assert set(predicted(path, bag, tmp_path / "predictions")) > set(tokens)
    one = open_scenes(bag, str(tmp_path / "gts"), COARSE_NANO, tmp_path / "c", cameras=("cam_back",))[0]
    assert one["images"].shape[1] == 1 and len(list((tmp_path / "c").iterdir())) == 3  # other cameras, other arrays


def test_nano_learns_from_kitti(tmp_path):
    root = make_kitti(tmp_path / "kitti", ("03", "04"))
    for scene, token in [("03", "000000"), ("04", "000000"), ("04", "000002")]:
        labels = np.zeros((16, 16, 2), dtype=np.uint8)
        labels[:, :, 0] = SEMANTIC_KITTI.id_of("road")
        label = Occupancy(COARSE_NANO.grid, SEMANTIC_KITTI, labels, np.ones(labels.shape, dtype=bool))
        save_occ3d(tmp_path / "gts" / scene / token / "labels.npz", label)
    path = nano(root, str(tmp_path / "gts"), tmp_path / "out", taxonomy="semantic_kitti")
    assert all(np.isfinite(total(path.parent)))
    data = json.loads(path.with_suffix(".json").read_text())["training"]["data"]
    assert (data["scenes"], data["samples"], data["cameras"]) == (2, 3, 1)  # one camera, and names that are no tokens
    assert len(predicted(path, root, tmp_path / "predictions")) == 6
