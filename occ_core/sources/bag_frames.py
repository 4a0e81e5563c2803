"""Reads a bag's frames by number, as training asks for them; one pass notes where each frame's messages are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import cast

import numpy as np

from occ_core.errors import MissingInput, MissingTransform
from occ_core.frame import Frame, LidarSweep, Shot
from occ_core.sources.bag import BagSource
from occ_core.sources.bag_survey import LogEntry
from occ_core.sources.stretch import Stretch

KEYFRAME_TOPIC, KEYFRAME_TYPE = "/keyframe", "std_msgs/msg/String"
"""Where bags of `occ bag make` have the token of a sample, at the sample's time."""
TOKEN_SPREAD_NS = 100_000_000
"""A token is that of the frame nearest to it, if that is no farther away."""


class BagFrames:
    """The frames of `bag` in time order: `len(frames)`, `frames[i]`. The bag is one scene with the bag's name.

    A frame's token is what the topic `/keyframe` says at its time, else `<scene>_<stamp_ns>`. The reference of a frame
    that `/keyframe` names is that message's time and, where TF knows it, the ego's pose then, as in the data set that
    the bag is of; of others, those of the key camera's image. Frames without transforms are left out; images are
    decoded when they are asked for, by any process.

    Args:
        stretch: only frames whose key image is of this time.

    Attributes:
        keyframes: numbers of the frames that `/keyframe` names.

    Raises:
        MissingInput: no frame. MissingTransform: none can be placed. And what the bag raises.
    """

    def __init__(self, bag: BagSource, stretch: Stretch | None = None) -> None:
        self.bag, self._stretch = bag, stretch
        self.scenes = [bag.path.stem]
        self._sets = self._placed()
        self._named = self._read_keyframes()
        self.keyframes = set(self._named)
        stamps_ns = (entries[bag.key.name].stamp_ns for entries, _ in self._sets)
        self._tokens = [f"{self.scenes[0]}_{stamp_ns}" for stamp_ns in stamps_ns]
        for index, (token, _) in self._named.items():
            self._tokens[index] = token

    def __len__(self) -> int:
        return len(self._sets)

    @property
    def samples(self) -> list[tuple[str, str]]:
        """(scene, token) of each frame."""
        return [(self.scenes[0], token) for token in self._tokens]

    @property
    def names(self) -> list[str]:
        """The name of each frame's prediction: its token."""
        return list(self._tokens)

    def __iter__(self) -> Iterator[Frame]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Frame:
        frame = self.bag.frame(*self.bag.read(*self._sets[index]))
        stamp_ns, world_from_ego = self.stamp_and_pose(index)
        return frame.with_fields(token=self._tokens[index], stamp_ns=stamp_ns, world_from_ego=world_from_ego)

    def stamp_and_pose(self, index: int) -> tuple[int, np.ndarray]:
        """The frame's stamp_ns and the ego's pose then, world_from_ego (4, 4). No message is read."""
        name = self.bag.key.name
        stamp_ns = self._sets[index][0][name].stamp_ns
        if index in self._named:
            with suppress(MissingTransform):
                at_ns = self._named[index][1]
                return at_ns, self.bag.poses_at({name: at_ns})[1][name]
        return stamp_ns, self.bag.poses_at({name: stamp_ns})[1][name]

    def shots(self, index: int) -> dict[str, Shot]:
        """The images of a frame by camera name, including those that cannot be decoded. No message is read."""
        return {name: Shot(entry.stamp_ns) for name, entry in self._sets[index][0].items()}

    def sweeps_before(self, index: int, count: int) -> list[LidarSweep]:
        """At most `count` sweeps, newest first: that of the frame, then those of earlier frames, each once; none if the
        frame has none. The list ends at a sweep that cannot be placed in the world, as at the start of a bag.

        Raises:
            MissingTransform: the frame's own cannot be placed. CorruptInput: naming the topic.
        """
        if self._sets[index][1] is None:
            return []
        clouds = dict.fromkeys(cloud for _, cloud in reversed(self._sets[: index + 1]) if cloud is not None)
        sweeps: list[LidarSweep] = []
        for entry in islice(clouds, count):
            topic = cast(str, self.bag.lidar_topic)
            try:
                sweeps.append(self.bag.sweep(self.bag.messages({topic: entry})[topic]))
            except MissingTransform:
                if not sweeps:
                    raise
                break
        return sweeps

    def _placed(self) -> list[tuple[dict[str, LogEntry], LogEntry | None]]:
        """The log entries of images by camera name, and that of the cloud, for each set that can be placed in the
        world."""
        placed, reason = [], None
        for entries, cloud in self.bag.sets():
            if self._stretch is not None and entries[self.bag.key.name].stamp_ns not in self._stretch:
                continue
            try:
                self.bag.poses_at({name: entry.stamp_ns for name, entry in entries.items()})
            except MissingTransform as error:
                reason = error
                continue
            placed.append((entries, cloud))
        if not placed:
            raise reason or MissingInput(f"{self.bag.path}: no image of the key camera '{self.bag.key.name}'")
        return placed

    def _read_keyframes(self) -> dict[int, tuple[str, int]]:
        """The token and time, in ns, that `/keyframe` gives some frames, by the frame's number."""
        named: dict[int, tuple[str, int]] = {}
        if KEYFRAME_TOPIC not in self.bag.reader.of_type(KEYFRAME_TYPE):
            return named
        stamps_ns = np.array([entries[self.bag.key.name].stamp_ns for entries, _ in self._sets])
        for _, log_ns, message in self.bag.reader.messages([KEYFRAME_TOPIC]):
            nearest = int(np.abs(stamps_ns - log_ns).argmin())
            is_name = re.fullmatch(r"\w[\w.-]*", message.data)  # it will be part of paths
            if is_name and abs(int(stamps_ns[nearest]) - log_ns) <= TOKEN_SPREAD_NS:
                named[nearest] = message.data, log_ns
        return named
