"""A LiDAR sweep as teacher: its ranges as sparse depth maps; its points' labels, where there are any, as classes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from occ_core.camera import Camera
from occ_core.errors import CorruptInput, InvalidInput, MissingInput
from occ_core.frame import Frame, LidarSweep
from occ_core.geometry import apply, inverse
from occ_core.lidar_points import MIN_RANGE_M
from occ_core.taxonomy import OCC3D, SEMANTIC_KITTI, UNLABELED, Taxonomy
from occ_core.teachers.base import ClassMap, DepthMap

SHADOW_ANGLE_RAD = 0.02  # beams of nuScenes' LiDAR are 0.023 rad apart: between two of them one sees what lies behind
SHADOW_RATIO = 0.9

RAW_KITTI_IDS = {
    # SemanticKITTI's label -> its 19 learning classes (semantic-kitti.yaml, learning_map); the rest is unlabelled.
    10: "car", 11: "bicycle", 13: "other_vehicle", 15: "motorcycle", 16: "other_vehicle", 18: "truck",
    20: "other_vehicle", 30: "person", 31: "bicyclist", 32: "motorcyclist", 40: "road", 44: "parking", 48: "sidewalk",
    49: "other_ground", 50: "building", 51: "fence", 60: "road", 70: "vegetation", 71: "trunk", 72: "terrain",
    80: "pole", 81: "traffic_sign", 252: "car", 253: "bicyclist", 254: "person", 255: "motorcyclist",
    256: "other_vehicle", 257: "other_vehicle", 258: "truck", 259: "other_vehicle",
}  # fmt: skip

OCC3D_OF_KITTI = {
    "car": "car", "bicycle": "bicycle", "motorcycle": "motorcycle", "truck": "truck", "person": "pedestrian",
    "bicyclist": "bicycle", "motorcyclist": "motorcycle", "road": "driveable_surface", "parking": "driveable_surface",
    "sidewalk": "sidewalk", "other_ground": "other_flat", "building": "manmade", "fence": "manmade",
    "vegetation": "vegetation", "trunk": "vegetation", "terrain": "terrain", "pole": "manmade",
    "traffic_sign": "manmade",
}  # fmt: skip


class LidarDepth:
    """Depth where a LiDAR point falls into a pixel, NaN elsewhere. Confidence 1, or 0.2 for a point that lies close
    beside a much nearer one in the image: the camera, mounted elsewhere, hardly sees it."""

    version = "lidar-depth-2"

    def depth(self, frame: Frame) -> dict[str, DepthMap]:
        """Sparse maps of the images' size.

        Raises:
            InvalidInput: the frame has no LiDAR sweep.
        """
        return {name: self._map(frame, name) for name in frame.images}

    def reads(self, frame: Frame) -> list[np.ndarray]:
        """See `base.seen_key`: the sweep, and where sensors were."""
        return _seen(frame)

    def _map(self, frame: Frame, name: str) -> DepthMap:
        rows, columns, depth_m, _ = project(frame, name)
        camera = frame.rig[name]
        width, height = camera.size
        near = np.full((height, width), np.inf, dtype=np.float32)
        near[rows, columns] = depth_m
        confidence = np.zeros((height, width), dtype=np.float32)
        confidence[rows, columns] = np.where(_shadowed(near, rows, columns, camera), 0.2, 1.0)
        return DepthMap(np.where(np.isfinite(near), near, np.nan).astype(np.float32), confidence)


def _shadowed(near: np.ndarray, rows: np.ndarray, columns: np.ndarray, camera: Camera) -> np.ndarray:
    """Mark points with something much nearer close beside them, bool (M,).

    Level ground is nearer lower in the image, too: below a point, only what is nearer still than ground is counts.
    """
    reach = round(SHADOW_ANGLE_RAD * camera.intrinsics[0, 0])
    window = np.ones((reach + 1, 2 * reach + 1), np.uint8)
    above = cv2.erode(near, window, anchor=(reach, reach))[rows, columns]
    below = cv2.erode(near, window, anchor=(reach, 0))[rows, columns]
    x, y, z = (camera.rays(np.stack([columns, rows], axis=1).astype(np.float64)) @ camera.ego_from_cam[:3, :3].T).T
    down_rad = np.maximum(np.arctan2(-z, np.hypot(x, y)), 0)
    angle_rad = (reach + 1) / camera.intrinsics[0, 0]  # of the window's last row, rounding included
    ground = np.where(z < 0, np.tan(down_rad) / np.tan(down_rad + angle_rad), 1)
    limit = SHADOW_RATIO * near[rows, columns]
    return (above < limit) | (below < limit * ground)


class LidarClasses:
    """Classes from per-point labels of SemanticKITTI's layout: `sequences/<scene>/labels/<token>.label`.

    A data set without them gives maps that say nothing, so that LiDAR alone still tells occupied from free.

    Args:
        dataroot: folder that holds `sequences/`.
        taxonomy: SemanticKITTI's, or Occ3D's by `OCC3D_OF_KITTI`.
    """

    def __init__(self, dataroot: Path, taxonomy: Taxonomy) -> None:
        if taxonomy.name not in (OCC3D.name, SEMANTIC_KITTI.name):
            raise InvalidInput(
                f"per-point labels are known in '{SEMANTIC_KITTI.name}' and '{OCC3D.name}', asked for '{taxonomy.name}'"
            )
        self.dataroot, self.taxonomy = Path(dataroot), taxonomy
        self.has_labels = any(self.dataroot.glob("sequences/*/labels"))
        self.version = f"lidar-classes-1 {taxonomy.name}" if self.has_labels else "lidar-classes-1 none"

    def classes(self, frame: Frame) -> dict[str, ClassMap]:
        """Sparse maps of the images' size.

        Raises:
            InvalidInput: the frame has no LiDAR sweep. MissingInput, CorruptInput: its labels, naming the file.
        """
        labels = self._labels(frame) if self.has_labels else None
        return {name: self._map(frame, name, labels) for name in frame.images}

    def reads(self, frame: Frame) -> list[Path | np.ndarray]:
        """See `base.seen_key`: nothing more without labels, else the sweep, where sensors were, and the labels."""
        return [*_seen(frame), self._path(frame)] if self.has_labels else []

    def _path(self, frame: Frame) -> Path:
        return self.dataroot / "sequences" / frame.scene / "labels" / f"{frame.token}.label"

    def _map(self, frame: Frame, name: str, labels: np.ndarray | None) -> ClassMap:
        width, height = frame.rig[name].size
        class_id = np.full((height, width), UNLABELED, dtype=np.uint8)
        if labels is not None:
            rows, columns, _, index = project(frame, name)
            class_id[rows, columns] = labels[index]
        return ClassMap(class_id, (class_id != UNLABELED).astype(np.float32))

    def _labels(self, frame: Frame) -> np.ndarray:
        path = self._path(frame)
        if not path.is_file():
            raise MissingInput(f"{path}: no per-point labels of frame '{frame.token}'")
        labels = read_kitti_labels(path, self.taxonomy)
        if len(labels) != len(_sweep(frame).points_lidar_m):
            raise CorruptInput(f"{path}: {len(labels)} labels for {len(_sweep(frame).points_lidar_m)} points")
        return labels


def read_kitti_labels(path: Path, taxonomy: Taxonomy = SEMANTIC_KITTI) -> np.ndarray:
    """Class ids uint8 (N,) of a SemanticKITTI `.label` file, UNLABELED for what has no class.

    Raises:
        CorruptInput: no whole number of labels.
    """
    return class_of_raw_kitti(taxonomy)[read_raw_kitti(path)]


def read_raw_kitti(path: Path) -> np.ndarray:
    """SemanticKITTI's own labels uint16 (N,) of the points of a `.label` file.

    Raises:
        CorruptInput: no whole number of labels.
    """
    data = path.read_bytes()
    if len(data) % 4:
        raise CorruptInput(f"{path}: {len(data)} bytes are no whole number of labels of 4 bytes")
    return (np.frombuffer(data, dtype="<u4") & 0xFFFF).astype(np.uint16)  # upper half: number of the object


def class_of_raw_kitti(taxonomy: Taxonomy = SEMANTIC_KITTI) -> np.ndarray:
    """Class id of each of SemanticKITTI's raw labels, uint8 (65536,), UNLABELED for those that have no class."""
    to_class = np.full(65536, UNLABELED, dtype=np.uint8)
    for raw, name in RAW_KITTI_IDS.items():
        known = name if taxonomy.name == SEMANTIC_KITTI.name else OCC3D_OF_KITTI.get(name)
        if known is not None:
            to_class[raw] = taxonomy.id_of(known)
    return to_class


