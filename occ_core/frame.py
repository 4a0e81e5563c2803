"""One frame: what a robot saw at one time, images, each with its own stamp and pose, and perhaps a LiDAR sweep."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from occ_core.camera import Rig
from occ_core.errors import InvalidInput
from occ_core.geometry import apply, inverse, require_rigid

FULL_INTENSITY = 255.0  # of a return, as sweeps have it


@dataclass(frozen=True, eq=False)
class LidarSweep:
    """One LiDAR sweep.

    Attributes:
        points_lidar_m: float32 (N, 3) in the sensor frame.
        intensity: float32 (N,), 0..255.
        ring: int32 (N,), beam index.
        ego_from_lidar: (4, 4).
        stamp_ns: time of the sweep.
        world_from_ego: (4, 4) at `stamp_ns`.
    """

    points_lidar_m: np.ndarray
    intensity: np.ndarray
    ring: np.ndarray
    ego_from_lidar: np.ndarray
    stamp_ns: int
    world_from_ego: np.ndarray

    def __post_init__(self) -> None:
        n = len(self.points_lidar_m)
        if self.points_lidar_m.shape != (n, 3) or self.intensity.shape != (n,) or self.ring.shape != (n,):
            raise InvalidInput(
                f"a LiDAR sweep needs points (N, 3), intensity (N,), ring (N,), got {self.points_lidar_m.shape}, "
                f"{self.intensity.shape}, {self.ring.shape}"
            )
        require_rigid("ego_from_lidar", self.ego_from_lidar)
        require_rigid("LiDAR world_from_ego", self.world_from_ego)

    @property
    def points_ego_m(self) -> np.ndarray:
        """Points (N, 3) in the ego frame at the sweep's own stamp."""
        return apply(self.ego_from_lidar, self.points_lidar_m)


class _WhenAsked:
    """A frame's sweep; if it is given as a function that reads it, it is read on first use.

    Who works with cameras alone needs no LiDAR file: neither its bytes nor that it was downloaded.
    """

    @overload
    def __get__(self, frame: None, owner: type) -> None: ...
    @overload
    def __get__(self, frame: Frame, owner: type) -> LidarSweep | None: ...
    def __get__(self, frame: Frame | None, owner: type) -> LidarSweep | None:
        if frame is None:  # dataclasses ask the class for the field's default
            return None
        given = frame.__dict__["_lidar"]
        if callable(given):
            given = frame.__dict__["_lidar"] = given()
        return given

    def __set__(self, frame: Frame, given: LidarSweep | Callable[[], LidarSweep] | None) -> None:
        frame.__dict__["_lidar"] = given


class Shot(NamedTuple):
    """One image of a recording: its time, and its file's path in the data set (empty if it has none)."""

    stamp_ns: int
    file: str = ""


def file_in(root: Path, path: Path) -> str:
    """A file's path in the folder of its data set, with `/`; empty if it is elsewhere."""
    inside = path.relative_to(root) if path.is_relative_to(root) else Path("..")
    return "" if ".." in inside.parts else inside.as_posix()


@dataclass(frozen=True, eq=False)
class Frame:
    """What a robot saw at one time.

    Attributes:
        stamp_ns: reference time.
        world_from_ego: (4, 4) at `stamp_ns`.
        rig: calibration of the cameras.
        images: camera name -> RGB uint8 (height, width, 3); a camera without an image is absent.
        camera_stamp_ns: camera name -> time of its image.
        camera_world_from_ego: camera name -> (4, 4) ego pose at that time.
        lidar: the sweep of this time, if any; given as a function that reads it, it is read when it is asked for.
        token: name of the sample, empty where there is none.
        scene: name of the scene or bag.
        image_files: camera name -> its image's path in the data set, with `/`; a bag's images have none.
        has_pose: somebody said where the ego was; False: all poses are the identity, as if it stood still.
    """

    stamp_ns: int
    world_from_ego: np.ndarray
    rig: Rig
    images: dict[str, np.ndarray]
    camera_stamp_ns: dict[str, int]
    camera_world_from_ego: dict[str, np.ndarray]
    lidar: _WhenAsked = _WhenAsked()
    token: str = ""
    scene: str = ""
    is_keyframe: bool = field(default=True)
    has_pose: bool = True
    image_files: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_rigid("world_from_ego", self.world_from_ego)
        for name, image in self.images.items():
            camera = self.rig[name]
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise InvalidInput(f"image of '{name}' must be uint8 (h, w, 3), got {image.dtype} {image.shape}")
            if (image.shape[1], image.shape[0]) != camera.size:
                raise InvalidInput(
                    f"image of '{name}' is {image.shape[1]} x {image.shape[0]} px, its calibration says "
                    f"{camera.size[0]} x {camera.size[1]}"
                )
            if name not in self.camera_stamp_ns or name not in self.camera_world_from_ego:
                raise InvalidInput(f"image of '{name}' has no stamp or no ego pose")

    def with_fields(self, **fields: Any) -> Frame:
        """Return this frame with other values of some fields. A sweep that nobody has asked for stays unread, which
        `dataclasses.replace` would read."""
        return replace(self, **{"lidar": self.__dict__["_lidar"], **fields})

    @property
    def shots(self) -> dict[str, Shot]:
        """The images by camera name."""
        return {name: Shot(self.camera_stamp_ns[name], self.image_files.get(name, "")) for name in self.images}

    @cached_property
    def images_key(self) -> str:
        """Hash of the images' content, not of their names: 32 characters."""
        digest = hashlib.blake2b(digest_size=16)
        for name, image in sorted(self.images.items()):
            digest.update(f"{name} {image.shape} ".encode())
            digest.update(np.ascontiguousarray(image).data)
        return digest.hexdigest()

    @property
    def rig_at_stamps(self) -> Rig:
        """The rig with each camera where it was at its own stamp, seen from the ego frame at `stamp_ns`.

        At 10 m/s a camera that fires 40 ms before the reference was 0.4 m behind its place in `rig`: a whole cell.
        """
        return Rig(
            tuple(
                replace(camera, ego_from_cam=self.ego_from_camera_at_its_stamp(camera.name))
                if camera.name in self.images
                else camera
                for camera in self.rig
            )
        )

    def ego_from_camera_at_its_stamp(self, name: str) -> np.ndarray:
        """The transform (4, 4) from the camera at its own stamp to the ego frame at `stamp_ns`; it includes the motion
        in between."""
        return inverse(self.world_from_ego) @ self.camera_world_from_ego[name] @ self.rig[name].ego_from_cam
