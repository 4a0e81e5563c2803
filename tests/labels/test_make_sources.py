"""Labels of bags and SemanticKITTI: those of a bag are those of the data set that it is of."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("numba", reason="ray casting needs numba: pip install 'occ_ros[world]'")
pytest.importorskip("rosbags", reason="bags need rosbags: pip install 'occ_ros[bags]'")

from bag_robot import robot
from killed import run_killed
from label_fixtures import hashes, make_city
from small_kitti import make_kitti

from occ_core.bags.writer import write_bag
from occ_core.ego_mask import write_mask
from occ_core.errors import InvalidInput, MissingInput
from occ_core.grid import SEMANTIC_KITTI_VOXELS
from occ_core.labels.make import TeacherChoice, make_labels
from occ_core.labels.map_writer import write_maps
from occ_core.labels.recipes import Recipe
from occ_core.labels.score import score_store
from occ_core.labels.store import LabelStore
from occ_core.show.labels import show_labels
from occ_core.sources.nuscenes_tables import NuScenesTables
from occ_core.taxonomy import SEMANTIC_KITTI

RECIPE = Recipe(past=1, future=1, sky=True)


@pytest.fixture(scope="module")
def city(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("city") / "set"
    make_city(root, scenes=1, keyframes=4)
    write_maps(root, root.parent / "maps", TeacherChoice("oracle"))
    return root


@pytest.fixture(scope="module")
def bag(city) -> Path:
    write_bag(NuScenesTables(city), "scene-0001", city.parent / "scene-0001")
    return city.parent / "scene-0001"


@pytest.fixture(scope="module")
def by_stamp(city, tmp_path_factory) -> Path:
    """The same maps, by <camera>/<stamp_ns>: the only name that a bag's images have."""
    from occ_core.sources.scenes import Recording

    out, frames = tmp_path_factory.mktemp("maps"), Recording(city).scene("scene-0001")
    (out / "maps.yaml").write_text((city.parent / "maps" / "maps.yaml").read_text())
    for shots in map(frames.shots, range(len(frames))):
        for name, shot in shots.items():
            for path in (city.parent / "maps").rglob(f"{Path(shot.file).stem}.*"):
                to = out / path.relative_to(city.parent / "maps").parts[0] / name / path.name
                to = to.with_name(path.name.replace(Path(shot.file).stem, str(shot.stamp_ns)))
                to.parent.mkdir(parents=True, exist_ok=True)
                to.write_bytes(path.read_bytes())
    return out


