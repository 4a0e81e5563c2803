"""Checks whether held-out images agree with the map, for robots without LiDAR: three tests, each beside what chance
gives.

The map says how far a pixel is; so it says where the same place is in an image of another frame. If the map is right,
that looks alike there. Shifted: more so than by the same map moved by a metre in any of several directions, over an
image; a map that knows nothing wins as often as any of these. Photometric, pixel by pixel and weaker: more so than if
everything were a third nearer or half as far again. Outlines, weakest: where the map, seen from another frame, jumps
from near to far, that frame's image should have an edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from occ_core.errors import CorruptInput, InvalidInput, MissingInput, need
from occ_core.evaluation.lidar_rays import ABOVE_GROUND_M, BANDS, EDGES_M, GROUPS, files_of, scores_for
from occ_core.evaluation.predictions import prediction_files, read_prediction
from occ_core.frame import Frame
from occ_core.geometry import inverse
from occ_core.grid import VoxelGrid
from occ_core.sources.open import open_source
from occ_core.taxonomy import Taxonomy
from occ_core.teachers.motion import LEAST_TEXTURE, pinhole_view, texture
from occ_core.teachers.nearby_images import NearbyImages
from occ_core.teachers.plane_sweep import View, differing, looked_up

WIDTH_PX = 320  # of the views
OTHER_DEPTHS = (2 / 3, 3 / 2)  # of the map's, that must fit worse
SURFACE_M = 0.2  # how far before the cell and behind it its surface may be: half a cell
SAMPLES = 5  # depths between these
LEAST_PX = 2.0  # that the places for the map's depth and for another are apart
SHIFTS_M = {
    "ground": ((0, 0, 0.4), (0, 0, -0.4)),  # along the road nothing would change
    "above": ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0)),
}
"""Of the whole map in the ego frame, by what is then looked at."""
LEAST_PIXELS = 200  # of an image, for its mean to count
DRAWS, INTERVAL = 1000, (0.025, 0.975)  # of images with replacement: how sure the mean is
JUMP = 1.25  # ratio of depths, from which on an outline is one
EDGE_PX = 3  # from an outline to the image's edge


class Seen(NamedTuple):
    """What a map shows in a view, float64 (h, w) each, inf where there is nothing.

    Attributes:
        near_m, far_m: between which depths along the optical axis the first cell's surface may be.
        range_m: distance at which its ray enters it.
        height_m: of that point above level ground.
    """

    near_m: np.ndarray
    far_m: np.ndarray
    range_m: np.ndarray
    height_m: np.ndarray


class ImageConsistency:
    """Pixels by group and band of range, and outlines, summed over all frames.

    Args:
        taxonomy, grid: of the predictions. ground_z_m: height of level ground in the ego frame.
    """

    def __init__(self, taxonomy: Taxonomy, grid: VoxelGrid, ground_z_m: float = 0.0) -> None:
        need("numba", "world")
        self.taxonomy, self.grid, self.ground_z_m = taxonomy, grid, ground_z_m
        self.frames = self.images = self.alone = 0
        self.pixels = np.zeros((len(GROUPS), len(BANDS), 2), dtype=np.int64)  # judgeable, and those that fit
        self.gains: dict[str, list[tuple[float, int]]] = {group: [] for group in GROUPS}  # bits, shifts; of each image
        self.outlines = np.zeros(3, dtype=np.int64)  # pixels of outlines, near an edge, mirrored ones near an edge

    def add(self, labels: np.ndarray, frame: Frame, nearby: NearbyImages) -> None:
        """Count one frame by the images before and after it.

        Args:
            labels: uint8 (X, Y, Z) class ids, in the ego frame of `frame`.
        """
        self.frames += 1
        ego_from_world = inverse(frame.world_from_ego)
        for name, image in frame.images.items():
            camera = frame.rig[name]
            size = WIDTH_PX, max(1, round(WIDTH_PX * camera.size[1] / camera.size[0]))
            shots = [side[0] for side in nearby.around(frame, name) if side]
            self.images += 1
            self.alone += not shots
            others = [pinhole_view(s.camera, s.read(), s.world_from_cam, camera, size) for s in shots]
            own = pinhole_view(camera, image, frame.camera_world_from_ego[name] @ camera.ego_from_cam, camera, size)
            if others:
                seen = self._seen(labels, own, ego_from_world)
                self._count_pixels(own, others, seen)
                self._count_shifted(labels, own, others, seen, ego_from_world)
            for other in others:
                self._count_outlines(other, self._seen(labels, other, ego_from_world))

    def _seen(self, labels: np.ndarray, view: View, ego_from_world: np.ndarray) -> Seen:
        from occ_core.evaluation.first_hit import first_cells

        ego_from_cam = ego_from_world @ view.world_from_cam
        rows, columns = np.indices(view.grey.shape, dtype=np.float64)
        pixels = np.stack([columns, rows, np.ones_like(rows)], axis=-1)
        rays = pixels @ np.linalg.inv(view.intrinsics).T @ ego_from_cam[:3, :3].T
        length = np.linalg.norm(rays, axis=-1)
        directions = (rays / length[..., None]).reshape(-1, 3)
        starts = np.tile(ego_from_cam[:3, 3], (length.size, 1))
        _, *span_m = first_cells(labels, self.taxonomy.free_id, self.grid, starts, directions)
        enter_m, leave_m = (along.reshape(length.shape) for along in span_m)
        near_m, far_m = np.maximum(enter_m - SURFACE_M, 0.1) / length, (leave_m + SURFACE_M) / length
        with np.errstate(invalid="ignore"):
            height_m = ego_from_cam[2, 3] + rays[..., 2] / length * enter_m - self.ground_z_m
        return Seen(near_m, far_m, enter_m, height_m)

    def _count_pixels(self, own: View, others: list[View], seen: Seen) -> None:
        there = np.isfinite(seen.range_m) & (seen.range_m < EDGES_M[-1]) & (texture(own.grey) >= LEAST_TEXTURE)
        judgeable, fits = judged(own, others, seen)
        judgeable &= there
        group = (seen.height_m[judgeable] >= ABOVE_GROUND_M).astype(np.int64)
        kind = group, np.searchsorted(EDGES_M, seen.range_m[judgeable], side="right") - 1
        np.add.at(self.pixels[..., 0], kind, 1)
        np.add.at(self.pixels[..., 1], kind, fits[judgeable])

    def _count_shifted(
        self, labels: np.ndarray, own: View, others: list[View], seen: Seen, ego_from_world: np.ndarray
    ) -> None:
        cost, place = misfit(own, others, seen.near_m, seen.far_m)
        there = np.isfinite(cost) & (seen.range_m < EDGES_M[-1]) & (texture(own.grey) >= LEAST_TEXTURE)
        of_group = {"ground": seen.height_m < ABOVE_GROUND_M, "above": seen.height_m >= ABOVE_GROUND_M}
        for group, shifts_m in SHIFTS_M.items():
            gains = []
            for shift_m in shifts_m:
                moved = ego_from_world.copy()
                moved[:3, 3] -= shift_m  # the camera goes the other way
                other = self._seen(labels, own, moved)
                other_cost, other_place = misfit(own, others, other.near_m, other.far_m)
                with np.errstate(invalid="ignore"):
                    apart = (np.linalg.norm(other_place - place, axis=-1) >= LEAST_PX).any(axis=0)
                judgeable = there & of_group[group] & np.isfinite(other_cost) & apart & (other.range_m < EDGES_M[-1])
                if judgeable.sum() >= LEAST_PIXELS:
                    gains.append(float((other_cost[judgeable] - cost[judgeable]).mean()))
            if gains:
                self.gains[group].append((min(gains), len(gains)))

    def _count_outlines(self, view: View, seen: Seen) -> None:
        lines = outlines(seen.near_m)
        edges = cv2.Canny(cv2.GaussianBlur(view.grey, (0, 0), 1), 40, 100)
        near = cv2.distanceTransform((edges == 0).astype(np.uint8), cv2.DIST_L2, 3) <= EDGE_PX
        self.outlines += [lines.sum(), (lines & near).sum(), (lines[:, ::-1] & near).sum()]

    def report(self) -> dict[str, Any]:
        """Report `shifted`, `photometric` and `outlines`, and numbers of frames, images and images_alone (without one
        before or after). NaN where there is nothing.

        shifted: {group: {images, better, by_chance, bits, bits_low, bits_high}}: in how many percent of the images the
        map explains the others better than the best of the shifted ones, and chance would; by how many of the 48 bits
        of the census a pixel, with what 95 % of draws of images give. photometric: {group: {band: {pixels, fits}}},
        where fits is the percentage of judged pixels and chance gives 33. outlines: {pixels, near_edge, by_chance},
        where by_chance is measured on images mirrored left to right, percent.
        """
        rows = {
            group: {
                band: {"pixels": int(judgeable), "fits": _percent(fits, judgeable)}
                for band, (judgeable, fits) in zip(BANDS, self.pixels[row].tolist(), strict=True)
            }
            for row, group in enumerate(GROUPS)
        }
        count, near, mirrored = self.outlines.tolist()
        lines = {"pixels": count, "near_edge": _percent(near, count), "by_chance": _percent(mirrored, count)}
        kept = {"frames": self.frames, "images": self.images, "images_alone": self.alone}
        shifted = {group: _of_images(np.array(self.gains[group]).reshape(-1, 2)) for group in GROUPS}
        return {"shifted": shifted, "photometric": rows, "outlines": lines} | kept


def judged(own: View, others: list[View], seen: Seen) -> tuple[np.ndarray, np.ndarray]:
    """Mark the pixels that can be judged, bool (h, w), and those in which the map's depth fits better than the
    others."""
    cost, place = misfit(own, others, seen.near_m, seen.far_m)
    judgeable, fits = np.isfinite(cost), np.ones(cost.shape, dtype=bool)
    for ratio in OTHER_DEPTHS:
        other_cost, other_place = misfit(own, others, ratio * seen.near_m, ratio * seen.far_m)
        with np.errstate(invalid="ignore"):
            apart = (np.linalg.norm(other_place - place, axis=-1) >= LEAST_PX).any(axis=0)
            fits &= cost < other_cost
        judgeable &= np.isfinite(other_cost) & apart
    return judgeable, fits & judgeable


def misfit(own: View, others: list[View], near_m: np.ndarray, far_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How badly pixels match the other views where these would show them, at the best depth between `near_m` and
    `far_m`.

    Returns:
        bits of the census that differ at the best of the depths in the best view, float64 (h, w), inf where no view
        sees it; pixel at the middle depth in each view, float64 (views, h, w, 2).
    """
    least, places = np.full(near_m.shape, np.inf), []
    for other in others:
        for share in np.linspace(0, 1, SAMPLES):
            with np.errstate(invalid="ignore"):
                pixels, _ = looked_up(own, other, near_m + share * (far_m - near_m))
            least = np.minimum(least, differing(own, other, pixels))
            if share == 0.5:
                places.append(pixels)
    return least, np.stack(places)


