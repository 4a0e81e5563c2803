"""Files and messages that ask for too much are refused before memory is taken, in one line that names the limit."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
import zipfile
import zlib
from contextlib import contextmanager
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from occ_core.errors import CorruptInput, InvalidInput, OccError
from occ_core.files import parse_json
from occ_core.grid import VoxelGrid
from occ_core.images import decode_compressed, decode_image
from occ_core.labels.store import LabelStore
from occ_core.limits import MAX_UNPACKED_BYTES, shown
from occ_core.models.build import parse_config
from occ_core.models.checkpoint import trained_cameras
from occ_core.occupancy import load_occ3d, read_npz
from occ_core.sensor_messages import camera_from_info
from occ_core.transforms import TransformTree

GRID = VoxelGrid((0.0, 0.0, 0.0), 0.4, (8, 8, 4))
K = np.array([[60.0, 0, 40], [0, 60, 24], [0, 0, 1]])


@contextmanager
def refused(words, error=OccError):
    """The block raises, and Python and numpy take less than 8 MiB at once within it."""
    tracemalloc.start()
    try:
        with pytest.raises(error, match=words):
            yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20, f"{peak / 2**20:.0f} MiB were taken"


# --- images -----------------------------------------------------------------------------------------------------------


def png(width: int, height: int, data: bytes, depth: int = 8, color: int = 2) -> bytes:
    """A PNG of these header values, checksums right."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_png_bomb():
    packed = zlib.compress(bytes(1000))
    with refused("at most 33554432 px in all, got 16000 x 16000", InvalidInput):
        decode_compressed(png(16000, 16000, packed))
    with refused("cannot hold 8000 x 4000 px", CorruptInput):
        decode_compressed(png(8000, 4000, packed))


def test_png_whose_chunk_claims_two_gigabytes():
    """OpenCV would take them."""
    whole = cv2.imencode(".png", np.zeros((8, 8, 3), dtype=np.uint8))[1].tobytes()
    at = whole.index(b"IDAT")
    with pytest.raises(CorruptInput, match="damaged or cut short"):
        decode_compressed(whole[: at - 4] + b"\x7f\xff\xff\xff" + whole[at:])


def test_honest_pictures_of_one_colour_are_not_taken_for_bombs():
    """The emptiest that the encoders can make."""
    blank = np.zeros((1200, 1920, 3), dtype=np.uint8)
    for extension, flags in (
        (".png", [cv2.IMWRITE_PNG_COMPRESSION, 9]),
        (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 1]),
        (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 1, cv2.IMWRITE_JPEG_OPTIMIZE, 1, cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
    ):
        for picture in (blank, blank[..., 0]):
            data = cv2.imencode(extension, picture, flags)[1].tobytes()
            assert decode_compressed(data).shape == blank.shape


def test_jpeg_that_its_bytes_cannot_hold():
    data = bytearray(cv2.imencode(".jpg", np.zeros((8, 8, 3), dtype=np.uint8))[1].tobytes())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 4000, 8000)
    with refused("cannot hold 8000 x 4000 px", CorruptInput):
        decode_compressed(bytes(data))


def test_jpeg_of_many_scans():
    """Each would cost a pass over all pixels."""
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    start = data.rindex(b"\xff\xda")
    with pytest.raises(CorruptInput, match="JPEG has 1009 scans, limit 100"):
        decode_compressed(data[:start] + data[start:-2] * 1000 + data[-2:])


def test_image_step_that_claims_gigabytes():
    """The padding of the last row may be left out, so one row of any step fits its data."""
    out = decode_image("rgb8", 2, 1, 0xFFFFFFFF, bytes(range(6)))
    assert out.tolist() == [[[0, 1, 2], [3, 4, 5]]]
    with refused("holds 6 bytes", InvalidInput):
        decode_image("rgb8", 2, 2, 0xFFFFFFFF, bytes(6))


def test_rows_are_cut_out_of_any_step():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)
    padded = np.concatenate([pixels.reshape(5, 12), rng.integers(0, 256, (5, 7), dtype=np.uint8)], axis=1)
    for left_out in range(8):
        np.testing.assert_array_equal(decode_image("rgb8", 4, 5, 19, padded.tobytes()[: 95 - left_out]), pixels)


# --- calibration ------------------------------------------------------------------------------------------------------


def info(**fields):
    """A CameraInfo of 80 x 48 px, some of its fields replaced."""
    whole = {"width": 80, "height": 48, "distortion_model": "plumb_bob", "d": [0.0] * 5, "k": K.reshape(-1)}
    return SimpleNamespace(**{**whole, "p": np.zeros(12), **fields})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"d": np.zeros(10**6)}, "at most 14 distortion coefficients, got 1000000"),
        ({"d": [1e300, 0, 0, 0, 0]}, r"within \+-1e\+06"),
        ({"k": [1e300, 0, 40, 0, 60, 24, 0, 0, 1]}, r"no entry beyond 1e\+06 px"),
        ({"k": [1e-300, 0, 40, 0, 60, 24, 0, 0, 1]}, "at least 0.001 px"),
        ({"k": [60, 0, 1e300, 0, 60, 24, 0, 0, 1]}, r"no entry beyond 1e\+06 px"),
        ({"k": [np.nan] * 9}, "must be finite"),
        ({"width": 10**6, "height": 10**6}, "1..16384 px a side"),
        ({"width": 16000, "height": 16000}, "33554432 px in all"),
        ({"distortion_model": "x" * 10**6, "d": [0.1] * 5}, r"'x{80}\.\.\. \(1000000 characters\)' is not one of"),
    ],
)
def test_camera_info_beyond_all_lenses(fields, words):
    with pytest.raises(InvalidInput, match=words) as caught:
        camera_from_info("c", info(**fields), np.eye(4), where="'/c/camera_info'")
    assert len(str(caught.value)) < 500


