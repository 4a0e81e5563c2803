"""What is done to a cached sample before nano is given it: mirrored, turned, recoloured, cameras dropped, images
zoomed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from occ_core.models.easyocc.config import STRIDE, EasyOccConfig
from occ_core.models.easyocc.table import Table, mirrored, turned, zoomed_rays
from occ_core.taxonomy import UNLABELED
from occ_core.training.cache import SceneCache
from occ_core.training.rays import march

TURNS = (1, 2, 2, 3)  # quarters: a street that still lies along the robot teaches more than one across
MOST_ZOOM = 1.7  # beyond, an image is too coarse to be one of a longer lens
QUARTER = np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # counter-clockwise around z


@dataclass(frozen=True, eq=False)
class TabulatedSample:
    """One sample as the network sees it; arrays are those of SceneCache, without the sample axis."""

    images: np.ndarray
    labels: np.ndarray
    depth: np.ndarray
    pixel_class: np.ndarray
    table: Table
    world_from_ego: np.ndarray


def read_sample(scene: SceneCache, i: int, config: EasyOccConfig, dropped: Sequence[int] = ()) -> TabulatedSample:
    """Sample `i` of a scene; cameras that have no image, and `dropped` ones, see nothing."""
    rig = int(scene["rig"][i])
    table = Table(*(scene[name][rig] for name in ("voxel_index", "pillar_index", "rays")))
    blind = set(np.flatnonzero(~scene["present"][i]).tolist()) | set(dropped)
    images, labels, depth, pixel_class = (np.array(scene[k][i]) for k in ("images", "labels", "depth", "pixel_class"))
    depth[~scene["present"][i]] = pixel_class[~scene["present"][i]] = UNLABELED
    table = without_cameras(table, blind, config)
    return TabulatedSample(images, labels, depth, pixel_class, table, np.array(scene["world_from_ego"][i]))


def without_cameras(table: Table, blind: set[int], config: EasyOccConfig) -> Table:
    """The table with the cells of `blind` cameras pointed at the zero row."""
    if not blind:
        return table
    w, h = config.feature_size

    def cut(index: np.ndarray, rows_per_camera: int) -> np.ndarray:
        index = np.array(index)
        camera = index // rows_per_camera
        index[np.isin(camera, list(blind))] = len(table.rays) * rows_per_camera
        return index

    return Table(cut(table.voxel_index, h * w * config.depth_bins), cut(table.pillar_index, h * w), table.rays)


def mirror(sample: TabulatedSample, config: EasyOccConfig) -> TabulatedSample:
    """The same sample in a mirror: left and right of the ego swapped, and of the world, where it will turn left."""
    swap = np.diag([1.0, -1, 1, 1])
    return TabulatedSample(
        np.ascontiguousarray(sample.images[:, :, ::-1]),
        np.ascontiguousarray(sample.labels[:, ::-1]),
        np.ascontiguousarray(sample.depth[..., ::-1]),
        np.ascontiguousarray(sample.pixel_class[..., ::-1]),
        mirrored(sample.table, config),
        swap @ sample.world_from_ego @ swap,
    )


def turn(sample: TabulatedSample, quarters: int, config: EasyOccConfig) -> TabulatedSample:
    """The same sample on a robot that stands turned clockwise: the world turned counter-clockwise around it."""
    labels = np.ascontiguousarray(np.rot90(sample.labels, quarters))
    world_from_turned = sample.world_from_ego @ np.linalg.matrix_power(QUARTER, -quarters)
    return replace(
        sample, labels=labels, table=turned(sample.table, quarters, config), world_from_ego=world_from_turned
    )


def recolour(images: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Apply a random gain and gamma to each channel and a random offset to each camera; uint8 in and out."""
    out = np.empty_like(images)
    levels = np.arange(256) / 255.0
    common = rng.uniform(1 - strength, 1 + strength)
    for i, image in enumerate(images):
        gamma = np.exp(rng.normal(0, strength, 1))
        gain = common * rng.uniform(1 - strength / 2, 1 + strength / 2, 3)
        offset = rng.normal(0, strength / 4)
        table = levels[:, None] ** gamma * gain + offset
        lut = np.clip(np.rint(table * 255), 0, 255).astype(np.uint8)
        out[i] = cv2.LUT(image, lut[:, None])
    return out


