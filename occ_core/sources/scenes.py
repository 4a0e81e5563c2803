"""Reads any recording scene by scene, and decides which of its frames are keyframes, of which labels are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from occ_core.errors import MissingInput
from occ_core.files import content_key
from occ_core.frame import Frame, Shot
from occ_core.grid import OCC3D_GRID, SEMANTIC_KITTI_VOXELS, VoxelGrid
from occ_core.sources.nuscenes_tables import NuScenesTables
from occ_core.sources.open import FrameSource, frame_files, frame_key, kind_of, left_out, open_source
from occ_core.taxonomy import OCC3D, SEMANTIC_KITTI, Taxonomy

if TYPE_CHECKING:
    from occ_core.sources.bag_frames import BagFrames

KEYFRAME_S = 0.5
"""Time between keyframes where the recording names none: that of nuScenes, which recipes count their windows in."""
STILL_M, STILL_RAD, STILL_S = 0.1, 0.02, 5.0
"""A robot that has moved and turned by less since the last keyframe stands: the next one comes after STILL_S only."""


@dataclass(frozen=True, eq=False)
class SceneFrames:
    """The frames of one scene in time order, read when they are asked for: `len(frames)`, `frames[i]`.

    Attributes:
        path: of the recording. source: what it was opened as.
        source_indices: number of each frame in the source.
        tokens: of the keyframes; empty for what lies between them.
    """

    path: Path
    source: FrameSource
    source_indices: Sequence[int]
    tokens: Sequence[str]

    def __len__(self) -> int:
        return len(self.source_indices)

    def __getitem__(self, index: int) -> Frame:
        return self.source[self.source_indices[index]]

    def shots(self, index: int) -> dict[str, Shot]:
        """The images of a frame, by camera name. Nothing is read."""
        return self.source.shots(self.source_indices[index])

    def key(self, index: int, lidar: bool, more: Sequence[Path] = ()) -> str:
        """The hash of what a frame is read from, as of `frame_key`, and of `more` files."""
        if files := frame_files(self.source, self.source_indices[index], lidar):
            return content_key([*files, *more])
        key = frame_key(self.path, self.source, self.source_indices[index], lidar)
        return f"{key}-{content_key(more)}" if more else key


class Recording:
    """A data set or bag, opened once.

    Args:
        path, version: as of `open_source`.

    Raises:
        MissingInput, CorruptInput, InvalidInput: as of `open_source`.
    """

    def __init__(self, path: Path | str, version: str | None = None) -> None:
        self.path = Path(path)
        self.kind = kind_of(self.path)
        self._version = version
        self.scenes: list[str] = self._tables.scenes if self.kind == "nuscenes" else self._source.scenes

    @cached_property
    def _tables(self) -> NuScenesTables:
        return NuScenesTables(self.path, self._version)

    @cached_property
    def _source(self) -> FrameSource:
        """The source of all scenes; of nuScenes layout, which may have 850, each scene is opened by itself."""
        return open_source(self.path, version=self._version)

    def require_scenes(self, names: Sequence[str] | None) -> list[str]:
        """Return the names if all exist (all scenes for None).

        Raises:
            MissingInput: naming the first unknown one and those that exist.
        """
        if absent := [name for name in names or [] if name not in self.scenes]:
            shown = ", ".join(self.scenes[:10]) + (f", ... ({len(self.scenes)})" if len(self.scenes) > 10 else "")
            raise MissingInput(f"{self.path}: no scene '{absent[0]}', only: {shown}")
        return list(names) if names else self.scenes

    @property
    def has_pose(self) -> bool:
        """Whether somebody says where the robot was; without poses, frames cannot be combined."""
        return self.kind != "bag" or cast("BagFrames", self._source).bag.world_frame is not None

    @property
    def is_kitti(self) -> bool:
        """Whether it is SemanticKITTI, which has its own ego frame, grid and taxonomy."""
        return self.kind == "semantic_kitti"

    @property
    def grid(self) -> VoxelGrid:
        """The grid of its labels: SemanticKITTI's own voxels, or Occ3D's."""
        return SEMANTIC_KITTI_VOXELS if self.is_kitti else OCC3D_GRID

    @property
    def taxonomy(self) -> Taxonomy:
        """The taxonomy of its labels."""
        return SEMANTIC_KITTI if self.is_kitti else OCC3D

    @property
    def left_out(self) -> list[str]:
        """One line for each part of the recording that is not used."""
        return left_out(self._source) if self.kind == "bag" else []

    def truth_path(self, scene: str, token: str) -> Path | None:
        """Of a sample's true voxels in Occ3D's form; None: a recording of this kind has none."""
        return self._tables.truth_path(scene, token) if self.kind == "nuscenes" else None

    def tokens(self, scene: str) -> list[str]:
        """The tokens of a scene's keyframes. No file is read."""
        if self.kind == "nuscenes":
            return [token for token, _ in self._tables.samples(scene)]
        return list(self.scene(scene).tokens)

    def scene(self, name: str, between: bool = False) -> SceneFrames:
        """The keyframes of a scene; with `between` also the frames between them."""
        if self.kind == "nuscenes":
            from occ_core.sources.nuscenes import NuScenesSource

            source: FrameSource = NuScenesSource(self._tables, scenes=[name], sweeps=between)
            return SceneFrames(self.path, source, range(len(source)), [token for _, token in source.samples])
        samples = self._source.samples
        source_indices = [source_index for source_index, (scene, _) in enumerate(samples) if scene == name]
        tokens = [samples[source_index][1] for source_index in source_indices]
        chosen = self._keyframes(source_indices)
        if not between:
            kept = np.flatnonzero(chosen)
            return SceneFrames(self.path, self._source, [source_indices[i] for i in kept], [tokens[i] for i in kept])
        named = [token if is_key else "" for token, is_key in zip(tokens, chosen, strict=True)]
        return SceneFrames(self.path, self._source, source_indices, named)

    def _keyframes(self, source_indices: Sequence[int]) -> np.ndarray:
        """Mark keyframes, bool (N,): those that the recording names, else those of `keyframes_of`."""
        if self.kind == "bag" and (named := cast("BagFrames", self._source).keyframes):
            return np.isin(source_indices, sorted(named))
        stamped_poses = [self._source.stamp_and_pose(source_index) for source_index in source_indices]
        stamps_ns = np.array([stamp_ns for stamp_ns, _ in stamped_poses], dtype=np.int64)
        return keyframes_of(stamps_ns, np.array([pose for _, pose in stamped_poses]), self.has_pose)