def test_frame_names_are_bounded():
    tree = TransformTree()
    with pytest.raises(InvalidInput, match="at most 256 characters"):
        tree.set("base_link", "x" * 1000, 1, np.eye(4))
    assert tree.frames == frozenset()


def test_texts_from_outside_are_cut_and_printable():
    assert shown("a\x1b[31m\nb") == "a?[31m?b"
    assert shown("x" * 100) == "x" * 80 + "... (100 characters)"


# --- records and models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "not a JSON file"),
        ("1" * 5_000, "not a JSON file"),
        (b"\xff\xfe{}", "not a JSON file"),
        ("[]", "must be a JSON object, is list"),
        (b" " * (1 << 24) + b"{}", "more than 16777216 bytes"),
    ],
)
def test_json_of_any_kind_is_one_line(text, words):
    with pytest.raises(CorruptInput, match=f"^somewhere: .*{words}"):
        parse_json(text, "somewhere")


@pytest.mark.parametrize("said", [-1, 0, 65, True, "six", 6.0, [6]])
def test_a_record_of_impossible_cameras(said):
    with pytest.raises(CorruptInput, match="not 1..64"):
        trained_cameras({"training": {"data": {"cameras": said}}})
    with pytest.raises(CorruptInput, match="no mapping above 'data'"):
        trained_cameras({"training": said})


def test_grid_that_no_network_answers_in():
    for kind in ("easyocc-nano", "easyocc"):
        with pytest.raises(InvalidInput, match="104857600 cells, a model's at most 16777216"):
            parse_config({"kind": kind, "name": "x", "grid_shape": [2560, 2560, 16]})


def test_json_that_asks_for_a_network_larger_than_its_weights(tmp_path):
    pytest.importorskip("torch")
    import ros_fixtures as fx

    from occ_core.inference.backends.torch_backend import load_model

    path = fx.tiny_model(tmp_path)
    beside = path.with_suffix(".json")
    record = json.loads(beside.read_text())
    record["model"]["bev_channels"] = [4096, 4096, 4096]
    beside.write_text(json.dumps(record))
    with pytest.raises(CorruptInput, match=r"json asks for a network of more than \d+ weights, the file has \d+"):
        load_model(path)


def test_weights_that_are_not_finite(tmp_path):
    torch = pytest.importorskip("torch")
    import ros_fixtures as fx

    from occ_core.inference.backends.torch_backend import load_model
    from occ_core.models.checkpoint import load_checkpoint, save_checkpoint

    path = fx.tiny_model(tmp_path)
    tensors, record = load_checkpoint(path)
    name = next(name for name in tensors if tensors[name].dtype == torch.float32)
    tensors[name].view(-1)[0] = torch.nan
    save_checkpoint(path, tensors, record)
    with pytest.raises(CorruptInput, match=f"weights '{name}' are not finite"):
        load_model(path)


def test_store_whose_samples_lie_elsewhere(tmp_path):
    store = LabelStore(tmp_path / "store")
    store.claim({"recipe": "best"}, {"scene-0001": ["a"]})
    for scenes in ({"../x": ["a"]}, {"s": ["../../etc"]}, {"s": ["/etc"]}, {"s": [1]}, {"s": "ab"}, {"..": []}):
        record = json.loads((store.folder / "store.json").read_text())
        (store.folder / "store.json").write_text(json.dumps({**record, "scenes": scenes}))
        with pytest.raises(CorruptInput, match="must be plain names"):
            LabelStore(store.folder).record  # noqa: B018


# --- archives ---------------------------------------------------------------------------------------------------------


