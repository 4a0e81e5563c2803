"""CameraInfo and TF, as they come in, to a rig."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sensor_msgs.msg import CameraInfo

from occ_core.camera import Camera, Rig
from occ_core.errors import InvalidInput, MissingTransform
from occ_core.transforms import TransformTree
from occ_ros.messages import add_transforms, camera_of, stamp_ns_of


@dataclass
class _Source:
    """What is known of one camera: the last good CameraInfo as a camera at the origin of its own frame."""

    info_topic: str
    rectified: bool
    lens: Camera | None = None
    frame_id: str = ""
    message: CameraInfo | None = None
    stamp_ns: int = 0
    info_error: str = ""
    transform_error: str = ""
    camera: Camera | None = None  # lens with its pose


class Calibration:
    """Keeps the last good CameraInfo of each camera and the transform tree; answers with a rig in the base frame.

    A bad CameraInfo never replaces a good one, and a missing transform is never taken for the identity. `add_info` and
    `add_transforms` may run in another thread than `rig`.

    Args:
        inputs: camera name -> its CameraInfo topic (for messages), and whether its images are rectified.
        base_frame: ego frame.
    """

    def __init__(self, inputs: dict[str, tuple[str, bool]], base_frame: str) -> None:
        self.base_frame = base_frame
        self.tree = TransformTree()
        self.rejected_infos = 0
        self.rejected_transforms = 0
        self.changes = 0
        self._sources = {camera: _Source(*about) for camera, about in inputs.items()}
        self._rig: Rig | None = None

    def add_info(self, camera: str, message: CameraInfo) -> None:
        """Take a CameraInfo; one that cannot be used is counted and its reason kept in `info_error`."""
        source = self._sources[camera]
        old = source.message
        source.stamp_ns = stamp_ns_of(message.header.stamp)
        if old is not None and not source.info_error and _same_lens(old, message):
            return
        try:
            if not message.header.frame_id:
                raise InvalidInput(f"'{source.info_topic}': empty frame_id")
            lens = camera_of(message, camera, np.eye(4), source.info_topic, source.rectified)
        except InvalidInput as error:
            self.rejected_infos += 1
            source.info_error = str(error)
            return
        source.info_error = ""
        source.message, source.lens, source.frame_id = message, lens, message.header.frame_id
        self.changes += 1

    def add_transforms(self, message: Any, static: bool) -> list[str]:
        """Take a TFMessage; returns what was refused and why."""
        refused = add_transforms(self.tree, message, static)
        self.rejected_transforms += len(refused)
        return refused

    def info_error(self, camera: str) -> str:
        """Why the last CameraInfo was rejected; empty if it was not."""
        return self._sources[camera].info_error

    def has_info(self, camera: str) -> bool:
        return self._sources[camera].lens is not None

    def size(self, camera: str) -> tuple[int, int] | None:
        """(width, height) that the images of a camera have to have."""
        lens = self._sources[camera].lens
        return None if lens is None else lens.size

    def transform_error(self, camera: str) -> str:
        """Why there is no transform to the camera at the stamp of its last CameraInfo; empty if there is one."""
        source = self._sources[camera]
        if source.lens is not None:
            self._place(source, source.stamp_ns)
        return source.transform_error

    def rig(self, stamps_ns: dict[str, int]) -> Rig | None:
        """Rig of those cameras whose calibration is known at their stamps; None if there is no such camera.

        The same object comes back as long as nothing changed.
        """
        cameras = []
        for name, source in self._sources.items():
            if source.lens is None:
                continue
            camera = self._place(source, stamps_ns.get(name, source.stamp_ns))
            if camera is not None:
                cameras.append(camera)
        if not cameras:
            return None
        if self._rig is None or self._rig.cameras != tuple(cameras):  # cameras compare by identity
            self._rig = Rig(tuple(cameras))
        return self._rig

    def _place(self, source: _Source, stamp_ns: int) -> Camera | None:
        lens = source.lens
        assert lens is not None
        try:
            base_from_cam = self.tree.lookup(self.base_frame, source.frame_id, stamp_ns)
        except MissingTransform as error:
            source.transform_error = str(error)
            return None
        source.transform_error = ""
        old = source.camera
        same_lens = old is not None and old.intrinsics is lens.intrinsics and old.size == lens.size
        if old is None or not same_lens or not np.array_equal(old.ego_from_cam, base_from_cam):
            source.camera = Camera(
                lens.name, lens.intrinsics, lens.size, base_from_cam, lens.distortion_model, lens.distortion
            )
        return source.camera


def _same_lens(a: CameraInfo, b: CameraInfo) -> bool:
    return (
        a.header.frame_id == b.header.frame_id
        and (a.width, a.height, a.distortion_model) == (b.width, b.height, b.distortion_model)
        and np.array_equal(a.k, b.k)
        and np.array_equal(a.p, b.p)
        and list(a.d) == list(b.d)
        and (a.binning_x, a.binning_y) == (b.binning_x, b.binning_y)
        and a.roi == b.roi
    )
