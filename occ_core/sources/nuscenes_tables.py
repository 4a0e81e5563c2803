"""Reads and checks the tables of a nuScenes v1.0 data set, for the frame source and the bag writer.

Real data sets and the simulated city look the same here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from occ_core.errors import CorruptInput, InvalidInput, MissingInput
from occ_core.files import is_there
from occ_core.geometry import interpolate, pose
from occ_core.sources.nuscenes_rows import Row, Rows

TABLES = (
    "attribute", "calibrated_sensor", "category", "ego_pose", "instance", "log", "map", "sample", "sample_annotation",
    "sample_data", "scene", "sensor", "visibility",
)  # fmt: skip
NEVER_EMPTY = ("map", "scene", "sample")


@dataclass(frozen=True, eq=False)
class SensorRecord:
    """One file of one sensor.

    Attributes:
        channel: such as CAM_FRONT.
        modality: camera | lidar | radar.
        stamp_ns: the sensor's own time.
        path: the file.
        size: (width, height) of an image, else (0, 0).
        is_keyframe: belongs to sample `sample_token`; a sweep lies near it.
        calibration: token of the calibration; equal tokens, equal calibration.
        intrinsics: (3, 3) of a camera.
        ego_from_sensor: (4, 4).
        world_from_ego: (4, 4) at `stamp_ns`.
        distortion_model, distortion: of a camera, as of `Camera`. nuScenes' images have none; a simulated city's lenses
            may, and then the calibration's row has fields of these names.
    """

    channel: str
    modality: str
    stamp_ns: int
    path: Path
    size: tuple[int, int]
    is_keyframe: bool
    sample_token: str
    calibration: str
    intrinsics: np.ndarray | None
    ego_from_sensor: np.ndarray
    world_from_ego: np.ndarray
    distortion_model: str = "none"
    distortion: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Annotation:
    """An annotated box: `world_from_box` (4, 4) and size (width, length, height) in metres, in nuScenes' order."""

    token: str
    instance: str
    category: str
    world_from_box: np.ndarray
    size_wlh_m: tuple[float, float, float]


