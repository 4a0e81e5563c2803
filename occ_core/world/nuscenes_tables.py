"""The thirteen tables of nuScenes v1.0, scene by scene.

A scene's rows are collected while it is rendered and stored as one json; `merge` joins all scenes into the tables that
the nuscenes-devkit reads. Every token is an md5 of what it names, so the same settings give the same tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from occ_core.camera import Camera
from occ_core.files import write_atomically
from occ_core.geometry import Array, quaternion_from_rotation
from occ_core.world.sensors import CAMERAS, LIDAR, NUMBERED

VERSION = "v1.0-mini"
TABLES = (
    "attribute", "calibrated_sensor", "category", "ego_pose", "instance", "log", "map", "sample", "sample_annotation",
    "sample_data", "scene", "sensor", "visibility",
)  # fmt: skip
CATEGORIES = (
    "human.pedestrian.adult", "human.pedestrian.child", "human.pedestrian.wheelchair", "human.pedestrian.stroller",
    "human.pedestrian.personal_mobility", "human.pedestrian.police_officer", "human.pedestrian.construction_worker",
    "animal", "vehicle.car", "vehicle.motorcycle", "vehicle.bicycle", "vehicle.bus.bendy", "vehicle.bus.rigid",
    "vehicle.truck", "vehicle.construction", "vehicle.emergency.ambulance", "vehicle.emergency.police",
    "vehicle.trailer", "movable_object.barrier", "movable_object.trafficcone", "movable_object.pushable_pullable",
    "movable_object.debris", "static_object.bicycle_rack",
)  # fmt: skip
ATTRIBUTES = (
    "vehicle.moving", "vehicle.stopped", "vehicle.parked", "cycle.with_rider", "cycle.without_rider",
    "pedestrian.sitting_lying_down", "pedestrian.standing", "pedestrian.moving",
)  # fmt: skip
VISIBILITY = {"1": ("v0-40", 0, 40), "2": ("v40-60", 40, 60), "3": ("v60-80", 60, 80), "4": ("v80-100", 80, 100)}


def token(*parts: object) -> str:
    """The token (32 hex digits) of what `parts` name."""
    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def pose_fields(a_from_b: Array) -> dict:
    """Translation and rotation (w, x, y, z) as the tables hold them."""
    return {
        "translation": [round(float(v), 6) for v in a_from_b[:3, 3]],
        "rotation": [round(float(v), 12) for v in quaternion_from_rotation(a_from_b[:3, :3])],
    }


def visibility_token(share: float) -> str:
    """Visibility level of an object of which this share (0..1) is seen."""
    return str(1 + sum(share >= limit for limit in (0.4, 0.6, 0.8)))


def attribute_of(category: str, moving_now: bool, moves_ever: bool, has_rider: bool) -> list[str]:
    """Attribute names of an annotation."""
    if category in ("vehicle.bicycle", "vehicle.motorcycle"):
        return ["cycle.with_rider" if has_rider else "cycle.without_rider"]
    if category.startswith("vehicle"):
        return ["vehicle.moving" if moving_now else "vehicle.stopped" if moves_ever else "vehicle.parked"]
    if category.startswith("human.pedestrian"):
        return ["pedestrian.moving" if moving_now else "pedestrian.standing"]
    return []


class SceneTables:
    """Rows of one scene.

    Args:
        name: of the scene. key: unique name of the simulated city; root of all tokens.
        description: of the scene.
    """

    def __init__(self, name: str, key: str, description: str) -> None:
        self.name, self.key, self.description = name, key, description
        self.rows: dict[str, list[dict]] = {table: [] for table in TABLES}
        self._channels: dict[str, list[dict]] = {}

    def token(self, *parts: object) -> str:
        return token(self.key, *parts)

    def add_log(self, map_file: str, date: str) -> None:
        """The scene's own log and map."""
        log = self.token("log")
        self.rows["log"] = [
            {"token": log, "logfile": self.key, "vehicle": "sim", "date_captured": date, "location": f"city-{self.key}"}
        ]
        self.rows["map"] = [
            {"token": self.token("map"), "log_tokens": [log], "category": "semantic_prior", "filename": map_file}
        ]

    def add_camera(self, camera: Camera) -> None:
        """A lens that distorts has two fields more than nuScenes' rows, named as in sensor_msgs/CameraInfo."""
        self._add_sensor(camera.name, camera.ego_from_cam, camera.intrinsics.tolist())
        if camera.distortion:
            lens = {"distortion_model": camera.distortion_model, "distortion": list(camera.distortion)}
            self.rows["calibrated_sensor"][-1] |= lens

    def add_lidar(self, ego_from_lidar: Array) -> None:
        self._add_sensor(LIDAR, ego_from_lidar, [])

    def _add_sensor(self, channel: str, ego_from_sensor: Array, intrinsics: list) -> None:
        self.rows["calibrated_sensor"].append(
            {
                "token": self.token("calibration", channel),
                "sensor_token": token("sensor", channel),
                **pose_fields(ego_from_sensor),
                "camera_intrinsic": intrinsics,
            }
        )

    def sample_token(self, keyframe: int) -> str:
        return self.token("sample", keyframe)

    def add_samples(self, stamps_us: list[int]) -> None:
        """All keyframes, linked, and the scene itself."""
        tokens = [self.sample_token(k) for k in range(len(stamps_us))]
        scene = self.token("scene")
        for k, stamp in enumerate(stamps_us):
            row = {"token": tokens[k], "timestamp": stamp, "scene_token": scene}
            self.rows["sample"].append(row | _links(tokens, k))
        self.rows["scene"] = [
            {
                "token": scene,
                "log_token": self.token("log"),
                "nbr_samples": len(tokens),
                "first_sample_token": tokens[0],
                "last_sample_token": tokens[-1],
                "name": self.name,
                "description": self.description,
            }
        ]

    def add_data(
        self, channel: str, stamp_us: int, keyframe: int, is_key: bool, file: str, size: tuple[int, int], pose: Array
    ) -> None:
        """One image or sweep: `pose` is world_from_ego at its stamp; size (width, height), (0, 0) for the LiDAR."""
        data = self.token("data", channel, stamp_us)
        self.rows["ego_pose"].append({"token": data, "timestamp": stamp_us, **pose_fields(pose)})
        row = {
            "token": data,
            "sample_token": self.sample_token(keyframe),
            "ego_pose_token": data,
            "calibrated_sensor_token": self.token("calibration", channel),
            "timestamp": stamp_us,
            "fileformat": "jpg" if channel != LIDAR else "pcd",
            "is_key_frame": is_key,
            "height": size[1],
            "width": size[0],
            "filename": file,
        }
        self._channels.setdefault(channel, []).append(row)

    def add_instance(self, actor: int, category: str, boxes: list[dict]) -> None:
        """One object and its boxes at consecutive keyframes.

        Args:
            boxes: each with keyframe, pose (centre of the box in the world), size_m (w, l, h), visible (0..1),
                lidar_points, attributes.
        """
        instance = self.token("instance", actor)
        tokens = [self.token("annotation", actor, box["keyframe"]) for box in boxes]
        for i, box in enumerate(boxes):
            row = {
                "token": tokens[i],
                "sample_token": self.sample_token(box["keyframe"]),
                "instance_token": instance,
                "visibility_token": visibility_token(box["visible"]),
                "attribute_tokens": [token("attribute", name) for name in box["attributes"]],
                **pose_fields(box["pose"]),
                "size": [round(float(v), 4) for v in box["size_m"]],
                "num_lidar_pts": box["lidar_points"],
                "num_radar_pts": 0,
            }
            self.rows["sample_annotation"].append(row | _links(tokens, i))
        self.rows["instance"].append(
            {
                "token": instance,
                "category_token": token("category", category),
                "nbr_annotations": len(tokens),
                "first_annotation_token": tokens[0],
                "last_annotation_token": tokens[-1],
            }
        )

    def finish(self) -> dict[str, list[dict]]:
        """All rows, each channel's data linked in time."""
        for rows in self._channels.values():
            tokens = [row["token"] for row in rows]
            self.rows["sample_data"] += [row | _links(tokens, i) for i, row in enumerate(rows)]
        return self.rows


