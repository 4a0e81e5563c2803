"""Predictions of a nuScenes-format data set as pictures and as a recording."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from occ_core.errors import MissingInput
from occ_core.evaluation.report import prediction_files, read_observed, read_prediction
from occ_core.frame import Frame
from occ_core.grid import OCC3D_GRID
from occ_core.occupancy import Occupancy, load_occ3d
from occ_core.show.album import write_album
from occ_core.show.pictures import compare
from occ_core.show.recording import Recording
from occ_core.sources.nuscenes import NuScenesSource
from occ_core.taxonomy import OCC3D


def show_predictions(predictions: Path, dataroot: Path, out: Path, pictures: int, recording: bool) -> list[Path]:
    """Write `out/pictures/<scene>_<n>.png` and `out/recording.rrd`.

    Args:
        predictions: folder with one npz a sample token.
        dataroot: the data set that they are predictions of; its `gts/` is shown beside them where it is there.
        pictures: at most this many, spread evenly over the predicted samples.

    Returns:
        paths of what was written.

    Raises:
        MissingInput: no sample of the data set has a prediction.
    """
    source = NuScenesSource(dataroot)
    files = prediction_files(predictions)
    predicted = [i for i, token in enumerate(source.tokens) if token in files]
    if not predicted:
        raise MissingInput(f"{predictions}: no prediction of any of the {len(source)} samples of {dataroot}")

    def draw(index: int) -> tuple[str, np.ndarray]:
        frame, answer, truth = _moment(source, index, files)
        return frame.scene, compare(frame.images, answer, truth, f"{frame.scene}, sample {frame.token[:8]}")

    def record(stream: Recording, index: int) -> None:
        frame, answer, truth = _moment(source, index, files)
        stream.log(frame.stamp_ns, frame.images, answer, truth)

    return write_album(out, "occupancy", predicted, pictures, draw, record if recording else None)


def _moment(source: NuScenesSource, index: int, files: dict[str, Path]) -> tuple[Frame, Occupancy, Occupancy | None]:
    frame = source[index]
    labels = read_prediction(files[frame.token], OCC3D_GRID)
    predicted = Occupancy(OCC3D_GRID, OCC3D, labels, read_observed(files[frame.token], OCC3D_GRID))
    truth = source.tables.truth_path(frame.scene, frame.token)
    return frame, predicted, load_occ3d(truth) if truth.is_file() else None
