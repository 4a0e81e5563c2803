"""Builds the transform tree of a recording: the links of one robot, one parent for each frame, odometry where TF has
none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from occ_core.errors import MissingInput
from occ_core.problems import Problem, Tally, Unusable
from occ_core.sensor_messages import put
from occ_core.sources.bag_survey import LogEntry, Logged, Survey
from occ_core.transforms import TransformTree

HOLDS = 0.5
"""Samples over less of a recording do not outdo a fixed transform of the same frame."""
SAME = 1e-6  # of a transform's numbers


def namespace_of(topic: str) -> str:
    """`/robot1` of `/robot1/tf`; empty for `/tf`."""
    return topic.rpartition("/")[0]


def namespaces(survey: Survey) -> list[str]:
    """The namespaces that have transforms."""
    return sorted({namespace_of(topic) for topic, links in survey.links.items() if links})


def robot_of(topic: str, spaces: Sequence[str]) -> str:
    """The namespace of transforms to which a camera belongs: the longest one that contains its topic, else the root's
    or the only one."""
    inside = [space for space in spaces if topic.startswith(f"{space}/")]
    return max(inside, key=len, default=spaces[0] if len(spaces) == 1 else "")


def build_tree(survey: Survey, space: str, tally: Tally) -> TransformTree:
    """Build a tree of all links of a namespace, then of the root. If a frame has several parents, the one with most
    samples is taken and the others are named."""
    claims: dict[str, dict[tuple[str, bool], tuple[list[Logged], str]]] = {}
    for topic, links in survey.links.items():
        if namespace_of(topic) not in ("", space):
            continue
        static = topic.endswith("tf_static")
        for logged in links:
            of_child = claims.setdefault(logged.link.child, {})
            of_child.setdefault((logged.link.parent, static), ([], topic))[0].append(logged)
    tree = TransformTree(buffer_s=math.inf)
    span_ns = _span_ns([logged for links in survey.links.values() for logged in links])
    for child, of_child in claims.items():
        ranked = sorted(of_child.items(), key=lambda claim: _rank(claim[0], claim[1], space, span_ns), reverse=True)
        if len(ranked) > 1:
            said = " and ".join(
                f"'{parent}' ({'fixed' if static else f'{len(links)} samples'} on {topic})"
                for (parent, static), (links, topic) in ranked
            )
            tally.note(Problem("two parents", ranked[0][1][1], f"'{child}' is below {said}; the first is used"))
        (_, static), (links, topic) = ranked[0]
        if static:
            _note_poses(links, topic, tally)
        for logged in links:
            try:
                put(tree, logged.link, static, topic)
            except Unusable as error:
                tally.add(error.problem)
    return tree


def _rank(kind: tuple[str, bool], claim: tuple[list[Logged], str], space: str, span_ns: int) -> tuple[bool, bool, int]:
    """Order claims: those of the robot itself first, then those that hold for most of the recording, then by number of
    samples."""
    (_, static), (links, topic) = kind, claim
    return namespace_of(topic) == space, static or _span_ns(links) >= HOLDS * span_ns, len(links)


def _span_ns(links: Sequence[Logged]) -> int:
    """The time from the first to the last log time."""
    logged = [each.log_ns for each in links]
    return max(logged, default=0) - min(logged, default=0)


def _note_poses(links: Sequence[Logged], topic: str, tally: Tally) -> None:
    """Note that a fixed frame was published with several poses."""
    last = links[-1].link
    off = [np.abs(each.link.parent_from_child - last.parent_from_child) for each in links]
    others = sum(float(by.max()) > SAME for by in off)
    if others:
        farthest_m = max(float(by[:3, 3].max()) for by in off)
        found = (
            f"'{last.child}' is fixed below '{last.parent}' at another place in {others} of {len(links)} messages, "
            f"by up to {farthest_m:.3f} m; the last one is used"
        )
        tally.note(Problem("moves", topic, found))


def add_odometry(tree: TransformTree, survey: Survey, space: str, base_frame: str, tally: Tally) -> str:
    """Add the first odometry that says how the vehicle moves, if TF does not; returns its topic, or nothing."""
    if tree.ancestors(base_frame)[-1] in ("map", "odom"):
        return ""
    for topic in sorted(survey.odometry, key=lambda topic: (not topic.startswith(f"{space}/"), topic)):
        used = 0
        for logged in survey.odometry[topic]:
            link = logged.link
            try:
                if link.child not in tree.ancestors(base_frame):
                    found = f"'{link.parent}' -> '{link.child}': this is neither '{base_frame}' nor a frame above it"
                    raise Unusable(Problem("odometry", topic, found))
                if tree.parent(link.child) not in (None, link.parent):
                    found = f"'{link.child}' is below '{tree.parent(link.child)}' in TF, not below '{link.parent}'"
                    raise Unusable(Problem("odometry", topic, found))
                put(tree, link, False, topic, "odometry")
                used += 1
            except Unusable as error:
                tally.add(error.problem)
        if used:
            return topic
    return ""


def world_of(tree: TransformTree, base_frame: str, wanted: str | None, path: Path) -> str | None:
    """The frame in which the vehicle's poses are given; None if the vehicle counts as standing still.

    Raises:
        MissingInput: TF does not name the base frame, or the wanted one is not above it.
    """
    if base_frame not in tree.frames:
        raise MissingInput(f"{path}: no transform names '{base_frame}', only: {', '.join(sorted(tree.frames)[:20])}")
    above = tree.ancestors(base_frame)
    if wanted is not None:
        if wanted.lstrip("/") not in above:
            raise MissingInput(f"{path}: '{base_frame}' is not below '{wanted}', only: {' <- '.join(above)}")
        return wanted.lstrip("/")
    moving = {frame for n, frame in enumerate(above) if any(tree.is_moving(below) for below in above[:n])}
    usual = [frame for frame in ("odom", "map") if frame in above]  # REP 105: the robot never jumps in odom
    known = next((frame for frame in usual if frame in moving), usual[-1] if usual else None)
    return known or (above[-1] if moving else None)  # a top that the robot moves in is a world of some name


def motion_entries(tree: TransformTree, survey: Survey, base_frame: str) -> list[LogEntry]:
    """Stamps and log times of the lowest moving link above the base frame: the clock by which images are placed."""
    moving = next((frame for frame in tree.ancestors(base_frame) if tree.is_moving(frame)), None)
    parent = tree.parent(moving) if moving else None
    return [
        LogEntry(logged.link.stamp_ns, logged.log_ns)
        for links in (*survey.links.values(), *survey.odometry.values())
        for logged in links
        if logged.link.child == moving and logged.link.parent == parent and logged.link.stamp_ns > 0
    ]
