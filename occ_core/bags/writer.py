"""Writes a nuScenes scene as a ROS 2 bag for `ros2 bag play`, without a ROS installation. Topics: docs/bags.md.

Written beside the target and renamed when complete, so an interruption leaves no bag or a whole one.
"""

from __future__ import annotations

import shutil
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rosbags.interfaces import Connection, Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.rosbag2.storage_mcap import McapWriter

from occ_core.bags import messages as msg
from occ_core.bags.motion import one_pose_a_stamp, velocities_of
from occ_core.clouds import LIDAR_POINT, truth_points
from occ_core.errors import CorruptInput, InvalidInput, MissingInput, OccError
from occ_core.files import is_there
from occ_core.images import compressed_info, decode_compressed
from occ_core.occupancy import load_occ3d
from occ_core.sources.nuscenes import camera_of, read_bytes, read_lidar
from occ_core.sources.nuscenes_tables import NuScenesTables, SensorRecord

STORAGES = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}
METADATA_VERSION: Literal[8] = 8
"""Version 9 writes QoS by name, which Humble cannot read; newer distributions read 8 as well."""


@dataclass
class BagSummary:
    """What was written, and what was not.

    Attributes:
        path: the bag's folder.
        counts: topic -> messages.
        left_out: (what, why) of everything a reader might expect but that is not in the bag.
        bytes: size on disk.
        seconds: time it took.
    """

    path: Path
    counts: dict[str, int]
    left_out: list[tuple[str, str]]
    bytes: int
    seconds: float


@dataclass(frozen=True)
class BagOptions:
    """How a bag is written.

    Attributes:
        storage: mcap | sqlite3.
        raw: decoded sensor_msgs/Image instead of the JPEG files as they are.
        sweeps: True, False, or None: those whose files are there.
        allow_missing: leave absent keyframe files out instead of refusing.
        force: replace a bag that is already there.
    """

    storage: str = "mcap"
    raw: bool = False
    sweeps: bool | None = None
    allow_missing: bool = False
    force: bool = False


@dataclass
class _Plan:
    """Everything that goes into the bag, files not yet read."""

    scene: str
    records: list[SensorRecord]  # of cameras and LiDAR, in time order
    poses: dict[int, np.ndarray]  # stamp_ns -> world_from_ego, sorted
    samples: list[tuple[str, int]]
    boxes: bool
    left_out: list[tuple[str, str]] = field(default_factory=list)

    @property
    def messages(self) -> int:
        """About how many messages: for the progress bar."""
        return 2 * len(self.poses) + 2 * len(self.records) + 3 * len(self.samples)


