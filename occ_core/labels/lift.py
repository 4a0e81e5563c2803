"""Lifts the maps of one frame to evidence about the cells of its own grid: points in them, rays through them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numba
import numpy as np

from occ_core.camera import Camera
from occ_core.errors import InvalidInput
from occ_core.frame import Frame
from occ_core.grid import VoxelGrid
from occ_core.labels.recipes import Recipe
from occ_core.labels.road_scale import ROAD, road_correction
from occ_core.labels.visibility import add_passes, ray_step_px
from occ_core.taxonomy import UNLABELED, Taxonomy
from occ_core.teachers.base import ClassMap, DepthMap

SUB = 2  # points are summed in cells of half a voxel, so that another frame's turned grid has no holes
DROP, POINT, PASS, SKY = 0, 1, 2, 3


@dataclass(frozen=True, eq=False)
class FrameEvidence:
    """The evidence of one lifted frame, which is all that labels need of it; 2 to 6 MB.

    Attributes:
        token, stamp_ns, world_from_ego: of the frame.
        points_ego_m: float32 (N, 3), mean of the points of one class in one cell of half a voxel.
        class_id: uint8 (N,).
        count: uint16 (N,), how many pixels each stands for.
        passes: uint16 (X, Y, Z), pixels whose rays pass the cell of the frame's own grid.
        skipped: why images were left out.
    """

    token: str
    stamp_ns: int
    world_from_ego: np.ndarray
    points_ego_m: np.ndarray
    class_id: np.ndarray
    count: np.ndarray
    passes: np.ndarray
    skipped: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        return self.points_ego_m.nbytes + self.class_id.nbytes + self.count.nbytes + self.passes.nbytes


class Lifter:
    """Lifts frames; it keeps the viewing directions of the cameras that it met."""

    def __init__(self, recipe: Recipe, grid: VoxelGrid, taxonomy: Taxonomy):
        self.recipe, self.grid, self.taxonomy = recipe, grid, taxonomy
        self._is_road = np.zeros(256, dtype=np.bool_)
        self._is_road[[number for number, name in enumerate(taxonomy.names) if name in ROAD]] = True
        self._is_ground = np.zeros(256, dtype=np.bool_)
        self._is_ground[list(taxonomy.ground_ids)] = True
        self._rays: dict[tuple, np.ndarray] = {}

    def lift(self, frame: Frame, classes: dict[str, ClassMap], depths: dict[str, DepthMap]) -> FrameEvidence:
        """Lift points and passes of all cameras, each with its own pose and stamp, into the ego frame at
        `frame.stamp_ns`.

        An image whose maps cannot be used is left out and named in `skipped`.
        """
        views, skipped = [], []
        for camera in frame.rig:
            try:
                if camera.name in frame.images:
                    views.append(self._lifted_view(frame, camera, classes.get(camera.name), depths.get(camera.name)))
            except InvalidInput as error:
                skipped.append(f"{frame.token or frame.stamp_ns} {camera.name}: {error}")
        passes = np.zeros(self.grid.shape, dtype=np.uint32)
        store = _PointSums(sum(int((view.kind == POINT).sum()) for view in views), self.grid)
        for view in views:
            store.add(view, self.recipe, self._is_ground)
            _add_rays(passes, view, self.recipe, self.grid)
        points, class_id, count, hits = store.finish(self.recipe.outlier_points)
        if self.recipe.grazing_share is not None:
            # A ray grazes many ground cells before it ends in one; what the frame itself hit, it did not see empty.
            passes[(hits > 0) & (hits >= self.recipe.grazing_share * passes)] = 0
        return FrameEvidence(
            frame.token, frame.stamp_ns, frame.world_from_ego, points, class_id, count,
            np.minimum(passes, 65535).astype(np.uint16), tuple(skipped),
        )  # fmt: skip

    def _lifted_view(
        self, frame: Frame, camera: Camera, classes: ClassMap | None, depth: DepthMap | None
    ) -> _LiftedView:
        class_id, score, depth = _agreeing(camera, classes, depth)
        h, w = depth.depth_m.shape
        rays = self._rays_of(frame.rig.fingerprint, camera, (w, h))
        own = None if camera.blind is None else camera.resized((w, h)).blind
        if own is not None:  # pixels that show the robot itself are evidence of nothing, nor are their edges
            depth = replace(depth, depth_m=np.where(own, np.float32(np.nan), depth.depth_m))
        kind = sort_pixels(depth, class_id, score, self.recipe, self.taxonomy.free_id)
        if own is not None:
            kind[own] = DROP
        depth_m = depth.depth_m
        if self.recipe.ground_z_m is not None:
            road = self._is_road[class_id] & (kind == POINT)
            depth_m = depth_m * road_correction(
                depth_m, road, rays, camera.ego_from_cam, self.recipe.ground_z_m, self.recipe.ground_reach
            )
        focal_px = float(camera.intrinsics[0, 0]) * w / camera.size[0]
        measured = max(1, round(self.recipe.measured_share * w * h))
        weight = np.where(depth.confidence == 1, measured, 1).astype(np.uint32)
        return _LiftedView(
            depth_m, class_id, kind, weight, rays, frame.ego_from_camera_at_its_stamp(camera.name), focal_px
        )

    def _rays_of(self, fingerprint: str, camera: Camera, size: tuple[int, int]) -> np.ndarray:
        key = (fingerprint, camera.name, size)
        if key not in self._rays:
            if len(self._rays) >= 32:  # a source whose calibration changes from frame to frame
                self._rays.clear()
            scaled = camera.resized(size)
            directions = scaled.rays(scaled.pixel_grid())[:, :2].astype(np.float32)
            self._rays[key] = directions.reshape(size[1], size[0], 2)
        return self._rays[key]


@dataclass(frozen=True, eq=False)
class _LiftedView:
    """One image, ready to be lifted: maps (h, w) and rays (h, w, 2). `weight` says as how many points a pixel
    counts."""

    depth_m: np.ndarray
    class_id: np.ndarray
    kind: np.ndarray
    weight: np.ndarray
    rays: np.ndarray
    ego_from_cam: np.ndarray
    focal_px: float


def _agreeing(
    camera: Camera, classes: ClassMap | None, depth: DepthMap | None
) -> tuple[np.ndarray, np.ndarray, DepthMap]:
    """Return class ids and scores at the depth map's size.

    Raises:
        InvalidInput: a map is missing, has another aspect than the camera, or no usable depth in it.
    """
    if classes is None or depth is None:
        raise InvalidInput(f"no {'class' if classes is None else 'depth'} map")
    for name, array in (("class", classes.class_id), ("depth", depth.depth_m)):
        (h, w), (camera_w, camera_h) = array.shape, camera.size
        if abs(w * camera_h - h * camera_w) > max(camera_w, camera_h):  # more than a pixel of rounding
            raise InvalidInput(f"{name} map is {w} x {h} px, not the aspect of the camera's {camera_w} x {camera_h}")
    if not (depth.depth_m > 0).any():
        raise InvalidInput("depth map has no value > 0 m")
    if classes.class_id.shape == depth.depth_m.shape:
        return classes.class_id, classes.score, depth
    rows, columns = (
        (np.arange(n) + 0.5) * m // n for n, m in zip(depth.depth_m.shape, classes.class_id.shape, strict=True)
    )
    pick = np.ix_(rows.astype(np.intp), columns.astype(np.intp))
    return classes.class_id[pick], classes.score[pick], depth


def sort_pixels(depth: DepthMap, class_id: np.ndarray, score: np.ndarray, recipe: Recipe, free_id: int) -> np.ndarray:
    """Decide the use of each pixel, uint8 (h, w).

    POINT: a surface of a known class within `max_depth_m`. PASS: only what its ray passes up to its depth (unknown
    class, or far). SKY: its ray passes everything; the class says sky and the depth says far or nothing, for a wrong
    sky would carve through houses. DROP: no or contradictory or unsure depth, or at an edge.
    """
    w = _inverse_depth(depth.depth_m)
    edge = _edges(w, recipe.edge_cut) if recipe.edge_cut is not None else np.zeros(w.shape, dtype=np.bool_)
    if recipe.measured_share > 0:
        edge &= depth.confidence < 1
    return _sort(
        w, edge, depth.confidence, class_id, score, np.float32(1 / max(recipe.max_depth_m, 1e-3)),
        np.float32(recipe.min_score), np.float32(recipe.min_confidence), recipe.sky, free_id,
    )  # fmt: skip


@numba.njit(cache=True, nogil=True)
def _inverse_depth(depth):
    """1 / m, float32; 0 for +inf, NaN for what is no depth."""
    out = np.empty(depth.shape, np.float32)
    for i in range(depth.shape[0]):
        for j in range(depth.shape[1]):
            d = depth[i, j]
            out[i, j] = np.float32(1) / d if d > 0 else np.float32(np.nan)
    return out


@numba.njit(cache=True, nogil=True)
def _edges(inverse, cut):
    """Mark pixels at depth discontinuities, and their four neighbours.

    The inverse depth of a plane is linear in the pixel, so its second difference is zero however oblique the plane.
    """
    h, w = inverse.shape
    edge = np.zeros((h, w), np.bool_)
    limit = np.float32(cut)
    for i in range(h):
        for j in range(w):
            at = inverse[i, j]
            across = abs(inverse[i, j - 1] - 2 * at + inverse[i, j + 1]) if 0 < j < w - 1 else np.float32(0)
            along = abs(inverse[i - 1, j] - 2 * at + inverse[i + 1, j]) if 0 < i < h - 1 else np.float32(0)
            if across > limit * at or along > limit * at:  # False where a NaN takes part
                edge[i, j] = True
                edge[max(i - 1, 0), j] = True
                edge[min(i + 1, h - 1), j] = True
                edge[i, max(j - 1, 0)] = True
                edge[i, min(j + 1, w - 1)] = True
    return edge


@numba.njit(cache=True, nogil=True)
def _sort(inverse, edge, confidence, class_id, score, far, min_score, min_confidence, use_sky, free_id):
    kind = np.zeros(inverse.shape, np.uint8)
    for i in range(inverse.shape[0]):
        for j in range(inverse.shape[1]):
            at, what = inverse[i, j], class_id[i, j]
            if what == free_id:
                if use_sky and not at > far:
                    kind[i, j] = SKY
            elif at > 0 and not edge[i, j] and confidence[i, j] >= min_confidence:
                unknown = what == UNLABELED or score[i, j] < min_score
                kind[i, j] = PASS if unknown or at < far else POINT
    return kind


def _add_rays(passes: np.ndarray, view: _LiftedView, recipe: Recipe, grid: VoxelGrid) -> None:
    step = ray_step_px(view.focal_px, grid)
    thin = np.s_[step // 2 :: step, step // 2 :: step]

    def cast(pixels: tuple[slice, slice], kinds: tuple[int, ...], weight: int) -> None:
        kind = view.kind[pixels]
        ends = np.where(kind == SKY, np.float32(np.inf), view.depth_m[pixels] * np.float32(1 - recipe.free_margin))
        add_passes(passes, view.rays[pixels], ends, np.isin(kind, kinds), view.ego_from_cam, grid, weight)

    if 4 * np.count_nonzero(~np.isnan(view.depth_m)) >= view.depth_m.size:
        cast(thin, (POINT, PASS, SKY), step * step)
        if (count := int(view.weight.max())) > 1:  # a measured pixel counts as much for free cells as for its surface
            ends = view.depth_m * np.float32(1 - recipe.free_margin)
            measured = (view.weight > 1) & np.isin(view.kind, (POINT, PASS))
            add_passes(passes, view.rays, ends, measured, view.ego_from_cam, grid, count)
    else:  # LiDAR: no pixel speaks for its neighbours, and the sky's many must not outvote its returns
        cast(np.s_[:, :], (POINT, PASS), 1)
        cast(thin, (SKY,), 1)


class _PointSums:
    """Sums of points by (half-voxel cell, class) in linked lists, because most cells hold one class and none holds
    all."""

    def __init__(self, capacity: int, grid: VoxelGrid):
        self.grid = grid
        nx, ny, nz = grid.shape
        capacity *= 2  # room for filled ground; what is not touched costs nothing
        self.head = np.full(nx * ny * nz * SUB**3, -1, dtype=np.int32)
        self.next = np.empty(capacity, dtype=np.int32)
        self.sums_m = np.empty((capacity, 3), dtype=np.float64)
        self.count = np.empty(capacity, dtype=np.uint32)
        self.class_id = np.empty(capacity, dtype=np.uint8)
        self.used = 0

    def add(self, view: _LiftedView, recipe: Recipe, is_ground: np.ndarray) -> None:
        cam = np.ascontiguousarray(view.ego_from_cam[:3])
        seen = (view.depth_m, view.class_id, view.kind, view.rays, cam)
        cells = (np.array(self.grid.origin_m), SUB / self.grid.voxel_size_m, np.array(self.grid.shape))
        sums = (self.head, self.next, self.sums_m, self.count, self.class_id)
        self.used = _add_points(*seen, view.weight, *cells, recipe.surface_offset_m, recipe.clamp, *sums, self.used)
        if recipe.fill_ground > 0:
            self.used = _fill_ground(*seen, *cells, recipe.fill_ground, is_ground, *sums, self.used)

    def finish(self, outlier_points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """points float32 (N, 3), class uint8 (N,), count uint16 (N,), hits uint32 (X, Y, Z)."""
        n = self.used
        count, class_id = self.count[:n], self.class_id[:n]
        points = (self.sums_m[:n] / count[:, None]).astype(np.float32)
        origin, size, shape = np.array(self.grid.origin_m), self.grid.voxel_size_m, np.array(self.grid.shape)
        hits = np.zeros(self.grid.shape, dtype=np.uint32)
        keep = _count_hits(points, count, origin, size, shape, hits)
        if outlier_points:
            keep = _crowded(points, origin, size, hits, keep, outlier_points)
        hits[:] = 0
        _count_hits(points[keep], count[keep], origin, size, shape, hits)
        return points[keep], class_id[keep], np.minimum(count[keep], 65535).astype(np.uint16), hits


@numba.njit(cache=True, nogil=True)
def _add_points(
    depth, class_id, kind, rays, cam, weight, origin, per_m, shape, offset, keep_outside, head, following, sums, count,
    classes, used,
):  # fmt: skip
    nx, ny, nz = shape[0] * SUB, shape[1] * SUB, shape[2] * SUB
    for row in range(depth.shape[0]):
        for column in range(depth.shape[1]):
            if kind[row, column] != POINT:
                continue
            rx, ry = np.float64(rays[row, column, 0]), np.float64(rays[row, column, 1])
            d = np.float64(depth[row, column])
            if offset > 0:
                d += offset / np.sqrt(rx * rx + ry * ry + 1)
            x = (cam[0, 0] * rx + cam[0, 1] * ry + cam[0, 2]) * d + cam[0, 3]
            y = (cam[1, 0] * rx + cam[1, 1] * ry + cam[1, 2]) * d + cam[1, 3]
            z = (cam[2, 0] * rx + cam[2, 1] * ry + cam[2, 2]) * d + cam[2, 3]
            what, n = class_id[row, column], weight[row, column]
            used = _put(
                x, y, z, what, n, origin, per_m, nx, ny, nz, keep_outside, head, following, sums, count, classes, used
            )
    return used


@numba.njit(cache=True, nogil=True)
def _fill_ground(
    depth, class_id, kind, rays, cam, origin, per_m, shape, limit, is_ground, head, following, sums, count, classes,
    used,
):  # fmt: skip
    """Add points between two rows of ground: far off, a pixel covers more road than a cell does, which would leave
    stripes."""
    nx, ny, nz = shape[0] * SUB, shape[1] * SUB, shape[2] * SUB
    for row in range(depth.shape[0] - 1):
        for column in range(depth.shape[1]):
            what = class_id[row, column]
            if not is_ground[what] or class_id[row + 1, column] != what:
                continue
            if kind[row, column] != POINT or kind[row + 1, column] != POINT:
                continue
            d, near = np.float64(depth[row, column]), np.float64(depth[row + 1, column])
            gaps = int(abs(d - near) * per_m)  # of half a voxel
            if gaps == 0 or abs(d - near) > limit * min(d, near) or used + gaps > len(count):
                continue
            for n in range(1, gaps + 1):
                t = n / (gaps + 1)
                px = (1 - t) * rays[row, column, 0] * d + t * rays[row + 1, column, 0] * near
                py = (1 - t) * rays[row, column, 1] * d + t * rays[row + 1, column, 1] * near
                pz = (1 - t) * d + t * near
                x = cam[0, 0] * px + cam[0, 1] * py + cam[0, 2] * pz + cam[0, 3]
                y = cam[1, 0] * px + cam[1, 1] * py + cam[1, 2] * pz + cam[1, 3]
                z = cam[2, 0] * px + cam[2, 1] * py + cam[2, 2] * pz + cam[2, 3]
                used = _put(
                    x, y, z, what, np.uint32(1), origin, per_m, nx, ny, nz, False, head, following, sums, count,
                    classes, used,
                )  # fmt: skip
    return used


@numba.njit(cache=True, nogil=True, inline="always")  # a call with so many arrays costs more than the work
def _put(x, y, z, what, n, origin, per_m, nx, ny, nz, keep_outside, head, following, sums, count, classes, used):
    """Add a point that counts as n to the sums of its cell and class; returns how many entries there are now."""
    i = int(np.floor((x - origin[0]) * per_m))
    j = int(np.floor((y - origin[1]) * per_m))
    k = int(np.floor((z - origin[2]) * per_m))
    inside = 0 <= i < nx and 0 <= j < ny and 0 <= k < nz
    at, entry = 0, -1
    if inside:
        at = (i * ny + j) * nz + k
        entry = head[at]
        while entry >= 0 and classes[entry] != what:
            entry = following[entry]
    elif not keep_outside:
        return used
    if entry < 0:
        entry = used
        used += 1
        sums[entry, 0], sums[entry, 1], sums[entry, 2] = 0.0, 0.0, 0.0
        count[entry], classes[entry] = 0, what
        if inside:
            following[entry] = head[at]
            head[at] = entry
    sums[entry, 0] += n * x
    sums[entry, 1] += n * y
    sums[entry, 2] += n * z
    count[entry] += n
    return used


@numba.njit(cache=True, nogil=True)
def _count_hits(points, count, origin, size, shape, hits):
    """Add to `hits` (X, Y, Z); returns True for every point (N,), since none is removed yet."""
    for n in range(len(points)):
        i = int(np.floor((points[n, 0] - origin[0]) / size))
        j = int(np.floor((points[n, 1] - origin[1]) / size))
        k = int(np.floor((points[n, 2] - origin[2]) / size))
        if 0 <= i < shape[0] and 0 <= j < shape[1] and 0 <= k < shape[2]:
            hits[i, j, k] += count[n]
    return np.ones(len(points), np.bool_)


@numba.njit(cache=True, nogil=True)
def _crowded(points, origin, size, hits, keep, least):
    """Mark the points that have at least `least` points, themselves included, in the 27 cells around them."""
    nx, ny, nz = hits.shape
    for n in range(len(points)):
        i = int(np.floor((points[n, 0] - origin[0]) / size))
        j = int(np.floor((points[n, 1] - origin[1]) / size))
        k = int(np.floor((points[n, 2] - origin[2]) / size))
        if not (0 <= i < nx and 0 <= j < ny and 0 <= k < nz) or hits[i, j, k] >= least:
            continue  # outside points are there only where a recipe wants them
        around = 0
        for a in range(max(i - 1, 0), min(i + 2, nx)):
            for b in range(max(j - 1, 0), min(j + 2, ny)):
                for c in range(max(k - 1, 0), min(k + 2, nz)):
                    around += hits[a, b, c]
        keep[n] = around >= least
    return keep
