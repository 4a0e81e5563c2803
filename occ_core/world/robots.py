"""The carriers of the sensors: nuScenes' car, or in each city a robot of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from occ_core.camera import Camera, Rig
from occ_core.geometry import Array
from occ_core.world.body import BLACK, BodyOcclusion, Hull, make_hull
from occ_core.world.classes import OWN_BODY
from occ_core.world.materials import METAL, RUBBER
from occ_core.world.sensors import CAMERAS, FULL_SIZE, LIDAR_EGO_M, NUMBERED, ego_from_lidar, mounted, nuscenes_rig
from occ_core.world.solids import Builder, Solids

RIGS = ("nuscenes", "random")
COUNT_SHARES = (0.12, 0.07, 0.09, 0.17, 0.12, 0.21, 0.07, 0.15)  # of rigs with 1, 2, ... 8 cameras
ASPECT_SHARES = {16 / 9: 0.4, 1936 / 1216: 0.3, 4 / 3: 0.3}
FOCAL = CAMERAS["CAM_FRONT"][2] / FULL_SIZE[0]  # of nuScenes' cameras, in widths of their images
FOCAL_FACTORS = (0.5, 2.0)  # of that: 103 to 35 degrees wide
HEIGHTS_M = (0.5, 2.3)
PITCH_DEG, ROLL_DEG = 8.0, 3.0  # at most
ON_ROOF = 0.75  # share of rigs on a ring over the roof; the others look out of the body's sides
MOST_HIDDEN = 0.3  # of an image, by the robot itself
ATTEMPTS = 100
LIDAR_ABOVE_M = 0.3  # the highest camera, of rigs of one's own
TURN_US, TURN_START_DEG = 50_000, 104.8  # the LiDAR's turn runs clockwise from there, as measured in scene-0061


@dataclass(frozen=True, eq=False)
class Robot:
    """A carrier of sensors.

    Attributes:
        rig: its cameras.
        lag_us: how long before the LiDAR stamp each camera fires, by name.
        ego_from_lidar: (4, 4), x right, y forward, z up at the LiDAR.
        body: what its cameras may see of itself, in the ego frame; None: nothing.
        lidar_sees_it: it is in the LiDAR's way, and gives no return.
    """

    rig: Rig
    lag_us: dict[str, int]
    ego_from_lidar: Array
    body: Solids | None = None
    lidar_sees_it: bool = True


def robot_with(rig: Rig, seed: int) -> Robot:
    """A car that cannot be seen, with the cameras of a rig of one's own, and a LiDAR above the middle of them.

    Each camera fires when the LiDAR's turn passes where it looks.
    """
    places_m = np.array([camera.ego_from_cam[:3, 3] for camera in rig])
    lidar_m = np.array([*places_m[:, :2].mean(axis=0), places_m[:, 2].max() + LIDAR_ABOVE_M])
    lags = {c.name: _lag_us(float(np.degrees(np.arctan2(*c.ego_from_cam[[1, 0], [2, 2]])))) for c in rig}
    return Robot(rig, lags, ego_from_lidar(seed, lidar_m), lidar_sees_it=False)


def robot_of(rig: str, size: tuple[int, int], seed: int) -> Robot:
    """The robot of a city's seed; `rig` is one of RIGS."""
    return nuscenes_car(size, seed) if rig == "nuscenes" else random_robot(size, seed)


def nuscenes_car(size: tuple[int, int], seed: int) -> Robot:
    """nuScenes' car, see `nuscenes_rig`."""
    lags = {name: lag_us for name, (*_, lag_us) in CAMERAS.items()}
    return Robot(nuscenes_rig(size, seed), lags, ego_from_lidar(seed, LIDAR_EGO_M))