def npz(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def npy(shape, data=b""):
    """An .npy file that claims a shape."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return out.getvalue() + data


@pytest.mark.parametrize(
    ("members", "method", "words"),
    [
        ({"a.npy": npy((8,), bytes(1 << 22))}, zipfile.ZIP_DEFLATED, "holds 4194432 bytes, limit"),
        ({"a.npy": npy((8, 8, 4), bytes(256))}, zipfile.ZIP_BZIP2, "packed by method 12"),
        ({"a.npy": npy((10**12,), bytes(8))}, zipfile.ZIP_STORED, "1000000000000 bytes, and holds 136"),
        ({f"{i}.npy": npy((1,), b"x") for i in range(65)}, zipfile.ZIP_STORED, "65 arrays, limit 64"),
        ({"a.npy": b"\x93NUMPY\x01\x00\xff\xff"}, zipfile.ZIP_STORED, "not a readable npz"),
    ],
)
def test_npz_bombs(tmp_path, members, method, words):
    path = npz(tmp_path / "labels.npz", members, method)
    with refused(words, CorruptInput):
        read_npz(path, GRID)


def test_npz_whose_directory_lies_about_a_size(tmp_path):
    """The directory says 300 bytes, the stream holds 64 MiB: not more than what was said is unpacked."""
    path = npz(tmp_path / "labels.npz", {"a.npy": npy((64 << 20,), bytes(64 << 20))})
    data = bytearray(path.read_bytes())
    central = data.rindex(b"PK\x01\x02")
    data[central + 24 : central + 28] = struct.pack("<I", 300)
    path.write_bytes(data)
    with refused("not a readable npz|and holds", CorruptInput):
        read_npz(path, GRID)


def test_names_in_an_npz_are_keys_and_no_paths(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    path = npz(tmp_path / "a/b/labels.npz", {"../../escaped.npy": npy((2,), b"ab")})
    assert list(read_npz(path, GRID)) == ["../../escaped"]
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["labels.npz"]


def test_long_names_in_an_npz_do_not_flood_the_log(tmp_path):
    path = npz(tmp_path / "labels.npz", {f"{'x' * 5000}{i}.npy": npy((1,), b"x") for i in range(9)})
    with pytest.raises(CorruptInput, match="no array 'semantics', only x+") as caught:
        load_occ3d(path, GRID)
    assert len(str(caught.value)) < 600


# --- bags -------------------------------------------------------------------------------------------------------------


class TestPackedBags:
    """Chunk, message and file: each packed so that it unpacks to 300 MiB and says nothing of it."""

    @pytest.fixture
    def packed(self):
        """A zstd frame of 300 MiB of zeros that does not tell its size."""
        zstd = pytest.importorskip("backports.zstd")
        packer = zstd.ZstdCompressor()
        return b"".join(packer.compress(bytes(1 << 20)) for _ in range(300)) + packer.flush()

    def test_chunk(self, packed):
        from occ_core.sources.bag_bounds import bound_unpacking

        bound_unpacking()
        from rosbags.rosbag2 import storage_mcap

        with refused("more than the 5000 bytes", OccError):
            storage_mcap.decompress(packed, "zstd", 5000, 0)
        with refused(f"limit {MAX_UNPACKED_BYTES}", OccError):
            storage_mcap.decompress(packed, "zstd", 300 << 20, 0)
        with refused("cut short", OccError):
            storage_mcap.decompress(packed[:8], "zstd", 5000, 0)

    def test_lz4_chunk(self):
        import lz4.frame
        from rosbags.rosbag2 import storage_mcap

        from occ_core.sources.bag_bounds import bound_unpacking

        bound_unpacking()
        packed = lz4.frame.compress(bytes(4 << 20))
        assert storage_mcap.decompress(lz4.frame.compress(b"abc"), "lz4", 3, zlib.crc32(b"abc")) == b"abc"
        with refused("more than the 100 bytes", OccError):
            storage_mcap.decompress(packed, "lz4", 100, 0)

    def test_whole_file(self, packed, monkeypatch):
        from rosbags.rosbag2 import reader

        from occ_core.sources import bag_bounds

        bag_bounds.bound_unpacking()
        monkeypatch.setattr(bag_bounds.shutil, "disk_usage", lambda _: SimpleNamespace(free=100 << 20))
        with (
            pytest.raises(CorruptInput, match="half of the free space"),
            reader.zstd.open(io.BytesIO(packed), "rb") as file,
        ):
            while file.read(1 << 20):
                pass


def test_bags_of_every_packing_are_read(tmp_path):
    rosbag2 = pytest.importorskip("rosbags.rosbag2")
    from occ_core.bags import messages as msg
    from occ_core.sources.bag_reader import BagReader

    for mode in rosbag2.CompressionMode:
        storage = rosbag2.StoragePlugin.MCAP if mode.name == "STORAGE" else rosbag2.StoragePlugin.SQLITE3
        writer = rosbag2.Writer(tmp_path / mode.name, version=8, storage_plugin=storage)
        writer.set_compression(mode, rosbag2.CompressionFormat.ZSTD)
        with writer:
            connection = writer.add_connection("/t", "std_msgs/msg/String", typestore=msg.store())
            for i in range(3):
                writer.write(connection, i, bytes(msg.serialize(msg.new("std_msgs/msg/String", data=f"text {i}" * 99))))
        read = [m.data[:6] for _, _, m in BagReader(tmp_path / mode.name).messages(["/t"])]
        assert read == ["text 0", "text 1", "text 2"], mode


def test_metadata_of_a_bag_is_bounded(tmp_path):
    pytest.importorskip("rosbags")
    from occ_core.sources.bag_reader import BagReader

    (tmp_path / "metadata.yaml").write_bytes(b"#" * (5 << 20))
    with pytest.raises(CorruptInput, match="5242880 bytes, limit 4194304"):
        BagReader(tmp_path)
