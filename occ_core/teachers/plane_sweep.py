"""Estimates depth of one view from others with known poses: planes are swept through inverse depth, and smoothed
semi-globally.

At each of HYPOTHESES inverse depths every pixel is looked up in the other views; how well it fits there says the census
transform (Zabih and Woodfill, ECCV 1994), which light does not change. Of several views the better half counts, for in
the rest the pixel may be hidden (Kang, Szeliski and Chai, CVPR 2001). Costs are summed along eight paths
(Hirschmueller, "Stereo processing by semi-global matching and mutual information", PAMI 2008); a parabola through the
least of them and its neighbours gives the depth between two planes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numba
import numpy as np

from occ_core.geometry import inverse

HYPOTHESES = 128
NEAR_M, FAR_M = 2.5, 100.0
RADIUS_PX = 3  # of the census window
FINER = 2  # times, the views that are looked into: a step of half a pixel instead of a whole one
SMALL, LARGE = 4, 24  # penalties, in bits of the census: depth changes by one plane, by more
UNSEEN = 24  # cost where no view sees the pixel: as chance has it, half of the 48 bits
PATHS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))


@dataclass(frozen=True, eq=False)
class View:
    """A pinhole image.

    Attributes:
        grey: uint8 (h, w).
        intrinsics: (3, 3), px.
        world_from_cam: (4, 4).
    """

    grey: np.ndarray
    intrinsics: np.ndarray
    world_from_cam: np.ndarray

    @cached_property
    def census(self) -> np.ndarray:
        """uint64 (h, w): one bit for each neighbour in the window, set where it is darker than the pixel."""
        return _census(self.grey, 1)

    @cached_property
    def finer_census(self) -> np.ndarray:
        """uint64 (FINER h, FINER w): the same between pixels, too; that of pixel (u, v) at (FINER u, FINER v)."""
        h, w = self.grey.shape
        finer_from_own = np.diag([1 / FINER, 1 / FINER, 1])[:2]
        how = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        finer = cv2.warpAffine(
            self.grey, finer_from_own, (FINER * w, FINER * h), flags=how, borderMode=cv2.BORDER_REPLICATE
        )
        return _census(finer, FINER)

    def ways_in(self, other: View) -> tuple[np.ndarray, np.ndarray]:
        """A (3, 3) and b (3,), so that pixel (u, v) at inverse depth p lies in `other` at A (u, v, 1) + p b,
        homogeneous."""
        other_from_own = inverse(other.world_from_cam) @ self.world_from_cam
        return (
            other.intrinsics @ other_from_own[:3, :3] @ np.linalg.inv(self.intrinsics),
            other.intrinsics @ other_from_own[:3, 3],
        )


def inverse_depths() -> np.ndarray:
    """The inverse depths of the planes, float64 (HYPOTHESES,), 1/m, from far to near in even steps."""
    return np.linspace(1 / FAR_M, 1 / NEAR_M, HYPOTHESES)


def sweep(own: View, others: Sequence[View]) -> tuple[np.ndarray, np.ndarray]:
    """The depth of every pixel by the planes that fit best; it is not checked here.

    Returns:
        depth_m float32 (h, w), NaN at the first and the last plane; cost float32 (h, w), bits of the census that differ
        there, 0..48.
    """
    cost = costs(own, others)
    total = np.zeros(cost.shape, dtype=np.uint16)
    for down, right in PATHS:
        _add_path(cost, total, down, right, SMALL, LARGE)
    plane, fits = _least(total, cost)
    planes = inverse_depths()
    step = planes[1] - planes[0]
    with np.errstate(invalid="ignore"):
        depth_m = (1 / (planes[0] + plane * step)).astype(np.float32)
    return depth_m, fits


def costs(own: View, others: Sequence[View]) -> np.ndarray:
    """The costs, uint8 (h, w, HYPOTHESES): at each plane the mean of the better half of the views that see the
    pixel."""
    ways = [own.ways_in(other) for other in others]
    turns, shifts = np.stack([turn for turn, _ in ways]), np.stack([shift for _, shift in ways])
    return _costs(own.census, np.stack([other.finer_census for other in others]), turns, shifts, inverse_depths())


def looked_up(own: View, other: View, depth_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pixels in `other` at which the pixels of `own` would lie if they are at `depth_m` (h, w).

    Returns:
        pixels float64 (h, w, 2), NaN behind the camera; depth there float64 (h, w), m.
    """
    turn, shift = own.ways_in(other)
    rows, columns = np.indices(depth_m.shape, dtype=np.float64)
    at = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ turn.T + shift / depth_m[..., None]
    ahead = at[..., 2] > 1e-6
    scale = np.where(ahead, at[..., 2], np.nan)
    return at[..., :2] / scale[..., None], scale * depth_m


def differing(own: View, other: View, pixels: np.ndarray) -> np.ndarray:
    """Bits of the census in which each pixel of `own` differs from one of `other`, float64 (h, w); inf out of view.

    Args:
        pixels: float64 (h, w, 2), NaN where there is none.
    """
    return _differing(own.census, other.finer_census, pixels)


