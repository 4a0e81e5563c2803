"""Makes the labels of one scene as a stream: every frame is read and lifted once, and dropped when no label needs it
any more.

Peak memory of the process for six 450 x 800 maps and Occ3D's grid: about 450 MB, and 2 to 6 MB for each frame of the
window (`shelf`: of the scene).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np

from occ_core.errors import CorruptInput, InvalidInput, MissingInput
from occ_core.frame import Frame
from occ_core.grid import OCC3D_GRID, VoxelGrid
from occ_core.labels.fuse import Fuser
from occ_core.labels.lift import FrameEvidence, Lifter
from occ_core.labels.recipes import Recipe
from occ_core.network_input.pinhole import NOT_FISHEYE, pinhole_frame
from occ_core.occupancy import Occupancy
from occ_core.taxonomy import OCC3D, Taxonomy
from occ_core.teachers.base import NoMaps, Teachers

MAX_SPEED_M_S = 70.0
JUMP_SLACK_M = 5.0


@dataclass(frozen=True, eq=False)
class SceneLabel:
    """The label of one keyframe.

    Attributes:
        token: of the sample.
        occupancy: labels, observed (occupied, or passed by a ray) and confidence, in its ego frame.
        votes: uint16 (X, Y, Z), points behind the winning class.
        skipped: images and frames of its window that were left out, and why.
    """

    token: str
    occupancy: Occupancy
    votes: np.ndarray
    skipped: tuple[str, ...]


def label_scene(
    frames: Sequence[Frame],
    teachers: Teachers,
    recipe: Recipe,
    wanted: Set[str] | None = None,
    grid: VoxelGrid = OCC3D_GRID,
    taxonomy: Taxonomy = OCC3D,
    unlabelled: dict[str, str] | None = None,
) -> Iterator[SceneLabel]:
    """Yield one label for each wanted keyframe that can be read, in time order.

    A label depends on the frames of its window only, so it is the same whatever else is wanted. A frame whose files
    are broken is left out of its neighbours' labels, which list it, and has no label itself.

    Args:
        frames: keyframes (or sweeps too) of one scene in time order; each is indexed at most once. Where they have
            `tokens`, as sources do, frames that no wanted label needs are not touched.
        wanted: sample tokens; None: every frame that has one.
        unlabelled: receives, by its token, why a wanted keyframe has no label.

    Raises:
        InvalidInput: no frame, or a wanted token that none of them has.
    """
    tokens = _tokens(frames, wanted)
    lifter, fuser = Lifter(recipe, grid, taxonomy), Fuser(recipe, grid, taxonomy)
    evidence_by_frame: dict[int, FrameEvidence | str] = {}
    for index, token in enumerate(tokens):
        if not token or (wanted is not None and token not in wanted):
            continue
        window = window_of(index, len(tokens), recipe)
        for gone in [i for i in evidence_by_frame if i < window.start]:
            del evidence_by_frame[gone]
        for i in window:
            if i not in evidence_by_frame:
                frame = read_frame(frames, i, tokens[i])
                evidence_by_frame[i] = frame if isinstance(frame, str) else lift_frame(lifter, frame, teachers)
        label = label_window(evidence_by_frame, index, window, fuser)
        if isinstance(label, SceneLabel):
            yield label
        elif unlabelled is not None:
            unlabelled[token] = label


def lift_frame(lifter: Lifter, frame: Frame, teachers: Teachers) -> FrameEvidence | str:
    """Lift a frame with the teachers' maps, or return in one line why there are none."""
    frame = taught_frame(frame)
    try:
        return lifter.lift(frame, teachers.classes.classes(frame), teachers.depth.depth(frame))
    except NoMaps as error:
        return f"{frame.token or frame.stamp_ns}: {error}"


def taught_frame(frame: Frame) -> Frame:
    """The frame as teachers see it: a fisheye is replaced by its pinhole views, because its pixels have no depth along
    one axis."""
    return pinhole_frame(frame, kept=NOT_FISHEYE)


def read_frame(frames: Sequence[Frame], index: int, token: str) -> Frame | str:
    """Read the frame, or return in one line why its files cannot be used."""
    try:
        return frames[index]
    except (MissingInput, CorruptInput, InvalidInput) as error:
        return f"{token or f'frame {index}'}: {error}"


def _tokens(frames: Sequence[Frame], wanted: Set[str] | None) -> list[str]:
    if len(frames) == 0:
        raise InvalidInput("a scene needs at least one frame to be labelled, got none")
    listed = getattr(frames, "tokens", None)
    tokens = list(listed) if listed is not None else [frame.token for frame in frames]
    if wanted is not None and (absent := sorted(wanted - set(tokens))):
        raise InvalidInput(f"{len(absent)} wanted tokens are of no frame in this scene, first: '{absent[0]}'")
    return tokens


def window_of(index: int, count: int, recipe: Recipe) -> range:
    """The frames, out of `count`, from which the label of frame `index` is made, itself included."""
    start = 0 if recipe.past is None else max(0, index - recipe.past)
    stop = count if recipe.future is None else min(count, index + recipe.future + 1)
    return range(start, stop)


def label_window(
    evidence_by_frame: Mapping[int, FrameEvidence | str], index: int, window: range, fuser: Fuser
) -> SceneLabel | str:
    """Make the label of frame `index`, or return why it has none.

    Args:
        evidence_by_frame: every frame of the window, or why it could not be read.
    """
    own = evidence_by_frame[index]
    if isinstance(own, str):
        return own
    skipped, used = list(own.skipped), []
    for evidence in (evidence_by_frame[i] for i in window if i != index):
        if isinstance(evidence, str):
            skipped.append(evidence)
        elif reason := _jump(own, evidence):
            skipped.append(reason)
        else:
            skipped += evidence.skipped
            used.append(evidence)
    occupancy, votes = fuser.fuse(own, used)
    return SceneLabel(own.token, occupancy, votes, tuple(skipped))


def _jump(own: FrameEvidence, other: FrameEvidence) -> str | None:
    """Return why two frames cannot be of one drive. Only these two are compared, so that other frames do not change a
    label."""
    moved_m = float(np.linalg.norm(other.world_from_ego[:3, 3] - own.world_from_ego[:3, 3]))
    seconds = abs(other.stamp_ns - own.stamp_ns) / 1e9
    limit_m = JUMP_SLACK_M + MAX_SPEED_M_S * seconds
    if moved_m <= limit_m:
        return None
    name = other.token or other.stamp_ns
    return f"{name}: pose is {moved_m:.0f} m away after {seconds:.1f} s, limit {limit_m:.0f} m"
