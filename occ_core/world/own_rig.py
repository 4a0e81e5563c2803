"""The simulated city seen by a rig of one's own: from a rig file, or as a recording has it.

The data set holds the rig as `rig.yaml` and its ego masks as `masks/<camera>.png`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from occ_core.camera import Camera, Rig
from occ_core.ego_mask import FOLDER, file_name, write_mask
from occ_core.errors import InvalidInput
from occ_core.files import write_atomically
from occ_core.rig_file import load_rig_file, rig_text
from occ_core.sources.open import open_source
from occ_core.world.robots import RIGS
from occ_core.world.sensors import LIDAR

RIG_FILE = "rig.yaml"
LOWEST_M = 0.05


def own_rig(rig: str, like: Path | None) -> Rig | None:
    """The rig that `occ world make` is asked for: from a rig file, or from a recording; None if it is one of RIGS.

    Raises:
        InvalidInput: both, no such rig, or one that cannot stand in a city; and what reading it raises.
    """
    if like is not None:
        if rig != RIGS[0]:
            raise InvalidInput(f"--rig {rig} and --like {like}: give one of them")
        return placed(_rig_of(like), str(like))
    if rig in RIGS:
        return None
    if not Path(rig).is_file():
        raise InvalidInput(f"--rig must be {', '.join(RIGS)} or a rig file, and there is no file '{rig}'")
    return placed(Rig(tuple(entry.camera for entry in load_rig_file(rig))), rig)


def placed(rig: Rig, where: str) -> Rig:
    """The rig as it stands in a city: names that can be folders' (a `/` becomes `_`), every camera above the road.

    Raises:
        InvalidInput: naming `where` and the camera.
    """
    return Rig(tuple(_placed(camera, f"{where}: camera '{camera.name}'") for camera in rig))


def _placed(camera: Camera, where: str) -> Camera:
    name = camera.name.strip("/").replace("/", "_")
    if name == LIDAR or not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}", name):
        raise InvalidInput(f"{where}: a name has at most 100 letters, digits, '_', '-' and '.', and is not {LIDAR}")
    height_m = camera.ego_from_cam[2, 3]
    if height_m < LOWEST_M:
        raise InvalidInput(
            f"{where} is {height_m:.2f} m above the ego frame's origin, at least {LOWEST_M} m are needed: in the city "
            "that origin lies on the road (ROS: base_footprint)"
        )
    return replace(camera, name=name)


def _rig_of(recording: Path) -> Rig:
    frame = next(iter(open_source(recording)), None)
    if frame is None:
        raise InvalidInput(f"{recording}: has no frame, so no rig can be taken from it")
    return frame.rig


def write_rig(out: Path, rig: Rig) -> None:
    """Into the data set's folder."""
    masks = {camera.name: f"{FOLDER}/{file_name(camera.name)}" for camera in rig if camera.blind is not None}
    for camera in rig:
        if camera.blind is not None:
            write_mask(out / masks[camera.name], camera.blind)
    write_atomically(out / RIG_FILE, rig_text(rig, {}, masks).encode())


def read_rig(out: Path) -> Rig:
    """That of a data set made with a rig of one's own.

    Raises:
        MissingInput, CorruptInput, InvalidInput: as of `load_rig_file`.
    """
    return Rig(tuple(entry.camera for entry in load_rig_file(out / RIG_FILE)))
