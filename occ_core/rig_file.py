"""Reads a rig from one YAML file, for vehicles whose calibration does not come by CameraInfo and TF.

cameras:
  front:
    image_topic: /front/image_raw/compressed   # optional
    size_px: [1600, 900]                       # width, height
    focal_px: [1266.4, 1266.4]
    center_px: [816.3, 491.5]                  # (0, 0) is the centre of the top-left pixel
    distortion_model: plumb_bob                # optional; plumb_bob | rational_polynomial | equidistant (fisheye)
    distortion: [-0.1, 0.02, 0.0, 0.0]
    position_m: [1.7, 0.0, 1.5]                # of the camera in the ego frame: x forward, y left, z up
    quaternion_xyzw: [-0.5, 0.5, -0.5, 0.5]    # ego_from_cam, of the optical frame: x right, y down, z forward
    ego_mask: masks/front.png                  # optional; white: the robot itself; beside this file
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from occ_core.camera import COEFFICIENTS, Camera, Rig
from occ_core.ego_mask import masked
from occ_core.errors import CorruptInput, InvalidInput, MissingInput
from occ_core.geometry import pose, quaternion_from_rotation

MAX_BYTES = 1_000_000
# Name -> how many numbers.
NEEDED = {"size_px": 2, "focal_px": 2, "center_px": 2, "position_m": 3, "quaternion_xyzw": 4}
OPTIONAL = ("image_topic", "distortion_model", "distortion", "ego_mask")


@dataclass(frozen=True)
class RigFileCamera:
    """One camera of the file; `image_topic` is empty where the file does not name it."""

    camera: Camera
    image_topic: str


def load_rig_file(path: Path | str) -> tuple[RigFileCamera, ...]:
    """Read the cameras, in the order of the file.

    Raises:
        MissingInput, CorruptInput: no file, or no YAML in it; no mask where one is named, or one that does not fit.
        InvalidInput: naming camera and field.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingInput(f"{path}: no such rig file")
    if path.stat().st_size > MAX_BYTES:
        raise InvalidInput(f"{path}: {path.stat().st_size} bytes, a rig file has at most {MAX_BYTES}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptInput(f"{path}: not readable as YAML ({' '.join(str(error).split())[:200]})") from error
    cameras = content.get("cameras") if isinstance(content, dict) else None
    if not isinstance(cameras, dict) or not cameras:
        raise InvalidInput(f"{path}: needs 'cameras:' with one entry per camera")
    return tuple(_camera(f"{path}: camera '{name}'", str(name), entry, path.parent) for name, entry in cameras.items())


def rig_text(rig: Rig, image_topics: Mapping[str, str], ego_masks: Mapping[str, str]) -> str:
    """Write the file of a rig, as `load_rig_file` reads it.

    Args:
        image_topics, ego_masks: by camera name, as far as known; paths of masks from the file's folder.
    """
    cameras: dict[str, dict[str, Any]] = {}
    for camera in rig:
        k, (w, x, y, z) = camera.intrinsics, quaternion_from_rotation(camera.ego_from_cam[:3, :3])
        entry: dict[str, Any] = {"image_topic": image_topics[camera.name]} if camera.name in image_topics else {}
        entry |= {
            "size_px": list(camera.size),
            "focal_px": _plain(k[0, 0], k[1, 1]),
            "center_px": _plain(k[0, 2], k[1, 2]),
        }
        if camera.distortion:
            entry |= {"distortion_model": camera.distortion_model, "distortion": _plain(*camera.distortion)}
        entry |= {"position_m": _plain(*camera.ego_from_cam[:3, 3]), "quaternion_xyzw": _plain(x, y, z, w)}
        if camera.name in ego_masks:
            entry["ego_mask"] = ego_masks[camera.name]
        cameras[camera.name] = entry
    return yaml.safe_dump({"cameras": cameras}, sort_keys=False, default_flow_style=None, width=120)


def _plain(*numbers: float) -> list[float]:
    return [float(number) for number in numbers]


def _camera(where: str, name: str, entry: Any, folder: Path) -> RigFileCamera:
    if not isinstance(entry, dict):
        raise InvalidInput(f"{where}: must have the fields {', '.join(NEEDED)}, got {entry!r:.80}")
    if unknown := sorted(str(field) for field in entry if field not in NEEDED and field not in OPTIONAL):
        raise InvalidInput(f"{where}: unknown field '{unknown[0]}', only: {', '.join((*NEEDED, *OPTIONAL))}")
    values = {field: _numbers(where, field, entry.get(field), (count,)) for field, count in NEEDED.items()}
    model = str(entry.get("distortion_model", "none"))
    if model not in COEFFICIENTS:
        raise InvalidInput(f"{where}: distortion_model '{model}' is not one of {', '.join(COEFFICIENTS)}")
    distortion = _numbers(where, "distortion", entry.get("distortion", []), COEFFICIENTS[model])
    (fx, fy), (cx, cy), (qx, qy, qz, qw) = values["focal_px"], values["center_px"], values["quaternion_xyzw"]
    try:
        ego_from_cam = pose(values["position_m"], (qw, qx, qy, qz))
        width, height = (int(side) for side in values["size_px"])
        intrinsics = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        camera = Camera(name, intrinsics, (width, height), ego_from_cam, model, distortion)
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {error}") from None
    if mask := entry.get("ego_mask"):
        camera = masked(camera, folder / str(mask))
    return RigFileCamera(camera, str(entry.get("image_topic", "")))


def _numbers(where: str, field: str, value: Any, counts: tuple[int, ...]) -> tuple[float, ...]:
    wanted = " or ".join(map(str, counts))
    if value is None:
        raise InvalidInput(f"{where}: '{field}' is missing, it has {wanted} numbers")
    fitting = isinstance(value, list) and len(value) in counts
    if not fitting or not all(isinstance(v, int | float) and not isinstance(v, bool) and np.isfinite(v) for v in value):
        raise InvalidInput(f"{where}: '{field}' must be {wanted} finite numbers, got {value!r:.80}")
    return tuple(float(v) for v in value)
