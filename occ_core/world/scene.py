"""One simulated scene: its images, sweeps, truth and table rows. The unit of work of `occ world make`."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import cv2
import numpy as np

from occ_core.camera import Camera, Rig
from occ_core.errors import InvalidInput
from occ_core.files import write_atomically
from occ_core.geometry import Array, apply
from occ_core.occupancy import save_occ3d
from occ_core.world import sensors
from occ_core.world.body import BodyOcclusion
from occ_core.world.boxes import SceneBoxes
from occ_core.world.city import City, build_city
from occ_core.world.isp import IspModel, apply_isp, encode
from occ_core.world.lidar import sweep
from occ_core.world.nuscenes_tables import SceneTables
from occ_core.world.own_rig import read_rig
from occ_core.world.render import RenderedImage, render
from occ_core.world.robots import RIGS, own_pixels, robot_of, robot_with
from occ_core.world.tracer import Tracer
from occ_core.world.truth import occupancy_truth

WORLD_VERSION = 1  # raise it when the same settings no longer give the same files
SCENES_PER_SEED = 10_000
MAP_M = 0.1  # metres per pixel of map images, the devkit's default
DRIVEABLE = 11
FIRST_S, SCENE_SPAN_S, SPAN_S = 1_500_000_000, 200, 600_000_000  # 2017 to 2036: ROS stamps end in 2038


@dataclass(frozen=True)
class Settings:
    """The settings of a simulated data set; `scenes` may grow later, the others must not change within one folder.

    Attributes:
        scenes: number of scenes. seed: another seed gives other cities, none shared.
        width, height: of the images, px; of a rig of one's own the rig says it. keyframes: per scene, 2 Hz.
        sweeps: also write the frames between keyframes (cameras `camera_hz`, LiDAR 20 Hz).
        rig: "nuscenes", or "random": another robot in each city; else the fingerprint of the rig that lies in the
            folder, see `own_rig`.
        camera_hz: even, so that keyframes are among the images.
    """

    scenes: int = 1
    seed: int = 0
    width: int = 800
    height: int = 450
    keyframes: int = 40
    sweeps: bool = False
    rig: str = "nuscenes"
    camera_hz: int = round(sensors.CAMERA_PER_KEYFRAME / sensors.KEYFRAME_S)
    version: int = field(default=WORLD_VERSION)

    def __post_init__(self) -> None:
        limits = {
            "scenes": (1, SCENES_PER_SEED), "seed": (0, 400_000), "width": (64, 3200), "height": (36, 1800),
            "keyframes": (1, 76), "camera_hz": (2, 60),
        }  # fmt: skip
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InvalidInput(f"{name} must be {low}..{high}, got {value}")
        if not (self.rig in RIGS or re.fullmatch("[0-9a-f]{16}", self.rig)):
            raise InvalidInput(f"rig must be {' or '.join(RIGS)}, got '{self.rig}'")
        if self.camera_hz % 2:
            raise InvalidInput(f"camera_hz must be even, for keyframes are 2 Hz, got {self.camera_hz}")

    def fixed(self) -> dict:
        """The settings that must stay the same within one folder; those that older sets did not have are left out where
        they have the old meaning."""
        usual = {"rig": Settings.rig, "camera_hz": Settings.camera_hz}
        left_out = {"scenes", *(key for key, value in usual.items() if getattr(self, key) == value)}
        return {key: value for key, value in asdict(self).items() if key not in left_out}

    def city_seed(self, index: int) -> int:
        return self.seed * SCENES_PER_SEED + index


def scene_name(index: int) -> str:
    """Name of scene number `index` (from 0): scene-0001, ..."""
    return f"scene-{index + 1:04d}"


def manifest_path(out: Path, index: int) -> Path:
    """Written last: a scene with a manifest is complete."""
    return out / "scenes" / f"{scene_name(index)}.json"


def write_scene(out: Path, settings: Settings, index: int, step: Callable[[], None] = lambda: None) -> None:
    """Make one scene below `out`; `step` is called after each keyframe and may raise to stop.

    Every file is written whole or not at all, the manifest last. The same settings give the same bytes.
    """
    city = build_city(settings.city_seed(index), settings.keyframes * sensors.KEYFRAME_S + 1.0)
    writer = _SceneWriter(out, settings, index, city)
    for k in range(settings.keyframes):
        writer.keyframe(k)
        step()
    writer.finish()


class _SceneWriter:
    def __init__(self, out: Path, settings: Settings, index: int, city: City) -> None:
        self.out, self.settings, self.index, self.city = out, settings, index, city
        self.name, self.log = scene_name(index), f"sim-{city.seed:010d}"
        self.start_us = (FIRST_S + city.seed * SCENE_SPAN_S % SPAN_S) * 1_000_000
        if settings.rig in RIGS:
            self.robot = robot_of(settings.rig, (settings.width, settings.height), city.seed)
        else:
            self.robot = robot_with(read_rig(out), city.seed)
        self.rig: Rig = self.robot.rig
        self.isps = [IspModel.of(city.seed, i) for i in range(len(self.rig))]
        self.tracer = Tracer(city, self.robot.body)
        # Map look-ups of the devkit need coordinates that start at the lower left corner of the map image.
        self.table_from_world = np.eye(4)
        self.table_from_world[:2, 3] = -np.asarray(city.ground.origin_m)
        key = f"{self.log}-v{settings.version}" + ("" if settings.rig == "nuscenes" else f"-{settings.rig}")
        self.tables = SceneTables(self.name, key, f"simulated city, {city.weather.name}")
        self.boxes = SceneBoxes(city)
        self._add_fixed_rows()
        k, sweeps = settings.keyframes, settings.sweeps
        often = round(settings.camera_hz * sensors.KEYFRAME_S)
        lags = self.robot.lag_us.items()
        self.camera_stamps = {c: sensors.camera_stamps_us(lag_us, k, sweeps, often) for c, lag_us in lags}
        self.lidar_stamps = sensors.lidar_stamps_us(k, sweeps)

    def _add_fixed_rows(self) -> None:
        map_file = f"maps/{self.log}.png"
        date = datetime.fromtimestamp(self.start_us / 1e6, tz=timezone.utc).strftime("%Y-%m-%d")
        self.tables.add_log(map_file, date)
        _write_map(self.city, self.out / map_file)
        for camera in self.rig:
            self.tables.add_camera(camera)
        if self.robot.body is not None:
            self._write_masks(BodyOcclusion(self.robot.body))
        self.tables.add_lidar(self.robot.ego_from_lidar)
        start = round(sensors.start_s() * 1e6)
        step = round(sensors.KEYFRAME_S * 1e6)
        self.tables.add_samples([self.start_us + start + k * step for k in range(self.settings.keyframes)])

    def _write_masks(self, sight: BodyOcclusion) -> None:
        """White where a camera sees the robot itself, as its owner would draw it once; no file where it does not."""
        for camera in self.rig:
            mine = own_pixels(sight, camera)
            if mine.any():
                image = cv2.imencode(".png", np.where(mine, np.uint8(255), np.uint8(0)))[1]
                write_atomically(self.out / "masks" / self.name / f"{camera.name}.png", image.tobytes())

    def keyframe(self, k: int) -> None:
        """Everything that belongs to keyframe `k`: the sweeps before it, its images and LiDAR, its truth."""
        views: dict[str, tuple[RenderedImage, float]] = {}
        for i, camera in enumerate(self.rig):
            for stamp_us, at, is_key in self.camera_stamps[camera.name]:
                if at == k:
                    view = self._image(i, camera, stamp_us, k, is_key)
                    if is_key:
                        views[camera.name] = view, stamp_us * 1e-6
        for stamp_us, at, is_key in self.lidar_stamps:
            if at == k:
                points = self._sweep(stamp_us, k, is_key)
        t_s = sensors.start_s() + k * sensors.KEYFRAME_S
        token = self.tables.sample_token(k)
        self.boxes.add(k, t_s, views, self.rig, apply(self._world_from_lidar(t_s), points[:, :3]))
        self._write_truth(token, t_s, {name: view for name, (view, _) in views.items()})

    def _image(self, i: int, camera: Camera, stamp_us: int, k: int, is_key: bool) -> RenderedImage:
        t_s = stamp_us * 1e-6
        world_from_ego = self.city.world_from_ego(t_s)
        view = render(self.tracer.at(t_s), camera, world_from_ego @ camera.ego_from_cam)
        rng = np.random.default_rng((self.city.seed, 106, i, stamp_us))
        file = self._file(camera.name, stamp_us, is_key, "jpg")
        write_atomically(self.out / file, encode(apply_isp(view.radiance, self.isps[i], self.city.weather, rng)))
        self._add_data(camera.name, stamp_us, k, is_key, file, camera.size, world_from_ego)
        return view

    def _sweep(self, stamp_us: int, k: int, is_key: bool) -> Array:
        t_s = stamp_us * 1e-6
        rng = np.random.default_rng((self.city.seed, 107, stamp_us))
        points = sweep(self.tracer.at(t_s), self._world_from_lidar(t_s), rng, self.robot.lidar_sees_it)
        file = self._file(sensors.LIDAR, stamp_us, is_key, "pcd.bin")
        write_atomically(self.out / file, points.tobytes())
        self._add_data(sensors.LIDAR, stamp_us, k, is_key, file, (0, 0), self.city.world_from_ego(t_s))
        return points

    def _world_from_lidar(self, t_s: float) -> Array:
        return self.city.world_from_ego(t_s) @ self.robot.ego_from_lidar

    def _file(self, channel: str, stamp_us: int, is_key: bool, ending: str) -> str:
        folder = "samples" if is_key else "sweeps"
        return f"{folder}/{channel}/{self.log}__{channel}__{self.start_us + stamp_us}.{ending}"

    def _add_data(self, channel, stamp_us, k, is_key, file, size, world_from_ego) -> None:
        table_from_ego = self.table_from_world @ world_from_ego
        self.tables.add_data(channel, self.start_us + stamp_us, k, is_key, file, size, table_from_ego)

    def _write_truth(self, token: str, t_s: float, views: dict[str, RenderedImage]) -> None:
        occupancy = occupancy_truth(self.city, t_s, self.rig, self.robot.ego_from_lidar, body=self.robot.body)
        save_occ3d(self.out / "gts" / self.name / token / "labels.npz", occupancy)
        for channel, view in views.items():
            path = self.out / "truth" / self.name / token / f"{channel}.npz"
            write_atomically(path, _npz(depth_m=view.depth_m.astype(np.float16), class_id=view.class_id))

    def finish(self) -> None:
        for actor, category, boxes in self.boxes.instances(self.table_from_world):
            self.tables.add_instance(actor, category, boxes)
        manifest = {
            "settings": self.settings.fixed(),
            "scene": self.name,
            "city_seed": self.city.seed,
            "weather": self.city.weather.name,
            "tables": self.tables.finish(),
        }
        write_atomically(manifest_path(self.out, self.index), json.dumps(manifest).encode())


def _write_map(city: City, path: Path) -> None:
    """Drivable area as a PNG, north up."""
    mask = np.where(city.ground.class_id == DRIVEABLE, 255, 0).astype(np.uint8)
    size = tuple(round(n * city.ground.cell_m / MAP_M) for n in mask.shape)
    image = cv2.resize(mask.T[::-1], size, interpolation=cv2.INTER_NEAREST)
    write_atomically(path, cv2.imencode(".png", image)[1].tobytes())


def _npz(**arrays: np.ndarray) -> bytes:
    """An npz as numpy writes it, but compressed fast: depth hardly shrinks further with more effort."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            raw = io.BytesIO()
            np.lib.format.write_array(raw, np.ascontiguousarray(array), allow_pickle=False)
            # A ZipInfo of our own carries no time of day, so equal arrays give equal bytes.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), raw.getvalue(), zipfile.ZIP_DEFLATED, 1)
    return buffer.getvalue()
