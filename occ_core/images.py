"""Image messages to RGB arrays; bag reader and node share this. Sizes are checked before memory is taken."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np

from occ_core.errors import CorruptInput, InvalidInput
from occ_core.limits import MAX_DEFLATION, MAX_JPEG_PX_PER_BYTE, MAX_JPEG_SCANS, MAX_PIXELS, MAX_SIDE_PX, shown

# sensor_msgs/image_encodings -> bytes a pixel, and OpenCV's conversion to RGB (None: it is RGB).
# OpenCV names a Bayer pattern by the second row from the second column on, ROS by the top-left corner.
ENCODINGS: dict[str, tuple[int, int | None]] = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "8UC3": (3, cv2.COLOR_BGR2RGB),  # says nothing of colours; OpenCV's own order
    "mono8": (1, cv2.COLOR_GRAY2RGB),
    "8UC1": (1, cv2.COLOR_GRAY2RGB),
    "yuv422": (2, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": (2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (2, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": (2, cv2.COLOR_YUV2RGB_YUY2),
    "bayer_rggb8": (1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": (1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": (1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": (1, cv2.COLOR_BayerGB2RGB),
}
Bytes = bytes | bytearray | memoryview | np.ndarray
REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
"""How many times smaller a JPEG can be decoded, which saves most of the time, and OpenCV's flag for it."""


def read_rgb(path: Path, smaller: int = 1) -> np.ndarray:
    """A picture of a file, uint8 (h, w, 3); `smaller`: 1, or of REDUCED, how many times.

    Raises:
        CorruptInput.
    """
    image = cv2.imread(str(path), REDUCED[smaller] if smaller > 1 else cv2.IMREAD_COLOR)
    if image is None:
        raise CorruptInput(f"{path}: no picture, or cut off")
    return np.ascontiguousarray(image[:, :, ::-1])


OTHER_FILES = (
    (8, b"WEBP", "WebP files"), (0, b"BM", "BMP files"), (0, b"GIF8", "GIF files"), (0, b"II*\0", "TIFF files"),
    (0, b"MM\0*", "TIFF files"), (4, b"jP  ", "JPEG 2000 files"), (0, b"\xff\x4f\xff\x51", "JPEG 2000 files"),
    (4, b"ftypavif", "AVIF files"), (4, b"ftyphei", "HEIF files"), (0, b"\xff\x0a", "JPEG XL files"),
    (4, b"JXL ", "JPEG XL files"), (0, b"\0\0\0\1", "a video (H.264, H.265)"), (0, b"\0\0\1", "a video (H.264, H.265)"),
)  # fmt: skip
"""(at which byte, what stands there, what it is then called) of files that are not read."""


def require_image_fields(encoding: str, width: int, height: int, step: int, held: int) -> None:
    """Raise an error unless the fields of a sensor_msgs/Image are consistent with `held` bytes of data.

    Raises:
        InvalidInput: unknown encoding, or a size that does not fit; the message names value and limit.
    """
    if encoding not in ENCODINGS:
        deep = any(bits in encoding for bits in ("16", "32", "64"))
        why = "; only 8 bits a sample are supported" if deep else ""
        raise InvalidInput(f"image encoding '{shown(encoding)}' is not one of {', '.join(ENCODINGS)}{why}")
    pixel_bytes, _ = ENCODINGS[encoding]
    _require_size(width, height, MAX_SIDE_PX)
    row = width * pixel_bytes
    if step < row:
        raise InvalidInput(f"image step {step} is less than a row: {width} px of '{encoding}' are {row} bytes")
    if encoding.startswith(("yuv", "uyvy", "yuyv")) and width % 2:
        raise InvalidInput(f"image of encoding '{encoding}' needs an even width, got {width}")
    if encoding.startswith("bayer") and (width < 4 or height < 4):
        raise InvalidInput(f"image of encoding '{encoding}' needs at least 4 x 4 px, got {width} x {height}")
    needed = step * (height - 1) + row  # the padding of the last row may be left out
    if held < needed:
        raise InvalidInput(f"image data holds {held} bytes, {width} x {height} px of '{encoding}' need {needed}")


