"""Dense depth of one teacher set right by a LiDAR's sparse returns: its shape between them, their metres on them.

Depth from motion can take the LiDAR's place; it sets the scale, but does not stand for itself, for it may be wrong.

Monocular metric depth errs by a factor that changes slowly over a surface and jumps where depth does. Every return
tells the logarithm of that factor at one pixel. A bilateral grid (Chen, Paris and Durand, "Real-time edge-aware image
processing with the bilateral grid", SIGGRAPH 2007), whose third axis is the teacher's own log depth, spreads it to
pixels that are near in the image and in depth, so that a pole's factor stays off the wall behind it. From coarse to
fine, each level explains what the coarser ones left over; where returns are rare, the coarser ones stand.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numba
import numpy as np

from occ_core.frame import Frame
from occ_core.teachers.base import DepthMap, DepthTeacher, reads_of

SEEN = 0.5  # least confidence of a return that is used; LidarDepth gives less to what the camera hardly sees
LEVELS = ((1 / 5, 0.4), (1 / 10, 0.2), (1 / 20, 0.1), (1 / 40, 0.05), (1 / 80, 0.05))
"""Of each level: standard deviation of its blur in the image, as a share of the width, and in log depth."""
PRIOR = 0.03  # returns around a place, weighted by the blur, at which they count as much as the coarser levels there
OUTLIER = 0.5  # of log depth, against the coarser levels: a return that far off counts half, as of another surface
KEY_M = (0.5, 200.0)  # depths beyond are keyed as these
FAR, NEAR = 0.5, 0.9  # what is left of a pixel's confidence far from returns, and among them: only a return has 1
BLUR = np.array([1, 4, 6, 4, 1], dtype=np.float32) / 16  # standard deviation of one cell
MARGIN = 2  # cells around the image and the depths, for the blur and the interpolation


class CompletedDepth:
    """The maps of a dense depth teacher, set right by a LiDAR.

    Args:
        dense: who is set right.
        lidar: who measures: sparse maps.
        exact: in the pixels that are measured, that stands.
    """

    def __init__(self, dense: DepthTeacher, lidar: DepthTeacher, exact: bool = True) -> None:
        self.dense, self.lidar, self.exact = dense, lidar, exact
        self.version = f"completed-2 ({dense.version}) {'by' if exact else 'scaled by'} ({lidar.version})"

    def reads(self, frame: Frame) -> list[Path | np.ndarray]:
        """See `base.seen_key`: what either of the two looks at."""
        return [*reads_of(self.dense, frame), *reads_of(self.lidar, frame)]

    def depth(self, frame: Frame) -> dict[str, DepthMap]:
        """Maps of the dense teacher's size.

        Raises:
            InvalidInput: the frame has no LiDAR sweep. Others as the two teachers.
        """
        returns = self.lidar.depth(frame)  # first: it costs little, and may refuse
        return {name: complete(given, returns[name], self.exact) for name, given in self.dense.depth(frame).items()}


def complete(dense: DepthMap, returns: DepthMap, exact: bool = True) -> DepthMap:
    """`dense` times the smooth, edge-aware factor that makes it meet `returns`; in a return's pixel, its own depth.

    What `dense` calls sky or unknown stays so, but in a return's pixel. Without any return `dense` keeps its depth.

    Args:
        dense: (h, w). returns: sparse, NaN between returns, of the same view; may have another size.
        exact: else the factor holds in a return's own pixel, too.

    Returns:
        (h, w). Confidence is 1 in a return's pixel, elsewhere that of `dense` times 0.5 (no return near) to 0.9
        (returns near on every level).
    """
    h, w = dense.depth_m.shape
    known = np.isfinite(dense.depth_m) & (dense.depth_m > 0)
    key = np.log(np.where(known, dense.depth_m, 1).clip(*KEY_M)).astype(np.float32)
    rows, columns, measured_m = _returns(returns, (h, w))
    used = known[rows, columns]
    at = rows[used], columns[used]
    left_over = (np.log(measured_m[used]) - np.log(dense.depth_m[at])).astype(np.float32)
    factor, near = np.zeros((h, w), dtype=np.float32), np.zeros((h, w), dtype=np.float32)
    if len(left_over):
        factor += np.median(left_over)
        left_over -= np.median(left_over)
    for reach, reach_log in LEVELS if len(left_over) else ():
        grid = _Grid((h, w), reach * w, reach_log)
        explained, there = grid.spread(*at, key, left_over)
        factor += explained
        near += there / len(LEVELS)
        left_over -= explained[at]
    depth_m = np.where(known, dense.depth_m * np.exp(factor), dense.depth_m)
    confidence = dense.confidence * (FAR + (NEAR - FAR) * near)
    if exact:
        depth_m[rows, columns], confidence[rows, columns] = measured_m, 1
    return DepthMap(depth_m.astype(np.float32), confidence.astype(np.float32))


def _returns(returns: DepthMap, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and columns int64 (M,) in a map of another size (h, w), and depths float32 (M,), of the returns to use.

    Of several in one pixel of the map the nearest is last, so that it is what stays when they are written there.
    """
    rows, columns = np.nonzero((returns.confidence >= SEEN) & np.isfinite(returns.depth_m))
    depth_m = returns.depth_m[rows, columns]
    order = np.argsort(-depth_m, kind="stable")
    (h, w), (from_h, from_w) = size, returns.depth_m.shape
    return (2 * rows[order] + 1) * h // (2 * from_h), (2 * columns[order] + 1) * w // (2 * from_w), depth_m[order]


