"""Limits what a bag may unpack to, since rosbags (0.11) unpacks chunks, messages and whole files of any size.

Its decompressors are looked up in its own modules by name, so they are replaced there, once per process.
"""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from occ_core.errors import CorruptInput, need
from occ_core.limits import MAX_METADATA_BYTES, MAX_UNPACKED_BYTES


@cache
def allow_empty_storage_id() -> None:
    """Let every rosbags reader of this process infer the storage from the files' names if metadata.yaml does not name
    it, as after some `ros2 bag reindex`."""
    reader = need("rosbags.rosbag2.reader", "bags")
    plugins = reader.Reader.STORAGE_PLUGINS
    known = dict(reader.DirectoryReader.STORAGE_PLUGINS)
    known[""] = lambda path: plugins[path.suffix if path.suffix in plugins else ".mcap"](path)
    reader.DirectoryReader.STORAGE_PLUGINS = known


@cache
def bound_unpacking() -> None:
    """Let every rosbags reader of this process refuse what unpacks to more than `MAX_UNPACKED_BYTES`."""
    mcap, reader = need("rosbags.rosbag2.storage_mcap", "bags"), need("rosbags.rosbag2.reader", "bags")
    zstd = reader.zstd
    lz4 = need("lz4.frame", "bags")
    mcap.DECOMPRESSORS["zstd"] = lambda data, size: _unpacked(zstd.ZstdDecompressor(), data, size)
    mcap.DECOMPRESSORS["lz4"] = lambda data, size: _unpacked(lz4.LZ4FrameDecompressor(), data, size)
    reader.zstd = SimpleNamespace(
        decompress=lambda data: _unpacked(zstd.ZstdDecompressor(), data, MAX_UNPACKED_BYTES),
        open=lambda file, mode: _BoundedFile(zstd.open(file, mode)),
    )


def require_bounded_metadata(path: Path) -> None:
    """Refuse a bag whose metadata.yaml is too large to be parsed.

    Raises:
        CorruptInput.
    """
    size = path.stat().st_size
    if size > MAX_METADATA_BYTES:
        raise CorruptInput(f"{path}: {size} bytes, limit {MAX_METADATA_BYTES}")


def _unpacked(decompressor: Any, data: bytes, size: int) -> bytes:
    """Unpack one frame of at most `size` bytes."""
    if size > MAX_UNPACKED_BYTES:
        raise CorruptInput(f"a chunk is said to unpack to {size} bytes, limit {MAX_UNPACKED_BYTES}")
    out = decompressor.decompress(data, max_length=size + 1)
    if len(out) > size:
        raise CorruptInput(f"a chunk or message unpacks to more than the {size} bytes it may")
    if not decompressor.eof:
        raise CorruptInput(f"a chunk or message of {len(data)} packed bytes is cut short")
    return out


class _BoundedFile:
    """A packed file that rosbags unpacks into the folder of temporary files; it may take at most half of the free
    space."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = shutil.disk_usage(tempfile.gettempdir()).free // 2

    def __enter__(self) -> _BoundedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise CorruptInput(f"unpacks to more than half of the free space in {tempfile.gettempdir()}")
        return data
