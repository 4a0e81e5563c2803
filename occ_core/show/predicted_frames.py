"""What there is to look at: frames of a data set or a bag, with what was predicted and what is true."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from occ_core.clouds import TRUTH_POINT, VOXEL_POINT, occupancy_of
from occ_core.errors import InvalidInput, MissingInput
from occ_core.evaluation.predictions import prediction_files, read_confidence, read_observed, read_prediction
from occ_core.evaluation.ssc import read_ssc_truth
from occ_core.frame import Frame
from occ_core.grid import OCC3D_GRID, SEMANTIC_KITTI_VOXELS, VoxelGrid
from occ_core.occupancy import Occupancy, load_occ3d
from occ_core.sensor_messages import stamp_of
from occ_core.show.album import spread, write_album
from occ_core.show.pictures import compare
from occ_core.show.recording import RerunRecording
from occ_core.sources.bag_frames import BagFrames
from occ_core.sources.bag_report import BagReport, CameraRow
from occ_core.sources.bag_survey import CLOUD
from occ_core.sources.clouds import points_of
from occ_core.sources.kitti import SemanticKittiSource
from occ_core.sources.nuscenes import NuScenesSource
from occ_core.sources.open import EVERY_CAMERA, Choice, FrameSource, left_out, open_source
from occ_core.taxonomy import OCC3D, SEMANTIC_KITTI, Taxonomy

DOCTOR_FRAMES = 4
SAME_NS = 100_000_000  # a cloud belongs to the frame whose stamp it has within this


class PredictedFrame(NamedTuple):
    """What is known of one frame; voxels are in the ego frame, on Occ3D's grid or SemanticKITTI's."""

    frame: Frame
    predicted: Occupancy | None
    truth: Occupancy | None


class PredictedFrames:
    """The frames of `path` in time order: `len(frames)`, `frames[i]`.

    Args:
        path: folder of predictions (one npz a frame, as `occ predict` writes them), or a ROS 2 bag: what was published
            in it on topics `.../occupancy` is then shown.
        data: what the predictions are of: nuScenes layout, SemanticKITTI or a ROS 2 bag. None with a bag.
        truth: folder of labels to show instead of those that the data set has: <scene>/<token>/labels.npz, or of
            SemanticKITTI sequences/<scene>/voxels/<token>.label.
        version: table folder of data in nuScenes layout.
        choice: which cameras of a bag.

    Attributes:
        left_out: one line for each thing of a bag that is not used.

    Raises:
        MissingInput: no such folder, no `data`, or no frame of it has a prediction.
    """

    def __init__(
        self,
        path: Path,
        data: Path | None,
        truth: Path | None = None,
        version: str | None = None,
        choice: Choice = EVERY_CAMERA,
    ) -> None:
        bag = is_bag(path)
        if bag == (data is not None):
            raise MissingInput(
                f"{path} is a bag and shows itself: no --data with it"
                if bag
                else f"{path}: predictions need --data, the data set or bag that they are of"
            )
        self.title = path.stem
        self._files = {} if bag else prediction_files(path)
        self._source: FrameSource = open_source(path if data is None else data, version=version, choice=choice)
        self.left_out = left_out(self._source)
        self._clouds = _Clouds(self._source) if isinstance(self._source, BagFrames) else None
        self._truth, self._grid, self._taxonomy = truth, OCC3D_GRID, OCC3D
        if isinstance(self._source, SemanticKittiSource):
            self._truth = truth or self._source.dataroot
            self._grid, self._taxonomy = SEMANTIC_KITTI_VOXELS, SEMANTIC_KITTI
        names = self._source.names
        self._indices = [i for i, name in enumerate(names) if bag or name in self._files]
        if not self._indices:
            raise MissingInput(f"{path}: no prediction of any of the {len(names)} frames of {data}")

    def __len__(self) -> int:
        return len(self._indices)

    def cameras(self) -> list[CameraRow]:
        """How the doctor judges a bag's cameras, see `doctor_rows`; of other data none."""
        return doctor_rows(self._source) if isinstance(self._source, BagFrames) else []

    def __getitem__(self, index: int) -> PredictedFrame:
        number = self._indices[index]
        frame = self._source[number]
        path = self._files.get(self._source.names[number])
        predicted, truth = None, self._true(frame)
        if path is not None:
            predicted = predicted_of(path, self._grid, self._taxonomy)
        if self._clouds is not None:
            predicted = predicted or self._clouds.near(VOXEL_POINT, frame.stamp_ns)
            truth = truth or self._clouds.near(TRUTH_POINT, frame.stamp_ns)
        return PredictedFrame(frame, predicted, truth)

    def _true(self, frame: Frame) -> Occupancy | None:
        """What files say of a frame, where there are any."""
        if self._taxonomy == SEMANTIC_KITTI:
            assert self._truth is not None
            file = self._truth / "sequences" / frame.scene / "voxels" / f"{frame.token}.label"
            if not file.is_file():
                return None
            labels = read_ssc_truth(file)
            known = labels != SEMANTIC_KITTI.unlabeled_id
            return Occupancy(self._grid, self._taxonomy, np.where(known, labels, SEMANTIC_KITTI.free_id), known)
        if self._truth is not None:
            file = self._truth / frame.scene / frame.token / "labels.npz"
        elif isinstance(self._source, NuScenesSource):
            file = self._source.tables.truth_path(frame.scene, frame.token)
        else:
            return None
        return load_occ3d(file) if file.is_file() else None


