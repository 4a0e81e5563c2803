"""What the fuzzer damages, and what it then asks of the library; each target reads one kind of bytes from outside."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

LENGTHS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
SIZES = (0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
        originals: whole ones; the fuzzer damages one of them at a time.
        read: what the library does with the bytes; may raise `OccError` and nothing else.
    """

    originals: list[bytes]
    read: Callable[[bytes], Any]
    damage: Callable[[bytes, random.Random], bytes]


def damage(data: bytes, rng: random.Random) -> bytes:
    """One to four mutations: bits, bytes, runs, copies, cuts, and numbers as length fields hold them."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not out:
            break
        at = rng.randrange(len(out)) if rng.random() < 0.5 else rng.randrange(min(len(out), 512))  # headers come first
        match rng.randrange(7):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at] = rng.randrange(256)
            case 2:
                del out[at:]
            case 3:
                del out[at : at + rng.randrange(1, 64)]
            case 4:
                out[at:at] = out[at : at + rng.randrange(1, 256)]
            case 5:
                width, order = rng.choice("BHIQ"), rng.choice("<>")
                value = rng.choice(LENGTHS) & (256 ** struct.calcsize(width) - 1)
                out[at : at + struct.calcsize(width)] = struct.pack(order + width, value)
            case 6:
                out[at : at + rng.randrange(1, 32)] = rng.randbytes(rng.randrange(1, 32))
    return bytes(out)


def damage_json(data: bytes, rng: random.Random) -> bytes:
    """Half of the time bytes, else a value that is valid JSON and means nonsense."""
    if rng.random() < 0.5:
        return damage(data, rng)
    record = json.loads(data)
    at: Any = record
    while True:  # down a random way
        key = rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
        if isinstance(at[key], dict | list) and at[key] and rng.random() < 0.85:
            at = at[key]
            continue
        at[key] = rng.choice((None, True, -1, 0, 4096, 10**9, 1e308, float("nan"), "", "x" * 1000, [], {}, [[]] * 9))
        return json.dumps(record).encode()


def _either(
    first: Callable[[bytes, random.Random], bytes], second: Callable[[bytes, random.Random], bytes]
) -> Callable[[bytes, random.Random], bytes]:
    return lambda data, rng: (first if rng.random() < 0.5 else second)(data, rng)


def targets(folder: Path, names: tuple[str, ...]) -> dict[str, Target]:
    """The targets of these names, their files in a folder of their own."""
    return {name: MAKERS[name](folder / name) for name in names}


# --- images and calibration ------------------------------------------------------------------------------------------


def _picture(height: int = 48, width: int = 80) -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def _compressed(extensions: tuple[tuple[str, list[int]], ...]) -> Target:
    from occ_core.images import decode_compressed

    files = [cv2.imencode(extension, _picture(), flags)[1].tobytes() for extension, flags in extensions]
    return Target(files, decode_compressed, _either(damage, lambda data, rng: _with_checksums(damage(data, rng))))


def _with_checksums(data: bytes) -> bytes:
    """A PNG with the checksums of its chunks made right, as somebody who means harm would; others as they are."""
    out, at = bytearray(data), 8
    while data.startswith(b"\x89PNG") and at + 12 <= len(out):
        end = at + 8 + int.from_bytes(out[at : at + 4], "big")
        if end + 4 > len(out):
            break
        out[end : end + 4] = zlib.crc32(out[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(out)


def _jpeg(_: Path) -> Target:
    kinds = [], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 4]
    return _compressed(tuple((".jpg", flags) for flags in kinds))


def _png(_: Path) -> Target:
    return _compressed(((".png", []), (".png", [cv2.IMWRITE_PNG_COMPRESSION, 0])))


def _image(_: Path) -> Target:
    """CDR of sensor_msgs/Image; the node's own reader where it is installed, else that of bags."""
    from occ_core.bags import messages as msg
    from occ_core.images import ENCODINGS, decode_image

    def read(data: bytes) -> np.ndarray:
        message = _message(data, "Image")
        return decode_image(message.encoding, message.width, message.height, message.step, message.data)

    def lie(data: bytes, rng: random.Random) -> bytes:
        message = msg.image(1, "cam", _picture(12, 20))
        for name in rng.sample(("width", "height", "step"), rng.randrange(4)):
            setattr(message, name, rng.choice((0, 1, 3, 11, 13, 19, 21, 59, 61, 640, 8192, 16384, 16385, *SIZES)))
        message.encoding = rng.choice((*ENCODINGS, "8UC3", "mono16", "", "x" * 10_000))
        return bytes(msg.serialize(message))

    return Target([bytes(msg.serialize(msg.image(1, "cam", _picture(12, 20))))], read, _either(damage, lie))