def _links(tokens: list[str], i: int) -> dict:
    return {"prev": tokens[i - 1] if i else "", "next": tokens[i + 1] if i + 1 < len(tokens) else ""}


def shared_rows(cameras: Sequence[str] = ()) -> dict[str, list[dict]]:
    """Rows that all scenes share; `cameras` are names that neither nuScenes nor random rigs have."""
    return {
        "category": [{"token": token("category", n), "name": n, "description": ""} for n in CATEGORIES],
        "attribute": [{"token": token("attribute", n), "name": n, "description": ""} for n in ATTRIBUTES],
        "visibility": [
            {"token": t, "level": level, "description": f"visibility of whole object is between {low} and {high}%"}
            for t, (level, low, high) in VISIBILITY.items()
        ],
        "sensor": [
            {"token": token("sensor", c), "channel": c, "modality": "lidar" if c == LIDAR else "camera"}
            for c in dict.fromkeys((*CAMERAS, *NUMBERED, *cameras, LIDAR))
        ],
    }


def merge(scenes: list[dict[str, list[dict]]], out: Path, cameras: Sequence[str] = ()) -> None:
    """Write the version folder `out` with the tables of all scenes, in the order given; `cameras` as `shared_rows`."""
    shared, used = shared_rows(cameras), {row["sensor_token"] for scene in scenes for row in scene["calibrated_sensor"]}
    shared["sensor"] = [row for row in shared["sensor"] if row["token"] in used]
    for table in TABLES:
        rows = shared.get(table) or [row for scene in scenes for row in scene[table]]
        write_atomically(out / f"{table}.json", json.dumps(rows, separators=(",\n ", ": ")).encode())
