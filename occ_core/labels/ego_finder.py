"""Finds ego masks in a recording: pixels that do not change while the robot moves.

Sky, empty road and the lines beside it hardly change either on a straight way, so bends are asked for. Of what is left,
the robot is told by its outline: in most images there is an edge where it ends, and where it reaches the image's border
there is none to be had. A robot's own shadow may pass for it: look at the picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from occ_core.ego_mask import FOLDER, file_name, write_mask
from occ_core.files import write_atomically
from occ_core.frame import Frame
from occ_core.sources.nuscenes_tables import root_of
from occ_core.sources.scenes import Recording

WIDTH_PX = 320  # width at which images are compared
STEP_M, STEP_RAD = 0.5, 0.1  # least motion between two images that are kept
KEPT = 64  # images kept for each camera; on longer drives every second, fourth, ...
LEAST = 12  # images without which nothing is judged
LEAST_TURN_DEG = 20.0  # least difference between the headings of two of them
QUANTILE = 0.8  # of a pixel's differences from its median, so that a few odd images do not count
# a pixel is still below this share of the median pixel's change, within these levels
STILL_SHARE, STILL_LEVELS = 0.4, (6.0, 20.0)
EDGE_LEVELS, ALIGNED = 2.0, 0.7  # a lasting edge: its levels a pixel, and how far its directions agree
OUTLINE_SHARE = 0.5  # least share of a region's outline that is a lasting edge
LEAST_AREA = 0.002  # least share of the image
PICTURE = "ego_masks.jpg"


@dataclass(frozen=True, eq=False)
class FoundMask:
    """The ego mask of one camera, or why none was found.

    Attributes:
        mask: bool (h, w), of the images' size; nowhere True where nothing was found.
        median: uint8 (h', w', 3), RGB: the median of the images that were compared, or the last one.
        images: how many were compared.
        reason: why nothing can be said; empty: something can.
    """

    mask: np.ndarray
    median: np.ndarray
    images: int
    reason: str = ""


@dataclass
class _Seen:
    """Small images of one camera, each taken at least a step further on than the one before."""

    size: tuple[int, int]
    steps: int = 1  # only every so many-th is kept
    moves: int = 0
    at: np.ndarray | None = None  # world_from_ego of the last image that counted
    images: list[np.ndarray] = field(default_factory=list)
    headings: list[float] = field(default_factory=list)  # rad


class MaskFinder:
    """Reads the frames of one drive in order; it keeps at most KEPT small images a camera."""

    def __init__(self) -> None:
        self._cameras: dict[str, _Seen] = {}
        self._has_pose = True

    def add(self, frame: Frame) -> None:
        """Read a frame; its images are kept if the robot has moved on since the last ones."""
        self._has_pose &= frame.has_pose
        for name, image in frame.images.items():
            size = image.shape[1], image.shape[0]
            seen = self._cameras.setdefault(name, _Seen(size))
            pose = frame.camera_world_from_ego[name]
            if size != seen.size or (seen.at is not None and not _moved(seen.at, pose)):
                continue
            seen.at = pose
            if seen.moves % seen.steps == 0:
                seen.images.append(_small(image))
                seen.headings.append(float(np.arctan2(pose[1, 0], pose[0, 0])))
            seen.moves += 1
            if len(seen.images) > KEPT:
                seen.images, seen.headings, seen.steps = seen.images[::2], seen.headings[::2], 2 * seen.steps

    def found(self) -> dict[str, FoundMask]:
        """The masks by camera name."""
        return {name: self._judged(seen) for name, seen in self._cameras.items()}

    def _judged(self, seen: _Seen) -> FoundMask:
        headings, (w, h) = np.unwrap(seen.headings), seen.size
        images = np.stack([seen.images[i] for i in _spread(headings)])
        median = np.sort(images, axis=0)[len(images) // 2]
        turn_deg, reason = float(np.degrees(np.ptp(headings))), ""
        if not self._has_pose:
            reason = "no poses: nobody says whether the robot moves"
        elif len(seen.images) < LEAST:
            reason = f"too little motion: {STEP_M} m or {STEP_RAD} rad apart, {LEAST} are needed"
        elif turn_deg < LEAST_TURN_DEG:
            reason = f"too little motion: it turned by {turn_deg:.0f} degrees, {LEAST_TURN_DEG:.0f} are needed"
        if reason:
            return FoundMask(np.zeros((h, w), dtype=np.bool_), median, len(seen.images), reason)
        own = own_pixels(images).astype(np.float32)
        return FoundMask(cv2.resize(own, (w, h), interpolation=cv2.INTER_LINEAR) > 0.5, median, len(images))


def _spread(headings: np.ndarray) -> list[int]:
    """Choose the images to compare, as many from a bend as from a long straight stretch."""
    wanted = np.linspace(headings.min(), headings.max(), len(headings))
    return sorted({int(np.abs(headings - heading).argmin()) for heading in wanted} | {0})


def own_pixels(
    images: np.ndarray,  # uint8 (T, h, w, 3), of one camera while it moves
) -> np.ndarray:
    """Mark the pixels that show the robot itself, bool (h, w)."""
    smooth = [cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (0, 0), 1.0) for image in images]
    grey = np.stack(smooth, axis=-1).astype(np.float32)  # (h, w, T): a pixel's values side by side
    change, median = _change(grey)
    steady = change <= np.percentile(change, 10)
    here, usual = grey[steady], median[steady]  # exposure changes from image to image: by what changes least
    grey *= np.clip((here * usual[:, None]).sum(axis=0) / np.maximum((here**2).sum(axis=0), 1.0), 0.5, 2.0)
    change, _ = _change(grey)
    limit = np.clip(STILL_SHARE * np.median(change), *STILL_LEVELS)
    still = cv2.morphologyEx((change < limit).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    lines = _edges(grey)
    still[lines] = 0  # empty road beside the robot hardly changes either: what is between is where the robot ends
    edge = cv2.dilate(lines.astype(np.uint8), np.ones((3, 3), np.uint8))
    count, region, boxes, _ = cv2.connectedComponentsWithStats(still, connectivity=4)
    out, (h, w) = np.zeros_like(still), still.shape
    for i in range(1, count):
        left, top, wide, tall, area = boxes[i]
        at_border = left == 0 or top == 0 or left + wide == w or top + tall == h
        if not at_border or area < LEAST_AREA * still.size:
            continue
        inside = (region == i).astype(np.uint8)
        outline = (cv2.dilate(inside, np.ones((5, 5), np.uint8)) > 0) & (inside == 0)
        if not outline.any() or edge[outline].mean() >= OUTLINE_SHARE:
            out[region == i] = 1
    grown = cv2.dilate(out, np.ones((5, 5), np.uint8))  # over the edge itself
    return cv2.morphologyEx(grown, cv2.MORPH_CLOSE, np.ones((7, 7), np.uint8)) > 0


def _change(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far each pixel of (h, w, T) goes from its median, and the median, (h, w) each."""
    count = grey.shape[2]
    median, rank = np.partition(grey, count // 2)[..., count // 2], round(QUANTILE * (count - 1))
    return np.partition(np.abs(grey - median[..., None]), rank)[..., rank], median


def _edges(grey: np.ndarray) -> np.ndarray:
    """Mark pixels, bool (h, w), with an edge in most images of (h, w, T) whose direction is the same in nearly all of
    them; leaves have edges too, in changing directions."""
    planes = [np.ascontiguousarray(plane) for plane in np.moveaxis(grey, 2, 0)]
    slope = np.stack([cv2.Sobel(p, cv2.CV_32F, 1, 0) + 1j * cv2.Sobel(p, cv2.CV_32F, 0, 1) for p in planes], -1) / 8
    size = np.abs(slope)
    weight = np.minimum(size, 2 * EDGE_LEVELS)
    turned = slope**2 / np.maximum(size**2, 1e-6)  # twice the angle: darker or brighter does not count
    aligned = np.abs((weight * turned).sum(axis=2)) / np.maximum(weight.sum(axis=2), 1e-6)
    most = np.partition(size, len(planes) // 2)[..., len(planes) // 2]
    return (most > EDGE_LEVELS) & (aligned > ALIGNED)


def write_found(found: dict[str, FoundMask], out: Path) -> list[str]:
    """Write the masks that were found as `out/<camera>.png`, and a picture of all; one line a camera."""
    lines = []
    for name, one in sorted(found.items()):
        if one.mask.any():
            write_mask(out / file_name(name), one.mask)
            where = f"{100 * one.mask.mean():.1f} % of the image show the robot itself: {out / file_name(name)}"
        else:
            where = one.reason or "no pixel shows the robot itself"
        lines.append(f"{name}: {where} ({one.images} images compared)")
    if found:
        write_atomically(out / PICTURE, cv2.imencode(".jpg", picture(found)[..., ::-1])[1].tobytes())
    return lines


def find_masks(dataroot: Path, scenes: list[str] | None = None) -> Iterator[str]:
    """Find and write the masks of each scene that has none, of a data set or bag, beside the data; returns one line a
    camera, as `write_found` does."""
    recording = Recording(dataroot)
    root = root_of(dataroot)
    for scene in recording.require_scenes(scenes):
        out = (root if root.is_dir() else root.parent) / FOLDER / scene
        if (out / PICTURE).exists() or any(out.glob("*.png")):
            continue
        finder = MaskFinder()
        frames = recording.scene(scene)
        for index in range(len(frames)):
            finder.add(frames[index])
        yield from (f"{scene}, {line}" for line in write_found(finder.found(), out))


def picture(found: dict[str, FoundMask], columns: int = 3) -> np.ndarray:
    """Each camera's median image with its mask in red, RGB uint8."""
    tiles = []
    for name, one in sorted(found.items()):
        tile = cv2.resize(one.median, (WIDTH_PX, WIDTH_PX * one.median.shape[0] // one.median.shape[1]))
        mask = cv2.resize(one.mask.astype(np.uint8), tile.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0
        tile[mask] = (0.5 * tile[mask] + 0.5 * np.array([255, 0, 0])).astype(np.uint8)
        text = f"{name} {100 * one.mask.mean():.1f} %" if not one.reason else f"{name}: {one.reason.split(':')[0]}"
        for color, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            cv2.putText(tile, text, (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.42, color, width, cv2.LINE_AA)
        tiles.append(tile)
    tall = max(tile.shape[0] for tile in tiles)
    columns = min(columns, len(tiles))
    sheet = np.zeros((-(-len(tiles) // columns) * tall, columns * WIDTH_PX, 3), dtype=np.uint8)
    for i, tile in enumerate(tiles):
        row, column = divmod(i, columns)
        sheet[row * tall : row * tall + tile.shape[0], column * WIDTH_PX : (column + 1) * WIDTH_PX] = tile
    return sheet


def _moved(before: np.ndarray, now: np.ndarray) -> bool:
    turn = (np.trace(before[:3, :3].T @ now[:3, :3]) - 1) / 2
    far = float(np.linalg.norm(now[:3, 3] - before[:3, 3]))
    return far >= STEP_M or float(np.arccos(np.clip(turn, -1, 1))) >= STEP_RAD


def _small(image: np.ndarray) -> np.ndarray:
    h, w = image.shape[:2]
    return cv2.resize(image, (WIDTH_PX, max(1, round(WIDTH_PX * h / w))), interpolation=cv2.INTER_AREA)
