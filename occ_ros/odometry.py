"""Finds where the robot and its sensors were in the transform tree; it waits only for what can still come in time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from occ_core.camera import Rig
from occ_core.errors import MissingTransform, TransformNotYet
from occ_core.geometry import inverse
from occ_core.transforms import TransformTree

WAIT_S = 0.1  # after the last image of a set: for the next sample of odometry, or of a LiDAR that moves on the robot
STOPPED_NS = 500_000_000  # a link whose last sample is so much older than the asked time does not come in that time
PATIENCE = 10  # answers of "late" in a row; from then on it is waited for only after each tenth


class Odometry:
    """Looks up `odom_frame` <- `base_frame` at given stamps, and sensors on the robot; for one thread.

    Attributes:
        late: why the last poses could not be told, where there is odometry that is late; else empty.
    """

    def __init__(self, tree: TransformTree, base_frame: str, odom_frame: str) -> None:
        self._tree, self._base_frame, self._odom_frame = tree, base_frame, odom_frame
        self.late = ""
        self._missed = 0  # in a row

    def ego_from(self, frame_id: str, stamp_ns: int, until_s: float = 0.0) -> np.ndarray:
        """The transform (4, 4) from a sensor's frame to the ego frame, at its stamp.

        Args:
            until_s: how long a sample is waited for (monotonic clock); 0: not at all.

        Raises:
            MissingTransform: naming the link.
        """
        return self._lookup(self._base_frame, frame_id, stamp_ns, until_s)

    def world_from_ego(self, stamps_ns: Sequence[int], until_s: float = 0.0) -> list[np.ndarray]:
        """The pose (4, 4) at each of these stamps; empty unless all are known.

        Raises:
            MissingTransform: as `ego_from`; TransformNotYet where odometry is late.
        """
        patient = self._missed < PATIENCE or self._missed % PATIENCE == 0
        wait_s = until_s if patient else 0.0
        try:
            poses = [self._lookup(self._odom_frame, self._base_frame, stamp_ns, wait_s) for stamp_ns in stamps_ns]
        except MissingTransform as error:
            self._missed += 1
            self.late = str(error) if isinstance(error, TransformNotYet) else ""
            raise
        self._missed, self.late = 0, ""
        return poses

    def world_from_ego_past(self, stamp_ns: int) -> np.ndarray:
        """The pose (4, 4) at a stamp before others that are known.

        Raises:
            MissingTransform: it is older than what is kept.
        """
        return self._tree.lookup(self._odom_frame, self._base_frame, stamp_ns)

    def rig_at_stamps(self, rig: Rig, stamps_ns: Mapping[str, int], stamp_ns: int, until_s: float = 0.0) -> Rig:
        """The rig with each camera where it was at its own stamp, seen from the ego frame at `stamp_ns`.

        So networks are trained (`Frame.rig_at_stamps`). Where odometry does not tell all of it: `rig` itself.

        Args:
            stamps_ns: camera name -> when it took its image; others stay in their place.
        """
        try:
            world_from_ego, *then = self.world_from_ego([stamp_ns, *stamps_ns.values()], until_s)
        except MissingTransform:
            return rig
        ego_from_world = inverse(world_from_ego)
        moved = {name: ego_from_world @ pose for name, pose in zip(stamps_ns, then, strict=True)}
        return Rig(
            tuple(
                replace(camera, ego_from_cam=moved[camera.name] @ camera.ego_from_cam)
                if camera.name in moved
                else camera
                for camera in rig
            )
        )

    def _lookup(self, target: str, source: str, stamp_ns: int, until_s: float) -> np.ndarray:
        while True:
            try:
                return self._tree.lookup(target, source, stamp_ns)
            except TransformNotYet:
                if time.monotonic() > until_s or self._stopped(target, source, stamp_ns):
                    raise
            time.sleep(0.005)

    def _stopped(self, target: str, source: str, stamp_ns: int) -> bool:
        try:
            self._tree.lookup(target, source, stamp_ns - STOPPED_NS)
        except TransformNotYet:
            return True
        except MissingTransform:  # it has just begun
            return False
        return False