class NuScenesTables:
    """A nuScenes v1.0 data set.

    Args:
        dataroot: folder with `v1.0-*`, `samples`, ...; or such a `v1.0-*` itself, which says the version.
        version: name of the table folder; None: the only one there is.

    Raises:
        InvalidInput: several table folders and no version, or a version that `dataroot` contradicts.
        MissingInput, CorruptInput: naming the first file that is missing or the row that is broken.
    """

    def __init__(self, dataroot: Path | str, version: str | None = None) -> None:
        self.dataroot, self.version = root_and_version(dataroot, version)
        self._folder = self.dataroot / self.version
        if not self._folder.is_dir():
            raise MissingInput(f"{self._folder}: no such folder of nuScenes tables")
        for table in TABLES:
            if not (self._folder / f"{table}.json").is_file():
                raise MissingInput(f"{self._folder / table}.json: table is missing")
        self._samples: dict[str, list[Row]] = {}  # scene -> rows
        self._sample_data: dict[str, list[Row]] = {}  # scene -> rows
        self._calibrations: dict[str, np.ndarray] = {}
        self._sensors, self._calibrated = self._rows("sensor"), self._rows("calibrated_sensor")
        self._ego_poses = self._rows("ego_pose")
        self._check_maps()
        self._index()

    def _rows(self, table: str) -> Rows:
        rows = Rows(self._folder / f"{table}.json")
        if table in NEVER_EMPTY and not len(rows):
            raise CorruptInput(f"{rows.path}: no rows")
        return rows

    def _check_maps(self) -> None:
        """Nothing here reads a map, but other readers of this layout do not open a set without."""
        for row in self._rows("map"):
            if not (self.dataroot / row["filename"]).is_file():
                raise MissingInput(f"{self.dataroot / row['filename']}: map named by map.json is missing")

    def _index(self) -> None:
        """Sort rows into scenes by one pass over the tables, not by following `next` through all of them."""
        scenes, self._sample_rows = self._rows("scene"), self._rows("sample")
        self.scenes: list[str] = [row["name"] for row in scenes]  # of all scenes
        for calibration in self._calibrated:
            self._sensors.of(calibration, "sensor_token")
        scene_of: dict[str, str] = {}
        for row in self._sample_rows:
            scene = scenes.of(row, "scene_token")["name"]
            scene_of[row["token"]] = scene
            self._samples.setdefault(scene, []).append(row)
        for row in self._rows("sample_data"):
            scene = scene_of[self._sample_rows.of(row, "sample_token")["token"]]
            self._sample_data.setdefault(scene, []).append(row)
        for rows in self._samples.values():
            rows.sort(key=_stamp_ns)

    def require_scenes(self, names: list[str] | tuple[str, ...] | None) -> list[str]:
        """Return the names if all exist (all scenes for None).

        Raises:
            MissingInput: naming the first unknown one and those that exist.
        """
        known = self.scenes
        for name in names or []:
            if name not in known:
                shown = ", ".join(known[:10]) + (f", ... ({len(known)})" if len(known) > 10 else "")
                raise MissingInput(f"{self._folder}: no scene '{name}', only: {shown}")
        return list(names) if names else known

    def samples(self, scene: str) -> list[tuple[str, int]]:
        """(token, stamp_ns) of the keyframes of a scene, in time order."""
        return [(row["token"], _stamp_ns(row)) for row in self._samples.get(scene, [])]

    def records(self, scene: str) -> list[SensorRecord]:
        """All sensor files of a scene, keyframes and sweeps, in time order."""
        records = [self._record(row) for row in self._sample_data.get(scene, [])]
        return sorted(records, key=lambda record: (record.stamp_ns, record.channel))

    def _record(self, row: Row) -> SensorRecord:
        calibration = self._calibrated.of(row, "calibrated_sensor_token")
        sensor = self._sensors.of(calibration, "sensor_token")
        return SensorRecord(
            channel=sensor["channel"],
            modality=sensor["modality"],
            stamp_ns=_stamp_ns(row),
            path=self.dataroot / row["filename"],
            size=_size(row),
            is_keyframe=bool(row["is_key_frame"]),
            sample_token=row["sample_token"],
            calibration=calibration["token"],
            intrinsics=_intrinsics(calibration),
            ego_from_sensor=self._calibration(calibration),
            world_from_ego=_pose(self._ego_poses.of(row, "ego_pose_token")),
            distortion_model=str(calibration.get("distortion_model", "none")),
            distortion=_distortion(calibration),
        )

    def _calibration(self, row: Row) -> np.ndarray:
        if row["token"] not in self._calibrations:
            self._calibrations[row["token"]] = _pose(row)
        return self._calibrations[row["token"]]

    @cached_property
    def _annotations(self) -> dict[str, list[Annotation]]:
        """Boxes by sample; of a large set most of its bytes, so they are read when they are first asked for."""
        instances, categories = self._rows("instance"), self._rows("category")
        found: dict[str, list[Annotation]] = {}
        for row in self._rows("sample_annotation"):
            category = categories.of(instances.of(row, "instance_token"), "category_token")["name"]
            sample, size_wlh_m = self._sample_rows.of(row, "sample_token"), _size_wlh_m(row)
            found.setdefault(sample["token"], []).append(
                Annotation(row["token"], row["instance_token"], category, _pose(row), size_wlh_m)
            )
        return found

    def annotations(self, sample_token: str) -> list[Annotation]:
        """The boxes of a keyframe.

        Raises:
            CorruptInput: naming the row of a table that is broken.
        """
        return self._annotations.get(sample_token, [])

    def truth_path(self, scene: str, sample_token: str) -> Path:
        """The file of a keyframe's Occ3D label, if there is one."""
        return self.dataroot / "gts" / scene / sample_token / "labels.npz"

    def missing_files(self, scenes: list[str] | None = None, keyframes_only: bool = True) -> list[Path]:
        """The sensor files (not radar) that the tables name but that are missing or empty."""
        return [
            record.path
            for scene in self.require_scenes(scenes)
            for record in self.records(scene)
            if record.modality != "radar" and (record.is_keyframe or not keyframes_only) and not is_there(record.path)
        ]


