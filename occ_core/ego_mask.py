"""Ego masks: which pixels of a camera show the robot itself. One PNG a camera, see docs/ego_mask.md.

DATA/masks/<scene>/<camera>.png, or DATA/masks/<camera>.png for all scenes: of the image's size, white (> 127) where the
camera sees its own robot. A `/` in a camera's name is `_` in its file's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from occ_core.camera import Camera, Rig
from occ_core.errors import CorruptInput, MissingInput, OccError
from occ_core.files import write_atomically
from occ_core.images import decode_compressed

FOLDER = "masks"


def with_masks(rig: Rig, data: Path, scene: str) -> Rig:
    """Add the masks that lie beside the data to the rig; a camera that has a mask already keeps it.

    Args:
        data: folder of the data set or bag, or the bag's file, in whose folder masks are then looked for.

    Raises:
        CorruptInput: a mask is no picture, or not of the image's size.
    """
    files = mask_files(data, scene, [camera.name for camera in rig if camera.blind is None])
    if not files:
        return rig
    return Rig(tuple(masked(camera, files[camera.name]) if camera.name in files else camera for camera in rig))


def mask_files(data: Path, scene: str, names: Iterable[str]) -> dict[str, Path]:
    """The mask of each camera that has one."""
    folder = (data if data.is_dir() else data.parent) / FOLDER
    if not folder.is_dir():
        return {}
    files = {}
    for name in names:
        for path in (folder / scene / file_name(name), folder / file_name(name)):
            if path.is_file():
                files[name] = path
                break
    return files


def scene_masks(data: Path, scene: str) -> list[Path]:
    """All masks that may be of a scene's cameras."""
    folder = (data if data.is_dir() else data.parent) / FOLDER
    return sorted([*folder.glob("*.png"), *(folder / scene).glob("*.png")])


def file_name(camera: str) -> str:
    return f"{camera.replace('/', '_')}.png"


def masked(camera: Camera, path: Path) -> Camera:
    """Make the camera blind where its mask is white.

    Raises:
        MissingInput, CorruptInput: no such file, no picture, or not of the image's size.
    """
    if not path.is_file():
        raise MissingInput(f"{path}: no such mask of camera '{camera.name}'")
    try:
        white = decode_compressed(path.read_bytes()).mean(axis=2) > 127
    except OccError as error:
        raise CorruptInput(f"{path}: no picture: {error}") from error
    w, h = camera.size
    if white.shape != (h, w):
        raise CorruptInput(f"{path}: must be {w} x {h} px as its image, is {white.shape[1]} x {white.shape[0]} px")
    return replace(camera, blind=white if white.any() else None)


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write bool (h, w) as PNG, atomically."""
    write_atomically(path, cv2.imencode(".png", np.where(mask, np.uint8(255), np.uint8(0)))[1].tobytes())
