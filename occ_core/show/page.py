"""A report page: one HTML file without a server or network, for whoever wants to look instead of read.

Voxels side by side, in the viewer's hand; the cameras beside them; scores, a training's curves and the doctor's words
below. The page's own code is in `page_files`, plain JavaScript on WebGL2 without a dependency.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from occ_core.errors import InvalidInput
from occ_core.files import write_atomically
from occ_core.show.album import spread
from occ_core.show.moments import Moments
from occ_core.show.page_data import MOST_CAMERAS, PageMoment, common, frustum, pack_moment
from occ_core.show.page_tables import PageTable, curve_of
from occ_core.show.pictures import camera_rows

MOMENTS = 16  # about 6 MB with six cameras


def write_page(
    path: Path,
    title: str,
    moments: Iterable[PageMoment],
    tables: Sequence[PageTable] = (),
    log: Path | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write `path`, atomically.

    Args:
        moments: in time order, all on one grid with one set of classes; see `MOMENTS` for how many are sensible.
        tables: figures to show below, see `table_of`.
        log: a training's log.csv, shown as curves.
        notes: texts to show as they are, such as what the doctor says.

    Raises:
        InvalidInput: no voxels, grids or classes that differ, or too many cameras.
        CorruptInput: a log without numbers. CannotWrite.
    """
    shown = list(moments)
    like, volumes = common(shown)
    rigs = [moment.frame.rig for moment in shown]
    found = {camera.name: camera for rig in reversed(rigs) for camera in rig}  # where it is first
    cameras = [name for row in camera_rows(sorted(found)) for name in row]
    if len(cameras) > MOST_CAMERAS:
        raise InvalidInput(f"a report page shows at most {MOST_CAMERAS} cameras, got {len(cameras)}")
    grid, taxonomy = like.grid, like.taxonomy
    classes = [
        {"name": name, "color": color, "free": number == taxonomy.free_id}
        for number, (name, color) in enumerate(zip(taxonomy.names, taxonomy.colors, strict=True))
    ]
    data = {
        "title": title,
        "grid": {"origin_m": grid.origin_m, "voxel_size_m": grid.voxel_size_m, "shape": grid.shape},
        "classes": classes,
        "cameras": cameras,
        "frusta": {name: frustum(found[name]) for name in cameras},
        "volumes": volumes,
        "moments": [pack_moment(moment, cameras) for moment in shown],
        "tables": [table._asdict() for table in tables],
        "curve": None if log is None else curve_of(log),
        "notes": list(notes),
    }
    write_atomically(path, _filled(title, data).encode())


def page_moments(moments: Moments, count: int = MOMENTS) -> Iterable[PageMoment]:
    """What `occ view` shows, as `predicted` and `true`: at most `count` moments, evenly spread."""
    for index in spread(range(len(moments)), count):
        frame, predicted, truth = moments[index]
        yield PageMoment(frame, {"predicted": predicted, "true": truth})


def _filled(title: str, data: dict[str, Any]) -> str:
    """The page's frame with its parts in their places; no text of the data can end the element that it is in."""
    folder = files("occ_core.show") / "page_files"
    page, style, voxels, script = (
        (folder / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "voxels.js", "page.js")
    )
    parts = {
        "title": title.replace("&", "&amp;").replace("<", "&lt;"),
        "style": style,
        "data": json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        "script": f"{voxels}\n{script}",
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page)
