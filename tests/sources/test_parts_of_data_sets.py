"""What labs have on disk of a nuScenes set: several table folders in one place, camera files alone."""

import json
import shutil

import numpy as np
import pytest
import small_nuscenes
import typer
from label_fixtures import MADE_WITH, scene_label
from typer.testing import CliRunner

from occ_core.cli.main import app
from occ_core.errors import CorruptInput, InvalidInput, MissingInput
from occ_core.evaluation.ray_iou import ray_origins
from occ_core.labels.score import score_store
from occ_core.labels.store import LabelStore
from occ_core.sources.nuscenes import NuScenesSource
from occ_core.sources.nuscenes_tables import NuScenesTables, root_of
from occ_core.sources.open import open_source
from occ_core.training.label_files import labels_folder


@pytest.fixture
def several(tmp_path):
    """A set with three versions; v1.0-other names its scene otherwise."""
    small_nuscenes.make(tmp_path / "set")
    for name in ("v1.0-other", "v1.0-trainval"):
        shutil.copytree(tmp_path / "set/v1.0-mini", tmp_path / "set" / name)
    table = tmp_path / "set/v1.0-other/scene.json"
    table.write_text(table.read_text().replace("scene-0001", "scene-0009"))
    return tmp_path / "set"


def test_several_versions_are_listed_with_both_ways_to_choose(several):
    with pytest.raises(InvalidInput, match=r"v1\.0-mini, v1\.0-other, v1\.0-trainval.*--version v1\.0-mini.*as its"):
        open_source(several)


def test_a_version_is_chosen_by_name_or_by_path(several, monkeypatch):
    monkeypatch.chdir(several / "v1.0-other")
    for source in (
        open_source(several, version="v1.0-other"),
        open_source(several / "v1.0-other"),
        open_source("."),
        NuScenesSource(several / "v1.0-other", version="v1.0-other"),
    ):
        assert source.scenes == ["scene-0009"]
        assert source[0].images["CAM_FRONT"].any()  # sensor files lie beside the table folder
    with pytest.raises(InvalidInput, match=r"is of version v1\.0-other, asked for v1\.0-mini"):
        NuScenesTables(several / "v1.0-other", "v1.0-mini")
    with pytest.raises(MissingInput, match=r"v1\.0-test: no such folder"):
        open_source(several, version="v1.0-test")


def test_what_lies_beside_the_tables_is_found_by_the_path_of_the_tables(several):
    assert labels_folder(several / "v1.0-mini", "gts") == several / "gts"
    assert root_of(several / "v1.0-mini") == root_of(several) == several
    tables = NuScenesTables(several / "v1.0-mini")
    (scene,) = tables.scenes
    tokens = [token for token, _ in tables.samples(scene)]
    assert tables.truth_path(scene, tokens[0]).is_file()
    assert set(ray_origins(several, tokens, "v1.0-trainval")) == set(tokens)


def test_a_linked_table_folder_is_of_the_data_beside_the_link(several):
    elsewhere = several.parent / "tables"
    shutil.move(several / "v1.0-other", elsewhere)
    (several / "v1.0-linked").symlink_to(elsewhere)
    assert NuScenesSource(several / "v1.0-linked")[0].images["CAM_BACK"].any()


def test_folders_without_tables_are_no_versions(tmp_path):
    small_nuscenes.make(tmp_path / "set")
    (tmp_path / "set/v1.0-trainval_meta").mkdir()
    (tmp_path / "set/v1.0-test.tgz").write_bytes(b"archive")
    assert NuScenesTables(tmp_path / "set").version == "v1.0-mini"


def damaged(root, how):
    for path in root.glob("s*/LIDAR_TOP/*"):
        if how == "absent":
            path.unlink()
        elif how == "empty":
            path.write_bytes(b"")
        elif how == "cut":
            path.write_bytes(path.read_bytes()[:-3])
        else:
            path.write_bytes(np.full(50, np.nan, np.float32).tobytes())