def _camera_info(_: Path) -> Target:
    from occ_core.bags import messages as msg
    from occ_core.camera import Camera
    from occ_core.sensor_messages import camera_from_info

    k = np.array([[60.0, 0, 40], [0, 60, 24], [0, 0, 1]])
    lenses = [("none", ()), ("plumb_bob", (-0.3, 0.1, 1e-3, 1e-3, 0.01)), ("equidistant", (0.1, 0.01, 0.0, 0.0))]
    cameras = [Camera("c", k, (80, 48), np.eye(4), *lens) for lens in lenses]

    def read(data: bytes) -> None:
        camera = camera_from_info("c", _message(data, "CameraInfo"), np.eye(4))
        pixels, visible = camera.project(np.array([[0.0, 0, 5], [1, 1, 9], [-3, 2, 4]]))
        corners = np.array([[0.0, 0], [camera.size[0] - 1, camera.size[1] - 1]])
        if not (np.isfinite(camera.rays(corners)).all() and np.isfinite(pixels[visible]).all()):
            raise AssertionError(f"a camera that was accepted gives numbers that are not finite: {camera}")

    def lie(data: bytes, rng: random.Random) -> bytes:
        message = msg.camera_info(1, "cam", rng.choice(cameras))
        numbers = (0.0, -1.0, 1e-12, 1e5, 1e9, 1e308, np.nan, np.inf)
        for name in rng.sample("kdp", rng.randrange(1, 4)):
            values = getattr(message, name).copy()
            values[rng.randrange(len(values)) if len(values) else slice(0)] = rng.choice(numbers)
            setattr(message, name, values)
        if rng.random() < 0.3:
            message.d = np.full(rng.choice((1, 4, 5, 8, 14, 15, 10**5)), rng.choice(numbers))
        message.width, message.height = rng.choice((80, 0, *SIZES)), rng.choice((48, 0, *SIZES))
        message.distortion_model = rng.choice(
            ("plumb_bob", "equidistant", "fisheye", "rational_polynomial", "", "x" * 9999)
        )
        return bytes(msg.serialize(message))

    originals = [bytes(msg.serialize(msg.camera_info(1, "cam", camera))) for camera in cameras]
    return Target(originals, read, _either(damage, lie))