def outlines(depth_m: np.ndarray) -> np.ndarray:
    """Mark pixels, bool (h, w), of something that stands before what is beside it, which is JUMP times farther or
    nothing."""
    far = cv2.dilate(np.where(np.isfinite(depth_m), depth_m, 1e6).astype(np.float32), np.ones((1, 3), np.uint8))
    return np.isfinite(depth_m) & (far >= JUMP * np.where(np.isfinite(depth_m), depth_m, 1))


def score_images(
    predictions: Path,
    data: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    version: str | None = None,
) -> dict[str, Any]:
    """Score every frame of a data set that has a prediction, by the images before and after it; see `score_lidar_rays`.

    Raises:
        MissingInput: no prediction of any frame, or no image has another within reach. CorruptInput: naming the file.
        MissingPackage: without numba.
    """
    source, predictions = open_source(data, version=version), Path(predictions)
    files = files_of(predictions, prediction_files(predictions), source)
    if not files:
        raise MissingInput(f"{predictions}: no prediction of any of the {len(source)} frames of {data}")
    like = scores_for(source, next(iter(files.values())))
    total, nearby = ImageConsistency(like.taxonomy, like.grid, like.ground_z_m), NearbyImages(data, version)
    for done, (number, path) in enumerate(files.items()):
        labels, frame = read_prediction(path, like.grid), source[number]
        try:
            total.add(labels, frame, nearby)
        except InvalidInput as error:
            raise CorruptInput(f"{path}: {error}") from error
        progress(done + 1, len(files))
    if total.alone == total.images:
        raise MissingInput(f"{data}: no image has another of its camera within 3 s that was taken 0.5 m away or more")
    return total.report()