class _Grid:
    """Bilateral grid over rows, columns and log depth, whose blur has one cell as standard deviation.

    Args:
        size: (h, w) of the image. cell_px: in the image. cell_log: in log depth.
    """

    def __init__(self, size: tuple[int, int], cell_px: float, cell_log: float) -> None:
        self.per_cell = np.array([1 / cell_px, 1 / cell_px, 1 / cell_log], dtype=np.float32)
        self.low = np.float32(np.log(KEY_M[0]))
        extent = (size[0] / cell_px, size[1] / cell_px, np.log(KEY_M[1] / KEY_M[0]) / cell_log)
        self.shape = tuple(int(np.ceil(cells)) + 2 * MARGIN + 1 for cells in extent)

    def spread(
        self, rows: np.ndarray, columns: np.ndarray, key: np.ndarray, values: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean of the values around each pixel, drawn to 0 by `PRIOR`, and the share of weight that is not the prior.

        Args:
            rows, columns: int64 (M,), the values' pixels. key: float32 (h, w), log depth. values: float32 (M,).

        Returns:
            float32 (h, w) each.
        """
        cells = np.zeros((*self.shape, 2), dtype=np.float32)
        weights = 1 / (1 + (values / np.float32(OUTLIER)) ** 2)
        _splat(cells, rows, columns, key, values, weights, self.low, self.per_cell)
        a, b, c, _ = cells.shape
        flat = cv2.sepFilter2D(cells.reshape(a, b, 2 * c), -1, BLUR, BLUR, borderType=cv2.BORDER_CONSTANT)
        deep = cv2.sepFilter2D(flat.reshape(a * b, c, 2), -1, BLUR, BLUR[:1] * 16, borderType=cv2.BORDER_CONSTANT)
        return _slice(deep.reshape(cells.shape), key, np.float32(PRIOR), self.low, self.per_cell)


@numba.njit(cache=True, nogil=True, inline="always")
def _place(row, column, key, low, per_cell):
    """Lower cell along each axis, and how far beyond it."""
    x = np.float32(row) * per_cell[0] + np.float32(MARGIN)
    y = np.float32(column) * per_cell[1] + np.float32(MARGIN)
    z = (key - low) * per_cell[2] + np.float32(MARGIN)
    i, j, k = int(x), int(y), int(z)
    return i, j, k, x - i, y - j, z - k


@numba.njit(cache=True, nogil=True)
def _splat(cells, rows, columns, key, values, weights, low, per_cell):
    for n in range(len(rows)):
        i, j, k, x, y, z = _place(rows[n], columns[n], key[rows[n], columns[n]], low, per_cell)
        for a in range(2):
            for b in range(2):
                for c in range(2):
                    share = weights[n] * (x if a else 1 - x) * (y if b else 1 - y) * (z if c else 1 - z)
                    cells[i + a, j + b, k + c, 0] += np.float32(share * values[n])
                    cells[i + a, j + b, k + c, 1] += np.float32(share)


@numba.njit(cache=True, nogil=True)
def _slice(cells, key, prior, low, per_cell):
    mean, share = np.empty(key.shape, np.float32), np.empty(key.shape, np.float32)
    for row in range(key.shape[0]):
        for column in range(key.shape[1]):
            i, j, k, x, y, z = _place(row, column, key[row, column], low, per_cell)
            total, weight = np.float32(0), np.float32(0)
            for a in range(2):
                for b in range(2):
                    for c in range(2):
                        part = (x if a else 1 - x) * (y if b else 1 - y) * (z if c else 1 - z)
                        total += np.float32(part * cells[i + a, j + b, k + c, 0])
                        weight += np.float32(part * cells[i + a, j + b, k + c, 1])
            mean[row, column] = total / (weight + prior)
            share[row, column] = weight / (weight + prior)
    return mean, share