def keyframes_of(
    stamps_ns: np.ndarray,  # int64 (N,), in time order
    world_from_ego: np.ndarray,  # (N, 4, 4)
    has_pose: bool = True,
) -> np.ndarray:
    """Choose keyframes, bool (N,): about one every KEYFRAME_S, and one every STILL_S while the robot stands.

    So a window of keyframes is one of time, however fast the cameras are, and one that reaches over a pause.

    Args:
        has_pose: False: nobody knows whether the robot stands.
    """
    chosen = np.zeros(len(stamps_ns), dtype=bool)
    if not len(stamps_ns):
        return chosen
    steps_s = np.diff(stamps_ns) / 1e9
    slack_s = min(float(np.median(steps_s)) / 2, KEYFRAME_S / 2) if len(steps_s) else 0.0
    last = 0
    chosen[0] = True
    for i in range(1, len(stamps_ns)):
        since_s = (stamps_ns[i] - stamps_ns[last]) / 1e9
        if since_s < KEYFRAME_S - slack_s:
            continue
        if not has_pose or since_s >= STILL_S - slack_s or _moved(world_from_ego[last], world_from_ego[i]):
            chosen[i], last = True, i
    return chosen


def _moved(before: np.ndarray, now: np.ndarray) -> bool:
    turn = np.arccos(np.clip((np.trace(before[:3, :3].T @ now[:3, :3]) - 1) / 2, -1, 1))
    return bool(np.linalg.norm(now[:3, 3] - before[:3, 3]) >= STILL_M or turn >= STILL_RAD)