@pytest.fixture(scope="module")
def of_bag(bag, by_stamp, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("of_bag") / "labels"
    done = make_labels(bag, out, RECIPE, TeacherChoice(f"files:{by_stamp}"), show_progress=False)
    assert [(scene.scene, scene.written, scene.error) for scene in done] == [("scene-0001", 4, "")]
    return out


def test_labels_of_a_bag_are_those_of_its_data_set(city, bag, by_stamp, of_bag, tmp_path):
    """The same tokens and cells, but for points that rounding of the bag's quaternions moves over a cell's face."""
    make_labels(city, tmp_path / "labels", RECIPE, TeacherChoice(f"files:{by_stamp}"), show_progress=False)
    theirs, ours = LabelStore(tmp_path / "labels"), LabelStore(of_bag)
    assert ours.samples == theirs.samples and len(ours.samples) == 4
    assert list(ours.check()) == []
    for scene, token in ours.samples:
        a, b = (store.read(scene, token).occupancy for store in (theirs, ours))
        assert a.occupied.sum() > 500
        assert (a.labels != b.labels).mean() < 1e-4
        assert (a.observed != b.observed).mean() < 1e-4


def test_labels_of_a_bag_are_scored_and_shown_as_those_of_its_data_set(city, bag, of_bag, tmp_path):
    of_city, of_its_bag = (score_store(of_bag, source) for source in (city, bag))
    assert of_city["lidar"]["points"] > 50
    for name in ("points", "in_occupied", "in_free", "in_undecided", "free_cells_hit"):
        assert of_its_bag["lidar"][name] == pytest.approx(of_city["lidar"][name], rel=0.01), name
    shown = [show_labels(LabelStore.open(of_bag), source, tmp_path / source.name, pictures=1, recording=False)
             for source in (city, bag)]  # fmt: skip
    first, second = (cv2.imread(str(path)) for (path,) in shown)
    assert np.ptp(second) > 200 and first.shape[1] == second.shape[1]
    with pytest.raises(MissingInput, match="no scene 'scene-0001'"):
        score_store(of_bag, robot().write(tmp_path / "another"))


def test_killed_three_times_ends_with_the_same_bytes(bag, by_stamp, of_bag, tmp_path):
    out = tmp_path / "labels"
    setup = f"""
from pathlib import Path
from occ_core.labels import make
from occ_core.labels.recipes import Recipe
from occ_core.labels.score import score_store
from occ_core.labels.store import LabelStore
from occ_core.show.labels import show_labels
from occ_core.sources import bag_frames
from occ_core.teachers import files
bag, out, choice = Path({str(bag)!r}), Path({str(out)!r}), make.TeacherChoice({f"files:{by_stamp}"!r})
recipe, write = Recipe(past=1, future=1, sky=True), LabelStore.write
def after(step):
    def stepping(*given):
        write(*given)
        step()
    LabelStore.write = stepping
"""
    call = "after(step); make.make_labels(bag, out, recipe, choice, show_progress=False)"
    assert run_killed(setup, call, (1, 1, 1, 0)) == [True, True, True, False]
    assert hashes(out) == hashes(of_bag)


def test_what_shows_the_robot_itself_is_no_evidence_in_a_bag_either(bag, by_stamp, of_bag, tmp_path):
    import shutil

    shutil.copytree(bag, tmp_path / "scene-0001")
    blind = np.zeros((48, 64), dtype=bool)
    blind[30:] = True
    for camera in ("cam_front", "cam_back"):
        write_mask(tmp_path / "scene-0001" / "masks" / f"{camera}.png", blind)
    choice = TeacherChoice(f"files:{by_stamp}")
    make_labels(tmp_path / "scene-0001", tmp_path / "labels", RECIPE, choice, show_progress=False)
    masked, whole = LabelStore(tmp_path / "labels"), LabelStore(of_bag)
    for sample in masked.samples:
        a, b = (store.read(*sample).occupancy.observed for store in (masked, whole))
        assert a.sum() < b.sum() and not (a & ~b).any()


def test_a_recording_without_poses_is_refused_but_for_one_frame_alone(tmp_path):
    bag = robot(tf=False)
    bag.static("left", "right")
    path = bag.write(tmp_path / "drive")
    with pytest.raises(InvalidInput, match="nobody says where the robot is.*--recipe single"):
        make_labels(path, tmp_path / "labels", RECIPE, TeacherChoice("lidar"), show_progress=False)


def test_semantic_kitti_gets_labels_in_its_own_grid_and_classes(tmp_path):
    """Of two returns the camera shows the farther one, a building's."""
    root = make_kitti(tmp_path / "kitti", frames=6)
    labels = tmp_path / "kitti" / "sequences" / "03" / "labels"
    labels.mkdir()
    for number in range(6):
        np.array([40, 50], dtype="<u4").tofile(labels / f"{number:06d}.label")
        rows = np.float32([[5, 1, -1, 0.5], [9.1, 0.1, 0.1, 1.0]])  # the second in the middle of a cell
        rows.tofile(root / f"sequences/03/velodyne/{number:06d}.bin")
    done = make_labels(root, tmp_path / "labels", Recipe(), TeacherChoice("lidar"), show_progress=False)
    assert [(scene.written, scene.error) for scene in done] == [(2, "")]
    store = LabelStore.open(tmp_path / "labels")
    assert (store.grid, store.taxonomy) == (SEMANTIC_KITTI_VOXELS, SEMANTIC_KITTI)
    assert store.samples == [("03", "000000"), ("03", "000005")] and list(store.check()) == []
    label = store.read("03", "000000").occupancy
    centres = label.grid.origin_m + (np.argwhere(label.occupied) + 0.5) * label.grid.voxel_size_m
    assert len(centres) == 1 and np.abs(centres - (9, 0, 0)).max() <= 0.1001  # half a cell
    assert label.labels[label.occupied].tolist() == [SEMANTIC_KITTI.id_of("building")]
    scores = score_store(store.folder, root)["lidar"]
    inside = sum(_in_grid(root / "sequences/03/velodyne" / f"{number:06d}.bin") for number in (0, 5))
    assert scores["points"] == inside and scores["in_occupied"] == pytest.approx(100 * 2 / inside)
    assert scores["per_class"] == {"building": 100.0}
    (picture,) = show_labels(store, root, tmp_path / "look", pictures=1, recording=False)
    assert picture.name == "03_0000.png" and picture.is_file()


def _in_grid(path: Path) -> int:
    """Points of a sweep in SemanticKITTI's grid and beyond 3 m."""
    points = np.fromfile(path, "<f4").reshape(-1, 4)[:, :3]
    at = np.floor((points - (0, -25.6, -2)) / 0.2)
    inside = ((at >= 0) & (at < (256, 256, 32))).all(axis=1)
    return int((inside & (np.linalg.norm(points, axis=1) > 3)).sum())
