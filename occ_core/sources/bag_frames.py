"""A bag's frames by number, as training asks for them: one pass notes where each frame's messages are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import cast

import numpy as np

from occ_core.errors import MissingInput, MissingTransform
from occ_core.frame import Frame, LidarSweep
from occ_core.sources.bag import BagSource
from occ_core.sources.bag_survey import Place

KEYFRAME_TOPIC, KEYFRAME_TYPE = "/keyframe", "std_msgs/msg/String"
"""Where bags of `occ bag make` have the token of a sample, at the sample's time."""
TOKEN_SPREAD_NS = 100_000_000
"""A token is that of the frame nearest to it, if that is no farther away."""


class BagFrames:
    """The frames of `bag` in time order: `len(frames)`, `frames[i]`. The bag is one scene, named as the bag is.

    A frame's token is what the topic `/keyframe` says at its time, else `<scene>_<stamp_ns>`. Frames without transforms
    are left out; images are decoded when they are asked for, by any process.

    Raises:
        MissingInput: no frame. MissingTransform: none can be placed. And what the bag raises.
    """

    def __init__(self, bag: BagSource) -> None:
        self.bag = bag
        self.scenes = [bag.path.stem]
        self._sets = self._placed()
        self._tokens = self._read_tokens()

    def __len__(self) -> int:
        return len(self._sets)

    @property
    def samples(self) -> list[tuple[str, str]]:
        """(scene, token) of each frame."""
        return [(self.scenes[0], token) for token in self._tokens]

    @property
    def names(self) -> list[str]:
        """What a prediction for each frame is called: its token."""
        return list(self._tokens)

    def __iter__(self) -> Iterator[Frame]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Frame:
        frame = self.bag.frame(*self.bag.read(*self._sets[index]))
        return replace(frame, token=self._tokens[index])

    def sweeps_before(self, index: int, count: int) -> list[LidarSweep]:
        """At most `count` sweeps, newest first: that of the frame, then those of earlier frames, each once; none where
        the frame has none. Older ones that cannot be placed in the world, as at a bag's begin, end the list.

        Raises:
            MissingTransform: the frame's own cannot be placed. CorruptInput: naming the topic.
        """
        if self._sets[index][1] is None:
            return []
        clouds = dict.fromkeys(cloud for _, cloud in reversed(self._sets[: index + 1]) if cloud is not None)
        sweeps: list[LidarSweep] = []
        for place in islice(clouds, count):
            topic = cast(str, self.bag.lidar_topic)
            try:
                sweeps.append(self.bag.sweep(self.bag.messages({topic: place})[topic]))
            except MissingTransform:
                if not sweeps:
                    raise
                break
        return sweeps

    def _placed(self) -> list[tuple[dict[str, Place], Place | None]]:
        """(camera name -> its image's place, that of the cloud) of each set that can be placed in the world."""
        placed, reason = [], None
        for places, cloud in self.bag.sets():
            try:
                self.bag.place({name: place.stamp_ns for name, place in places.items()})
            except MissingTransform as error:
                reason = error
                continue
            placed.append((places, cloud))
        if not placed:
            raise reason or MissingInput(f"{self.bag.path}: no image of the key camera '{self.bag.key.name}'")
        return placed

    def _read_tokens(self) -> list[str]:
        stamps_ns = np.array([places[self.bag.key.name].stamp_ns for places, _ in self._sets])
        tokens = [f"{self.scenes[0]}_{stamp_ns}" for stamp_ns in stamps_ns]
        if KEYFRAME_TOPIC not in self.bag.reader.of_type(KEYFRAME_TYPE):
            return tokens
        for _, log_ns, message in self.bag.reader.messages([KEYFRAME_TOPIC]):
            nearest = int(np.abs(stamps_ns - log_ns).argmin())
            is_name = re.fullmatch(r"\w[\w.-]*", message.data)  # it will be part of paths
            if is_name and abs(int(stamps_ns[nearest]) - log_ns) <= TOKEN_SPREAD_NS:
                tokens[nearest] = message.data
        return tokens
