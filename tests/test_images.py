"""Image messages to RGB: against OpenCV's own encoder, hand-made mosaics and cut files."""

import struct

import cv2
import numpy as np
import pytest

from occ_core.errors import CorruptInput, InvalidInput
from occ_core.images import ENCODINGS, compressed_info, decode_compressed, decode_image


@pytest.fixture(scope="module")
def rgb():
    """Smooth colours, so that chroma and mosaic interpolation can be compared."""
    v, u = np.mgrid[0:32, 0:48].astype(np.float32)
    return np.stack([40 + 4 * u, 200 - 3 * v, 60 + 2 * v + u], axis=2).astype(np.uint8)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8"])
def test_packed_colours(rgb, encoding, padding):
    order = [0, 1, 2] if encoding.startswith("rgb") else [2, 1, 0]
    pixels = rgb[:, :, order]
    if "a8" in encoding:
        pixels = np.concatenate([pixels, np.full((32, 48, 1), 255, dtype=np.uint8)], axis=2)
    rows = np.pad(pixels.reshape(32, -1), ((0, 0), (0, padding)))
    out = decode_image(encoding, 48, 32, rows.shape[1], rows.tobytes())
    np.testing.assert_array_equal(out, rgb)
    last_row_short = rows.tobytes()[: len(rows.tobytes()) - padding]
    np.testing.assert_array_equal(decode_image(encoding, 48, 32, rows.shape[1], last_row_short), rgb)


def test_mono(rgb):
    grey = rgb[:, :, 1]
    np.testing.assert_array_equal(decode_image("mono8", 48, 32, 48, grey.tobytes()), np.dstack([grey] * 3))


@pytest.mark.parametrize(("encoding", "y_first"), [("yuv422", 0), ("uyvy", 0), ("yuv422_yuy2", 1), ("yuyv", 1)])
def test_yuv(rgb, encoding, y_first):
    y, u, v = (rgb.astype(float) @ np.array(row) + off for row, off in (
        ((0.257, 0.504, 0.098), 16), ((-0.148, -0.291, 0.439), 128), ((0.439, -0.368, -0.071), 128)))  # fmt: skip
    packed = np.zeros((32, 96))
    packed[:, 1 - y_first :: 2] = y
    packed[:, y_first::4] = u[:, ::2]
    packed[:, y_first + 2 :: 4] = v[:, ::2]
    out = decode_image(encoding, 48, 32, 96, np.round(packed).astype(np.uint8).tobytes())
    assert np.abs(out.astype(int) - rgb).max() <= 8  # half the chroma samples


@pytest.mark.parametrize("encoding", [name for name in ENCODINGS if name.startswith("bayer")])
def test_bayer(rgb, encoding):
    """ROS names the pattern by the top-left 2x2 block, read row by row."""
    pattern = encoding.split("_")[1][:4]
    mosaic = np.zeros((32, 48), dtype=np.uint8)
    for place, color in enumerate(pattern):
        row, column = divmod(place, 2)
        mosaic[row::2, column::2] = rgb[row::2, column::2, "rgb".index(color)]
    out = decode_image(encoding, 48, 32, 48, mosaic.tobytes())
    assert np.abs(out.astype(int) - rgb)[2:-2, 2:-2].max() <= 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mono16", 4, 4, 8, bytes(32)), "'mono16' is not one of"),
        (("rgb8", 0, 4, 12, bytes(48)), "0 x 4"),
        (("rgb8", 20000, 4, 60000, bytes(48)), "1..16384"),
        (("rgb8", 4, 4, 11, bytes(48)), "step 11"),
        (("rgb8", 4, 4, 12, bytes(47)), "holds 47 bytes.*need 48"),
        (("mono8", 16384, 16384, 16384, b""), "33554432 px in all"),
        (("mono8", 8192, 4096, 2**31, b""), "holds 0 bytes"),
        (("yuv422", 3, 2, 6, bytes(12)), "even width"),
        (("bayer_rggb8", 2, 2, 2, bytes(4)), "at least 4 x 4"),
    ],
)
def test_bad_fields_name_value_and_limit(arguments, words):
    with pytest.raises(InvalidInput, match=words):
        decode_image(*arguments)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_files_decode_as_opencv_does(rgb, suffix):
    data = cv2.imencode(suffix, rgb[:, :, ::-1])[1]
    expected = cv2.imdecode(data, cv2.IMREAD_COLOR)[:, :, ::-1]
    for form in (data, data.tobytes(), memoryview(data.tobytes())):
        np.testing.assert_array_equal(decode_compressed(form), expected)
    assert compressed_info(data) == ({".jpg": "jpeg", ".png": "png"}[suffix], 48, 32)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_every_cut_is_noticed(rgb, suffix):
    data = cv2.imencode(suffix, rgb[:, :, ::-1])[1].tobytes()
    for length in range(0, len(data) - 2, 7):
        with pytest.raises(CorruptInput):
            decode_compressed(data[:length])


def test_exif_orientation_is_ignored(rgb):
    plain = cv2.imencode(".jpg", rgb[:, :, ::-1])[1].tobytes()
    tiff = b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<I", 0)
    exif = b"Exif\0\0" + tiff
    turned = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape == (48, 32, 3)  # OpenCV would turn it
    np.testing.assert_array_equal(decode_compressed(turned), decode_compressed(plain))


def test_a_huge_size_is_refused_before_decoding():
    png = cv2.imencode(".png", np.zeros((4, 4), dtype=np.uint8))[1].tobytes()
    bomb = png[:16] + struct.pack(">II", 60000, 60000) + png[24:]
    with pytest.raises(InvalidInput, match="60000 x 60000"):
        decode_compressed(bomb)
    with pytest.raises(InvalidInput, match=r"1\.\.3 px"):
        decode_compressed(png, max_side=3)
    with pytest.raises(CorruptInput, match="neither JPEG nor PNG"):
        decode_compressed(b"GIF89a" + bytes(100))
