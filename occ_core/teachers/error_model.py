"""The errors of real teachers: what `Realistic` does to exact maps, and how much of it. docs/teachers.md names the
sources."""

from __future__ import annotations

from typing import Annotated

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from occ_core.errors import need
from occ_core.taxonomy import OCC3D, UNLABELED

SKY = OCC3D.free_id
THINGS = OCC3D.dynamic_ids | {OCC3D.id_of("barrier"), OCC3D.id_of("traffic_cone")}  # found object by object

CONFUSED_WITH: dict[str, tuple[tuple[str, float], ...]] = {
    # Class: what it is taken for, and how often. Objects as a whole, surfaces patch by patch; "" = no class at all.
    "others": (("manmade", 0.30), ("", 0.70)),  # no prompt asks for it
    "barrier": (("manmade", 0.20),),
    "bicycle": (("motorcycle", 0.12),),
    "bus": (("truck", 0.10), ("car", 0.05)),
    "car": (("truck", 0.03),),
    "construction_vehicle": (("truck", 0.35),),
    "motorcycle": (("bicycle", 0.12),),
    "pedestrian": (("manmade", 0.03),),
    "traffic_cone": (("barrier", 0.10), ("manmade", 0.05)),
    "trailer": (("truck", 0.45),),
    "truck": (("bus", 0.05), ("car", 0.08)),
    "driveable_surface": (("sidewalk", 0.02), ("", 0.02)),
    "other_flat": (("sidewalk", 0.45), ("driveable_surface", 0.40), ("", 0.10)),  # a "traffic island" is hardly found
    "sidewalk": (("driveable_surface", 0.15), ("terrain", 0.05), ("", 0.05)),
    "terrain": (("vegetation", 0.12), ("sidewalk", 0.08), ("", 0.08)),
    "manmade": (("vegetation", 0.02), ("", 0.10)),
    "vegetation": (("terrain", 0.05), ("manmade", 0.03), ("", 0.06)),
}

Share = Annotated[float, Field(ge=0, le=1)]
Size = Annotated[float, Field(ge=0)]


class ErrorModel(BaseModel):
    """The knobs. Errors of depth are standard deviations of its logarithm, so about relative; px are of a 1600 px wide
    image."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # depth: one factor an image, part of it the same for all images of a camera in a scene
    scale_camera: Size = 0.08
    scale_image: Size = 0.06
    # depth: smooth error, of this size at 0 m and so much more a metre
    noise_near: Size = 0.04
    noise_per_m: Size = 0.003
    # depth: how wide near and far surfaces run into each other at an edge
    edge_px: Size = 4.0
    # sky: finite depth in it; share of it that seems near; share of it without a class; growth into what it borders
    sky_depth_m: Annotated[float, Field(gt=0)] = 150.0
    sky_near: Share = 0.02
    sky_missed: Share = 0.05
    sky_growth_px: Size = 8.0
    # classes: factor on CONFUSED_WITH; objects missed at any size, and by exp(-area / missed_area_px); merged gaps
    confusion: Size = 1.0
    missed: Share = 0.08
    missed_area_px: Size = 700.0
    missed_filled: Share = 0.3  # of missed objects: background's class instead of none
    merged: Share = 0.3
    merged_gap_px: Size = 16.0
    boundary_px: Size = 3.0  # outlines of masks are off by this
    # share of an error's variance that stays with the place and comes again in other frames
    persistence: Share = 0.5


def confusion_table(model: ErrorModel) -> tuple[np.ndarray, np.ndarray]:
    """Share confused float32 (256,), and cumulative share of each target among the confused, float32 (256, 256)."""
    share = np.zeros(256, dtype=np.float32)
    targets = np.zeros((256, 256), dtype=np.float32)
    for name, others in CONFUSED_WITH.items():
        source = OCC3D.id_of(name)
        for other, p in others:
            targets[source, OCC3D.id_of(other) if other else UNLABELED] = p
        total = targets[source].sum()
        share[source] = min(1.0, total * model.confusion)
        targets[source] = np.cumsum(targets[source] / total)
    return share, targets


def smooth_field(points: np.ndarray, length: float, rng: np.random.Generator, terms: int = 24) -> np.ndarray:
    """A random function of place with mean 0, variance 1 and Gaussian correlation of this length.

    Random Fourier features (Rahimi and Recht, 2007).

    Args:
        points: float (..., dims).
        length: in units of `points`.

    Returns:
        float32 (...).
    """
    frequency = (rng.normal(size=(terms, points.shape[-1])) / max(length, 1e-6)).astype(np.float32)
    phase = rng.uniform(0, 2 * np.pi, terms).astype(np.float32)
    columns = [np.ascontiguousarray(points[..., i], dtype=np.float32) for i in range(points.shape[-1])]
    total = np.zeros(points.shape[:-1], dtype=np.float32)
    for wave, start in zip(frequency, phase, strict=True):
        # no matrix product: its rounding depends on the number of threads, and the same seed must give the same bytes
        angle = columns[0] * wave[0] + start
        for column, factor in zip(columns[1:], wave[1:], strict=True):
            angle += column * factor
        total += np.cos(angle)
    return total * np.float32(np.sqrt(2 / terms))


def bleed(log_depth: np.ndarray, sigma_px: float, jump: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    """Near and far run into each other where depth jumps: log depth float32 (h, w), and edge bool (h, w)."""
    if sigma_px <= 0:
        return log_depth, np.zeros(log_depth.shape, dtype=np.bool_)
    reach = 2 * max(1, round(sigma_px)) + 1
    window = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    # An edge is what bends: a road seen at a grazing angle climbs as fast as some edges but is straight in 1 / depth.
    inverse = np.exp(-log_depth)
    bend = np.abs(cv2.Laplacian(inverse, cv2.CV_32F, ksize=1))
    edge = cv2.dilate((bend > jump * inverse).astype(np.uint8), window) > 0
    return np.where(edge, cv2.GaussianBlur(log_depth, (0, 0), sigma_px), log_depth), edge


def segments(class_id: np.ndarray, depth_m: np.ndarray, wanted: np.ndarray, jump: float = 0.15) -> np.ndarray:
    """Objects: connected pixels of one class without a jump in depth.

    Args:
        class_id: uint8 (h, w). depth_m: float32 (h, w). wanted: bool (h, w), pixels that belong to objects.

    Returns:
        int32 (h, w), object number from 0, -1 elsewhere.
    """
    coo_matrix = need("scipy.sparse", "world").coo_matrix
    connected_components = need("scipy.sparse.csgraph", "world").connected_components
    number = np.full(class_id.shape, -1, dtype=np.int32)
    number[wanted] = np.arange(int(wanted.sum()))
    log_depth = np.log(np.where(wanted, depth_m, 1.0))
    starts, ends = [], []
    for first, second in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        same = wanted[first] & wanted[second] & (class_id[first] == class_id[second])
        same &= np.abs(log_depth[first] - log_depth[second]) < jump
        starts.append(number[first][same])
        ends.append(number[second][same])
    start, end = np.concatenate(starts), np.concatenate(ends)
    n = int(wanted.sum())
    _, component = connected_components(coo_matrix((np.ones(len(start), np.bool_), (start, end)), (n, n)), False)
    number[wanted] = component
    return number