def doctor_rows(frames: BagFrames) -> list[CameraRow]:
    """How the doctor judges a bag's cameras, by the images of at most DOCTOR_FRAMES frames."""
    some = (frames[i] for i in spread(range(len(frames)), DOCTOR_FRAMES))
    return BagReport(frames.bag, frames=some).rows


def predicted_of(path: Path, grid: VoxelGrid, taxonomy: Taxonomy) -> Occupancy:
    """A prediction as what it is of, with its confidence where the file has one.

    Raises:
        MissingInput, CorruptInput.
    """
    confidence = read_confidence(path, grid)
    shares = None if confidence is None else confidence.astype(np.float32) / 255
    return Occupancy(grid, taxonomy, read_prediction(path, grid), read_observed(path, grid), shares)


def is_bag(path: Path) -> bool:
    """A folder or file that `occ_core.sources.open` takes for a ROS 2 bag."""
    return path.suffix in (".mcap", ".db3") or (path / "metadata.yaml").is_file()


class _Clouds:
    """Voxels that a bag has as clouds; only where they are is kept in memory."""

    def __init__(self, frames: BagFrames) -> None:
        self._reader = frames.bag.reader
        self._stamps: dict[tuple[str, ...], list[tuple[int, int, str]]] = {}  # by fields: stamp, log time, topic
        topics = [topic for topic in self._reader.of_type(CLOUD) if topic.endswith("/occupancy")]
        for topic, log_ns, message in self._reader.messages(topics):
            fields = tuple(field.name for field in message.fields)
            self._stamps.setdefault(fields, []).append((stamp_of(message), log_ns, topic))

    def near(self, layout: np.dtype, stamp_ns: int) -> Occupancy | None:
        """The voxels of this layout that belong to a frame."""
        stamps = self._stamps.get(layout.names or (), [])
        nearest = min(stamps, key=lambda stamp: abs(stamp[0] - stamp_ns), default=None)
        if nearest is None or abs(nearest[0] - stamp_ns) > SAME_NS:
            return None
        found, log_ns, topic = nearest
        for _, _, message in self._reader.messages([topic], log_ns, log_ns + 1):
            if stamp_of(message) == found:
                return _voxels_of(message, layout, topic)
        return None


def _voxels_of(message: Any, layout: np.dtype, topic: str) -> Occupancy:
    points = points_of(message)
    try:
        return occupancy_of(points, OCC3D_GRID, OCC3D)
    except (InvalidInput, ValueError, OverflowError) as error:
        raise InvalidInput(f"'{topic}' at {stamp_of(message)} ns holds no voxels of {OCC3D.name}: {error}") from error


def write_pictures(frames: PredictedFrames, out: Path, pictures: int, recording: bool) -> list[Path]:
    """Write `out/pictures/<scene>_<n>.png` and `out/recording.rrd`.

    Args:
        pictures: at most this many, spread evenly.

    Returns:
        paths of what was written.
    """

    def draw(index: int) -> tuple[str, np.ndarray]:
        frame, predicted, truth = frames[index]
        title = f"{frame.scene}, {frame.token[:8] or frame.stamp_ns}"
        return frame.scene, compare(frame.images, predicted, truth, title)

    def record(stream: RerunRecording, index: int) -> None:
        frame, predicted, truth = frames[index]
        stream.log(frame.stamp_ns, frame.images, predicted, truth)

    return write_album(out, "occupancy", range(len(frames)), pictures, draw, record if recording else None)
