"""A report page: one HTML file without a server or network, for whoever wants to look instead of read.

Voxels side by side, in the viewer's hand; the cameras beside them; scores, trainings' curves and the doctor's words
below. The page's own code is in `page_files`, plain JavaScript on WebGL2 without a dependency.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from occ_core.camera import Rig
from occ_core.errors import InvalidInput
from occ_core.files import write_atomically
from occ_core.show.album import spread
from occ_core.show.page_data import PageFrame, common, pack_frame, scene_of
from occ_core.show.page_figures import Figures
from occ_core.show.predicted_frames import PredictedFrames

FRAMES = 16  # about 4 MB with six cameras
SCRIPTS = ("voxels.js", "figures.js", "scene.js", "page.js")
NO_FIGURES = Figures()


def write_page(path: Path, title: str, frames: Iterable[PageFrame], figures: Figures = NO_FIGURES) -> None:
    """Write `path`, atomically.

    Args:
        frames: in time order, all on one grid with one set of classes; see `FRAMES` for how many are sensible. None:
            the page has figures alone.

    Raises:
        InvalidInput: nothing to show, frames without voxels, grids or classes that differ, or too many cameras.
        CorruptInput: a log without numbers. CannotWrite.
    """
    shown = list(frames)
    packed = figures.packed()
    if not shown and not any(packed.values()):
        raise InvalidInput("a report page needs frames or figures, got neither")
    data = {"title": title, "live": False, "scene": _scene(shown) if shown else None, **packed}
    write_atomically(path, page_text(data).encode())


def _scene(shown: list[PageFrame]) -> dict[str, Any]:
    """What `page_files/scene.js` shows: `scene_of`, and the frames."""
    like, volumes = common(shown)
    rigs = [page_frame.frame.rig for page_frame in shown]
    cameras = Rig(
        tuple({camera.name: camera for rig in reversed(rigs) for camera in rig}.values())
    )  # where it is first
    scene = scene_of(like, volumes, cameras)
    return {**scene, "frames": [pack_frame(page_frame, scene["cameras"]) for page_frame in shown]}


def page_frames(frames: PredictedFrames, count: int = FRAMES) -> Iterable[PageFrame]:
    """What `occ view` shows, as `predicted` and `true`: at most `count` frames, evenly spread."""
    for index in spread(range(len(frames)), count):
        frame, predicted, truth = frames[index]
        yield PageFrame(frame, {"predicted": predicted, "true": truth})


def page_text(data: dict[str, Any]) -> str:
    """The page's frame with its parts in their places; no text of the data can end the element that it is in.

    Args:
        data: title, scene and figures as JSON values, see `write_page`; `live`: the page asks who serves it for
            frames, and may connect to nobody else.
    """
    folder = files("occ_core.show") / "page_files"
    page, style, *scripts = (
        (folder / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", *SCRIPTS)
    )
    parts = {
        "title": data["title"].replace("&", "&amp;").replace("<", "&lt;"),
        "connect": "; connect-src 'self'" if data["live"] else "",
        "style": style,
        "data": json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        "script": "\n".join(scripts),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page)