@numba.njit(cache=True, nogil=True)
def _census(grey, step):
    h, w = grey.shape
    out = np.zeros((h, w), np.uint64)
    for row in range(h):
        for column in range(w):
            code, own = np.uint64(0), grey[row, column]
            for dy in range(-RADIUS_PX, RADIUS_PX + 1):
                for dx in range(-RADIUS_PX, RADIUS_PX + 1):
                    if dy == 0 and dx == 0:
                        continue
                    y = min(max(row + dy * step, 0), h - 1)
                    x = min(max(column + dx * step, 0), w - 1)
                    code = (code << np.uint64(1)) | np.uint64(grey[y, x] < own)
            out[row, column] = code
    return out


@numba.njit(cache=True, nogil=True, inline="always")
def _bits(code):
    """Count the set bits (Hacker's Delight, 5-1)."""
    code = code - ((code >> np.uint64(1)) & np.uint64(0x5555555555555555))
    code = (code & np.uint64(0x3333333333333333)) + ((code >> np.uint64(2)) & np.uint64(0x3333333333333333))
    code = (code + (code >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (code * np.uint64(0x0101010101010101)) >> np.uint64(56)


@numba.njit(cache=True, nogil=True)
def _differing(own, other, pixels):
    h, w = own.shape
    out = np.full((h, w), np.inf)
    for row in range(h):
        for column in range(w):
            x, y = pixels[row, column, 0], pixels[row, column, 1]
            if -1 < x < other.shape[1] and -1 < y < other.shape[0]:
                i, j = int(np.floor(FINER * y + 0.5)), int(np.floor(FINER * x + 0.5))
                if 0 <= i < other.shape[0] and 0 <= j < other.shape[1]:
                    out[row, column] = _bits(own[row, column] ^ other[i, j])
    return out


@numba.njit(cache=True, nogil=True)
def _costs(own, others, turns, shifts, planes):
    h, w = own.shape
    count, finer_h, finer_w = others.shape
    out = np.empty((h, w, len(planes)), np.uint8)
    found = np.empty(count, np.int64)
    for row in range(h):
        for column in range(w):
            for plane in range(len(planes)):
                seen = 0
                for k in range(count):
                    a, b, p = turns[k], shifts[k], planes[plane]
                    z = a[2, 0] * column + a[2, 1] * row + a[2, 2] + p * b[2]
                    if z <= 1e-6:
                        continue
                    x = (a[0, 0] * column + a[0, 1] * row + a[0, 2] + p * b[0]) / z
                    y = (a[1, 0] * column + a[1, 1] * row + a[1, 2] + p * b[1]) / z
                    i, j = int(np.floor(FINER * y + 0.5)), int(np.floor(FINER * x + 0.5))
                    if 0 <= i < finer_h and 0 <= j < finer_w:
                        found[seen] = _bits(own[row, column] ^ others[k, i, j])
                        seen += 1
                if seen == 0:
                    out[row, column, plane] = UNSEEN
                    continue
                half, total = (seen + 1) // 2, 0
                for _ in range(half):
                    best = 0
                    for k in range(1, seen):
                        if found[k] < found[best]:
                            best = k
                    total += found[best]
                    found[best] = 255
                out[row, column, plane] = total // half
    return out


@numba.njit(cache=True, nogil=True)
def _add_path(cost, total, down, right, small, large):
    """Add to `total` the least costs of paths that arrive from (-down, -right)."""
    h, w, planes = cost.shape
    before, now = np.zeros((w, planes), np.int32), np.zeros((w, planes), np.int32)
    least_before, least_now = np.zeros(w, np.int32), np.zeros(w, np.int32)
    for n in range(h):
        row = n if down >= 0 else h - 1 - n
        for m in range(w):
            column = m if right >= 0 else w - 1 - m
            last = column - right
            starts = last < 0 or last >= w or (down != 0 and n == 0)
            came = now if down == 0 else before
            floor = 0 if starts else (least_now[last] if down == 0 else least_before[last])
            least = np.int32(1 << 30)
            for k in range(planes):
                here = np.int32(cost[row, column, k])
                if not starts:
                    way = min(came[last, k], floor + large)
                    if k > 0:
                        way = min(way, came[last, k - 1] + small)
                    if k < planes - 1:
                        way = min(way, came[last, k + 1] + small)
                    here += way - floor
                now[column, k] = here
                total[row, column, k] += np.uint16(here)
                if here < least:
                    least = here
            least_now[column] = least
        before, now = now, before
        least_before, least_now = least_now, least_before
    return total


@numba.njit(cache=True, nogil=True)
def _least(total, cost):
    """Plane of the least total, between planes by a parabola, NaN at the first and the last; the cost there."""
    h, w, planes = total.shape
    plane, fits = np.full((h, w), np.nan, np.float32), np.empty((h, w), np.float32)
    for row in range(h):
        for column in range(w):
            best = 0
            for k in range(1, planes):
                if total[row, column, k] < total[row, column, best]:
                    best = k
            fits[row, column] = cost[row, column, best]
            if 0 < best < planes - 1:
                low = np.float32(total[row, column, best - 1])
                middle, high = np.float32(total[row, column, best]), np.float32(total[row, column, best + 1])
                bend = low - 2 * middle + high
                plane[row, column] = best + ((low - high) / (2 * bend) if bend > 0 else 0)
    return plane, fits