def _of_images(gains: np.ndarray) -> dict[str, Any]:
    """Of each image's gain in bits and number of shifts, (N, 2)."""
    if not len(gains):
        return {"images": 0} | dict.fromkeys(("better", "by_chance", "bits", "bits_low", "bits_high"), math.nan)
    bits, shifts = gains.T
    draws = np.random.default_rng(0).choice(bits, (DRAWS, len(bits))).mean(axis=1)
    low, high = np.quantile(draws, INTERVAL)
    shares = {"better": _percent(int((bits > 0).sum()), len(bits)), "by_chance": float(100 * (1 / (1 + shifts)).mean())}
    return {"images": len(bits), **shares, "bits": float(bits.mean()), "bits_low": float(low), "bits_high": float(high)}


def _percent(count: int, total: int) -> float:
    return 100 * count / total if total else float("nan")


def image_lines(scores: dict[str, Any]) -> list[str]:
    """Write the scores as lines of text."""
    lines = [
        "images that the map explains better than the same map in any place beside its own (ground 0.4 m off, what is "
        "above 1 m), percent"
    ]
    for group, row in scores["shifted"].items():
        bits = f"{row['bits']:.2f} bits ({row['bits_low']:.2f} to {row['bits_high']:.2f})"
        found = f"{row['better']:.1f} of {row['images']}, chance {row['by_chance']:.0f}; by {bits}"
        lines.append(f"  {group}: {found if row['images'] else 'none'}")
    lines += ["pixels whose place looks most alike in another image at the map's depth, percent; chance gives 33"]
    for group, bands in scores["photometric"].items():
        judgeable = [f"{band} {row['fits']:.1f} of {row['pixels']}" for band, row in bands.items() if row["pixels"]]
        lines.append(f"  {group}: " + (", ".join(judgeable) or "none"))
    found = scores["outlines"]
    lines.append(
        f"outlines of the map near an edge of another image: {found['near_edge']:.1f} % of {found['pixels']} pixels, "
        f"mirrored {found['by_chance']:.1f} %"
    )
    if scores["images_alone"]:
        lines.append(f"{scores['images_alone']} of {scores['images']} images have no other within reach")
    return lines
