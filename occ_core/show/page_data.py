"""What a report page holds of a frame: cells and images packed as text; `page_files/page.js` unpacks them."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np

from occ_core.camera import Camera, Rig
from occ_core.errors import InvalidInput
from occ_core.frame import Frame
from occ_core.occupancy import Occupancy
from occ_core.show.pictures import camera_rows

IMAGE_PX = 480  # longer side
JPEG_QUALITY = 80
MOST_CAMERAS = 32  # bits of a cell's `views`
FRUSTUM_M = 1.5  # length of a camera's drawn pyramid


class PageFrame(NamedTuple):
    """One frame of a page: volumes by what they are called there, such as `predicted`, `true` or `labels`; each is in
    the ego frame. None: there is none at this frame."""

    frame: Frame
    volumes: Mapping[str, Occupancy | None]


def scene_of(like: Occupancy, volumes: list[str], rig: Rig) -> dict[str, Any]:
    """What all frames of a page have in common, as JSON values: grid, classes, cameras with where they look, and the
    volumes' names.

    Raises:
        InvalidInput: more than MOST_CAMERAS.
    """
    cameras = [name for row in camera_rows(sorted(rig.names)) for name in row]
    if len(cameras) > MOST_CAMERAS:
        raise InvalidInput(f"a report page shows at most {MOST_CAMERAS} cameras, got {len(cameras)}")
    grid, taxonomy = like.grid, like.taxonomy
    return {
        "grid": {"origin_m": grid.origin_m, "voxel_size_m": grid.voxel_size_m, "shape": grid.shape},
        "classes": [
            {"name": name, "color": color, "free": number == taxonomy.free_id}
            for number, (name, color) in enumerate(zip(taxonomy.names, taxonomy.colors, strict=True))
        ],
        "cameras": cameras,
        "frusta": {name: frustum(rig[name]) for name in cameras},
        "volumes": volumes,
    }


def pack_frame(page_frame: PageFrame, cameras: list[str]) -> dict[str, Any]:
    """As `pack_view`, of a frame."""
    frame = page_frame.frame
    name = f"{frame.scene} {frame.token[:8]} at {frame.stamp_ns / 1e9:.2f} s".strip()
    return pack_view(name, frame.images, page_frame.volumes, frame.rig_at_stamps, cameras)


def pack_view(
    name: str,
    images: Mapping[str, np.ndarray],
    volumes: Mapping[str, Occupancy | None],
    rig: Rig,
    cameras: list[str],
) -> dict[str, Any]:
    """JSON values: name, images {camera: JPEG as base64} and volumes {name: see `pack_volume`}.

    Args:
        images: RGB uint8 (h, w, 3).
        rig: where the cameras were when they took these.
        cameras: of the page, in its order.
    """
    packed = {volume: pack_volume(o, rig, cameras) for volume, o in volumes.items() if o is not None}
    return {"name": name, "images": {camera: _jpeg(image) for camera, image in images.items()}, "volumes": packed}


def pack_volume(occupancy: Occupancy, rig: Rig, cameras: list[str]) -> dict[str, str | None]:
    """The occupied, observed cells, in order of their index (x * Y + y) * Z + z; arrays packed by `pack`, N long.

    Returns:
        steps: uint32, from one index to the next, the first from 0. label: uint8. confidence: uint8, 0..255, or None.
        views: uint32, bit i says that the centre projects into image `cameras[i]`; what stands in between is not asked.
    """
    occupied = occupancy.occupied
    index = np.flatnonzero(occupied)
    centers_ego_m = occupancy.grid.centers_of_m(occupied)
    views = np.zeros(len(index), dtype=np.uint32)
    for bit, name in enumerate(cameras):
        if name in rig.names:
            views[visible(rig[name], centers_ego_m)] |= np.uint32(1 << bit)
    confidence = None
    if occupancy.confidence is not None:
        shares = np.clip(np.nan_to_num(occupancy.confidence[occupied]), 0, 1)
        confidence = pack(np.rint(255 * shares).astype(np.uint8))
    return {
        "steps": pack(np.diff(index, prepend=0).astype("<u4")),
        "label": pack(occupancy.labels[occupied]),
        "views": pack(views.astype("<u4")),
        "confidence": confidence,
    }


def visible(camera: Camera, points_ego_m: np.ndarray) -> np.ndarray:
    """bool (N,): which points (N, 3) project into the camera's image."""
    rotation, origin_m = camera.ego_from_cam[:3, :3], camera.ego_from_cam[:3, 3]
    return camera.project((points_ego_m - origin_m) @ rotation)[1]


def frustum(camera: Camera) -> list[list[float]]:
    """Five points in the ego frame, metres: the camera, and where its image's corners look, clockwise."""
    w, h = camera.size
    corners = np.array([[0, 0], [w - 1, 0], [w - 1, h - 1], [0, h - 1]], dtype=np.float64)
    directions, _ = camera.directions(corners)
    points_cam_m = np.concatenate([np.zeros((1, 3)), FRUSTUM_M * directions])
    points_ego_m = points_cam_m @ camera.ego_from_cam[:3, :3].T + camera.ego_from_cam[:3, 3]
    return np.nan_to_num(points_ego_m).round(3).tolist()


def pack(array: np.ndarray) -> str:
    """The array's bytes, deflated with zlib's header, as base64."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 9)).decode()


def common(frames: list[PageFrame]) -> tuple[Occupancy, list[str]]:
    """An occupancy whose grid and classes are those of all, and the volumes' names in the order of their appearance.

    Raises:
        InvalidInput: no volume at all, or they differ.
    """
    named = [(name, o) for page_frame in frames for name, o in page_frame.volumes.items() if o is not None]
    if not named:
        raise InvalidInput(f"a report page needs voxels, none of {len(frames)} frames has any")
    first = named[0][1]
    for name, other in named:
        if other.grid != first.grid or other.taxonomy != first.taxonomy:
            raise InvalidInput(
                f"a report page has one grid and one set of classes: '{named[0][0]}' has {first.taxonomy.name} on "
                f"{first.grid}, '{name}' has {other.taxonomy.name} on {other.grid}"
            )
    return first, list(dict.fromkeys(name for name, _ in named))


def _jpeg(image_rgb: np.ndarray) -> str:
    h, w, _ = image_rgb.shape
    scale = min(1.0, IMAGE_PX / max(h, w))
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    bgr = cv2.cvtColor(cv2.resize(image_rgb, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return base64.b64encode(data.tobytes()).decode()