def project(frame: Frame, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Project the points of a frame's sweep into one of its images; sweep and image have their own stamps and poses.

    Returns:
        rows, columns int64 (M,), unique; depth_m float32 (M,) along the optical axis; index int64 (M,) of the points.
        Of several points in one pixel the nearest is kept.

    Raises:
        InvalidInput: the frame has no LiDAR sweep.
    """
    pixels, depth_m, index = visible_points(frame, name)
    order = np.argsort(depth_m, kind="stable")
    columns, rows = np.rint(pixels[order]).astype(np.int64).T
    _, first = np.unique(rows * frame.rig[name].size[0] + columns, return_index=True)
    return rows[first], columns[first], depth_m[order[first]].astype(np.float32), index[order[first]]


def visible_points(frame: Frame, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All points of a frame's sweep that fall into one of its images, each with its own stamp and pose.

    Points within MIN_RANGE_M of the sensor, the vehicle itself, are left out; those hidden behind nearer ones are not.

    Returns:
        pixels float64 (M, 2); depth_m float64 (M,) along the optical axis; index int64 (M,) of the points.

    Raises:
        InvalidInput: the frame has no LiDAR sweep.
    """
    sweep, camera = _sweep(frame), frame.rig[name]
    world_from_lidar = sweep.world_from_ego @ sweep.ego_from_lidar
    cam_from_world = inverse(frame.camera_world_from_ego[name] @ camera.ego_from_cam)
    points_cam_m = apply(cam_from_world @ world_from_lidar, sweep.points_lidar_m.astype(np.float64))
    pixels, visible = camera.project(points_cam_m)
    visible &= (np.linalg.norm(sweep.points_lidar_m, axis=1) >= MIN_RANGE_M) & (points_cam_m[:, 2] > 0)
    index = np.flatnonzero(visible)
    return pixels[index], points_cam_m[index, 2], index


def _seen(frame: Frame) -> list[np.ndarray]:
    sweep = _sweep(frame)
    poses = [sweep.ego_from_lidar, sweep.world_from_ego, *(p for _, p in sorted(frame.camera_world_from_ego.items()))]
    return [sweep.points_lidar_m, *poses]


def _sweep(frame: Frame) -> LidarSweep:
    if frame.lidar is None:
        raise InvalidInput(f"the LiDAR teacher needs a sweep; frame '{frame.token or frame.stamp_ns}' has none")
    return frame.lidar