@pytest.mark.parametrize("how", ["absent", "empty", "cut", "not a number"])
def test_cameras_are_read_whatever_the_lidar_file_is(tmp_path, how):
    tokens = small_nuscenes.make(tmp_path)
    expected = NuScenesSource(tmp_path)[1]
    damaged(tmp_path, how)
    source = NuScenesSource(tmp_path)
    frame = source[1]
    assert (frame.token, frame.stamp_ns) == (tokens[1], expected.stamp_ns)  # the LiDAR row's
    np.testing.assert_array_equal(frame.world_from_ego, expected.world_from_ego)
    np.testing.assert_array_equal(frame.images["CAM_FRONT"], expected.images["CAM_FRONT"])
    assert source.check(lidar=False) == []
    with pytest.raises((MissingInput, CorruptInput), match="LIDAR_TOP"):
        _ = frame.lidar
    with pytest.raises((MissingInput, CorruptInput), match="LIDAR_TOP"):
        source.sweeps_before(1, 2)


def test_a_model_of_cameras_is_asked_without_the_lidar_file(tmp_path):
    pytest.importorskip("torch")
    from occ_core.inference.predictor import Predictor
    from occ_core.models.easyocc.config import EasyOccConfig

    class Seen:
        config, cameras = EasyOccConfig(), None

        def run(self, images, rig, missing):
            self.images = images.copy()
            return (np.zeros(self.config.grid_shape, np.uint8),) * 3

    small_nuscenes.make(tmp_path)
    damaged(tmp_path, "absent")
    session = Seen()
    Predictor(session).predict_frame(NuScenesSource(tmp_path)[0])
    assert session.images.any()


def test_a_sweep_is_read_once(tmp_path):
    small_nuscenes.make(tmp_path)
    frame = NuScenesSource(tmp_path)[0]
    first = frame.lidar
    damaged(tmp_path, "absent")
    assert frame.lidar is first and len(first.points_lidar_m)


def test_labels_are_scored_without_the_lidar_files(tmp_path):
    """Against truth; the sweeps that were not downloaded are counted."""
    tokens = small_nuscenes.make(tmp_path / "set")
    store = LabelStore(tmp_path / "store")
    store.claim(MADE_WITH, {"scene-0001": tokens})
    for token in tokens:
        store.write("scene-0001", token, scene_label(token))
    whole = score_store(tmp_path / "store", tmp_path / "set")
    damaged(tmp_path / "set", "absent")
    report = score_store(tmp_path / "store", tmp_path / "set")
    assert json.dumps(report["camera"]) == json.dumps(whole["camera"])
    assert "lidar" in whole and "lidar" not in report
    assert (whole["sweeps_missing"], report["sweeps_missing"]) == (0, 3)


COMMANDS = ["predict", "train", "eval", "view", "export", "labels make", "labels show", "labels score", "bag make"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_opens_a_data_set_takes_its_version(command):
    found = typer.main.get_command(app)
    for name in command.split():
        found = found.commands[name]
    assert "--version" in [option for parameter in found.params for option in parameter.opts]


def test_scores_of_one_version(several, tmp_path):
    """By the command line: labels of the scene that v1.0-other alone has under this name, and rays of its poses."""
    tokens = NuScenesSource(several, "v1.0-other").tokens
    store = LabelStore(tmp_path / "store")
    store.claim(MADE_WITH, {"scene-0009": tokens})
    (several / "gts/scene-0001").rename(several / "gts/scene-0009")
    for token in tokens:
        store.write("scene-0009", token, scene_label(token))
    run = CliRunner()
    score = ["labels", "score", str(tmp_path / "store"), str(several)]
    assert isinstance(run.invoke(app, score).exception, InvalidInput)
    assert isinstance(run.invoke(app, [*score, "--version", "v1.0-mini"]).exception, MissingInput)
    result = run.invoke(app, [*score, "--version", "v1.0-other"])
    assert result.exit_code == 0 and "3 labels" in result.output
    result = run.invoke(app, ["labels", "score", str(tmp_path / "store"), str(several / "v1.0-other")])
    assert result.exit_code == 0 and "3 labels" in result.output
    judge = ["eval", str(tmp_path / "store"), str(several / "gts")]
    assert "no RayIoU: " in run.invoke(app, judge).output
    result = run.invoke(app, [*judge, "--version", "v1.0-trainval"])
    assert result.exit_code == 0 and "RayIoU" in result.output and "no RayIoU" not in result.output