def retextured(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pass the image, uint8 (H, W, 3), through a small random convolution, mix its colours at random, blur or sharpen
    it and add noise. Shapes stay; the texture that only simulated surfaces have is lost (RandConv, arXiv
    2007.13003)."""
    x = image.astype(np.float32)
    size = int(rng.choice([1, 3, 5]))
    kernel = rng.normal(0, 1 / size, (size, size)).astype(np.float32)
    mixture = (np.eye(3) + rng.normal(0, 0.3, (3, 3))).astype(np.float32)
    strange = cv2.transform(cv2.filter2D(x, -1, kernel, borderType=cv2.BORDER_REFLECT_101), mixture)
    strange = (strange - strange.mean()) * (x.std() / max(float(strange.std()), 1.0)) + x.mean()
    share = rng.uniform(0, 0.7)
    x = (1 - share) * x + share * strange
    blurred = cv2.GaussianBlur(x, (0, 0), rng.uniform(0.4, 1.2), borderType=cv2.BORDER_REFLECT_101)
    x = x + rng.uniform(-1, 1) * (x - blurred)  # from blurred, at -1, to twice as sharp
    x = x + rng.normal(0, rng.uniform(0, 8), x.shape).astype(np.float32)
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def pick_columns(labels: np.ndarray, count: int, rare: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pick at most `count` columns, as indices into (X, Y): rare classes first, then others in view; an eighth are
    wholly hidden ones.

    Args:
        labels: uint8 (X, Y, Z). rare: bool (256,) by label.
    """
    columns = labels.reshape(-1, labels.shape[-1])
    in_view = (columns != UNLABELED).any(axis=1)
    observed, hidden = np.flatnonzero(in_view), rng.permutation(np.flatnonzero(~in_view))[: count // 8]
    special = rare[columns[observed]].any(axis=1)
    first, rest = observed[special], observed[~special]
    first = rng.permutation(first)[: count // 2]
    rest = rng.permutation(rest)[: count - len(first) - len(hidden)]
    return np.sort(np.concatenate([first, rest, hidden]))


def zoomed(
    scene: SceneCache, i: int, camera: int, config: EasyOccConfig, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """Cut a part out of an image as a longer lens would have shown it; returns image, depth, pixel_class and rays.

    What each ray meets is asked of the labels again, for a target moved by half a feature pixel would err by metres.
    """
    rig, (w, h) = int(scene["rig"][i]), config.feature_size
    zoom = MOST_ZOOM ** rng.random()
    # feature pixels from the corner of the whole image to that of the part; no ray's centre leaves the outer centres
    least = (1 - 1 / zoom) / 2
    left, top = (rng.uniform(least, n - n / zoom - least) for n in (w, h))
    part = np.array([[1 / zoom, 0, (left + 0.5 / STRIDE / zoom) * STRIDE - 0.5]
                     , [0, 1 / zoom, (top + 0.5 / STRIDE / zoom) * STRIDE - 0.5]])  # fmt: skip
    size = config.input_width, config.input_height
    image = cv2.warpAffine(scene["images"][i, camera], part, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    columns, rows = (start + (np.arange(n) + 0.5) / zoom - 0.5 for start, n in ((left, w), (top, h)))
    rays = zoomed_rays(np.array(scene["rays"][rig, camera]), rows, columns, zoom)
    directions = rays[:3].transpose(1, 2, 0).astype(np.float64)
    depth, classes = march(scene["labels"][i], scene["origins_ego_m"][rig, camera], directions, config)
    own = scene["own"][rig, camera][rows.round().astype(int)[:, None], columns.round().astype(int)]
    ignored = np.uint8(UNLABELED)
    return image, np.where(own, ignored, depth), np.where(own, ignored, classes), rays