def _lidar_sweep(_: Path) -> Target:
    from occ_core.bags import messages as msg
    from occ_core.clouds import LIDAR_POINT
    from occ_core.frame import LidarSweep
    from occ_core.lidar_points import lidar_points
    from occ_core.sources.clouds import lidar_of, require_sweep

    points = np.zeros(50, dtype=LIDAR_POINT)
    for i, name in enumerate("xyz"):
        points[name] = np.linspace(-20, 20, 50) + i

    def read(data: bytes) -> None:
        message = _message(data, "PointCloud2")
        require_sweep(message)
        cloud = lidar_points([LidarSweep(*lidar_of(message), np.eye(4), 1, np.eye(4))], 1, np.eye(4), 40)
        if not np.isfinite(cloud).all() or len(cloud) > 40:
            raise AssertionError(f"a sweep that was accepted gives {len(cloud)} points, not all finite")

    def lie(data: bytes, rng: random.Random) -> bytes:
        message = msg.cloud(1, "lidar", points)
        for name in rng.sample(("width", "height", "point_step", "row_step"), rng.randrange(4)):
            setattr(message, name, rng.choice((0, 1, 2, 17, 18, 19, 49, 51, 900, 1 << 20, *SIZES)))
        field = rng.choice(message.fields)
        for name, values in (("offset", (0, 4, 15, 17, *SIZES)), ("datatype", range(12)), ("count", (0, 1, 7, *SIZES))):
            if rng.random() < 0.3:
                setattr(field, name, rng.choice(values))
        if rng.random() < 0.3:
            field.name = rng.choice(("x", "y", "intensity", "", "q" * 10_000))
        message.is_bigendian = rng.random() < 0.2
        return bytes(msg.serialize(message))

    return Target([bytes(msg.serialize(msg.cloud(1, "lidar", points)))], read, _either(damage, lie))


def _message(data: bytes, kind: str) -> Any:
    """A sensor_msgs message of CDR bytes; what the middleware refuses never comes to us."""
    try:
        import sensor_msgs.msg
        from rclpy.serialization import deserialize_message
    except ImportError:
        deserialize_message = None
    from occ_core.bags.messages import store

    try:
        if deserialize_message is not None:
            return deserialize_message(data, getattr(sensor_msgs.msg, kind))
        return store().deserialize_cdr(data, f"sensor_msgs/msg/{kind}")
    except Exception as error:
        raise RefusedBelow(str(error)) from error


class RefusedBelow(Exception):
    """The middleware does not hand such bytes on."""


# --- files ------------------------------------------------------------------------------------------------------------


def _bag(folder: Path, storage: str, part: str = "data", packed: bool = False) -> Target:
    from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

    from occ_core.bags import messages as msg
    from occ_core.camera import Camera
    from occ_core.sources.bag import BagSource

    k = np.array([[60.0, 0, 40], [0, 60, 24], [0, 0, 1]])
    camera = Camera("c", k, (80, 48), np.eye(4))
    jpeg = cv2.imencode(".jpg", _picture())[1].tobytes()
    folder.parent.mkdir(parents=True, exist_ok=True)
    bag = Writer(folder, version=8, storage_plugin=StoragePlugin[storage])
    if packed:
        bag.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
    with bag as writer:
        connections: dict[str, Any] = {}

        def write(topic: str, stamp_ns: int, message: Any) -> None:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, message.__msgtype__, typestore=msg.store())
            writer.write(connections[topic], stamp_ns, bytes(msg.serialize(message)))

        write("/tf_static", 10**9, msg.transforms(10**9, [("base_link", "cam", np.eye(4))]))
        for stamp_ns in (10**9, 2 * 10**9):
            write("/c/camera_info", stamp_ns, msg.camera_info(stamp_ns, "cam", camera))
            write("/c/image_raw/compressed", stamp_ns, msg.compressed_image(stamp_ns, "cam", "jpeg", jpeg))
    data = folder / "metadata.yaml" if part == "metadata" else next(p for p in folder.iterdir() if p.suffix != ".yaml")

    def read(damaged: bytes) -> int:
        data.write_bytes(damaged)
        return sum(1 for _ in BagSource(folder))

    return Target([data.read_bytes()], read, damage)


def _checkpoint(folder: Path, suffix: str) -> Target:
    import ros_fixtures as fx

    from occ_core.inference.backends.torch_backend import load_model

    folder.mkdir(parents=True)
    path = fx.tiny_model(folder).with_suffix(suffix)

    def read(damaged: bytes) -> Any:
        path.write_bytes(damaged)
        return load_model(path.with_suffix(".safetensors"))

    return Target([path.read_bytes()], read, damage_json if suffix == ".json" else damage)


