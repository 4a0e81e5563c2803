"""Simulated cities seen by a rig: what a network can learn from before its robot has driven at all, and beside a drive,
which shows one place, as many other places seen by the same cameras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from occ_core.adapt.cut import PARTS
from occ_core.camera import Rig
from occ_core.errors import InvalidInput
from occ_core.rig_file import load_rig_file
from occ_core.world.make import make_world
from occ_core.world.own_rig import own_rig, placed
from occ_core.world.robots import RIGS
from occ_core.world.scene import Settings

TEACHER = "realistic+realistic+lidar"
"""As wrong as real networks, and set right by the simulated LiDAR; the network itself sees cameras alone."""
LEAST_CITIES = 4
SHARE, LEAST = 8, 3  # cities that fit thresholds, and that judge, beside those that are learned from
MOST_WIDE_PX = 480  # of a rendered image: as large as those that the start learned from, more than the network takes
FOLDER = "cities"


@dataclass(frozen=True, eq=False)
class Cities:
    """Which cities, and who sees them.

    Attributes:
        rig: as the robot has it. topics: of its images, by camera, as far as the rig file names them.
        count: of the cities that are learned from, one keyframe each.
        seed: of these; those that fit and judge have the two after it.
    """

    rig: Rig
    topics: dict[str, str]
    count: int
    seed: int

    @property
    def counts(self) -> dict[str, int]:
        """Cities of each part."""
        others = max(LEAST, self.count // SHARE)
        return dict(zip(PARTS, (self.count, others, others), strict=True))

    @property
    def asked(self) -> dict[str, Any]:
        """What makes them these."""
        return {"rig": self.rig.fingerprint, "topics": self.topics, "cities": self.count, "seed": self.seed}


def cities_of(rig: Path, count: int, seed: int) -> Cities:
    """Cities for a rig file, or for the rig of a recording.

    Raises:
        InvalidInput: too few cities; and what `own_rig` and `load_rig_file` raise.
    """
    if count < LEAST_CITIES:
        raise InvalidInput(f"cities must be at least {LEAST_CITIES}, got {count}")
    if rig.suffix not in (".yaml", ".yml"):
        return Cities(_own(RIGS[0], rig), {}, count, seed)
    _own(str(rig), None)
    entries = load_rig_file(rig)
    topics = {entry.camera.name: entry.image_topic for entry in entries if entry.image_topic}
    return Cities(Rig(tuple(entry.camera for entry in entries)), topics, count, seed)


def seen_from(cities: Cities, stretch: Path) -> Cities:
    """The same cities, seen by the cameras of a stretch, with the ego masks that lie in its folder."""
    return replace(cities, rig=_own(RIGS[0], stretch))


def _own(name: str, like: Path | None) -> Rig:
    """As it stands in a city."""
    rig = own_rig(name, like)
    if rig is None:
        raise InvalidInput(f"'{name}' is no rig file")
    return rig


def make_cities(out: Path, cities: Cities, workers: int, parts: Sequence[str] = PARTS) -> dict[str, list[str]]:
    """Render the cities of each part, or those that are lacking; returns their folders in `out`."""
    rig = placed(_smaller(cities.rig), "the rig")
    made: dict[str, list[str]] = {}
    for number, (part, count) in enumerate(cities.counts.items()):
        if part not in parts:
            continue
        folder = Path(FOLDER) / part
        make_world(out / folder, Settings(count, cities.seed + number, keyframes=1), workers, rig=rig)
        made[part] = [str(folder)]
    return made


def _smaller(rig: Rig) -> Rig:
    """Images at most MOST_WIDE_PX wide: the time that rendering takes is that of pixels."""
    return Rig(
        tuple(
            camera
            if camera.size[0] <= MOST_WIDE_PX
            else camera.resized((MOST_WIDE_PX, round(MOST_WIDE_PX * camera.size[1] / camera.size[0])))
            for camera in rig
        )
    )
