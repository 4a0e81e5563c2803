"""Writes a small data set in nuScenes v1.0 layout, with sweeps, LiDAR, boxes and Occ3D labels; not a test."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np

from occ_core.geometry import pose, quaternion_from_rotation
from occ_core.grid import OCC3D_GRID
from occ_core.occupancy import Occupancy, save_occ3d
from occ_core.taxonomy import OCC3D

SIZE = (64, 48)
START_US = 1_700_000_000_000_000
OPTICAL = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # ego_from_cam of a camera that looks forward
CHANNELS = {"CAM_FRONT": -35_000, "CAM_BACK": -10_000, "LIDAR_TOP": 0}  # microseconds against the keyframe


def world_from_ego(time_us: int) -> np.ndarray:
    """The drive: a slow left turn at 8 m/s, then anything that follows from it."""
    s = (time_us - START_US) / 1e6
    yaw = 0.2 * s
    return pose((600 + 8 * s, 1600 + 0.8 * s * s, 0.0), (np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)))


def token(*parts: object) -> str:
    return hashlib.md5(" ".join(map(str, parts)).encode()).hexdigest()


def make(
    root: Path,
    keyframes: int = 3,
    sweeps: int = 2,
    lidar: bool = True,
    boxes: bool = True,
    truth: bool = True,
    scenes: int = 1,
):
    """`sweeps` files of each sensor between two keyframes 0.5 s apart. Returns the sample tokens, scene after scene."""
    rng = np.random.default_rng(7)
    channels = {name: offset for name, offset in CHANNELS.items() if lidar or name != "LIDAR_TOP"}
    samples = [token("sample", number) for number in range(scenes * keyframes)]
    tables = _fixed_tables(channels, samples, keyframes)
    for place, sample in enumerate(samples):
        scene, number = divmod(place, keyframes)
        time_us = START_US + scene * 100_000_000 + number * 500_000
        tables["sample"].append({"token": sample, "timestamp": time_us, "scene_token": token("scene", scene),
                                 "prev": samples[place - 1] if number else "",
                                 "next": samples[place + 1] if number + 1 < keyframes else ""})  # fmt: skip
        for channel, offset in channels.items():
            for step in range(sweeps + 1 if number + 1 < keyframes else 1):
                at = time_us + offset + step * 500_000 // (sweeps + 1)
                _sensor_file(root, tables, rng, channel, sample, at, is_keyframe=step == 0)
        if boxes:
            _box(tables, sample, time_us)
        if truth:
            labels = np.full(OCC3D_GRID.shape, OCC3D.free_id, dtype=np.uint8)
            labels[:, :, 2] = OCC3D.id_of("driveable_surface")
            labels[120, 90:100, 3:7] = OCC3D.id_of("manmade")
            seen = rng.random(OCC3D_GRID.shape) < 0.1
            label = Occupancy(OCC3D_GRID, OCC3D, labels, seen, mask_lidar=rng.random(OCC3D_GRID.shape) < 0.2)
            save_occ3d(root / "gts" / f"scene-{scene + 1:04d}" / sample / "labels.npz", label)
    (root / "v1.0-mini").mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        (root / "v1.0-mini" / f"{name}.json").write_text(json.dumps(rows))
    (root / "maps").mkdir(exist_ok=True)
    cv2.imwrite(str(root / "maps/map.png"), np.zeros((8, 8), dtype=np.uint8))
    return samples


def _fixed_tables(channels: dict[str, int], samples: list[str], keyframes: int) -> dict[str, list[dict]]:
    sensors = [{"token": token("sensor", c), "channel": c, "modality": "lidar" if c == "LIDAR_TOP" else "camera"}
               for c in channels]  # fmt: skip
    back = OPTICAL * np.array([[-1.0], [-1], [1]])
    places = {"CAM_FRONT": (OPTICAL, (1.7, 0, 1.5)), "CAM_BACK": (back, (0.0, 0, 1.5)),
              "LIDAR_TOP": (np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]), (0.9, 0, 1.8))}  # fmt: skip
    k = [[40.0, 0, 31.5], [0, 41.0, 23.5], [0, 0, 1]]
    calibrations = [
        {"token": token("calibration", c), "sensor_token": token("sensor", c),
         "translation": list(places[c][1]), "rotation": quaternion_from_rotation(places[c][0]).tolist(),
         "camera_intrinsic": [] if c == "LIDAR_TOP" else k}
        for c in channels
    ]  # fmt: skip
    return {
        "sensor": sensors,
        "calibrated_sensor": calibrations,
        "scene": [{"token": token("scene", i), "log_token": token("log"), "nbr_samples": keyframes,
                   "name": f"scene-{i + 1:04d}", "first_sample_token": samples[i * keyframes],
                   "last_sample_token": samples[(i + 1) * keyframes - 1], "description": ""}
                  for i in range(len(samples) // keyframes)],
        "log": [{"token": token("log"), "logfile": "x", "vehicle": "x", "date_captured": "", "location": "x"}],
        "map": [{"token": token("map"), "category": "semantic_prior", "filename": "maps/map.png",
                 "log_tokens": [token("log")]}],
        "category": [{"token": token("category"), "name": "vehicle.car", "description": ""}],
        "instance": [{"token": token("instance"), "category_token": token("category"), "nbr_annotations": len(samples),
                      "first_annotation_token": "", "last_annotation_token": ""}],
        "attribute": [], "visibility": [], "sample": [], "sample_data": [], "ego_pose": [], "sample_annotation": [],
    }  # fmt: skip


def _sensor_file(root, tables, rng, channel: str, sample: str, at: int, is_keyframe: bool) -> None:
    is_lidar = channel == "LIDAR_TOP"
    folder = "samples" if is_keyframe else "sweeps"
    name = f"{folder}/{channel}/x__{channel}__{at}.{'pcd.bin' if is_lidar else 'jpg'}"
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    if is_lidar:
        points = rng.normal(0, 20, (200, 5)).astype(np.float32)
        points[:, 3], points[:, 4] = rng.integers(0, 256, 200), rng.integers(0, 32, 200)
        points.tofile(root / name)
    else:
        picture = rng.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
        cv2.imwrite(str(root / name), cv2.GaussianBlur(picture, (0, 0), 3))
    identity = token(channel, at)
    ego = world_from_ego(at)
    tables["ego_pose"].append({"token": identity, "timestamp": at, "translation": ego[:3, 3].tolist(),
                               "rotation": quaternion_from_rotation(ego[:3, :3]).tolist()})  # fmt: skip
    tables["sample_data"].append({
        "token": identity, "sample_token": sample, "ego_pose_token": identity, "timestamp": at,
        "calibrated_sensor_token": token("calibration", channel), "is_key_frame": is_keyframe, "filename": name,
        "fileformat": "pcd" if is_lidar else "jpg", "width": 0 if is_lidar else SIZE[0],
        "height": 0 if is_lidar else SIZE[1], "prev": "", "next": "",
    })  # fmt: skip


def _box(tables: dict[str, list[dict]], sample: str, time_us: int) -> None:
    place = world_from_ego(time_us) @ pose((12, 3, 0.8), (np.cos(0.3), 0, 0, np.sin(0.3)))
    tables["sample_annotation"].append({
        "token": token("annotation", sample), "sample_token": sample, "instance_token": token("instance"),
        "visibility_token": "", "attribute_tokens": [], "translation": place[:3, 3].tolist(), "size": [1.9, 4.6, 1.7],
        "rotation": quaternion_from_rotation(place[:3, :3]).tolist(), "prev": "", "next": "", "num_lidar_pts": 3,
        "num_radar_pts": 0,
    })  # fmt: skip
