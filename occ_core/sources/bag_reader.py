"""Opens a ROS 2 bag (mcap or sqlite3) for reading, and names every fault in one line. No ROS is needed.

Only messages of standard types are decoded, so bags with types that nobody has here open all the same.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from occ_core.errors import CorruptInput, MissingInput, OccError, need
from occ_core.limits import shown
from occ_core.sources.bag_bounds import allow_empty_storage_id, bound_unpacking, require_bounded_metadata


class BagReader:
    """A bag's topics and messages.

    Args:
        path: folder of the bag, or one .mcap or .db3 file.

    Raises:
        MissingInput: no such bag, or a part of it is missing.
        CorruptInput: truncated, damaged, or not a bag.
        MissingPackage: without rosbags.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._rosbag2 = need("rosbags.rosbag2", "bags")
        bound_unpacking()
        allow_empty_storage_id()
        self._kept: dict[int, Any] = {}
        self._store = _types()
        if not self.path.exists():
            raise MissingInput(f"{self.path}: no such bag")
        if self.path.is_dir() and not (self.path / "metadata.yaml").is_file():
            raise MissingInput(
                f"{self.path}: no metadata.yaml, so the recording was not ended or this is no bag "
                "(`ros2 bag reindex` writes it anew; or name the .mcap or .db3 file itself)"
            )
        if self.path.is_dir():
            require_bounded_metadata(self.path / "metadata.yaml")
        reader = self._kept_open()
        self.topics: dict[str, str] = {c.topic: c.msgtype for c in reader.connections}
        self.counts: dict[str, int] = {topic: info.msgcount for topic, info in reader.topics.items()}
        self.message_count: int = reader.message_count
        self.span_ns: tuple[int, int] = (reader.start_time, reader.end_time)  # of log times
        if not self.message_count:
            raise MissingInput(f"{self.path}: the bag is empty (0 messages)")

    def of_type(self, *kinds: str) -> list[str]:
        """The topics with messages of any of these types, sorted."""
        return sorted(topic for topic, kind in self.topics.items() if kind in kinds and self.counts[topic])

    def messages(
        self, topics: list[str], start_ns: int | None = None, stop_ns: int | None = None
    ) -> Iterator[tuple[str, int, Any]]:
        """Yield (topic, log time in ns, message) in the order of log time; one message is in memory at a time.

        Args:
            start_ns, stop_ns: only log times in [start, stop); the parts of the bag that lie outside are not read.

        Raises:
            CorruptInput: where the bag is damaged.
        """
        for topic, stamp_ns, kind, raw in self.raw_messages(topics, start_ns, stop_ns):
            yield topic, stamp_ns, self.parsed(kind, raw)

    def parsed(self, kind: str, raw: bytes) -> Any:
        """Parse a message from type and bytes of `raw_messages`.

        Raises:
            CorruptInput: they are not of the topic's type.
        """
        try:
            return self._store.deserialize_cdr(raw, kind)
        except Exception as error:  # rosbags and struct raise a dozen types on damaged bytes
            raise CorruptInput(f"{self.path}: damaged bag: {_brief(error)}") from error

    def raw_messages(
        self, topics: list[str], start_ns: int | None = None, stop_ns: int | None = None
    ) -> Iterator[tuple[str, int, str, bytes]]:
        """Yield (topic, log time in ns, type, bytes); arguments and errors are those of `messages`."""
        if not topics:
            return
        wanted = set(topics)
        with self._opened() if start_ns is None else nullcontext(self._kept_open()) as reader:
            connections = [c for c in connections_of(reader) if c.topic in wanted]
            stream = reader.messages(connections, start_ns, stop_ns) if connections else iter(())
            seen = 0
            while True:
                try:
                    connection, stamp_ns, raw = next(stream)
                except StopIteration:
                    break
                except Exception as error:  # rosbags, apsw, zstd, struct raise a dozen types on damaged files
                    raise CorruptInput(f"{self.path}: damaged bag: {_brief(error)}") from error
                seen += 1
                yield connection.topic, stamp_ns, connection.msgtype, raw
        if not seen and any(self.counts.get(topic) for topic in wanted):
            raise CorruptInput(f"{self.path}: damaged bag: none of the messages of {', '.join(topics)} can be found")

    def _kept_open(self) -> Any:
        """Keep the files open for many short reads, since opening costs more than they do. A forked process must not
        share the files' positions, nor close files that are not its own."""
        if os.getpid() not in self._kept:
            self._kept[os.getpid()] = self._opened().__enter__()
        return self._kept[os.getpid()]

    def _opened(self) -> Any:
        try:
            reader = self._rosbag2.Reader(self.path)
            reader.open()
        except Exception as error:  # as above
            raise _explained(self.path, error) from error
        return _Closing(reader)


@functools.cache
def _types() -> Any:
    """The standard message types; each is compiled when it is first met, which costs as much as reading a short bag."""
    typesys = need("rosbags.typesys", "bags")
    return typesys.get_typestore(typesys.Stores.ROS2_JAZZY)


def connections_of(reader: Any) -> list[Any]:
    """The connections of an opened rosbags Reader: those of the files themselves, not those of metadata.yaml.

    rosbags compares QoS and silently yields nothing where the two differ, as they do in bags of older distributions.
    """
    files = getattr(reader.storage, "storages", [reader.storage])
    return [connection for file in files for connection in file.connections]


class _Closing:
    """A `with` for a reader that is already open; closing must not hide an error inside."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def __enter__(self) -> Any:
        return self._reader

    def __exit__(self, *_: object) -> None:
        self._reader.close()


def _explained(path: Path, error: Exception) -> OccError:
    text = _brief(error)
    if "missing" in text and "files" in text:
        return MissingInput(f"{path}: {text}")
    hint = ""
    if "magic" in text or "Truncated" in text or "malformed" in text or "empty" in text:
        hint = "; it was cut short or is still being written (for mcap, `mcap recover` saves what is there)"
    return CorruptInput(f"{path}: cannot be read as a ROS 2 bag: {text}{hint}")


def _brief(error: Exception) -> str:
    """The first line of an error, with its type."""
    text = str(error).strip().splitlines()
    return f"{shown(text[0], 400) if text else 'no reason given'} ({type(error).__name__})"
