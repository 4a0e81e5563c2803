"""A simulated data set on disk: the nuscenes-devkit opens it, it is exact, it can be stopped and resumed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("embreex", reason="the simulated city needs embreex: pip install 'occ_ros[world]'")

from occ_core.errors import CorruptInput, InvalidInput
from occ_core.occupancy import load_occ3d
from occ_core.world import make as making
from occ_core.world.make import make_world, read_settings
from occ_core.world.scene import Settings, manifest_path, write_scene
from occ_core.world.sensors import CAMERAS

SMALL = Settings(scenes=1, seed=5, width=320, height=180, keyframes=2)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("world") / "city"
    make_world(out, SMALL, show_progress=False)
    return out


@pytest.fixture(scope="module")
def nusc(world):
    return opened_by_the_devkit(world)


def opened_by_the_devkit(world: Path):
    devkit = pytest.importorskip("nuscenes.nuscenes", reason="another reader of this layout; `make setup` installs it")
    return devkit.NuScenes("v1.0-mini", str(world), verbose=False)


def files_of(out: Path) -> dict[str, str]:
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in out.rglob("*") if p.is_file()}


def truth(world: Path, nusc, sample: dict, channel: str):
    scene = nusc.get("scene", sample["scene_token"])["name"]
    with np.load(world / "truth" / scene / sample["token"] / f"{channel}.npz") as arrays:
        return arrays["depth_m"].astype(np.float64), arrays["class_id"]


def test_devkit_opens_it(world, nusc):
    assert len(nusc.scene) == 1
    assert nusc.scene[0]["name"] == "scene-0001"
    assert len(nusc.sample) == 2
    for sample in nusc.sample:
        assert set(sample["data"]) == {*CAMERAS, "LIDAR_TOP"}
        for token in sample["data"].values():
            path, boxes, intrinsics = nusc.get_sample_data(token)
            assert Path(path).is_file()
        grid = load_occ3d(world / "gts" / "scene-0001" / sample["token"] / "labels.npz")
        assert 0.05 < grid.observed.mean() < 0.9
        assert grid.occupied.sum() > 3000
    mask = nusc.map[0]["mask"]
    ego = nusc.get("ego_pose", nusc.sample[1]["data"]["LIDAR_TOP"])
    assert mask.is_on_mask(*ego["translation"][:2]).all()  # the map lies where the car drives


def test_stamps_are_staggered_as_in_nuscenes(nusc):
    for sample in nusc.sample:
        lidar = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])["timestamp"]
        for channel, (_, _, _, lag_us) in CAMERAS.items():
            assert lidar - nusc.get("sample_data", sample["data"][channel])["timestamp"] == lag_us
    stamps = [s["timestamp"] for s in nusc.sample]
    assert np.diff(stamps).tolist() == [500_000]


def test_lidar_agrees_with_the_depth_of_pixels(world, nusc):
    """Projection by the devkit's own code; objects that move between the two stamps may differ."""
    for sample in nusc.sample[:2]:
        for channel in CAMERAS:
            points, depth_m, _ = nusc.explorer.map_pointcloud_to_image(
                sample["data"]["LIDAR_TOP"], sample["data"][channel], min_dist=1.0
            )
            depth_of_pixel, _ = truth(world, nusc, sample, channel)
            u, v = np.rint(points[:2]).astype(int)
            u, v = np.clip(u, 0, 319), np.clip(v, 0, 179)
            error = np.abs(depth_of_pixel[v, u] - depth_m)
            assert len(error) > 1000
            assert np.median(error) < 0.08, channel


