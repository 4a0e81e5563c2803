"""The oracle on a fisheye: what it says of each view is what a pinhole in the view's place sees of the city."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("embreex", reason="the simulated city needs embreex: pip install 'occ_ros[world]'")

from occ_core.camera import Camera, Rig
from occ_core.frame import Frame
from occ_core.labels.scene import taught_frame
from occ_core.rig_file import rig_text
from occ_core.taxonomy import UNLABELED
from occ_core.teachers.oracle import Oracle
from occ_core.teachers.realistic import Realistic
from occ_core.world.city import build_city
from occ_core.world.render import render
from occ_core.world.sensors import mounted
from occ_core.world.tracer import Tracer

T_S = 1.0
K = np.array([[150.0, 0, 239.5], [0, 150.0, 179.5], [0, 0, 1]])
LENS = Camera(
    "rear", K, (480, 360), mounted((-1.0, 0.1, 1.2), np.radians([175, 8, 1])), "equidistant", (0.02, -0.004, 0, 0)
)
FRONT = Camera("front.0", K, (480, 360), mounted((1.0, 0.0, 1.4), np.radians([0.0, 3, 0])))  # a name like a view's


@pytest.fixture(scope="module")
def city():
    return build_city(12, 3.0)


@pytest.fixture(scope="module")
def seen(city):
    """What a camera of this calibration sees: depth and class, float32 and uint8 (h, w)."""
    moment = Tracer(city).at(T_S)
    return lambda camera: render(moment, camera, city.world_from_ego(T_S) @ camera.ego_from_cam)


@pytest.fixture(scope="module")
def root(seen, tmp_path_factory):
    root = tmp_path_factory.mktemp("city")
    folder = root / "truth" / "s0" / "t0"
    folder.mkdir(parents=True)
    for camera in (LENS, FRONT):
        view = seen(camera)
        np.savez(folder / f"{camera.name}.npz", class_id=view.class_id, depth_m=view.depth_m.astype(np.float16))
    (root / "rig.yaml").write_text(rig_text(Rig((LENS, FRONT)), {}, {}))
    return root


@pytest.fixture(scope="module")
def frame(city) -> Frame:
    names = (LENS.name, FRONT.name)
    return Frame(
        1,
        city.world_from_ego(T_S),
        Rig((LENS, FRONT)),
        {name: np.zeros((360, 480, 3), np.uint8) for name in names},
        dict.fromkeys(names, 1),
        dict.fromkeys(names, city.world_from_ego(T_S)),
        token="t0",
        scene="s0",
    )


def test_views_of_a_fisheye_have_the_depth_and_class_of_a_pinhole_there(root, frame, seen):
    taught = taught_frame(frame)
    assert len(taught.rig) > 2 and LENS.name not in taught.rig.names
    oracle = Oracle(root)
    classes, depth = oracle.classes(taught), oracle.depth(taught)
    for camera in taught.rig:
        if camera.name == FRONT.name:
            continue
        truth, found, depth_m = seen(camera), classes[camera.name].class_id, depth[camera.name].depth_m
        shown = found != UNLABELED
        assert (np.isnan(depth_m) | shown).all() and shown.mean() > 0.5
        assert (~shown == camera.blind).all() if camera.blind is not None else shown.all()
        assert (found == truth.class_id)[shown].mean() > 0.95
        both = shown & np.isfinite(depth_m) & np.isfinite(truth.depth_m)
        off = np.abs(depth_m[both] / truth.depth_m[both] - 1)
        assert np.median(off) < 0.003 and np.mean(off < 0.03) > 0.9
        bias = np.median(depth_m[both] / truth.depth_m[both]) - 1
        assert abs(bias) < 0.001


def test_a_pinhole_that_is_called_like_a_view_has_its_own_truth(root, frame, seen):
    taught = taught_frame(frame)
    given = Oracle(root).depth(taught)["front.0"].depth_m
    np.testing.assert_array_equal(given, seen(FRONT).depth_m.astype(np.float16))


def test_what_views_depend_on_is_the_fisheyes_truth(root, frame):
    files = Oracle(root).reads(taught_frame(frame))
    assert [path.name for path in files] == ["front.0.npz", "rear.npz"] and all(path.is_file() for path in files)


def test_the_error_model_errs_on_views_as_on_pinholes(root, frame):
    """Its median error of depth on what a view shows is the pinhole's, within the spread of a few images."""
    taught = taught_frame(frame)
    medians: dict[str, list[float]] = {}
    for seed in range(12):
        wrong, right = Realistic(root, seed=seed).depth(taught), Oracle(root).depth(taught)
        for name in wrong:
            both = np.isfinite(right[name].depth_m) & np.isfinite(wrong[name].depth_m) & (right[name].depth_m < 20)
            off = np.abs(np.log(wrong[name].depth_m[both] / right[name].depth_m[both]))
            medians.setdefault(name, []).append(float(np.median(off)))
    mean = {name: np.mean(of) for name, of in medians.items()}
    assert all(0.5 * mean["front.0"] < of < 2 * mean["front.0"] for of in mean.values()) and mean["front.0"] > 0.01