def decode_image(encoding: str, width: int, height: int, step: int, data: Bytes) -> np.ndarray:
    """RGB uint8 (height, width, 3) of the fields of a sensor_msgs/Image; `rgb8` may share memory with `data`.

    Raises:
        InvalidInput: as `require_image_fields`.
    """
    flat = np.frombuffer(data, dtype=np.uint8)
    require_image_fields(encoding, width, height, step, len(flat))
    pixel_bytes, conversion = ENCODINGS[encoding]
    row = width * pixel_bytes
    if len(flat) >= step * height:
        rows = flat[: step * height].reshape(height, step)[:, :row]
    else:  # the last row's padding is left out; never padded to whole rows, as `step` may claim 4 GiB
        upper, last = flat[: step * (height - 1)], flat[step * (height - 1) :]
        rows = np.concatenate([upper.reshape(height - 1, step)[:, :row], last[None, :row]])
    pixels = rows if pixel_bytes == 1 else rows.reshape(height, width, pixel_bytes)
    pixels = np.ascontiguousarray(pixels)
    return pixels if conversion is None else cv2.cvtColor(pixels, conversion)


def decode_compressed(
    data: Bytes, max_side: int = MAX_SIDE_PX, at_least: tuple[int, int] | None = None, mosaic: str = ""
) -> np.ndarray:
    """RGB uint8 (height, width, 3) of a whole JPEG or PNG file. An EXIF orientation is ignored, as calibration does.

    Args:
        data: the file.
        max_side: limit of width and height in pixels.
        at_least: (width, height) that is wanted; a JPEG may then come out as many times smaller as still has it.
        mosaic: the Bayer encoding of what the file holds as grey; it comes whole.

    Raises:
        CorruptInput: neither JPEG nor PNG, cut short, or damaged.
        InvalidInput: larger than `max_side` pixels a side or `MAX_PIXELS` in all.
    """
    kind, width, height = compressed_info(data, max_side)
    times = reduction((width, height), at_least) if kind == "jpeg" and at_least and not mosaic else 1
    flags = cv2.IMREAD_GRAYSCALE if mosaic else REDUCED.get(times, cv2.IMREAD_COLOR)
    try:
        bgr = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise CorruptInput(f"image of {len(data)} bytes cannot be decoded ({error.err})") from error
    if bgr is None or bgr.shape[:2] != (-(-height // times), -(-width // times)):
        raise CorruptInput(f"image of {len(data)} bytes is damaged and cannot be decoded")
    if mosaic:
        return decode_image(mosaic, width, height, width, bgr)
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def reduction(size: tuple[int, int], at_least: tuple[int, int]) -> int:
    """Largest of 1, 2, 4, 8 by which (width, height) can be divided and still be `at_least` (width, height)."""
    fitting = [
        times for times in REDUCED if all(side >= times * least for side, least in zip(size, at_least, strict=True))
    ]
    return max(fitting, default=1)


def compressed_info(data: Bytes, max_side: int = MAX_SIDE_PX) -> tuple[str, int, int]:
    """(format 'jpeg' | 'png', width, height) from the header of a JPEG or PNG file that is not cut short.

    Raises:
        CorruptInput, InvalidInput: as `decode_compressed`.
    """
    raw = data.tobytes() if isinstance(data, np.ndarray) else bytes(data)
    if raw[:3] == b"\xff\xd8\xff":
        kind, (width, height) = "jpeg", _jpeg_size(raw)
    elif raw[:8] == b"\x89PNG\r\n\x1a\n":
        kind, (width, height) = "png", _png_size(raw)
    else:
        raise CorruptInput(
            f"image of {len(raw)} bytes is neither JPEG nor PNG (starts with {raw[:4].hex() or 'nothing'})"
        )
    _require_size(width, height, max_side)
    _require_plausible(raw, kind, width, height)
    return kind, width, height


def other_file(data: Bytes) -> str:
    """What a file is that is neither JPEG nor PNG, by its first bytes; empty: nothing that is known."""
    first = bytes(data[:16])
    return next((name for at, magic, name in OTHER_FILES if first[at : at + len(magic)] == magic), "")


def samples_of(data: Bytes) -> tuple[int, int]:
    """(channels, bits a sample) of a JPEG or PNG file that `compressed_info` takes."""
    raw = np.frombuffer(data, dtype=np.uint8)  # no copy: the node asks for each image
    if raw[0] == 0x89:
        return {0: 1, 3: 3, 4: 2, 6: 4}.get(int(raw[25]), 3), max(8, int(raw[24]))
    at = 2
    while at + 10 <= len(raw):
        marker = int(raw[at + 1])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int(raw[at + 9]), int(raw[at + 4])
        at += 1 if marker == 0xFF else 2 + max(256 * int(raw[at + 2]) + int(raw[at + 3]), 2)
    return 3, 8


def _require_size(width: int, height: int, max_side: int) -> None:
    if not (0 < width <= max_side and 0 < height <= max_side and width * height <= MAX_PIXELS):
        raise InvalidInput(
            f"image size must be 1..{max_side} px a side and at most {MAX_PIXELS} px in all, got {width} x {height}"
        )


def _png_size(raw: bytes) -> tuple[int, int]:
    """(width, height) of a PNG; walks its chunks, since OpenCV takes memory for whatever length one claims."""
    at = 8
    while raw[at + 4 : at + 8] != b"IEND":
        if at + 12 > len(raw):
            raise CorruptInput(f"PNG of {len(raw)} bytes is damaged or cut short")
        at += 12 + int.from_bytes(raw[at : at + 4], "big")
    if raw[12:16] != b"IHDR" or len(raw) < 33:
        raise CorruptInput(f"PNG of {len(raw)} bytes has no header")
    return struct.unpack(">II", raw[16:24])


def _require_plausible(raw: bytes, kind: str, width: int, height: int) -> None:
    """Refuse an image whose header claims more pixels than its bytes can hold."""
    if kind == "png":
        depth, color = raw[24], raw[25]
        row_bytes = 1 + width * depth * {2: 3, 4: 2, 6: 4}.get(color, 1) // 8
        too_many = height * row_bytes > MAX_DEFLATION * len(raw)
    else:
        too_many = width * height > MAX_JPEG_PX_PER_BYTE * len(raw)
    if too_many:
        raise CorruptInput(f"{kind.upper()} of {len(raw)} bytes cannot hold {width} x {height} px")


def _jpeg_size(raw: bytes) -> tuple[int, int]:
    """(width, height) of a JPEG; walks its segments up to the first scan."""
    if (scans := raw.count(b"\xff\xda")) > MAX_JPEG_SCANS:  # the two bytes are nothing else in a scan's data
        raise CorruptInput(f"JPEG has {scans} scans, limit {MAX_JPEG_SCANS}")
    at, size = 2, None
    while at + 4 <= len(raw) and raw[at] == 0xFF:
        marker = raw[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        (length,) = struct.unpack(">H", raw[at + 2 : at + 4])
        is_frame = 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)
        if is_frame and at + 9 <= len(raw):
            height, width = struct.unpack(">HH", raw[at + 5 : at + 9])
            size = width, height
        if marker == 0xDA:
            # Decoders fill what is missing with grey, so an image that was cut must be caught here.
            if size is None or raw.rfind(b"\xff\xd9") < at:
                break
            return size
        at += 2 + max(length, 2)
    raise CorruptInput(f"JPEG of {len(raw)} bytes is damaged or cut short")