def _onnx_metadata(folder: Path) -> Target:
    import onnx
    import ros_fixtures as fx

    from occ_core.inference.backends.exported import METADATA_KEY
    from occ_core.inference.export import export_onnx
    from occ_core.inference.predictor import Predictor

    folder.mkdir(parents=True)
    path = export_onnx(fx.tiny_model(folder), folder / "tiny.onnx")
    graph = onnx.load(str(path))
    (entry,) = (entry for entry in graph.metadata_props if entry.key == METADATA_KEY)

    def read(damaged: bytes) -> Any:
        entry.value = damaged.decode("utf-8", "replace")
        onnx.save(graph, str(path))
        return Predictor.load(path, "onnxruntime", 1)

    return Target([entry.value.encode()], read, damage_json)


def _npz(folder: Path) -> Target:
    from occ_core.grid import VoxelGrid
    from occ_core.occupancy import Occupancy, load_occ3d, pack_occ3d
    from occ_core.taxonomy import OCC3D

    grid = VoxelGrid((0.0, 0.0, 0.0), 0.4, (16, 16, 8))
    rng = np.random.default_rng(0)
    labels, observed = rng.integers(0, 18, grid.shape, dtype=np.uint8), rng.random(grid.shape) < 0.5
    confidence = rng.random(grid.shape).astype(np.float32)
    packed = pack_occ3d(Occupancy(grid, OCC3D, labels, observed, confidence), votes=labels)
    folder.mkdir(parents=True)
    path = folder / "labels.npz"

    def read(damaged: bytes) -> Any:
        path.write_bytes(damaged)
        return load_occ3d(path, grid)

    return Target([packed], read, damage)


def _store_record(folder: Path) -> Target:
    from occ_core.labels.store import LabelStore

    store = LabelStore(folder)
    store.claim({"recipe": "best", "grid": {"shape": [16, 16, 8]}}, {"scene-0001": ["a", "b"]})
    path = folder / "store.json"

    def read(damaged: bytes) -> list[str]:
        path.write_bytes(damaged)
        again = LabelStore(folder)
        return [again.fingerprint, *again.check()]

    return Target([path.read_bytes()], read, damage_json)


def _map_file(folder: Path) -> Target:
    from occ_core.grid import VoxelGrid
    from occ_core.mapping.map_file import load_map, save_map
    from occ_core.mapping.rolling_map import RollingMap
    from occ_core.occupancy import Occupancy
    from occ_core.taxonomy import OCC3D

    grid = VoxelGrid((-3.2, -3.2, -1.0), 0.4, (16, 16, 8))
    labels = np.random.default_rng(0).integers(0, 18, grid.shape, dtype=np.uint8)
    rolling_map = RollingMap(grid, OCC3D)
    rolling_map.fuse(Occupancy(grid, OCC3D, labels, np.ones(grid.shape, dtype=bool)), np.eye(4), 10**9)
    folder.mkdir(parents=True)
    path = folder / "map.npz"
    save_map(path, rolling_map, "odom")

    def read(damaged: bytes) -> None:
        path.write_bytes(damaged)
        load_map(path, rolling_map, "odom")

    return Target([path.read_bytes()], read, damage)


MAKERS: dict[str, Callable[[Path], Target]] = {
    "jpeg": _jpeg,
    "png": _png,
    "image message": _image,
    "camera info": _camera_info,
    "lidar sweep": _lidar_sweep,
    "mcap bag": lambda folder: _bag(folder, "MCAP"),
    "mcap bag, packed": lambda folder: _bag(folder, "MCAP", packed=True),
    "sqlite3 bag": lambda folder: _bag(folder, "SQLITE3"),
    "bag metadata": lambda folder: _bag(folder, "MCAP", "metadata"),
    "checkpoint": lambda folder: _checkpoint(folder, ".safetensors"),
    "checkpoint json": lambda folder: _checkpoint(folder, ".json"),
    "onnx metadata": _onnx_metadata,
    "label npz": _npz,
    "label store": _store_record,
    "map file": _map_file,
}
