"""Rigs of 1, 4, 8 and 12 cameras, fewer than trained on, and fisheyes, in every kind of network."""

import json

import numpy as np
import pytest
import small_nuscenes
from model_fixtures import SMALL, camera, write_checkpoint
from nano_fixtures import open_scenes

from occ_core.camera import Rig

torch = pytest.importorskip("torch")

import tiny_camera_network as tiny  # noqa: E402
from tiny_models import EASYOCC, OCCLE, OCCNERF, SELFOCC  # noqa: E402

from occ_core.inference.predictor import Predictor  # noqa: E402
from occ_core.models.build import build_model, parse_config  # noqa: E402
from occ_core.models.checkpoint import describe, save_checkpoint  # noqa: E402
from occ_core.training.augment import read_sample  # noqa: E402
from occ_core.training.samples import Augmentation, SampleDataset, collate  # noqa: E402

torch.set_num_threads(1)
CAMERA_NETWORKS = {
    "easyocc": {**EASYOCC, "observed_output": False},
    "occnerf": OCCNERF,
    "selfocc": SELFOCC,
    "occle": {**OCCLE, "lidar": None},
}
FISH = {"distortion_model": "equidistant", "distortion": (0.05, -0.01, 0.002, -0.001)}


def ring(count: int, size=(160, 90), **lens) -> Rig:
    return Rig(tuple(camera(f"c{i}", 360.0 * i / count, size, 80.0, **lens) for i in range(count)))