def pose_between(records: list[SensorRecord], stamp_ns: int) -> np.ndarray:
    """The pose `world_from_ego` (4, 4) at a time: interpolated between the ego poses around it, or the nearest one at
    the ends."""
    stamps = np.array([record.stamp_ns for record in records])
    at = int(np.searchsorted(stamps, stamp_ns))
    if at == len(records):
        return records[-1].world_from_ego
    if at == 0 or stamps[at] == stamp_ns:
        return records[at].world_from_ego
    fraction = (stamp_ns - stamps[at - 1]) / (stamps[at] - stamps[at - 1])
    return interpolate(records[at - 1].world_from_ego, records[at].world_from_ego, float(fraction))


def root_and_version(path: Path | str, version: str | None = None) -> tuple[Path, str]:
    """The folder and the table folder of a data set in nuScenes layout.

    Args:
        path: the data set's folder, or its table folder DATAROOT/v1.0-mini.
        version: name of the table folder; None: what the path says, or else the only one there is.

    Raises:
        MissingInput: no such folder, or no tables. InvalidInput: several versions, or the path is of another one.
    """
    path = Path(path)
    if not path.is_dir():
        raise MissingInput(f"{path}: no such folder")
    if is_table_folder(path):
        whole = Path(os.path.abspath(path))  # `.` has a name, too; a link stays where it is, beside `samples`
        if version not in (None, whole.name):
            raise InvalidInput(f"{path}: is of version {whole.name}, asked for {version}")
        return whole.parent, whole.name
    return path, version or _only_version(path)


def root_of(path: Path | str) -> Path:
    """The data set's folder, if `path` is its table folder; any other path is returned as it is."""
    return root_and_version(path)[0] if is_table_folder(Path(path)) else Path(path)


def is_table_folder(path: Path) -> bool:
    """Whether a folder holds nuScenes tables, such as v1.0-mini."""
    return (path / "sample_data.json").is_file() and (path / "scene.json").is_file()


def _only_version(dataroot: Path) -> str:
    found = sorted(path.name for path in dataroot.glob("v1.0-*") if path.is_dir())
    if not found:
        raise MissingInput(f"{dataroot}: no folder v1.0-* of nuScenes tables in it")
    found = [name for name in found if is_table_folder(dataroot / name)] or found  # others are folders of archives
    if len(found) > 1:
        raise InvalidInput(
            f"{dataroot}: several versions ({', '.join(found)}); say which one: --version {found[0]}, or "
            f"{dataroot / found[0]} as its path"
        )
    return found[0]


def _stamp_ns(row: Row) -> int:
    try:
        return int(row["timestamp"]) * 1000
    except (TypeError, ValueError, OverflowError):
        raise _broken(row, f"timestamp must be microseconds, got {row['timestamp']!r:.80}") from None


def _size(row: Row) -> tuple[int, int]:
    try:
        return int(row["width"] or 0), int(row["height"] or 0)
    except (TypeError, ValueError, OverflowError) as error:
        raise _broken(row, f"width and height must be pixels ({error})") from None


def _intrinsics(row: Row) -> np.ndarray | None:
    try:
        matrix = np.array(row["camera_intrinsic"], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise _broken(row, f"camera_intrinsic must be a matrix ({error})") from None
    return matrix if matrix.size else None


def _pose(row: Row) -> np.ndarray:
    try:
        return pose(row["translation"], row["rotation"])
    except (InvalidInput, TypeError) as error:
        raise _broken(row, str(error)) from None


def _size_wlh_m(row: Row) -> tuple[float, float, float]:
    try:
        width, length, height = (float(value) for value in row["size"])
    except (TypeError, ValueError) as error:
        raise _broken(row, f"size must be three numbers ({error})") from None
    return width, length, height


def _distortion(row: Row) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in row.get("distortion", ()))
    except (TypeError, ValueError) as error:
        raise _broken(row, f"distortion must be numbers, got {row['distortion']!r:.80}") from error


def _broken(row: Row, why: str) -> CorruptInput:
    return CorruptInput(f"{row.path}: row '{row['token']}': {why}")