def write_bag(
    tables: NuScenesTables,
    scene: str,
    out: Path,
    options: BagOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> BagSummary:
    """Write one scene as a bag.

    Args:
        tables: the data set.
        scene: its name.
        out: folder of the bag.
        options: see BagOptions.
        progress: called with (messages done, messages expected).

    Raises:
        MissingInput: no such scene, or a keyframe's sensor file is absent; nothing is written.
        CorruptInput: a sensor file or label is damaged; nothing is left behind.
        InvalidInput: `out` exists, or unknown storage.
    """
    options = options or BagOptions()
    started = time.perf_counter()
    if options.storage not in STORAGES:
        raise InvalidInput(f"storage '{options.storage}' is not one of {', '.join(STORAGES)}")
    _require_free(out, options.force)
    plan = make_plan(tables, scene, options)
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what an interrupted run left
    try:
        counts = _write(tables, plan, partial / out.name, options, progress)
        _put_in_place(partial / out.name, out, partial / "replaced")
    except OSError as error:
        if isinstance(error, OccError):
            raise
        raise OccError(f"{out}: cannot write the bag: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    size = sum(path.stat().st_size for path in out.iterdir())
    return BagSummary(out, counts, plan.left_out, size, time.perf_counter() - started)


def _put_in_place(new: Path, out: Path, old: Path) -> None:
    """Rename `new` to `out`; a bag that was there moves to `old`, and back if that fails."""
    try:
        if out.exists():
            out.rename(old)
        new.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise


def _require_free(out: Path, force: bool) -> None:
    if not out.exists():
        return
    if not force:
        raise InvalidInput(f"{out}: exists already (--force replaces a bag)")
    if not (out / "metadata.yaml").is_file():
        raise InvalidInput(f"{out}: is not a bag (no metadata.yaml), so it will not be replaced")


def make_plan(tables: NuScenesTables, scene: str, options: BagOptions) -> _Plan:
    """Choose what to write and note what is left out, before any file is written."""
    tables.require_scenes([scene])
    records = tables.records(scene)
    if not records:
        raise MissingInput(f"{tables.dataroot}: scene '{scene}' has no sensor data")
    records = one_pose_a_stamp(records)
    poses = {record.stamp_ns: record.world_from_ego for record in records}
    samples = tables.samples(scene)
    boxes = any(tables.annotations(token) for token, _ in samples)
    plan = _Plan(scene, [], poses, samples, boxes)
    plan.records = _choose_files(records, options, plan.left_out)
    _note_absent(tables, plan, records)
    for channel in sorted({record.channel for record in plan.records}):
        several = len({record.calibration for record in plan.records if record.channel == channel})
        if several > 1:
            plan.left_out.append((f"{channel}: {several - 1} later calibrations", "/tf_static has the scene's first"))
    return plan


def _choose_files(
    records: list[SensorRecord], options: BagOptions, left_out: list[tuple[str, str]]
) -> list[SensorRecord]:
    wanted = [record for record in records if record.modality in ("camera", "lidar")]
    absent = [record for record in wanted if not is_there(record.path)]
    keyframes = [record for record in absent if record.is_keyframe]
    if keyframes and not options.allow_missing:
        raise MissingInput(
            f"{keyframes[0].path}: sensor file is missing or empty ({len(keyframes)} keyframe files in all); "
            "--allow-missing leaves them out"
        )
    for channel, count in sorted(Counter(record.channel for record in keyframes).items()):
        left_out.append((f"{channel}: {count} keyframe files", "missing or empty on disk"))
    sweeps = [record for record in wanted if not record.is_keyframe]
    there = [record for record in sweeps if is_there(record.path)]
    if not sweeps:
        left_out.append(("sweeps", "the tables name none"))
    elif options.sweeps is False:
        left_out.append((f"{len(sweeps)} sweeps", "not asked for (--no-sweeps)"))
    elif options.sweeps and not there:
        raise MissingInput(f"{sweeps[0].path}: no sweep file is there ({len(sweeps)} are named by the tables)")
    else:
        gone = Counter(record.channel for record in sweeps) - Counter(record.channel for record in there)
        for channel, count in sorted(gone.items()):
            left_out.append((f"{channel}: {count} sweep files", "missing or empty on disk"))
    skipped = {id(record) for record in absent}
    return [
        record for record in wanted if id(record) not in skipped and (record.is_keyframe or options.sweeps is not False)
    ]


def _note_absent(tables: NuScenesTables, plan: _Plan, records: list[SensorRecord]) -> None:
    note = plan.left_out.append
    if not any(record.modality == "lidar" for record in records):
        note(("LiDAR", "the tables name no LiDAR file"))
    radar = sum(record.modality == "radar" for record in records)
    if radar:
        note((f"radar ({radar} files)", "not converted"))
    if not plan.boxes:
        note(("annotations", "sample_annotation.json has none for this scene"))
    labels = sum(tables.truth_path(plan.scene, token).is_file() for token, _ in plan.samples)
    if labels < len(plan.samples):
        where = tables.dataroot / "gts" / plan.scene
        note((f"ground truth of {len(plan.samples) - labels} of {len(plan.samples)} keyframes", f"not in {where}"))
    for what, folder in (
        ("CAN bus", tables.dataroot / "can_bus"),
        ("map expansion", tables.dataroot / "maps/expansion"),
    ):
        note((what, "not converted" if folder.is_dir() else f"no folder {folder}"))


class _McapWithCrc(McapWriter):
    """Fills in the checksums of chunks, for which rosbags writes 0 ("not computed")."""

    def close_chunk(self) -> None:
        start = self.bio.tell()
        with self.chunk.bio.getbuffer() as view:
            checksum = zlib.crc32(view)
        super().close_chunk()
        end = self.bio.tell()
        # record: opcode (1), length (8), start and end time and size (24), checksum (4)
        self.bio.seek(start + 9 + 24)
        self.bio.write(struct.pack("<I", checksum))
        self.bio.seek(end)


class _Topics:
    """Writes messages; a topic is created with its first message, so that none is empty."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._connections: dict[str, Connection] = {}
        self.counts: Counter[str] = Counter()

    def write(self, topic: str, stamp_ns: int, message: Any) -> None:
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic, message.__msgtype__, typestore=msg.store(), offered_qos_profiles=[_qos(topic)]
            )
        self._writer.write(self._connections[topic], stamp_ns, msg.serialize(message))
        self.counts[topic] += 1


def _qos(topic: str) -> Qos:
    latched = topic == "/tf_static"
    return Qos(
        history=QosHistory.KEEP_LAST,
        depth=1 if latched else 100 if topic == "/tf" else 10,
        # Reliable also serves best-effort subscribers, the other way round it does not.
        reliability=QosReliability.RELIABLE,
        durability=QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        deadline=QosTime(0, 0),
        lifespan=QosTime(0, 0),
        liveliness=QosLiveliness.AUTOMATIC,
        liveliness_lease_duration=QosTime(0, 0),
        avoid_ros_namespace_conventions=False,
    )


def _write(
    tables: NuScenesTables,
    plan: _Plan,
    path: Path,
    options: BagOptions,
    progress: Callable[[int, int], None] | None,
) -> dict[str, int]:
    writer = Writer(path, version=METADATA_VERSION, storage_plugin=STORAGES[options.storage])
    writer.STORAGE_PLUGINS = {**Writer.STORAGE_PLUGINS, StoragePlugin.MCAP: _McapWithCrc}
    writer.set_custom_data("source", f"nuScenes {tables.version}")
    writer.set_custom_data("scene", plan.scene)
    with writer:
        topics = _Topics(writer)
        for number, (stamp_ns, topic, message) in enumerate(_messages(tables, plan, options)):
            topics.write(topic, stamp_ns, message)
            if progress and number % 20 == 0:
                progress(number, plan.messages)
    return dict(topics.counts)


def _messages(tables: NuScenesTables, plan: _Plan, options: BagOptions) -> Iterator[tuple[int, str, Any]]:
    """(stamp_ns, topic, message) of everything, in time order; at equal stamps the pose comes first."""
    stamps = sorted({*plan.poses, *(stamp for _, stamp in plan.samples)})
    by_stamp: dict[int, list[SensorRecord]] = {}
    for record in plan.records:
        by_stamp.setdefault(record.stamp_ns, []).append(record)
    samples = {stamp_ns: token for token, stamp_ns in plan.samples}
    velocities = velocities_of(plan.poses)
    yield stamps[0], "/tf_static", msg.transforms(stamps[0], _static_links(plan.records))
    for stamp_ns in stamps:
        if stamp_ns in plan.poses:
            pose = plan.poses[stamp_ns]
            yield stamp_ns, "/tf", msg.transforms(stamp_ns, [("odom", "base_link", pose)])
            yield stamp_ns, "/odom", msg.odometry(stamp_ns, pose, *velocities[stamp_ns])
        for record in by_stamp.get(stamp_ns, []):
            yield from _sensor_messages(record, options.raw)
        if stamp_ns in samples:
            yield from _keyframe_messages(tables, plan, samples[stamp_ns], stamp_ns)


def frame_of(record: SensorRecord) -> str:
    """Name of a sensor's frame: `cam_front_optical_frame`, `lidar_top`."""
    name = record.channel.lower()
    return f"{name}_optical_frame" if record.modality == "camera" else name


def _static_links(records: list[SensorRecord]) -> list[tuple[str, str, np.ndarray]]:
    sensors = {frame_of(record): record.ego_from_sensor for record in reversed(records)}
    return [("map", "odom", np.eye(4)), *(("base_link", frame, sensors[frame]) for frame in sorted(sensors))]


def _sensor_messages(record: SensorRecord, raw: bool) -> Iterator[tuple[int, str, Any]]:
    stamp_ns, frame, prefix = record.stamp_ns, frame_of(record), f"/{record.channel.lower()}"
    if record.modality == "lidar":
        yield stamp_ns, f"{prefix}/points", msg.cloud(stamp_ns, frame, _lidar_points(record))
        return
    data = read_bytes(record)
    try:
        kind, *size = compressed_info(data)
        pixels = decode_compressed(data) if raw else None
    except OccError as error:
        raise CorruptInput(f"{record.path}: {error}") from error
    if tuple(size) != record.size:
        raise CorruptInput(
            f"{record.path}: image is {size[0]} x {size[1]} px, "
            f"sample_data.json says {record.size[0]} x {record.size[1]}"
        )
    yield stamp_ns, f"{prefix}/camera_info", msg.camera_info(stamp_ns, frame, camera_of(record))
    if pixels is None:
        yield stamp_ns, f"{prefix}/image_raw/compressed", msg.compressed_image(stamp_ns, frame, kind, data)
    else:
        yield stamp_ns, f"{prefix}/image_raw", msg.image(stamp_ns, frame, pixels)


def _lidar_points(record: SensorRecord) -> np.ndarray:
    sweep = read_lidar(record)
    points = np.zeros(len(sweep.points_lidar_m), dtype=LIDAR_POINT)
    points["x"], points["y"], points["z"] = sweep.points_lidar_m.T
    points["intensity"] = sweep.intensity
    points["ring"] = sweep.ring
    return points


def _keyframe_messages(
    tables: NuScenesTables, plan: _Plan, token: str, stamp_ns: int
) -> Iterator[tuple[int, str, Any]]:
    yield stamp_ns, "/keyframe", msg.new("std_msgs/msg/String", data=token)
    if plan.boxes:
        yield stamp_ns, "/markers/annotations", msg.box_markers(stamp_ns, tables.annotations(token))
    label = tables.truth_path(plan.scene, token)
    if label.is_file():
        yield stamp_ns, "/ground_truth/occupancy", msg.cloud(stamp_ns, "base_link", truth_points(load_occ3d(label)))
