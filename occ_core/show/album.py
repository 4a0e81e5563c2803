"""What every `show` writes: some frames as pictures, and all of them as a recording."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.progress import track

from occ_core.show.pictures import save_png
from occ_core.show.recording import RerunRecording


def write_album(
    out: Path,
    title: str,
    indices: Sequence[int],
    pictures: int,
    draw: Callable[[int], tuple[str, np.ndarray]],
    record: Callable[[RerunRecording, int], None] | None,
) -> list[Path]:
    """Write `out/recording.rrd` of all frames and `out/pictures/<scene>_<index>.png` of some.

    Args:
        title: of the recording.
        indices: of the frames to show, at least one, in time order.
        pictures: at most this many, see `spread`.
        draw: scene and RGB uint8 (h, w, 3) of a frame.
        record: adds a frame to the recording; None: no recording.

    Returns:
        paths of what was written.
    """
    written = []
    if record is not None:
        path = out / "recording.rrd"
        with RerunRecording(path, title) as stream:
            for index in track(indices, description="recording", transient=True):
                record(stream, index)
        written.append(path)
    for index in track(spread(indices, pictures), description="pictures", transient=True):
        scene, picture = draw(index)
        path = out / "pictures" / f"{scene}_{index:04d}.png"
        save_png(path, picture)
        written.append(path)
    return written


def spread(indices: Sequence[int], count: int) -> list[int]:
    """At most `count` of ascending `indices`, evenly spread: first and last among them, one alone is the first; of none
    none."""
    last = len(indices) - 1
    if last < 0:
        return []
    return sorted({indices[round(i * last / max(1, count - 1))] for i in range(count)})
