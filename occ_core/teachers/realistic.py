"""A teacher as wrong as real ones: the simulated city's truth through the error model of `error_model.py`.

An error has two causes of one variance: the place, so that it comes again when the next frame sees the same wall, and
the image, so that it does not. Everything is drawn from (seed, scene) or (seed, token, camera): the same maps for the
same seed, in any order.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from occ_core.errors import need
from occ_core.frame import Frame
from occ_core.geometry import apply
from occ_core.taxonomy import OCC3D, UNLABELED, Taxonomy
from occ_core.teachers.base import ClassMap, DepthMap
from occ_core.teachers.error_model import SKY, THINGS, ErrorModel, bleed, confusion_table, segments, smooth_field
from occ_core.teachers.oracle import Oracle

REFERENCE_WIDTH_PX = 1600  # the sizes in pixels of `ErrorModel` are those of a nuScenes image
COARSE = 4  # smooth fields are evaluated at every fourth pixel
PLACE_M = 6.0  # correlation length of errors that belong to a place
IMAGE_SHARE = 1 / 10  # and of those that belong to an image, as a share of its width


class Realistic:
    """Class and depth maps of a simulated city with the errors of Grounded-SAM and Metric3Dv2.

    Args:
        dataroot: folder that `occ world make` wrote.
        taxonomy: must be Occ3D's.
        seed: another seed, other errors of the same size.
        model: the knobs.

    Raises:
        As `Oracle`.
    """

    def __init__(
        self, dataroot: Path, taxonomy: Taxonomy = OCC3D, seed: int = 0, model: ErrorModel | None = None
    ) -> None:
        self.oracle, self.seed, self.model = Oracle(dataroot, taxonomy), seed, model or ErrorModel()
        self._confused, self._targets = confusion_table(self.model)
        knobs = hashlib.sha256(self.model.model_dump_json().encode()).hexdigest()[:8]
        self.version = f"realistic-1 seed {seed} knobs {knobs}"

    def classes(self, frame: Frame) -> dict[str, ClassMap]:
        maps = {}
        for name in frame.images:
            view = self._true_view(frame, name)
            rng = self._rng("classes", frame.token, name)
            class_id = self._wrong_classes(view, rng)
            maps[name] = ClassMap(class_id, _scores(class_id, view.class_id, rng))
        return maps

    def depth(self, frame: Frame) -> dict[str, DepthMap]:
        return {name: self._wrong_depth(self._true_view(frame, name), frame, name) for name in frame.images}

    def reads(self, frame: Frame) -> list[Path | np.ndarray]:
        """See `base.seen_key`: the truth, and the poses, for errors belong to places."""
        return [*self.oracle.reads(frame), *(pose for _, pose in sorted(frame.camera_world_from_ego.items()))]

    def _rng(self, *key: str) -> np.random.Generator:
        digest = hashlib.sha256("\0".join((str(self.seed), *key)).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:16], "little"))

    def _true_view(self, frame: Frame, name: str) -> _TrueView:
        class_id, depth_m = self.oracle.read(frame, name)
        h, w = class_id.shape
        camera = frame.rig[name]
        rows, columns = np.mgrid[0:h:COARSE, 0:w:COARSE]
        pixels = np.stack([columns.ravel(), rows.ravel()], axis=1).astype(np.float64)
        near = np.fmin(depth_m[::COARSE, ::COARSE], self.model.sky_depth_m).reshape(-1, 1)
        world_from_cam = frame.camera_world_from_ego[name] @ camera.ego_from_cam
        points_world_m = apply(world_from_cam, camera.rays(pixels) * near).reshape(*rows.shape, 3)
        return _TrueView(class_id, depth_m, points_world_m, pixels.reshape(*rows.shape, 2), frame.scene)

    def _field(self, view: _TrueView, what: str, rng: np.random.Generator) -> np.ndarray:
        """Normal float32 (h, w), smooth in the image; `persistence` of its variance belongs to the place."""
        h, w = view.class_id.shape
        share = np.float32(self.model.persistence)
        coarse = np.sqrt(share) * smooth_field(view.points_world_m, PLACE_M, self._rng(what, view.scene))
        coarse += np.sqrt(1 - share) * smooth_field(view.pixels, w * IMAGE_SHARE, rng)
        size = (coarse.shape[1] * COARSE, coarse.shape[0] * COARSE)
        return np.ascontiguousarray(cv2.resize(coarse, size, interpolation=cv2.INTER_LINEAR)[:h, :w])

    def _chance(self, view: _TrueView, what: str, rng: np.random.Generator) -> np.ndarray:
        """Uniform in 0..1, float32 (h, w), of the same smoothness."""
        return need("scipy.special", "world").ndtr(self._field(view, what, rng))

    def _wrong_depth(self, view: _TrueView, frame: Frame, name: str) -> DepthMap:
        model, rng = self.model, self._rng("depth", frame.token, name)
        sky = ~np.isfinite(view.depth_m)
        log_depth, edge = bleed(np.log(np.where(sky, model.sky_depth_m, view.depth_m)), model.edge_px * view.px)
        spread = model.noise_near + model.noise_per_m * np.minimum(np.exp(log_depth), model.sky_depth_m)
        near_sky = sky & (self._chance(view, "near sky", rng) < model.sky_near)
        log_depth = np.where(near_sky, np.log(rng.uniform(20, 60)), log_depth)
        scale = model.scale_camera * self._rng("scale", view.scene, name).normal() + model.scale_image * rng.normal()
        log_depth = log_depth + scale + spread * self._field(view, "depth", rng)
        # It knows, as networks do, where it is unsure: far off and at edges. Of a wrong scale it knows nothing.
        confidence = np.where(edge, 0.4, 1.0) / (1 + (spread / 0.15) ** 2)
        depth_m = np.where(np.isnan(view.depth_m), np.nan, np.exp(log_depth))  # where a lens shows nothing
        return DepthMap(depth_m.astype(np.float32), confidence.astype(np.float32))

    def _wrong_classes(self, view: _TrueView, rng: np.random.Generator) -> np.ndarray:
        things = np.isin(view.class_id, sorted(THINGS))
        chance, which = self._chance(view, "confused", rng), self._chance(view, "taken for", rng)
        found, behind = self._objects(view, things, chance, which, rng)
        surfaces = self._confuse(view.class_id, chance, which)
        surfaces[(view.class_id == SKY) & (chance < self.model.sky_missed)] = UNLABELED
        if not things.all():
            found = np.where(behind, _nearest(surfaces, ~things), found)
        out = np.where(things, found, surfaces)
        out = self._grow_sky(out, view, chance)
        self._merge(out, view, rng)
        return self._shift_outlines(out, view, rng)

    def _confuse(self, class_id: np.ndarray, chance: np.ndarray, which: np.ndarray) -> np.ndarray:
        """The class for which a class is taken where `chance` falls below its share; all arrays have one shape."""
        out = class_id.copy()
        wrong = chance < self._confused[class_id]
        targets = self._targets[class_id[wrong]]
        out[wrong] = np.minimum((targets <= which[wrong][:, None]).sum(axis=1), UNLABELED)
        return out

    def _objects(
        self, view: _TrueView, things: np.ndarray, chance: np.ndarray, which: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Class of objects' pixels, decided for an object as a whole, and where it shall be what is behind it."""
        out, behind = view.class_id.copy(), np.zeros(things.shape, dtype=np.bool_)
        if not things.any():
            return out, behind
        number = segments(view.class_id, view.depth_m, things)[things]
        area_px = np.bincount(number)
        middle = np.argsort(number, kind="stable")[np.cumsum(area_px) - area_px + area_px // 2]
        at = np.flatnonzero(things)[middle]  # one pixel stands for its object
        small = np.exp(-(area_px / view.px**2) / max(self.model.missed_area_px, 1e-6))
        missed = self.model.missed + (1 - self.model.missed) * small
        lost = self._chance(view, "missed", rng).ravel()[at] < missed
        taken = self._confuse(view.class_id.ravel()[at], chance.ravel()[at], which.ravel()[at])
        taken[lost] = UNLABELED
        out[things] = taken[number]
        behind[things] = (lost & (rng.random(len(lost)) < self.model.missed_filled))[number]
        return out, behind

    def _grow_sky(self, out: np.ndarray, view: _TrueView, chance: np.ndarray) -> np.ndarray:
        """Let the sky cover what it borders, by place: twice `sky_growth_px` in half of the places, nothing
        elsewhere."""
        reach = round(self.model.sky_growth_px * view.px) * 2
        sky = (view.class_id == SKY).astype(np.uint8)
        if reach < 1 or not sky.any():
            return out
        grown = cv2.dilate(sky, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))) > 0
        return np.where(grown & (sky == 0) & (chance > 0.5), np.uint8(SKY), out)

    def _merge(self, out: np.ndarray, view: _TrueView, rng: np.random.Generator) -> None:
        """Fill narrow gaps between objects of one class."""
        gap = max(1, round(self.model.merged_gap_px * view.px))
        window = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * (gap // 2) + 1,) * 2)
        for thing in sorted(set(np.unique(out).tolist()) & THINGS):
            mask = (out == thing).astype(np.uint8)
            between = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, window) & (1 - mask)
            count, number = cv2.connectedComponents(between, connectivity=4)
            drawn = np.asarray(rng.random(count) < self.model.merged)
            drawn[0] = False
            out[drawn[number]] = thing

    def _shift_outlines(self, out: np.ndarray, view: _TrueView, rng: np.random.Generator) -> np.ndarray:
        """Move outlines a little: each pixel reads its class a few pixels off."""
        h, w = out.shape
        size = np.float32(self.model.boundary_px * view.px)
        wiggle = [smooth_field(view.pixels, w / 40, rng) * size for _ in range(2)]
        du, dv = (cv2.resize(field, (w, h), interpolation=cv2.INTER_LINEAR) for field in wiggle)
        v, u = np.mgrid[0:h, 0:w].astype(np.float32)
        return cv2.remap(out, u + du, v + dv, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)