def test_boxes_lie_on_pixels_of_their_class(world, nusc):
    """Objects that are well visible cover, with their class, the middle of their projected box."""
    from nuscenes.utils.geometry_utils import view_points

    class_of = {"vehicle.car": 4, "vehicle.truck": 10, "vehicle.bus.rigid": 3, "vehicle.construction": 5}
    shares = []
    for sample in nusc.sample:
        for channel in CAMERAS:
            _, class_id = truth(world, nusc, sample, channel)
            _, boxes, intrinsics = nusc.get_sample_data(sample["data"][channel])
            for box in boxes:
                annotation = nusc.get("sample_annotation", box.token)
                if annotation["visibility_token"] != "4" or box.name not in class_of or box.center[2] < 2:
                    continue
                corners = view_points(box.corners(), intrinsics, normalize=True)[:2]
                (u0, v0), (u1, v1) = corners.min(axis=1), corners.max(axis=1)
                if u0 < 0 or v0 < 0 or u1 > 319 or v1 > 179 or (u1 - u0) * (v1 - v0) < 60:
                    continue
                inner = class_id[int(v0 + 0.3 * (v1 - v0)) : int(v1) + 1, int(u0) : int(u1) + 1]
                shares.append((inner == class_of[box.name]).mean())
    assert len(shares) >= 3
    assert np.median(shares) > 0.5


def test_velocity_of_a_moving_box(nusc):
    speeds = [np.linalg.norm(nusc.box_velocity(a["token"])) for a in nusc.sample_annotation]
    names = [nusc.get("attribute", t)["name"] for a in nusc.sample_annotation for t in a["attribute_tokens"]]
    assert max(s for s in speeds if np.isfinite(s)) > 1.0
    assert "vehicle.moving" in names


def test_same_settings_same_bytes_and_resume(world, tmp_path, monkeypatch):
    """Stopped between keyframes, then finished: byte for byte the data set of the undisturbed run."""
    out = tmp_path / "city"
    steps = []

    def stop_after_one() -> None:
        steps.append(1)
        raise KeyboardInterrupt

    make_world.__globals__["_claim"](out, SMALL)
    with pytest.raises(KeyboardInterrupt):
        write_scene(out, SMALL, 0, stop_after_one)
    assert steps == [1]
    assert not manifest_path(out, 0).exists()
    make_world(out, SMALL, show_progress=False)
    assert files_of(out) == files_of(world)
    monkeypatch.setattr(making, "write_scene", lambda *a: pytest.fail("a finished scene was made again"))
    make_world(out, SMALL, show_progress=False)


def test_other_settings_or_other_files_are_refused(world, tmp_path):
    with pytest.raises(InvalidInput, match="seed 5 .asked for 6"):
        make_world(world, Settings(1, 6, 320, 180, 2), show_progress=False)
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InvalidInput, match="not empty"):
        make_world(tmp_path, SMALL, show_progress=False)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "world.json").write_text("{")
    with pytest.raises(CorruptInput, match="world.json"):
        read_settings(tmp_path / "x")


@pytest.mark.parametrize("bad", [{"scenes": 0}, {"seed": -1}, {"width": 10}, {"keyframes": 1000}])
def test_settings_name_value_and_limit(bad):
    with pytest.raises(InvalidInput, match=next(iter(bad))):
        Settings(**bad)


def test_scenes_of_two_seeds_never_overlap():
    cities = [{Settings(scenes=3, seed=s).city_seed(i) for i in range(10_000)} for s in (0, 1, 2)]
    assert not cities[0] & cities[1] | cities[1] & cities[2]


def test_manifest_is_written_last_and_says_the_weather(world):
    manifest = json.loads(manifest_path(world, 0).read_text())
    assert manifest["settings"] == SMALL.fixed()
    assert manifest["weather"] in {"clear", "overcast", "rain", "night", "night_rain"}


@pytest.mark.slow
def test_two_workers_write_what_one_writes_and_sweeps_are_linked(tmp_path):
    settings = Settings(scenes=2, seed=8, width=160, height=90, keyframes=2, sweeps=True)
    make_world(tmp_path / "a", settings, workers=1, show_progress=False)
    make_world(tmp_path / "b", settings, workers=2, show_progress=False)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    nusc = opened_by_the_devkit(tmp_path / "a")
    token, stamps = nusc.sample[0]["data"]["CAM_FRONT"], []
    while token:
        row = nusc.get("sample_data", token)
        stamps.append(row["timestamp"])
        token = row["next"]
    assert len(stamps) == 7  # 12 Hz between two keyframes
    assert np.allclose(np.diff(stamps), 1e6 / 12, atol=1)
