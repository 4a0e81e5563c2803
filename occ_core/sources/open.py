"""Opens any kind of data by its content; defines what training and prediction ask of every kind."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from occ_core.errors import MissingInput
from occ_core.files import content_key
from occ_core.frame import FULL_INTENSITY, Frame, LidarSweep, Shot
from occ_core.sources.nuscenes_tables import is_table_folder
from occ_core.sources.stretch import is_stretch, read_stretch

BAG_FILES = (".mcap", ".db3")


@dataclass(frozen=True)
class Choice:
    """The cameras of a recording to use, by name or topic.

    Attributes:
        cameras: empty: all that can be used.
        exclude: not looked at.
        strict: stop at the first problem, instead of leaving out what has it.
    """

    cameras: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    strict: bool = False


EVERY_CAMERA = Choice()


class FrameSource(Protocol):
    """Gives frames by number, scene by scene in time order.

    Attributes:
        scenes: their names.
    """

    scenes: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Frame: ...

    def __iter__(self) -> Iterator[Frame]: ...

    def shots(self, index: int) -> dict[str, Shot]:
        """The images of a frame, by camera name. Nothing is read."""

    def stamp_and_pose(self, index: int) -> tuple[int, np.ndarray]:
        """The frame's stamp_ns and the ego's pose then, world_from_ego (4, 4). No file is read."""

    def sweeps_before(self, index: int, count: int) -> list[LidarSweep]:
        """At most `count` LiDAR sweeps of a frame's scene, newest first, starting with the frame's own; none if the
        frame has none. No image is decoded."""

    @property
    def samples(self) -> list[tuple[str, str]]:
        """(scene, token) of each frame; the label of a sample is at <scene>/<token> of a store."""

    @property
    def names(self) -> list[str]:
        """The name of each frame's prediction: a file name, unique in the data set."""


def open_source(
    path: Path | str,
    scenes: Sequence[str] | None = None,
    intensity_max: float = FULL_INTENSITY,
    version: str | None = None,
    choice: Choice = EVERY_CAMERA,
) -> FrameSource:
    """Open a ROS 2 bag or a stretch of one, a SemanticKITTI folder or a data set in nuScenes layout.

    Args:
        path: what it is, its content says.
        scenes: names; None: all.
        intensity_max: of a LiDAR return in a bag, as its driver counts; the other kinds say it themselves.
        version: table folder of nuScenes layout, as of NuScenesTables; the other kinds have none.
        choice: which of a bag's cameras; the other kinds have no bad ones, and take every camera.

    Raises:
        MissingInput: no such path, none of the three, or no such scene; and what the source itself raises.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind == "bag":
        return _open_bag(path, scenes, intensity_max, choice)
    if kind == "semantic_kitti":
        from occ_core.sources.kitti import SemanticKittiSource

        return SemanticKittiSource(path, None if scenes is None else list(scenes))
    from occ_core.sources.nuscenes import NuScenesSource

    return NuScenesSource(path, version, None if scenes is None else list(scenes))


def kind_of(path: Path) -> Literal["bag", "semantic_kitti", "nuscenes"]:
    """The kind of data at a path, judged by its content.

    Raises:
        MissingInput: no such path, or none of the three.
    """
    if not path.exists():
        raise MissingInput(f"{path}: no such folder")
    if path.suffix in BAG_FILES or (path / "metadata.yaml").is_file() or is_stretch(path):
        return "bag"
    if (path / "sequences").is_dir():
        return "semantic_kitti"
    if is_table_folder(path) or any(path.glob("v1.0-*")):
        return "nuscenes"
    raise MissingInput(
        f"{path}: no data set: no metadata.yaml (ROS 2 bag), no sequences/ (SemanticKITTI), no folder v1.0-* of "
        "nuScenes tables in it"
    )


def frame_files(source: FrameSource, index: int, lidar: bool = False) -> list[Path]:
    """The files of a frame's images, and with `lidar` that of its sweep; empty for a bag, whose frames have no
    files."""
    from occ_core.sources.kitti import SemanticKittiSource
    from occ_core.sources.nuscenes import NuScenesSource

    return source.files(index, lidar) if isinstance(source, NuScenesSource | SemanticKittiSource) else []


def frame_key(path: Path | str, source: FrameSource, index: int, lidar: bool = False) -> str:
    """The hash of what a frame of `open_source(path)` is read from; other images under the same name have another key.

    Of a bag, its files' sizes and times, for what makes one frame is spread over it.

    Args:
        lidar: the frame's sweep counts, too.
    """
    if files := frame_files(source, index, lidar):
        return content_key(files)
    path, part = Path(path), ""
    if is_stretch(path):
        stretch = read_stretch(path)
        path, part = stretch.bag, f" {stretch.since_ns} {stretch.until_ns}"
    stats = [(file.name, file.stat()) for file in ([path] if path.is_file() else sorted(path.iterdir()))]
    said = [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats if name.endswith(BAG_FILES)]
    return hashlib.blake2b(("\n".join(said) + part).encode(), digest_size=16).hexdigest()


def _open_bag(path: Path, scenes: Sequence[str] | None, intensity_max: float, choice: Choice) -> FrameSource:
    from occ_core.sources.bag import BagSource
    from occ_core.sources.bag_frames import BagFrames

    stretch = read_stretch(path) if is_stretch(path) else None
    bag = path if stretch is None else stretch.bag
    if other := [scene for scene in scenes or () if scene != bag.stem]:
        raise MissingInput(f"{path}: no scene '{other[0]}', a bag is the one scene '{bag.stem}'")
    chosen = list(choice.cameras) or None, choice.exclude, choice.strict
    source = BagSource(bag, chosen[0], intensity_max=intensity_max, exclude=chosen[1], strict=chosen[2], masks_by=path)
    return BagFrames(source, stretch)


def left_out(source: FrameSource) -> list[str]:
    """One line for each part of a data set that is not used, or looks wrong."""
    from occ_core.sources.bag_frames import BagFrames

    if not isinstance(source, BagFrames):
        return []
    return [f"{count} x {problem}" if count > 1 else str(problem) for problem, count in source.bag.tally]
