"""Makes a rig of CameraInfo and TF as they come in."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import numpy as np
from sensor_msgs.msg import CameraInfo

from occ_core.camera import Camera, Rig
from occ_core.errors import MissingTransform, TransformNotYet
from occ_core.problems import Problem, Unusable
from occ_core.sensor_messages import add_transforms, camera_from_info, stamp_of
from occ_core.transforms import TransformTree

SAME_PLACE = 1e-6
"""Interpolating between equal samples of a link changes last digits; every change of a camera costs a new table."""
RECENT_S = 2.0
MANY_MOVES = 3  # within that time: no mount is adjusted so fast
LOOKS = 10  # at a camera's place, for as many images; where these take longer, as many moves among them tell as well
FIXED_S = 10.0  # so long it is said that a mount on /tf_static is another one
USUAL_DELAY_NS = 200_000_000  # a moving link's sample may come this much later than the image of the same time


@dataclass
class _Source:
    """What is known about one camera: the last good CameraInfo, as a camera at the origin of its own frame."""

    info_topic: str
    rectified: bool
    lens: Camera | None = None
    frame_id: str = ""
    message: CameraInfo | None = None
    stamp_ns: int = 0
    image_size: tuple[int, int] | None = None  # where it is not what the CameraInfo says
    problem: Problem | None = None  # of the last CameraInfo
    camera: Camera | None = None  # lens with its pose
    placed_lens: Camera | None = None  # of which `camera` was made
    looks_s: deque[float] = field(default_factory=lambda: deque(maxlen=LOOKS))  # when its place was asked for
    looked_ns: int = -1  # the last stamp for which it was
    moves: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=100))  # (when, by how many metres)


@dataclass(frozen=True)
class KnownRig:
    """The cameras about which something is known, and those that may be used now.

    The others stay where they were last, so that no table has to be made anew when they come back; they have to be
    masked.
    """

    rig: Rig
    known: frozenset[str]
    complete: bool  # no camera of the vehicle is unknown


class Calibration:
    """Keeps the last good CameraInfo of each camera and the transform tree, and makes a rig in the base frame of them.

    A bad CameraInfo never replaces a good one, and a missing transform is never taken for the identity. `add_info` and
    `add_transforms` may run in another thread than `rig`.

    Args:
        inputs: camera name -> its CameraInfo topic (for messages), and whether its images are rectified.
        base_frame: ego frame.
        fixed: cameras whose calibration needs no message.
    """

    def __init__(
        self,
        inputs: dict[str, tuple[str, bool]],
        base_frame: str,
        fixed: Mapping[str, Camera] | None = None,
    ) -> None:
        self.base_frame = base_frame
        self.tree = TransformTree()
        self.rejected_infos = 0
        self.rejected_transforms = 0
        self.changes = 0
        self.awaited = False  # the last `rig` lacks a camera whose transform should come soon
        self._sources = {camera: _Source(*about) for camera, about in inputs.items()}
        self._fixed = dict(fixed or {})
        for name, camera in self._fixed.items():
            self._sources[name].lens = self._sources[name].camera = camera
        self._refused: deque[tuple[float, str, str]] = deque(maxlen=100)  # when, child frame, why
        self._rig: KnownRig | None = None
        self._lock = threading.Lock()  # of the sources

    def add_info(self, camera: str, message: CameraInfo) -> None:
        """Take a CameraInfo; one that cannot be used is counted and kept in `info_problem`."""
        source = self._sources[camera]
        old = source.message
        source.stamp_ns = stamp_of(message)
        if old is not None and not source.problem and _same_lens(old, message):
            return
        self._judge(camera, source, message)

    def _judge(self, camera: str, source: _Source, message: CameraInfo) -> None:
        try:
            if not message.header.frame_id:
                raise Unusable(Problem("camera frame", source.info_topic, "empty frame_id"))
            at_origin, size = np.eye(4), source.image_size
            lens = camera_from_info(camera, message, at_origin, source.rectified, source.info_topic, size)
        except Unusable as error:
            self.rejected_infos += 1
            source.problem = error.problem
            return
        with self._lock:
            source.problem = None
            source.message, source.lens, source.frame_id = message, lens, message.header.frame_id
        self.changes += 1

    def images_have(self, camera: str, size: tuple[int, int]) -> None:
        """Note that images have another (width, height) than their CameraInfo says; with binning or a region of
        interest it may mean the sensor's."""
        source = self._sources[camera]
        message = source.message
        if message is None or source.image_size == size:
            return
        source.image_size = size
        if message.binning_x > 1 or message.binning_y > 1 or message.roi.width or message.roi.height:
            self._judge(camera, source, message)

    def add_transforms(self, message: Any, static: bool) -> list[Problem]:
        """Take a TFMessage; returns what was refused."""
        refused = add_transforms(self.tree, message, static, "/tf_static" if static else "/tf")
        self.rejected_transforms += len(refused)
        self._refused.extend((time.monotonic(), child, problem.found) for child, problem in refused)
        return [problem for _, problem in refused]

    def info_problem(self, camera: str) -> Problem | None:
        """Why the last CameraInfo was rejected; None if it was not."""
        return self._sources[camera].problem

    def lens(self, camera: str) -> Camera | None:
        """The camera in the frame that its CameraInfo names."""
        return self._sources[camera].lens

    def frame(self, camera: str) -> str:
        """The frame that the camera's CameraInfo names; empty for a camera of a rig file."""
        return self._sources[camera].frame_id

    def placed(self, camera: str) -> Camera | None:
        """The camera at its last known place on the vehicle."""
        return self._sources[camera].camera

    def has_info(self, camera: str) -> bool:
        return self._sources[camera].lens is not None

    def size(self, camera: str) -> tuple[int, int] | None:
        """The (width, height) that the images of a camera must have."""
        lens = self._sources[camera].lens
        return None if lens is None else lens.size

    def transform_error(self, camera: str) -> str:
        """Why there is no transform to the camera shortly before its last CameraInfo; empty if there is one."""
        source = self._sources[camera]
        if source.lens is None or camera in self._fixed:
            return ""
        try:
            self.tree.lookup(self.base_frame, source.frame_id, max(0, source.stamp_ns - USUAL_DELAY_NS))
        except MissingTransform as error:
            return str(error)
        return ""

    def refused_transform(self, camera: str) -> str:
        """Why a transform between the camera and the roots of the tree was refused lately; empty if none was."""
        since_s, frame_id = time.monotonic() - RECENT_S, self._sources[camera].frame_id
        chain = self.tree.ancestors(frame_id)
        return next(
            (why for at_s, child, why in reversed(self._refused.copy()) if at_s > since_s and child in chain), ""
        )

    def moves(self, camera: str) -> tuple[int, float, float]:
        """How often the camera changed its place on the vehicle, within how many seconds, and the largest of these
        moves in metres. All are zero if that is normal: a fixed mount never moves, a moving one may now and then."""
        source = self._sources[camera]
        chain = takewhile(lambda frame: frame != self.base_frame, self.tree.ancestors(source.frame_id))
        within_s, many = (RECENT_S, MANY_MOVES) if any(map(self.tree.is_moving, chain)) else (FIXED_S, 1)
        now_s, looks_s = time.monotonic(), source.looks_s.copy()
        if len(looks_s) == LOOKS:
            within_s = max(within_s, now_s - looks_s[0])
        ways_m = [way_m for at_s, way_m in source.moves.copy() if at_s >= now_s - within_s]
        return (len(ways_m), within_s, max(ways_m)) if len(ways_m) >= many else (0, 0.0, 0.0)

    def rig(self, stamps_ns: dict[str, int]) -> KnownRig | None:
        """The rig, as far as calibration is known at these stamps; None if no camera is known.

        Args:
            stamps_ns: camera name -> when; others at the stamp of their last CameraInfo.

        The same object comes back as long as nothing changed.
        """
        self.awaited = False
        with self._lock:
            known = {
                name: camera
                for name, source in self._sources.items()
                if source.lens is not None
                and (camera := self._place(source, stamps_ns.get(name, source.stamp_ns))) is not None
            }
            seen = {name: known.get(name) or source.camera for name, source in self._sources.items()}
            cameras = tuple(camera for camera in seen.values() if camera is not None)
        if not known:
            return None
        old = self._rig
        if old is None or old.known != known.keys() or any(old.rig[name] is not known[name] for name in known):
            self._rig = KnownRig(Rig(cameras), frozenset(known), len(known) == len(self._sources))
        return self._rig

    def _place(self, source: _Source, stamp_ns: int) -> Camera | None:
        lens = source.lens
        assert lens is not None
        if lens.name in self._fixed:
            return lens
        try:
            base_from_cam = self.tree.lookup(self.base_frame, source.frame_id, stamp_ns) @ lens.ego_from_cam
        except MissingTransform as error:
            self.awaited = self.awaited or isinstance(error, TransformNotYet)
            return None
        if stamp_ns != source.looked_ns:  # one image asks more than once while it waits for the others
            source.looked_ns = stamp_ns
            source.looks_s.append(time.monotonic())
        old = source.camera
        moved = old is not None and not np.allclose(old.ego_from_cam, base_from_cam, rtol=0, atol=SAME_PLACE)
        if old is not None and moved:
            way_m = float(np.linalg.norm(old.ego_from_cam[:3, 3] - base_from_cam[:3, 3]))
            source.moves.append((time.monotonic(), way_m))
        if moved or source.placed_lens is not lens:
            source.placed_lens = lens
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
        and np.array_equal(a.r, b.r)
        and list(a.d) == list(b.d)
        and (a.binning_x, a.binning_y) == (b.binning_x, b.binning_y)
        and a.roi == b.roi
    )