@dataclass(frozen=True, eq=False)
class _TrueView:
    """The truth of one image: class_id uint8 and depth_m float32 (h, w), and for every fourth pixel its position in the
    world (h/4, w/4, 3) and in the image (h/4, w/4, 2)."""

    class_id: np.ndarray
    depth_m: np.ndarray
    points_world_m: np.ndarray
    pixels: np.ndarray
    scene: str

    @property
    def px(self) -> float:
        """Pixels of this image in one of the reference size."""
        return self.class_id.shape[1] / REFERENCE_WIDTH_PX


def _nearest(class_id: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Give each pixel the class of the nearest valid pixel."""
    _, label = cv2.distanceTransformWithLabels(
        (~valid).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_label = np.zeros(label.max() + 1, dtype=np.uint8)
    of_label[label[valid]] = class_id[valid]
    return of_label[label]


def _scores(class_id: np.ndarray, truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scores float32 (h, w) above Grounding DINO's threshold of 0.20, one a class and image: lower where it is wrong.

    Wrong masks score lower on average, but not so that a threshold would part them from right ones.
    """
    right, wrong = rng.beta(4, 5, 256) * 0.8 + 0.2, rng.beta(3, 6, 256) * 0.8 + 0.2
    score = np.where(class_id == truth, right[class_id], wrong[class_id])
    return np.where(class_id == UNLABELED, 0.0, score).astype(np.float32)