def random_robot(size: tuple[int, int], seed: int) -> Robot:
    """A small robot, a car or a van with one to eight cameras, all drawn from the seed.

    CAM_0 looks most forward, the others follow clockwise. All its images have one size.

    Args:
        size: (width, height) px; the images have that many pixels, whatever their aspect.
    """
    rng = np.random.default_rng((seed, 111))
    hull, views = make_hull(rng), _views(rng, 1 + int(rng.choice(len(COUNT_SHARES), p=COUNT_SHARES)))
    aspect = float(rng.choice(list(ASPECT_SHARES), p=list(ASPECT_SHARES.values())))
    width, height = (2 * round(np.sqrt(size[0] * size[1] * r) / 2) for r in (aspect, 1 / aspect))
    lenses = [_intrinsics(rng, factor, (width, height)) for factor in _focal_factors(rng, len(views))]
    on_roof = bool(rng.random() < ON_ROOF)
    for _ in range(ATTEMPTS):
        seat = _seat(rng, hull, on_roof)
        cameras = [
            Camera(name, lens, (width, height), _pose(rng, seat, view, lens, height))
            for name, lens, view in zip(NUMBERED, lenses, views, strict=False)
        ]
        body = Solids.concatenate([hull.solids, seat.carrier])
        if max(hidden_shares(body, cameras)) <= MOST_HIDDEN:
            break
    lags = {camera.name: _lag_us(view.yaw_deg) for camera, view in zip(cameras, views, strict=True)}
    return Robot(Rig(tuple(cameras)), lags, ego_from_lidar(seed, seat.lidar_m), body)


def own_pixels(sight: BodyOcclusion, camera: Camera) -> np.ndarray:
    """Mark the pixels at whose centres the camera sees the body that `sight` was made of, bool (h, w)."""
    eye = camera.ego_from_cam[:3, 3]
    rays = camera.rays(camera.pixel_grid()) @ camera.ego_from_cam[:3, :3].T
    return sight.hidden(eye, eye + 30.0 * rays).reshape(camera.size[::-1])


def hidden_shares(body: Solids, cameras: list[Camera]) -> list[float]:
    """Share of each camera's image that the robot itself fills, by 32 x 24 samples."""
    sight = BodyOcclusion(body)
    return [float(own_pixels(sight, camera.resized((32, 24))).mean()) for camera in cameras]


class _View(NamedTuple):
    """Where a camera looks, in degrees to the left of forward, and how far it is moved to the left."""

    yaw_deg: float
    left_m: float


def _views(rng: np.random.Generator, count: int) -> list[_View]:
    """Evenly around, mostly to the front, or a stereo pair and the rest around; the most forward one first."""
    layout = str(rng.choice(["around", "front", "pair"], p=[0.55, 0.25, 0.2])) if count > 1 else "around"
    yaw: Array = np.zeros(count)
    left_m = np.zeros(count)
    if layout == "around":
        turned = count > 2 and rng.random() < 0.3
        yaw = 360.0 / count * (np.arange(count) + 0.5 * turned)
    elif layout == "front":
        back = 1 if count > 3 and rng.random() < 0.5 else 0
        reach = min(110.0, rng.uniform(12, 28) * count)
        yaw = np.concatenate([np.linspace(-reach, reach, count - back), np.full(back, 180.0)])
    else:
        yaw = np.concatenate([[0.0], 360.0 / (count - 1) * np.arange(count - 1)])
        left_m[:2] = np.array([0.5, -0.5]) * rng.uniform(0.1, 0.5)
    yaw = (yaw + rng.normal(0, 2.5 if layout != "pair" else 0.5, count) + 180) % 360 - 180
    clockwise = np.argsort(-yaw)
    first = int(np.argmin(np.abs(yaw[clockwise])))
    return [_View(float(yaw[i]), float(left_m[i])) for i in np.roll(clockwise, -first)]


def _focal_factors(rng: np.random.Generator, count: int) -> np.ndarray:
    """Focal lengths as multiples of nuScenes', (count,): all cameras have one lens, which covers the whole circle if
    there are enough of them; on some rigs the first camera has a longer one."""
    low, high = FOCAL_FACTORS
    if count > 1:
        high = float(np.clip(0.5 / np.tan(np.radians(0.4 * 360 / max(count, 3))) / FOCAL, 0.75, high))
    factors = np.exp(rng.uniform(np.log(low), np.log(high))) * np.exp(rng.normal(0, 0.01, count))
    if count > 1 and rng.random() < 0.25:
        factors[0] *= rng.uniform(1.2, 2.2)
    return np.clip(factors, *FOCAL_FACTORS)


def _intrinsics(rng: np.random.Generator, factor: float, size: tuple[int, int]) -> Array:
    """The matrix (3, 3), px; images are cut out of what the lens shows, so the principal point is off their middle."""
    f = factor * FOCAL * size[0]
    cx, cy = (np.array(size) - 1) / 2 + rng.uniform(-1, 1, 2) * (0.04, 0.06) * np.array(size)
    return np.array([[f, 0, cx], [0, f, cy], [0, 0, 1]])