def pictures(rig: Rig, seed=0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {c.name: rng.integers(0, 255, (c.size[1], c.size[0], 3), dtype=np.uint8) for c in rig}


def checkpoint(kind: str, folder, trained_on: int = 6):
    path = folder / f"{kind}.safetensors"
    if kind == "nano":
        write_checkpoint(torch, SMALL, path)
        record = json.loads(path.with_suffix(".json").read_text())
        record["training"] = {"data": {"cameras": trained_on}}
        path.with_suffix(".json").write_text(json.dumps(record))
        return path
    torch.manual_seed(0)
    config = parse_config({"kind": kind, "name": kind, **CAMERA_NETWORKS[kind]})
    save_checkpoint(path, build_model(config).state_dict(), describe(config, {"data": {"cameras": trained_on}}))
    return path


@pytest.fixture(scope="module", params=["nano", *CAMERA_NETWORKS])
def predictor(request, tmp_path_factory) -> Predictor:
    return Predictor.load(checkpoint(request.param, tmp_path_factory.mktemp("model")), "torch", 1)


def test_a_rig_of_fewer_cameras_is_answered_as_the_whole_one_without_the_others(predictor):
    """To the network a camera that the robot lacks is one that gave no image: no stand-in is needed."""
    whole = ring(6)
    images = pictures(whole)
    for kept in (("c0",), ("c0", "c1", "c3", "c5")):
        few = Rig(tuple(whole[name] for name in kept))
        given = {name: images[name] for name in kept}
        alone, among = predictor.predict(given, few), predictor.predict(given, whole)
        assert np.array_equal(alone.labels, among.labels) and np.array_equal(alone.observed, among.observed)
        assert f"trained on 6 cameras, this rig has {len(kept)} (c0" in predictor.caution(few)
    assert predictor.caution(whole) == ""


@pytest.mark.parametrize("count", [1, 4, 8, 12])
def test_any_number_of_cameras_is_answered(predictor, count):
    rig = ring(count)
    answer = predictor.predict(pictures(rig), rig)
    seen = np.zeros(predictor.grid.cells, bool)
    for cam in rig:  # what no camera has in its whole image cannot be observed
        points = predictor.grid.centers_m().reshape(-1, 3) - cam.ego_from_cam[:3, 3]
        seen |= cam.project(points @ cam.ego_from_cam[:3, :3])[1]
    assert answer.observed.any() and not (answer.observed.reshape(-1) & ~seen).any()


def test_fisheyes_beside_pinholes_are_answered_and_see_to_their_sides(predictor):
    fish = camera("fish", 0, (320, 240), 95.0, **FISH)
    straight = camera("back", 180, (160, 90), 80.0)
    rig = Rig((fish, straight))
    images = pictures(rig)
    predictor.prepare(rig)
    answer = predictor.predict(images, rig)
    narrow = Rig((camera("fish", 0, (320, 240), 160.0), straight))  # 90 degrees wide
    cells = predictor.grid.centers_m() - fish.ego_from_cam[:3, 3]
    beside = np.degrees(np.abs(np.arctan2(cells[..., 1], cells[..., 0])))
    band = (beside > 60) & (beside < 80) & (np.abs(cells[..., 2]) < 1.0)
    if predictor.moving_rig:  # what of that EasyOcc nano calls observed, it has to learn
        assert answer.observed[band].mean() > 0.5 and not predictor.predict(images, narrow).observed[band].any()
    del images["fish"]
    assert not predictor.predict(images, rig).observed[band].any()


def test_a_camera_network_trains_on_a_bag_like_frame_of_a_fisheye(tmp_path):
    """A sample of a rig with a fisheye: views with their own images, neighbours and blind pixels, in one batch with
    others."""
    tiny.make_data(tmp_path, scenes=1, keyframes=3, sweeps=1)
    frames = tiny_frames(tmp_path)
    from occ_core.training.keyframes import Keyframe, KeyframeSource

    listed = [Keyframe(frames.scenes[0], "", i) for i in range(3)]
    samples = SampleDataset(
        [KeyframeSource(frames, listed)], tiny.TinyConfig(), frozenset({"neighbours"}), Augmentation()
    )
    rig_images, targets = samples[0, 1]
    views = len(rig_images.images) - 1  # CAM_BACK stays what it is
    assert views >= 2 and rig_images.sees.shape == rig_images.images.shape[:3]
    assert targets.neighbours.shape[:2] == (views + 1, 2) and targets.neighbour_present.all()
    blind = ~rig_images.sees
    assert blind.any() and not rig_images.images[blind].any()
    # The same world point, seen from both samples: the lens' motion, in the axes of each view.
    for i in range(len(rig_images.images)):
        ego_from_cam = rig_images.ego_from_cam[i].double().numpy()
        near_from_cam = targets.neighbour_from_cam[i, 1].double().numpy()
        moved = np.linalg.norm(near_from_cam[:3, 3])
        assert 0.5 < moved < 6.0 and np.allclose(np.linalg.det(near_from_cam[:3, :3]), 1, atol=1e-5)
        ahead = -ego_from_cam[:3, :3] @ near_from_cam[:3, 3] / moved  # where the lens went, in the ego frame
        assert ahead[0] > 0.9
    batch = collate([samples[0, 0], samples[0, 1]])
    assert batch.rig_images.sees.shape == batch.rig_images.images.shape[:4]


def tiny_frames(root):
    """The small data set as if CAM_FRONT had a fisheye lens."""
    from dataclasses import replace

    from occ_core.sources.nuscenes import NuScenesSource

    class Bent:
        def __init__(self):
            self.inner = NuScenesSource(root, sweeps=False)
            self.scenes, self.samples, self.names = self.inner.scenes, self.inner.samples, self.inner.names
            self.rigs = {}

        def __len__(self):
            return len(self.inner)

        def sweeps_before(self, index, count):
            return []

        def __getitem__(self, index):
            frame = self.inner[index]
            if frame.rig.fingerprint not in self.rigs:
                bent = [
                    replace(c, intrinsics=np.array([[19.0, 0, 31.5], [0, 19, 23.5], [0, 0, 1]]), **FISH)
                    if c.name == "CAM_FRONT"
                    else c
                    for c in frame.rig
                ]
                self.rigs[frame.rig.fingerprint] = Rig(tuple(bent))
            return replace(frame, rig=self.rigs[frame.rig.fingerprint])

    return Bent()


def test_nano_trains_on_a_scene_whose_keyframes_lack_a_camera(tmp_path):
    """As where only a part of the files was downloaded: the absent camera sees nothing, the others what they did."""
    small_nuscenes.make(tmp_path / "data", keyframes=2, sweeps=0)
    tables = next((tmp_path / "data").glob("v1.0-*"))
    rows = json.loads((tables / "sample_data.json").read_text())
    first = min(r["timestamp"] for r in rows)
    kept = [r for r in rows if not ("CAM_BACK" in r["filename"] and r["timestamp"] < first + 200_000)]
    assert len(kept) == len(rows) - 1
    config = SMALL.model_copy(
        update={"grid_origin_m": (-40.0, -40.0, -1.0), "voxel_size_m": 0.4, "grid_shape": (200, 200, 16)}
    )
    (whole,) = open_scenes(tmp_path / "data", "gts", config, tmp_path / "a")
    (tables / "sample_data.json").write_text(json.dumps(kept))
    (scene,) = open_scenes(tmp_path / "data", "gts", config, tmp_path / "b")
    assert scene["present"].tolist() == [[True, False], [True, True]]
    without = read_sample(whole, 0, config, dropped=[1])
    got = read_sample(scene, 0, config)
    for name in ("voxel_index", "pillar_index"):
        assert np.array_equal(getattr(got.table, name), getattr(without.table, name))
    assert np.array_equal(got.images[0], without.images[0]) and not got.images[1].any()
    assert (got.depth[1] == 255).all() and np.array_equal(got.depth[0], without.depth[0])
    assert np.array_equal(
        read_sample(scene, 1, config).table.voxel_index, read_sample(whole, 1, config).table.voxel_index
    )


def test_occ_predict_answers_a_smaller_rig_and_says_so_once(tmp_path):
    from typer.testing import CliRunner

    from occ_core.cli.main import app

    small_nuscenes.make(tmp_path / "data", keyframes=2, sweeps=0)  # two cameras
    model = checkpoint("nano", tmp_path)
    arguments = ["predict", str(model), str(tmp_path / "data"), str(tmp_path / "out"), "--backend", "torch"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert said.count("trained on 6 cameras, this rig has 2 (CAM_FRONT, CAM_BACK)") == 1
    assert len(list((tmp_path / "out").glob("*.npz"))) == 2
