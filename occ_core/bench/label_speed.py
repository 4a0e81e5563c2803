"""Measures how long labels take without the teachers: ours, plain numpy and Open3D on the same maps, in the same
run."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from occ_core.camera import Camera, Rig
from occ_core.frame import Frame
from occ_core.geometry import pose
from occ_core.grid import OCC3D_GRID
from occ_core.labels.fuse import Fuser
from occ_core.labels.lift import Lifter
from occ_core.labels.recipes import PRESETS
from occ_core.labels.visibility import ray_step_px
from occ_core.taxonomy import OCC3D
from occ_core.teachers.base import ClassMap, DepthMap
from occ_core.world.sensors import nuscenes_rig

ROAD, WALL, FREE = OCC3D.id_of("driveable_surface"), OCC3D.id_of("manmade"), OCC3D.free_id
WALLS = np.array([[0, 1, 0, 9.0], [0, -1, 0, 8.0], [1, 0, 0, 120.0], [-1, 0, 0, 30.0]])  # normal, distance; 7 m high
Maps = tuple[dict[str, ClassMap], dict[str, DepthMap]]


def bench_labels(height: int = 450, width: int = 800, frames: int = 14, repeats: int = 5) -> dict[str, Any]:
    """Milliseconds a keyframe, median and all, of a drive through a canyon of walls, six cameras.

    `keyframe`: lift, vote and cast rays for one frame, and decide its label. `window`: what one more keyframe of a
    running scene costs when each label fuses `frames` of them; the neighbours' evidence are there already.
    """
    rig = nuscenes_rig((width, height), seed=0)
    drive = [_frame(rig, number) for number in range(frames)]
    maps = [_maps(frame) for frame in drive]
    recipe = PRESETS["best"]
    lifter, fuser = Lifter(recipe, OCC3D_GRID, OCC3D), Fuser(recipe, OCC3D_GRID, OCC3D)
    evidence_by_frame = [lifter.lift(frame, *pair) for frame, pair in zip(drive, maps, strict=True)]  # compiles, too
    fuser.fuse(evidence_by_frame[0], [])

    def window() -> None:
        fuser.fuse(lifter.lift(drive[-1], *maps[-1]), evidence_by_frame[:-1])

    own = Fuser(recipe, OCC3D_GRID, OCC3D)
    rows: dict[str, Any] = {
        "keyframe": _time(lambda: own.fuse(lifter.lift(drive[0], *maps[0]), []), repeats),
        "window": _time(window, repeats),
        "numpy": _time(lambda: plain_label(drive[0], maps[0]), 1),
    }
    rows["open3d"] = _open3d(drive[0], maps[0], repeats)
    return {
        "maps": f"6 x {height} x {width}",
        "window_frames": frames,
        "ms": rows,
        "megabytes_a_frame_kept": float(np.mean([evidence.nbytes for evidence in evidence_by_frame])) / 1e6,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _time(work: Callable[[], object], repeats: int) -> dict[str, Any]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - start))
    return {"median": float(np.median(times)), "all": times}


def _frame(rig: Rig, number: int) -> Frame:
    at = pose((5.0 * number, 0.3 * number, 0.0), (np.cos(0.01 * number), 0, 0, np.sin(0.01 * number)))
    names = rig.names
    return Frame(
        stamp_ns=number * 500_000_000, world_from_ego=at, rig=rig,
        images={camera.name: np.zeros((camera.size[1], camera.size[0], 3), dtype=np.uint8) for camera in rig},
        camera_stamp_ns=dict.fromkeys(names, number * 500_000_000), camera_world_from_ego=dict.fromkeys(names, at),
        token=f"frame{number}",
    )  # fmt: skip


def _maps(frame: Frame) -> Maps:
    classes, depths = {}, {}
    for camera in frame.rig:
        depth_m, class_id = canyon(camera, frame.world_from_ego @ camera.ego_from_cam)
        ones = np.ones(depth_m.shape, dtype=np.float32)
        classes[camera.name], depths[camera.name] = ClassMap(class_id, ones), DepthMap(depth_m, ones)
    return classes, depths


def canyon(camera: Camera, world_from_cam: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exact depth float32 (h, w) and class uint8 (h, w): a road between walls 7 m high, sky above."""
    rays = camera.rays(camera.pixel_grid()) @ world_from_cam[:3, :3].T
    origin = world_from_cam[:3, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = np.where(rays[:, 2] < 0, -origin[2] / rays[:, 2], np.inf)
        class_id = np.where(np.isinf(depth), FREE, ROAD).astype(np.uint8)
        for wall in WALLS:
            t = (wall[3] - origin @ wall[:3]) / (rays @ wall[:3])
            hit = (t > 0) & (t < depth) & (origin[2] + t * rays[:, 2] < 7.0)
            depth, class_id = np.where(hit, t, depth), np.where(hit, WALL, class_id).astype(np.uint8)
    shape = (camera.size[1], camera.size[0])
    return depth.reshape(shape).astype(np.float32), class_id.reshape(shape)


def plain_label(frame: Frame, maps: Maps) -> tuple[np.ndarray, np.ndarray]:
    """One frame's label and observed cells in plain numpy: samples every 0.1 m along rays instead of a traversal."""
    grid = OCC3D_GRID
    votes = np.zeros((*grid.shape, len(OCC3D)), dtype=np.int64)
    passed = np.zeros(grid.shape, dtype=np.bool_)
    for camera in frame.rig:
        depth_m, class_id = maps[1][camera.name].depth_m, maps[0][camera.name].class_id
        cam = frame.ego_from_camera_at_its_stamp(camera.name)
        slopes = (camera.rays(camera.pixel_grid()) @ cam[:3, :3].T).reshape(*depth_m.shape, 3)
        hit = np.isfinite(depth_m)
        index, inside = grid.index_of(cam[:3, 3] + slopes[hit] * depth_m[hit][:, None])
        np.add.at(votes, (*index[inside].T, class_id[hit][inside]), 1)
        step = ray_step_px(float(camera.intrinsics[0, 0]), grid)
        ends, thin = depth_m[step // 2 :: step, step // 2 :: step], slopes[step // 2 :: step, step // 2 :: step]
        for at in np.arange(0.0, 60.0, 0.1):
            index, inside = grid.index_of(cam[:3, 3] + thin[ends > at + 0.4] * at)
            passed[tuple(index[inside].T)] = True
    occupied = votes.any(axis=-1)
    return np.where(occupied, votes.argmax(axis=-1), FREE).astype(np.uint8), occupied | passed


def _open3d(frame: Frame, maps: Maps, repeats: int) -> dict[str, Any] | str:
    """The same with Open3D's own parts: unprojection, voxels with majority by trace, carving by depth maps."""
    try:
        import open3d
    except ImportError as error:
        return f"not measured: {error}"
    grid = OCC3D_GRID
    lower, upper = np.array(grid.origin_m), np.array(grid.upper_m)
    side = lower, upper - lower

    def label() -> np.ndarray:
        points, classes = [], []
        dense = open3d.geometry.VoxelGrid.create_dense(side[0], np.zeros(3), grid.voxel_size_m, *side[1])
        for camera in frame.rig:
            depth_m = np.where(np.isfinite(maps[1][camera.name].depth_m), maps[1][camera.name].depth_m, 0)
            image = open3d.geometry.Image(np.ascontiguousarray(depth_m, dtype=np.float32))
            k = open3d.camera.PinholeCameraIntrinsic(*camera.size, camera.intrinsics)
            cam_from_ego = np.linalg.inv(frame.ego_from_camera_at_its_stamp(camera.name))
            cloud = open3d.geometry.PointCloud.create_from_depth_image(image, k, cam_from_ego, 1.0, 1000.0)
            points.append(np.asarray(cloud.points))
            classes.append(maps[0][camera.name].class_id[depth_m > 0])
            parameters = open3d.camera.PinholeCameraParameters()
            parameters.intrinsic, parameters.extrinsic = k, cam_from_ego
            dense.carve_depth_map(image, parameters, True)
        cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(np.concatenate(points)))
        class_id = np.concatenate(classes)
        _, _, members = cloud.voxel_down_sample_and_trace(grid.voxel_size_m, lower, upper, False)
        return np.array([np.bincount(class_id[np.asarray(of)]).argmax() for of in members])

    return _time(label, repeats)
