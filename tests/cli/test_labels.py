"""`occ labels` from end to end on a small data set, and what its pictures show where."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import rerun_file

pytest.importorskip("numba", reason="ray casting needs numba: pip install 'occ_ros[world]'")

from label_fixtures import MADE_WITH, make_city, scene_label
from model_fixtures import SMALL
from typer.testing import CliRunner

from occ_core.cli.main import app
from occ_core.labels.store import LabelStore, StoredLabel
from occ_core.show.labels import LabelledFrame, edge_of_the_unseen, sheet
from occ_core.show.maps import COVER, SKY_RGB, UNKNOWN_RGB, color_classes, color_depth, over_image
from occ_core.sources.nuscenes import NuScenesSource
from occ_core.taxonomy import OCC3D


def occ(*arguments: object):
    return CliRunner().invoke(app, ["labels", *map(str, arguments)])


@pytest.fixture(scope="module")
def city(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("city")
    make_city(root, scenes=2, keyframes=2)
    return root


@pytest.fixture(scope="module")
def store(city, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("labels") / "store"
    result = occ("make", city, out, "--recipe", "single", "--teacher", "oracle", "--workers", 1)
    assert result.exit_code == 0, result.output
    assert "4 labels made" in result.output
    return out


def test_make_again_makes_nothing_and_check_is_content(city, store):
    again = occ("make", city, store, "--recipe", "single", "--teacher", "oracle", "--workers", 1)
    assert "0 labels made" in again.output
    result = occ("check", store)
    assert result.exit_code == 0
    assert "0 problems in a store of 4 labels" in result.output


def test_check_names_what_is_broken_and_make_repairs_it(city, store):
    path = sorted(store.glob("scene-0002/*/labels.npz"))[0]
    before = path.read_bytes()
    path.write_bytes(before[:-1])
    result = occ("check", store)
    assert result.exit_code == 1
    assert str(path) in result.output.replace("\n", "")
    repaired = occ("make", city, store, "--recipe", "single", "--teacher", "oracle", "--workers", 1)
    assert "1 labels made" in repaired.output
    assert path.read_bytes() == before


def test_make_with_a_recipe_file_and_a_broken_scene(tmp_path):
    tokens = make_city(tmp_path / "city", scenes=2, keyframes=1)
    (tmp_path / "city/truth/scene-0001" / tokens[0] / "CAM_BACK.npz").unlink()
    (tmp_path / "mine.yaml").write_text("max_depth_m: 20\n")
    out = tmp_path / "labels"
    result = occ(
        "make", tmp_path / "city", out, "--recipe", tmp_path / "mine.yaml", "--teacher", "oracle", "--workers", 1
    )
    assert result.exit_code == 2
    assert "error: scene-0001" in result.output
    assert "1 labels made" in result.output
    record = LabelStore(out).record
    assert record["made_with"]["recipe"] == "own"
    assert record["made_with"]["settings"]["max_depth_m"] == 20
    problems = occ("check", out)
    assert problems.exit_code == 1
    assert "no such file" in problems.output


def test_show_writes_pictures_and_a_recording(city, store, tmp_path):
    pytest.importorskip("rerun", reason="recordings need rerun: pip install 'occ_ros[viz]'")
    result = occ("show", store, city, "--out", tmp_path, "--pictures", 2)
    assert result.exit_code == 0, result.output
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert [path.name for path in pictures] == ["scene-0001_0000.png", "scene-0002_0003.png"]
    assert cv2.imread(str(pictures[0])).shape[1] == 1440
    entities = set(rerun_file.logged(tmp_path / "recording.rrd"))
    assert {"/cameras/CAM_BACK", "/classes/CAM_BACK", "/depth/CAM_BACK", "/from_above/votes"} <= entities
    assert {"/world/predicted", "/world/edge_of_the_unseen"} <= entities
    views = rerun_file.views(tmp_path / "recording.rrd")
    assert {("/depth/CAM_BACK", "CAM_BACK"), ("world", "predicted"), ("world", "edge_of_the_unseen")} <= set(views)


def test_show_without_teachers_and_of_no_label(city, store, tmp_path):
    result = occ("show", store, city, "--out", tmp_path, "--no-maps", "--no-recording", "--pictures", 1)
    assert result.exit_code == 0, result.output
    without = cv2.imread(str(next((tmp_path / "pictures").iterdir())))
    result = occ("show", store, city, "--out", tmp_path / "with", "--no-recording", "--pictures", 1)
    maps = cv2.imread(str(next((tmp_path / "with/pictures").iterdir())))
    assert maps.shape[0] > without.shape[0]
    empty = LabelStore(tmp_path / "empty")
    empty.claim(MADE_WITH, {"scene-0001": ["a"]})
    failed = occ("show", empty.folder, city, "--no-maps")
    assert "no label of any keyframe of the 2 scenes" in str(failed.exception)


def test_training_reads_a_store_as_it_reads_gts(city, store, tmp_path):
    pytest.importorskip("torch", reason="training needs torch: pip install 'occ_ros[torch]'")
    from nano_fixtures import open_scenes

    from occ_core.taxonomy import UNLABELED

    grid = {"grid_shape": (200, 200, 16), "grid_origin_m": (-40.0, -40.0, -1.0), "voxel_size_m": 0.4}
    config = SMALL.model_copy(update=grid)
    for labels in (str(store), "labels-inside"):
        if labels == "labels-inside":
            (city / labels).symlink_to(store)
        scenes = open_scenes(city, labels, config, tmp_path / "cache")
        assert [scene.name for scene in scenes] == ["scene-0001", "scene-0002"]
        for scene in scenes:
            for number, token in enumerate(scene.tokens):
                label = LabelStore(store).read(scene.name, token).occupancy
                kept = scene["labels"][number]
                assert (kept[~label.observed] == UNLABELED).all()
                assert (kept[label.observed] == label.labels[label.observed]).all()
                assert 0 < label.observed.sum() < label.observed.size


def test_picture_shows_votes_and_the_unseen_where_they_are(city):
    """One seen block ahead on the left: bright in the upper left quarter of the panel, black and white elsewhere."""
    label = scene_label("a")
    observed, votes = np.zeros(label.votes.shape, bool), np.zeros(label.votes.shape, np.uint16)
    observed[150:, 150:] = True
    votes[150:, 150:, 2] = 255
    changed = StoredLabel(type(label.occupancy)(label.occupancy.grid, OCC3D, label.occupancy.labels, observed), votes)
    frame = NuScenesSource(city)[0]
    picture = sheet(LabelledFrame(frame, changed, None, {}, {}), "title")
    side = 1440 // 3
    panels = picture[-side - 52 : -52]
    voted, seen = panels[:, side : 2 * side], panels[:, 2 * side :]
    assert (seen[30 : side // 4 - 4, 60 : side // 4 - 4] == 255).all()
    assert (seen[side // 4 + 4 :, side // 4 + 4 :] == 0).all()
    assert (voted[side // 4 + 4 :, side // 4 + 4 :] == 250).all()
    assert (voted[30 : side // 4 - 4, 200 : side // 4 - 4] != 250).all()


def test_edge_of_the_unseen_by_a_loop():
    observed = np.random.default_rng(3).random((5, 4, 3)) < 0.3
    edge = edge_of_the_unseen(observed)
    for x, y, z in np.ndindex(observed.shape):
        beside = False
        for dx, dy, dz in ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)):
            at = (x + dx, y + dy, z + dz)
            if all(0 <= a < n for a, n in zip(at, observed.shape, strict=True)):
                beside |= bool(observed[at])
        assert edge[x, y, z] == (beside and not observed[x, y, z])


def test_colours_of_maps_and_what_is_unknown():
    colors = color_classes(np.array([[4, 17, 255, 99]], np.uint8))
    assert colors.tolist() == [[list(OCC3D.colors[4]), list(SKY_RGB), list(UNKNOWN_RGB), list(UNKNOWN_RGB)]]
    depth = color_depth(np.array([[1, 30, np.inf, np.nan, 500]], np.float32)).astype(int).sum(axis=2)[0]
    assert depth[0] > depth[1] > depth[4]
    assert depth[2] == depth[3] == 0
    image = np.full((2, 4, 3), 100, np.uint8)
    laid = over_image(image, np.full((1, 2, 3), 200, np.uint8), np.array([[True, False]]))
    assert (laid[:, 2:] == 100).all()
    assert (laid[:, :2] == int(COVER * 200 + (1 - COVER) * 100)).all()


def test_the_record_of_a_store_says_what_a_reader_needs(store):
    record = json.loads((store / "store.json").read_text())
    assert record["made_with"]["class_teacher"].startswith("oracle")
    assert record["made_with"]["grid"] == {"origin_m": [-40, -40, -1], "voxel_size_m": 0.4, "shape": [200, 200, 16]}
    assert len(record["scenes"]["scene-0002"]) == 2
