"""`occ view`: a bag and a folder of predictions, as files and as a viewer's client sees them over a WebSocket."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("rosbags")
pytest.importorskip("torch")

import rerun_file
import ros_fixtures as fx
from typer.testing import CliRunner

from occ_core.cli.main import app
from occ_core.errors import CannotWrite, MissingInput
from occ_core.geometry import pose
from occ_core.grid import OCC3D_GRID
from occ_core.inference.predictions import save_prediction
from occ_core.occupancy import Occupancy
from occ_core.show.predicted_frames import PredictedFrames
from occ_core.sources.open import open_source
from occ_core.taxonomy import OCC3D


def truth(seed: int) -> Occupancy:
    rng = np.random.default_rng(seed)
    observed = rng.random(OCC3D_GRID.shape) < 0.5
    labels = np.where((rng.random(OCC3D_GRID.shape) < 0.02) & observed, rng.integers(0, 17, OCC3D_GRID.shape), 17)
    return Occupancy(OCC3D_GRID, OCC3D, labels.astype(np.uint8), observed)


TRUTHS = {0: truth(0), 2: truth(2)}


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    return fx.write_bag(tmp_path_factory.mktemp("view") / "drive", 3, truth=TRUTHS)


@pytest.fixture(scope="module")
def predictions(tmp_path_factory, bag):
    """Of the first and the last frame."""
    folder = tmp_path_factory.mktemp("predictions")
    names = open_source(bag).names
    for number in (0, 2):
        save_prediction(folder / f"{names[number]}.npz", truth(number + 10).labels, truth(number + 10).observed)
    return folder


def test_a_bag_shows_the_voxels_it_holds(bag):
    frames = PredictedFrames(bag, None)
    assert len(frames) == 3
    assert [page_frame.truth is not None for page_frame in (frames[i] for i in range(3))] == [True, False, True]
    np.testing.assert_array_equal(frames[2].truth.labels, TRUTHS[2].labels)
    np.testing.assert_array_equal(frames[2].truth.observed, TRUTHS[2].observed)
    assert frames[2].predicted is None
    assert set(frames[1].frame.images) == set(fx.RIG.names)


def test_predictions_of_a_bag_beside_its_truth(bag, predictions):
    frames = PredictedFrames(predictions, bag)
    assert len(frames) == 2  # the second frame has none
    np.testing.assert_array_equal(frames[1].predicted.labels, truth(12).labels)
    np.testing.assert_array_equal(frames[1].predicted.observed, truth(12).observed)
    np.testing.assert_array_equal(frames[1].truth.labels, TRUTHS[2].labels)


def test_what_is_missing_is_named(bag, predictions, tmp_path):
    with pytest.raises(MissingInput, match="need --data"):
        PredictedFrames(predictions, None)
    with pytest.raises(MissingInput, match="is a bag and shows itself"):
        PredictedFrames(bag, bag)
    with pytest.raises(MissingInput, match="no such folder"):
        PredictedFrames(tmp_path / "absent", bag)
    other = tmp_path / "other"
    other.mkdir()
    save_prediction(other / "unknown.npz", truth(0).labels)
    with pytest.raises(MissingInput, match="no prediction of any of the 3 frames"):
        PredictedFrames(other, bag)


def test_files(bag, tmp_path):
    pytest.importorskip("rerun", reason="recordings need rerun: pip install 'occ_ros[viz]'")
    result = CliRunner().invoke(app, ["view", str(bag), "--out", str(tmp_path / "view"), "--pictures", "2"])
    assert result.exit_code == 0, result.output
    pictures = sorted((tmp_path / "view" / "pictures").iterdir())
    assert [picture.name for picture in pictures] == ["drive_0000.png", "drive_0002.png"]
    assert cv2.imread(str(pictures[0])).shape[1] == 1440
    entities = set(rerun_file.logged(tmp_path / "view" / "recording.rrd"))
    assert {f"/cameras/{name}" for name in fx.RIG.names} | {"/world/true"} <= entities
    assert "/world/predicted" not in entities


def test_a_frame_without_voxels_is_a_picture_of_its_cameras(bag, tmp_path):
    from occ_core.show.pictures import compare

    alone = compare(PredictedFrames(bag, None)[1].frame.images, None, None, "cameras only")
    assert alone.shape[1] == 1440 and alone.std() > 10


@pytest.fixture(scope="module")
def served(bag, predictions):
    """What a viewer gets from `occ view --foxglove` as a process, until it closes: [(topic, log time, message)]."""
    pytest.importorskip("foxglove", reason="needs foxglove-sdk: pip install 'occ_ros[viz]'")
    pytest.importorskip("google.protobuf")
    from foxglove_client import FoxgloveClient

    command = [sys.executable, "-m", "occ_core.cli.main", "view", str(predictions), "--data", str(bag), "--foxglove"]
    process = subprocess.Popen([*command, "--port", "0", "--rate", "2"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("2 frames on ws://127.0.0.1:"), line
        client = FoxgloveClient(int(line.split(":")[2].split()[0]))
        messages = []
        while len(messages) < 300 and len(client.sessions) < 3:  # two rounds are sure to be whole
            received = client.next()
            assert received is not None
            messages.append(received)
        return client, messages
    finally:
        process.terminate()
        process.wait(20)


def of_topic(served, topic):
    found = {log_ns: message for name, log_ns, message in served[1] if name == topic}
    return [found[log_ns] for log_ns in sorted(found)]


def test_viewer_gets_all_topics(served):
    client, messages = served
    cameras = {f"/{name}/{what}" for name in fx.RIG.names for what in ("image_raw/compressed", "camera_info")}
    assert {topic for topic, _, _ in messages} == cameras | {"/tf", "/occupancy/predicted", "/occupancy/true"}
    assert client.server == Path(client.server).name  # no path of the machine


def test_viewer_gets_the_voxels_cell_by_cell(served):
    first, last = of_topic(served, "/occupancy/predicted")
    for message, expected in ((first, truth(10)), (last, truth(12))):
        assert message.frame_id == "base_link"
        origin = message.pose.position
        assert (origin.x, origin.y, origin.z) == OCC3D_GRID.origin_m
        assert (message.column_count, message.row_count, message.cell_size.x) == (200, 200, 0.4)
        rng = np.random.default_rng(0)
        cells = [*np.argwhere(expected.occupied)[:50], *rng.integers(0, OCC3D_GRID.shape, (200, 3))]
        names = [field.name for field in message.fields]
        assert names == ["red", "green", "blue", "alpha", "label"]
        for x, y, z in cells:
            start = z * message.slice_stride + y * message.row_stride + x * message.cell_stride
            *color, alpha, label = message.data[start : start + 5]
            occupied = expected.occupied[x, y, z]
            assert label == (expected.labels[x, y, z] if occupied else OCC3D.free_id)
            assert alpha == (255 if occupied else 0)
            assert not occupied or tuple(color) == OCC3D.colors[label]
        assert len(message.data) == 5 * OCC3D_GRID.cells


def test_viewer_gets_images_transforms_and_calibration(served, bag):
    frame = open_source(bag)[0]
    transforms = {t.child_frame_id: t for t in of_topic(served, "/tf")[0].transforms}
    assert transforms["base_link"].parent_frame_id == "map"
    for camera in frame.rig:
        image = of_topic(served, f"/{camera.name}/image_raw/compressed")[0]
        decoded = cv2.imdecode(np.frombuffer(image.data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        assert image.format == "jpeg" and image.frame_id == camera.name
        assert np.abs(decoded.astype(int) - frame.images[camera.name]).mean() < 4
        t = transforms[camera.name]
        found = pose(
            (t.translation.x, t.translation.y, t.translation.z),
            (t.rotation.w, t.rotation.x, t.rotation.y, t.rotation.z),
        )
        np.testing.assert_allclose(found, camera.ego_from_cam, atol=1e-6)
        calibration = of_topic(served, f"/{camera.name}/camera_info")[0]
        assert (calibration.width, calibration.height) == camera.size
        np.testing.assert_allclose(np.reshape(calibration.K, (3, 3)), camera.intrinsics)


def test_a_taken_port_is_named():
    pytest.importorskip("foxglove", reason="needs foxglove-sdk: pip install 'occ_ros[viz]'")
    from occ_core.show.foxglove import FoxgloveServer

    with (
        FoxgloveServer("a", [], "127.0.0.1", 0) as server,
        pytest.raises(CannotWrite, match=f"cannot serve on 127.0.0.1:{server.port}"),
        FoxgloveServer("b", [], "127.0.0.1", server.port),
    ):
        pass