@dataclass(frozen=True, eq=False)
class _Seat:
    """Where cameras are mounted: on a rectangle (lower and upper x, y) at a height, looking outwards and down by
    `pitch_deg`. `carrier` is what holds them, `lidar_m` the LiDAR's position."""

    rectangle_m: np.ndarray
    height_m: float
    pitch_deg: float
    carrier: Solids
    lidar_m: np.ndarray


def _seat(rng: np.random.Generator, hull: Hull, on_roof: bool) -> _Seat:
    """Choose a mount: a ring over the roof, or the hull's sides."""
    roof_m = hull.upper_m[2]
    if on_roof:
        height_m = roof_m + rng.uniform(0.04, 0.35)
        rectangle_m = _scaled(hull.roof_m, rng.uniform(0.0, 0.9))
    else:
        height_m = roof_m * rng.uniform(0.45, 0.95)
        rectangle_m = np.stack([hull.lower_m[:2], hull.upper_m[:2]]) + np.array([[-1.0], [1.0]]) * rng.uniform(
            0.02, 0.1
        )
    height_m = float(np.clip(height_m, *HEIGHTS_M))
    b, top_m = Builder(), max(roof_m, height_m)
    if on_roof and rng.random() < 0.6:  # a rack below the cameras
        _plate(b, _scaled(rectangle_m, rng.uniform(0.85, 1.1)), height_m - 0.08, 0.05)
    if on_roof and rng.random() < 0.3:  # a plate above them, as LiDARs stand on
        top_m = height_m + rng.uniform(0.12, 0.25)
        _plate(b, _scaled(rectangle_m, rng.uniform(0.9, 1.15)), top_m, 0.05)
    lidar_m = np.array([*hull.roof_m.mean(axis=0), top_m + rng.uniform(0.25, 0.5)])
    foot = (*lidar_m[:2], (roof_m + lidar_m[2] - 0.06) / 2)
    b.cylinder(foot, (0.09, 0.09, lidar_m[2] - 0.06 - roof_m), OWN_BODY, RUBBER, BLACK)
    return _Seat(rectangle_m, height_m, rng.normal(1.5, 3.0), b.solids(), lidar_m)


def _scaled(rectangle_m: np.ndarray, factor: float) -> np.ndarray:
    middle = rectangle_m.mean(axis=0)
    return middle + (rectangle_m - middle) * factor


def _plate(b: Builder, rectangle_m: np.ndarray, z_m: float, thick_m: float) -> None:
    size = (*(rectangle_m[1] - rectangle_m[0]), thick_m)
    b.box((*rectangle_m.mean(axis=0), z_m), size, OWN_BODY, METAL, BLACK)


def _pose(rng: np.random.Generator, seat: _Seat, view: _View, lens: Array, height_px: int) -> Array:
    """ego_from_cam (4, 4): where the view's direction leaves the seat's rectangle."""
    yaw = np.radians(view.yaw_deg)
    ahead, left = np.array([np.cos(yaw), np.sin(yaw)]), np.array([-np.sin(yaw), np.cos(yaw)])
    half = (seat.rectangle_m[1] - seat.rectangle_m[0]) / 2
    edge = seat.rectangle_m.mean(axis=0) + ahead * (half / np.maximum(np.abs(ahead), 1e-9)).min()
    most_deg = min(PITCH_DEG, np.degrees(2 * np.arctan(height_px / 2 / lens[0, 0])) / 5)  # the horizon stays in view
    pitch_deg = np.clip(seat.pitch_deg + rng.normal(0, 1.0), -most_deg, most_deg)
    roll_deg = np.clip(rng.normal(0, 1.0), -ROLL_DEG, ROLL_DEG)
    return mounted((*(edge + left * view.left_m), seat.height_m), np.radians([view.yaw_deg, pitch_deg, roll_deg]))


def _lag_us(yaw_deg: float) -> int:
    """A camera fires when the LiDAR's turn, which ends at its stamp, passes where it looks."""
    return TURN_US - round((TURN_START_DEG - yaw_deg) % 360 / 360 * TURN_US)
