"""Analytic streets for the tests of labels: a road at z = 0 and a wall across it, and teachers that know them."""

from __future__ import annotations

import numpy as np

from occ_core.camera import Camera, Rig
from occ_core.frame import Frame
from occ_core.geometry import pose
from occ_core.grid import VoxelGrid
from occ_core.taxonomy import OCC3D
from occ_core.teachers.base import ClassMap, DepthMap, Teachers

OPTICAL = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # ego_from_cam of a camera that looks forward
ROAD, WALL, CAR = OCC3D.id_of("driveable_surface"), OCC3D.id_of("manmade"), OCC3D.id_of("car")
SMALL_GRID = VoxelGrid((-8.0, -8.0, -1.0), 0.4, (40, 40, 16))


def camera(name: str = "CAM_FRONT", size: tuple[int, int] = (96, 64), height_m: float = 1.5) -> Camera:
    """Looks along +x of the ego, 60 px of focal length."""
    ego_from_cam = np.eye(4)
    ego_from_cam[:3, :3], ego_from_cam[:3, 3] = OPTICAL, (0.1, 0.05, height_m)
    k = np.array([[60.0, 0, size[0] / 2 - 0.3], [0, 60.0, size[1] / 2 - 0.2], [0, 0, 1]])
    return Camera(name, k, size, ego_from_cam)


def frame(number: int = 0, world_from_ego: np.ndarray | None = None, cameras: tuple[Camera, ...] = ()) -> Frame:
    """Frame `number` of a drive at 2 Hz; stands still at the origin unless told where it is."""
    rig = Rig(cameras or (camera(),))
    at = np.eye(4) if world_from_ego is None else world_from_ego
    return Frame(
        stamp_ns=number * 500_000_000,
        world_from_ego=at,
        rig=rig,
        images={c.name: np.zeros((c.size[1], c.size[0], 3), dtype=np.uint8) for c in rig},
        camera_stamp_ns={c.name: number * 500_000_000 for c in rig},
        camera_world_from_ego={c.name: at for c in rig},
        token=f"token{number}",
        scene="scene",
    )


def drive(count: int, speed_m_s: float = 1.0) -> list[Frame]:
    """Frames along +x, turning a little."""
    yaws = 0.03 * np.arange(count)
    places = [pose((0.5 * speed_m_s * n, 0.1 * n, 0), (np.cos(y / 2), 0, 0, np.sin(y / 2))) for n, y in enumerate(yaws)]
    return [frame(n, at) for n, at in enumerate(places)]


def look_at_street(of: Frame, name: str, wall_x_m: float = 6.1) -> tuple[np.ndarray, np.ndarray]:
    """Exact depth float32 (h, w) and class uint8 (h, w): the road z = 0 and the wall x = `wall_x_m` of the world."""
    cam = of.rig[name]
    world_from_cam = of.camera_world_from_ego[name] @ cam.ego_from_cam
    rays = cam.rays(cam.pixel_grid()) @ world_from_cam[:3, :3].T
    x, _, z = world_from_cam[:3, 3]
    with np.errstate(divide="ignore"):
        road = np.where(rays[:, 2] < 0, -z / rays[:, 2], np.inf)
        wall = np.where(rays[:, 0] > 0, (wall_x_m - x) / rays[:, 0], np.inf)
    shape = (cam.size[1], cam.size[0])
    depth = np.minimum(road, wall)
    kind = np.where(np.isinf(depth), OCC3D.free_id, np.where(road < wall, ROAD, WALL))
    return depth.reshape(shape).astype(np.float32), kind.reshape(shape).astype(np.uint8)


def maps(depth_m: np.ndarray, class_id: np.ndarray) -> tuple[ClassMap, DepthMap]:
    """Maps that are sure of themselves."""
    return (
        ClassMap(class_id.astype(np.uint8), np.ones(class_id.shape, dtype=np.float32)),
        DepthMap(depth_m.astype(np.float32), np.ones(depth_m.shape, dtype=np.float32)),
    )


class StreetTeacher:
    """Knows the street; `spoil[token] = function(depth, class) -> (depth, class)` spoils a frame's maps."""

    version = "street 1"

    def __init__(self, spoil=None):
        self.spoil = spoil or {}
        self.asked: list[str] = []

    def _maps(self, of: Frame) -> dict[str, tuple[ClassMap, DepthMap]]:
        change = self.spoil.get(of.token, lambda depth, kind: (depth, kind))
        return {name: maps(*change(*look_at_street(of, name))) for name in of.images}

    def classes(self, of: Frame) -> dict[str, ClassMap]:
        self.asked.append(of.token)
        return {name: pair[0] for name, pair in self._maps(of).items()}

    def depth(self, of: Frame) -> dict[str, DepthMap]:
        return {name: pair[1] for name, pair in self._maps(of).items()}


def street_teachers(spoil=None) -> Teachers:
    teacher = StreetTeacher(spoil)
    return Teachers(teacher, teacher)
