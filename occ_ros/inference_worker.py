"""The thread that answers: decode, preprocess, network, outputs. It takes the newest set; an older one is dropped."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from occ_core.camera import Rig
from occ_core.errors import InvalidInput, MissingTransform, OccError
from occ_core.inference.predictor import Predictor
from occ_core.models.easyocc.past import StampedPose
from occ_core.network_input.pinhole import ViewImages
from occ_core.occupancy import Occupancy
from occ_core.sync import SyncedSet
from occ_ros.calibration import Calibration, KnownRig
from occ_ros.cameras import ImageSlot
from occ_ros.odometry import WAIT_S, Odometry
from occ_ros.outputs import Outputs
from occ_ros.runtime import one_line
from occ_ros.sweeps import Sweep, Sweeps
from occ_ros.timings import StageTimes

CALIBRATION_WAIT_S = 2.0  # the first set waits this long for CameraInfo and TF, which come on other topics
TRANSFORM_WAIT_S = 0.1  # later ones for the next sample of a moving link
STOP_S = 10.0


class InferenceWorker:
    """Turns sets of images into answers, in its own thread between `start` and `stop`.

    Attributes:
        failure: why the last set was not answered; empty if it was.
        without: cameras that the last answer had to do without.
        without_lidar: why it had to do without the LiDAR; empty if it did not.
        remembers: the network has a memory.
        without_memory: why the last answer had to do without what it remembers; empty if it did not.
        odometry_late: why its cameras, or what it remembers, could not be moved, where there is odometry that is late;
            else empty.
        over_since_s: since when each answer took longer than the budget (monotonic clock); None if the last did not.
        last_ms: from last image to output, of the last answer.
    """

    def __init__(
        self,
        predictor: Predictor,
        calibration: Calibration,
        outputs: Outputs,
        cameras: Sequence[str],
        min_cameras: int,
        values: Mapping[str, Any],
        times: StageTimes,
        logger: Any,
        sweeps: Sweeps | None = None,
        odometry: Odometry | None = None,
    ) -> None:
        self._predictor, self._calibration, self._outputs = predictor, calibration, outputs
        self._cameras, self._min_cameras, self._values = tuple(cameras), min_cameras, values
        self._times, self._logger, self._sweeps, self._odometry = times, logger, sweeps, odometry
        self.failure, self.without, self.without_lidar, self.odometry_late = "", frozenset[str](), "", ""
        self.remembers, self.without_memory = predictor.memory is not None, ""
        self.last_ms = 0.0
        self.over_since_s: float | None = None
        self.answered_s: list[float] = []  # first and last
        self._rig: KnownRig | None = None
        self._prepared = ""  # fingerprint of the rig whose table is there
        self._first_set_s: float | None = None
        self._wake = threading.Condition()  # guards all below
        self._thread: threading.Thread | None = None
        self._waiting: tuple[SyncedSet, Sequence[Sweep]] | None = None
        self._early: dict[str, ImageSlot] = {}
        self._busy = self._closing = self._new_calibration = False
        self._arrived = 0
        self._ended: Counter[str] = Counter()

    # --- from the receiving thread ------------------------------------------------------------------------------

    def start(self) -> None:
        self._closing, self._first_set_s = False, None
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    def stop(self) -> bool:
        """End the thread after its current set; waiting sets are dropped. Returns False if it does not end in time."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(timeout=STOP_S)
        with self._wake:
            self._ended["stopped"] += self._waiting is not None
            self._waiting = None
            self._early.clear()
        return self._thread is None or not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def offer(self, group: SyncedSet, taken: Sequence[Sweep] = ()) -> None:
        """Offer a set. The newest wins: a set that is still waiting is replaced, and the sweeps kept for it are
        dropped."""
        with self._wake:
            self._arrived += 1
            if self._closing:
                self._ended["stopped"] += 1
                return
            self._ended["superseded"] += self._waiting is not None
            self._waiting = group, taken
            self._wake.notify()

    def image(self, slot: ImageSlot) -> None:
        """Take an image of a set to come; it is decoded while there is nothing else to do."""
        with self._wake:
            self._early[slot.camera.name] = slot
            self._wake.notify()

    def calibration_changed(self) -> None:
        """Ask the thread to read the new calibration before the next set needs it."""
        with self._wake:
            self._new_calibration = True
            self._wake.notify()

    def counts(self) -> tuple[int, Counter[str]]:
        """Counts of the sets whose end is known, as they arrived, and of how they ended: answered, skipped, failed,
        superseded, stopped. Failed ones also count as `failed: <reason>`, answered ones as `without LiDAR`, `with
        memory`, `without memory: <reason>`."""
        with self._wake:
            return self._arrived - (self._waiting is not None) - self._busy, self._ended.copy()

    # --- the thread ---------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._wake:
                while not (self._waiting or self._early or self._new_calibration or self._closing):
                    self._wake.wait()
                if self._closing:
                    return
                waiting, self._waiting = self._waiting, None
                self._busy = waiting is not None
                slot = self._early.pop(next(iter(self._early))) if self._early and not waiting else None
                new_calibration, self._new_calibration = self._new_calibration, False
            if new_calibration or slot is not None:
                self._prepare_early(slot)
            if waiting is not None:
                ended = self._answer_or_fail(*waiting)
                waiting = None  # what it holds may be large
                with self._wake:
                    self._busy = False
                    self._ended.update(ended)

    def _prepare_early(self, slot: ImageSlot | None) -> None:
        """While nothing else waits, build the table of a new calibration and decode images that came."""
        try:
            self._rig = self._calibration.rig({})
            if slot is None:
                if self._rig is not None and self._rig.complete:
                    self._prepare_table(self._rig)
            elif self._outputs.wanted():
                self._input(slot)
        except Exception as error:  # the set to come will meet it again and be counted
            self._logger.error(f"{type(error).__name__}: {one_line(error)}", throttle_duration_sec=5.0)

    def _answer_or_fail(self, group: SyncedSet, taken: Sequence[Sweep]) -> list[str]:
        """Answer a set and return how it ended; no error in it ends the thread."""
        if not self._outputs.wanted():
            self.failure = ""
            if self._sweeps:
                self._sweeps.topic.forget()
            return ["skipped"]
        try:
            self._answer(group, taken)
        except Exception as error:
            expected = isinstance(error, OccError)
            self.failure = one_line(error) if expected else f"{type(error).__name__}: {one_line(error)}"
            self._logger.error(f"frame not answered: {self.failure}", throttle_duration_sec=5.0)
            return ["failed", f"failed: {type(error).__name__}"]
        self.failure = ""
        ended = ["answered", "without LiDAR"] if self.without_lidar else ["answered"]
        if (memory := self._predictor.memory) is not None:
            ended.append(f"without memory: {memory.refusal.kind}" if memory.refusal else "with memory")
        return ended

    def _answer(self, group: SyncedSet, taken: Sequence[Sweep]) -> None:
        start_s = time.monotonic()
        slots: list[ImageSlot] = list(group.items.values())
        arrived_s = [slot.arrival_s for slot in slots]
        self._times.add("sync wait", 1e3 * (max(arrived_s) - min(arrived_s)))
        self._times.add("queue", 1e3 * (start_s - max(arrived_s)))
        self._rig = known = self._rig_for(group)
        looked_s = time.monotonic()
        inputs = {slot.camera.name: self._input(slot) for slot in slots}
        decoding_s = time.monotonic() - looked_s
        usable = {name: array for name, array in inputs.items() if array is not None}
        if known is None or len(usable) < self._min_cameras:
            raise InvalidInput(
                f"{len(usable)} of {len(self._cameras)} cameras are usable, at least {self._min_cameras} needed: "
                "see the cameras' diagnostics"
            )
        until_s = max(arrived_s) + WAIT_S
        lidar, without_lidar = self._lidar_at(group.stamp_ns, taken, until_s)
        rig = self._rig_at(known.rig, group, until_s)
        pose, no_odometry = self._pose_at(group.stamp_ns, until_s)
        self._prepare_table(known)
        asked_s = time.monotonic()
        occupancy = self._predictor.predict_preprocessed(usable, rig, lidar, pose)
        require_sound(occupancy)
        if self._predictor.memory is not None:
            self.without_memory = no_odometry or str(self._predictor.memory.refusal or "")
        network_s = time.monotonic() - asked_s
        self._times.add("network", 1e3 * network_s)
        self.without_lidar = without_lidar
        self.without = frozenset(self._cameras) - frozenset(usable)
        with self._times.measure("messages"):
            self._outputs.publish(occupancy, group.stamp_ns, current=self._is_current())
        self._times.add("all else", 1e3 * (time.monotonic() - start_s - decoding_s - network_s))
        self._note_time(1e3 * (time.monotonic() - max(arrived_s)))

    def _is_current(self) -> bool:
        return not (self.without or self.without_lidar) or self._values["missing_camera"] == "mask"

    def _rig_at(self, rig: Rig, group: SyncedSet, until_s: float) -> Rig:
        """The rig with each camera where it was at its own stamp, for a network that takes the rig as data."""
        if self._odometry is None or not self._predictor.moving_rig:
            return rig
        with self._times.measure("odometry"):
            moved = self._odometry.rig_at_stamps(rig, group.stamps_ns, group.stamp_ns, until_s)
        self.odometry_late = self._odometry.late
        return moved

    def _pose_at(self, stamp_ns: int, until_s: float) -> tuple[StampedPose | None, str]:
        """Where the robot is, for a network with memory; or None, and why odometry does not say."""
        if self._odometry is None or not self.remembers:
            return None, ""
        try:
            with self._times.measure("odometry"):
                (world_from_ego,) = self._odometry.world_from_ego([stamp_ns], until_s)
            return StampedPose(stamp_ns, world_from_ego), ""
        except MissingTransform as error:
            return None, f"no odometry: {error}"
        finally:
            self.odometry_late = self._odometry.late

    def _lidar_at(self, stamp_ns: int, taken: Sequence[Sweep], until_s: float) -> tuple[np.ndarray | None, str]:
        """The LiDAR's cloud, float32 (P, 5), or None; and why it is missing if the network takes one.

        Raises:
            InvalidInput: it is missing, and the network cannot do without.
        """
        if self._sweeps is None:
            return None, ""
        try:
            with self._times.measure("lidar"):
                return self._sweeps.cloud(stamp_ns, taken, until_s), ""
        except OccError as error:
            if not self._sweeps.asked.dropout:
                raise InvalidInput(f"no LiDAR: {error}") from error
            return None, str(error)

    def _note_time(self, total_ms: float) -> None:
        now_s = time.monotonic()
        self._times.add("last image to output", total_ms)
        self.answered_s = [*self.answered_s[:1], now_s]
        self.last_ms = total_ms
        over = total_ms > self._values["budget_ms"]
        self.over_since_s = (self.over_since_s or now_s) if over else None

    def _rig_for(self, group: SyncedSet) -> KnownRig | None:
        """The rig of this set; it waits for calibration that should come soon."""
        now_s = time.monotonic()
        self._first_set_s = self._first_set_s or now_s
        starting_s = self._first_set_s + CALIBRATION_WAIT_S
        while True:
            known = self._calibration.rig(group.stamps_ns)
            if self._closing or (known is not None and known.known >= set(group.items)):
                return known
            until_s = max(starting_s, now_s + TRANSFORM_WAIT_S) if self._calibration.awaited else starting_s
            if time.monotonic() > until_s:
                return known
            time.sleep(0.005)

    def _input(self, slot: ImageSlot) -> np.ndarray | ViewImages | None:
        """The network's input from one image; None if the image cannot be used, now or at all."""
        camera, known = slot.camera.name, self._rig
        if slot.waiting and known is not None and camera in known.known:
            calibrated = known.rig[camera]
            with self._times.measure("decode"):
                image = slot.pixels(calibrated.size, self._predictor.useful_size(calibrated.size))
            if image is None and slot.size not in (None, calibrated.size):
                self._calibration.images_have(camera, slot.size)
            if image is not None:
                with self._times.measure("preprocess"):
                    slot.array = self._predictor.preprocess_one(image, calibrated)
        return slot.array

    def _prepare_table(self, known: KnownRig) -> None:
        """Rebuild the predictor's table after the calibration changed."""
        if known.rig.fingerprint != self._prepared:
            with self._times.measure("calibration change"):
                self._predictor.prepare(known.rig)
            self._prepared = known.rig.fingerprint
            names = ", ".join(sorted(known.known))
            self._logger.info(f"calibration {self._prepared}: {names}", throttle_duration_sec=5.0)


def require_sound(occupancy: Occupancy) -> None:
    """Raise InvalidInput if a backend returned values that are not numbers; labels are checked by Occupancy.

    Most backends answer in bytes, which hide a NaN: where the network has one, no cell compares as observed.
    """
    confidence = occupancy.confidence
    if confidence is not None and not np.isfinite(confidence).all():
        raise InvalidInput(f"the network's confidence is not finite in {int((~np.isfinite(confidence)).sum())} cells")
    if not occupancy.observed.any():
        raise InvalidInput(
            "the network calls no cell observed: its numbers are not finite (an fp16 overflow, damaged weights), or no "
            "camera looks into its grid"
        )
