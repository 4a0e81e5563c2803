"""The animation shows each frame at the drive's own speed, and a map that keeps what earlier frames said."""

from __future__ import annotations

import numpy as np
import pytest
import ros_fixtures
import small_nuscenes
from typer.testing import CliRunner

from occ_core.cli.main import app
from occ_core.errors import InvalidInput, MissingInput
from occ_core.grid import OCC3D_GRID
from occ_core.inference.predictions import save_prediction
from occ_core.show import animation
from occ_core.show.predicted_frames import PredictedFrames
from occ_core.sources.open import open_source
from occ_core.taxonomy import OCC3D

Image = pytest.importorskip("PIL.Image")
CAR, ROAD = OCC3D.id_of("car"), OCC3D.id_of("driveable_surface")


def share_of(image: np.ndarray, class_id: int) -> float:
    """Share of pixels in a class's colour, in any light."""
    wanted = np.array(OCC3D.colors[class_id]) / sum(OCC3D.colors[class_id])
    mixture = image / np.maximum(image.sum(axis=2, keepdims=True), 1)
    return float((np.abs(mixture - wanted).max(axis=2) < 0.02).mean())


@pytest.fixture(scope="module")
def drive(tmp_path_factory):
    """A data set and predictions of it: a car ahead at the first frame, road alone at the second, which does not see
    where the car was; the third has no prediction; and a second scene that sees road alone."""
    root = tmp_path_factory.mktemp("animation")
    tokens = small_nuscenes.make(root / "city", keyframes=3, scenes=2)
    for number, token in enumerate(tokens):
        if number % 3 == 2:
            continue
        labels = np.full(OCC3D_GRID.shape, OCC3D.free_id, np.uint8)
        observed = np.ones(OCC3D_GRID.shape, bool)
        labels[:, :, 2] = ROAD
        if number == 0:
            labels[120:130, 96:104, 3:8] = CAR
        elif number == 1:
            observed[100:140] = False
        save_prediction(root / "predictions" / f"{token}.npz", labels, observed)
    return root


def test_the_map_keeps_what_the_frame_does_not_see_and_each_scene_has_its_own(drive):
    frames = [picture for _, picture in animation.drawn(PredictedFrames(drive / "predictions", drive / "city"))]
    assert len(frames) == 4
    cars = []
    for frame in frames:
        below = frame[-animation.VIEW_HEIGHT - 80 : -80]
        now, fused = below[:, : animation.WIDTH // 2], below[:, animation.WIDTH // 2 :]
        assert share_of(now, ROAD) > 0.1 and share_of(fused, ROAD) > 0.1
        cars.append((share_of(now, CAR) > 0.005, share_of(fused, CAR) > 0.005))
    assert cars == [(True, True), (False, True), (False, False), (False, False)]


def test_the_file_plays_as_the_drive_went(drive):
    out = drive / "drive.webp"
    result = CliRunner().invoke(
        app, ["view", str(drive / "predictions"), "--data", str(drive / "city"), "--animation", str(out)]
    )
    assert result.exit_code == 0 and "drive.webp" in result.output, result.output
    file = Image.open(out)
    durations, frames = [], []
    for number in range(file.n_frames):
        file.seek(number)
        frames.append(np.asarray(file.convert("RGB")).astype(float))
        durations.append(file.info["duration"])
    assert durations == [500, animation.LONGEST_MS, 500, animation.LONGEST_MS]
    assert file.info["loop"] == 0
    drawn = [picture for _, picture in animation.drawn(PredictedFrames(drive / "predictions", drive / "city"))]
    for frame, picture in zip(frames, drawn, strict=True):
        assert np.abs(frame - picture).mean() < 6
    assert [item.name for item in drive.iterdir() if item.suffix == ".webp"] == ["drive.webp"]


def test_what_cannot_be_shown_is_named(drive, tmp_path):
    frames = PredictedFrames(drive / "predictions", drive / "city")
    with pytest.raises(InvalidInput, match=r"a \.webp file, not .*drive\.mp4"):
        animation.write_animation(frames, tmp_path / "drive.mp4")
    bag = ros_fixtures.write_bag(tmp_path / "bag", 1)  # without odometry
    with pytest.raises(MissingInput, match="no frame has a prediction"):
        animation.write_animation(PredictedFrames(bag, None), tmp_path / "drive.webp")
    (name,) = open_source(bag).names
    save_prediction(tmp_path / "of_bag" / f"{name}.npz", np.full(OCC3D_GRID.shape, ROAD, np.uint8))
    with pytest.raises(InvalidInput, match="nobody says where the robot was"):
        animation.write_animation(PredictedFrames(tmp_path / "of_bag", bag), tmp_path / "drive.webp")
    assert not list(tmp_path.glob("*.webp"))
