"""Exact occupancy of a city at one time, in Occ3D's form.

The rules:
- A voxel is split into 4 x 4 x 4 sub-cells. It is solid if the centre of any sub-cell lies in a solid or below ground.
- Its class is that of most of its inside centres: a centre in a solid counts for the solid's class (where solids
  overlap, for the later one, actors after static solids), any other for the ground's class; ties go to the lower id.
- Like Occ3D only surfaces are labelled: a solid voxel whose six neighbours are all solid, those beyond the grid
  included, is interior: labelled free and in no mask.
- Masks follow Occ3D: a sensor looks at every labelled voxel, at the middles of those of its faces that are free and
  turned towards it. Where such a line of sight meets no other solid voxel first, it makes its target observed and the
  free voxels on its way. So a line that would end beyond the grid, or in the sky, observes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

from occ_core.camera import Rig
from occ_core.geometry import apply, inverse
from occ_core.grid import OCC3D_GRID, VoxelGrid
from occ_core.occupancy import Occupancy
from occ_core.taxonomy import OCC3D
from occ_core.world.body import BodyOcclusion
from occ_core.world.city import City
from occ_core.world.classes import FREE
from occ_core.world.ground import Ground, bilinear
from occ_core.world.solids import Solids, inverse_poses, is_inside

SUB = 4  # sub-cells along the edge of a voxel
SLAB = 12  # voxels along x whose sub-cells are filled at a time
FACE_DEPTH = 0.49  # targets lie this share of a voxel off its centre: just within the face
LIDAR_ELEVATIONS_RAD = np.radians((-30.67, 10.67))
LIDAR_SPAN_S, LIDAR_STEP_S = 2.0, 0.5  # Occ3D aggregates sweeps: keyframes this far before and after also look


def occupancy_truth(
    city: City,
    t_s: float,
    rig: Rig,
    ego_from_lidar: np.ndarray,
    grid: VoxelGrid = OCC3D_GRID,
    body: Solids | None = None,
) -> Occupancy:
    """Labels and masks at time t_s, in the ego frame of that time.

    Actors are where they are at t_s, for all lines. The LiDAR mask unites what is seen, within the vertical field of
    view, from where the LiDAR is at t_s and at the keyframes (2 Hz) within 2 s of it: Occ3D aggregates sweeps.

    Args:
        ego_from_lidar: (4, 4), z up at the LiDAR.
        body: the robot's own, ego frame: in no voxel, and cameras do not see what it hides.

    Returns:
        Occupancy whose `observed` is Occ3D's mask_camera, with `mask_lidar`.
    """
    solid, labels = voxelize(city, t_s, grid)
    targets = VisibilityTargets.of(solid, labels, grid)
    camera_mask, lidar_mask = np.zeros(grid.shape, dtype=np.bool_), np.zeros(grid.shape, dtype=np.bool_)
    sight = None if body is None else BodyOcclusion(body)
    for camera in rig:
        _, visible = camera.project(apply(inverse(camera.ego_from_cam), targets.points_m))
        if sight is not None:
            visible[visible] = ~sight.hidden(camera.ego_from_cam[:3, 3], targets.points_m[visible])
        mark_visible(solid, camera.ego_from_cam[:3, 3], targets, visible, grid, camera_mask)
    ego_from_world = inverse(city.world_from_ego(t_s))
    steps = round(LIDAR_SPAN_S / LIDAR_STEP_S)
    for k in range(-steps, steps + 1):
        at = t_s + k * LIDAR_STEP_S
        if 0 <= at <= city.duration_s or k == 0:
            ego_from_that_lidar = ego_from_world @ city.world_from_ego(at) @ ego_from_lidar
            x, y, z = apply(inverse(ego_from_that_lidar), targets.points_m).T
            (low, high), away = np.tan(LIDAR_ELEVATIONS_RAD), np.hypot(x, y)
            within = (z >= low * away) & (z <= high * away)
            mark_visible(solid, ego_from_that_lidar[:3, 3], targets, within, grid, lidar_mask)
    return Occupancy(grid, OCC3D, labels, camera_mask, None, lidar_mask)


def voxelize(city: City, t_s: float, grid: VoxelGrid) -> tuple[np.ndarray, np.ndarray]:
    """Fill a bool array of solid voxels (X, Y, Z) and uint8 labels (X, Y, Z); interior voxels are solid but labelled
    free."""
    world_from_ego = city.world_from_ego(t_s)
    ego_from_world = inverse(world_from_ego)
    low = np.array(grid.origin_m)
    corner = np.maximum(np.abs(low), np.abs(low + grid.voxel_size_m * np.array(grid.shape)))
    reach_m = float(np.linalg.norm(corner + grid.voxel_size_m))
    parts = [_near(city.solids, world_from_ego, reach_m)]
    for actor in city.actors:
        pose = actor.world_from_actor(t_s)
        if np.linalg.norm(pose[:3, 3] - world_from_ego[:3, 3]) < reach_m + sum(actor.size_m):
            parts.append(actor.solids.transformed(pose))
    size = grid.voxel_size_m / SUB
    # One voxel of padding on each side: whether a voxel at the border is interior depends on what is beyond.
    first = np.array(grid.origin_m) - grid.voxel_size_m + size / 2
    nx, ny, nz = (n + 2 for n in grid.shape)
    below = first, size, world_from_ego, city.ground
    inside = _placed(Solids.concatenate(parts).transformed(ego_from_world), first, size, (nx * SUB, ny * SUB, nz * SUB))
    padded_solid, padded_class = np.empty((nx, ny, nz), dtype=np.bool_), np.empty((nx, ny, nz), dtype=np.uint8)
    cells = np.empty((SLAB * SUB, ny * SUB, nz * SUB), dtype=np.uint8)
    for x in range(0, nx, SLAB):  # not all at once: the cells of a slab stay in the cache
        slab = cells[: min(SLAB, nx - x) * SUB]
        slab.fill(FREE)
        _fill_ground(slab, x * SUB, *below)
        _fill_inside(slab, x * SUB, first, size, *inside)
        _reduce(slab, padded_solid[x : x + SLAB], padded_class[x : x + SLAB])
    inner = (slice(1, -1),) * 3
    exposed = np.zeros(grid.shape, dtype=bool)
    for axis in range(3):
        for step in (0, 2):
            exposed |= ~padded_solid[tuple(slice(step, step + n) if a == axis else slice(1, 1 + n)
                                           for a, n in enumerate(grid.shape))]  # fmt: skip
    solid = np.ascontiguousarray(padded_solid[inner])
    return solid, np.where(solid & exposed, padded_class[inner], np.uint8(FREE))


def _near(solids: Solids, world_from_ego: np.ndarray, reach_m: float) -> Solids:
    """The static solids that can reach within `reach_m` of the ego frame's origin."""
    offset = solids.parent_from_solid[:, :3, 3] - world_from_ego[:3, 3]
    radius = np.sqrt((solids.half_size_m**2).sum(axis=1))
    return solids[np.sqrt((offset**2).sum(axis=1)) < reach_m + radius]


def _fill_ground(
    cells: np.ndarray, row: int, first: np.ndarray, size: float, world_from_ego: np.ndarray, ground: Ground
) -> None:
    x0, y0 = ground.origin_m
    _fill_below(cells, row, first, size, world_from_ego, ground.height_m, ground.class_id, x0, y0, ground.cell_m)


@numba.njit(cache=True)
def _fill_below(cells, row, first, size, pose, height, class_id, x0, y0, cell):
    nx, ny, nz = cells.shape
    rows, columns = height.shape
    for i in range(nx):
        k_guess = 0
        for j in range(ny):
            px, py = first[0] + (row + i) * size, first[1] + j * size
            # The ego's z axis meets the ground once: it is steeper than any slope or kerb of the raster.
            k = k_guess
            moved_up = False
            while 0 <= k < nz:
                pz = first[2] + k * size
                x = pose[0, 0] * px + pose[0, 1] * py + pose[0, 2] * pz + pose[0, 3]
                y = pose[1, 0] * px + pose[1, 1] * py + pose[1, 2] * pz + pose[1, 3]
                z = pose[2, 0] * px + pose[2, 1] * py + pose[2, 2] * pz + pose[2, 3]
                if z < bilinear(height, x0, y0, cell, x, y):
                    moved_up = True
                    k += 1
                elif moved_up:
                    break
                else:
                    k -= 1
            k = max(k, 0)  # the lowest centre above the ground
            k_guess = min(k, nz - 1)
            column = cells[i, j, :k]
            for m in range(k):
                u, v = _ground_cell(pose, px, py, first[2] + m * size, x0, y0, cell, rows, columns)
                column[m] = class_id[u, v]
                if m == 0 and (u, v) == _ground_cell(
                    pose, px, py, first[2] + (k - 1) * size, x0, y0, cell, rows, columns
                ):
                    column[:] = class_id[u, v]  # an upright column of cells seldom leaves one cell of the raster
                    break


@numba.njit(cache=True, inline="always")
def _ground_cell(pose, px, py, pz, x0, y0, cell, rows, columns):
    """Cell of the ground raster that a point of the ego frame is over."""
    x = pose[0, 0] * px + pose[0, 1] * py + pose[0, 2] * pz + pose[0, 3]
    y = pose[1, 0] * px + pose[1, 1] * py + pose[1, 2] * pz + pose[1, 3]
    u = min(max(int(np.floor((x - x0) / cell)), 0), rows - 1)
    v = min(max(int(np.floor((y - y0) / cell)), 0), columns - 1)
    return u, v


def _placed(solids: Solids, first: np.ndarray, size: float, shape: tuple[int, int, int]) -> tuple[np.ndarray, ...]:
    """The solids that reach into the cells, as `_fill_inside` takes them: with their lowest cells, and those beyond."""
    lower, upper = solids.bounds_m()
    low = np.maximum(np.ceil((lower - first) / size).astype(np.int64), 0)
    high = np.minimum(np.floor((upper - first) / size).astype(np.int64) + 1, shape)
    near = np.flatnonzero((low < high).all(axis=1))
    picked = solids[near]
    half = picked.half_size_m.astype(np.float64)
    return picked.kind, inverse_poses(picked.parent_from_solid), half, picked.class_id, low[near], high[near]


@numba.njit(cache=True)
def _fill_inside(cells, row, first, size, kinds, solid_from_ego, half, class_ids, low, high):
    """Set the class of cells in solids; `cells` are those from `row` on along x."""
    for n in range(len(kinds)):
        m = solid_from_ego[n]
        dx, dy, dz = m[0, 2] * size / half[n, 0], m[1, 2] * size / half[n, 1], m[2, 2] * size / half[n, 2]
        for i in range(max(low[n, 0], row), min(high[n, 0], row + len(cells))):
            px = first[0] + i * size
            for j in range(low[n, 1], high[n, 1]):
                py = first[1] + j * size
                pz = first[2] + low[n, 2] * size
                x = (m[0, 0] * px + m[0, 1] * py + m[0, 2] * pz + m[0, 3]) / half[n, 0]
                y = (m[1, 0] * px + m[1, 1] * py + m[1, 2] * pz + m[1, 3]) / half[n, 1]
                z = (m[2, 0] * px + m[2, 1] * py + m[2, 2] * pz + m[2, 3]) / half[n, 2]
                for k in range(low[n, 2], high[n, 2]):
                    step = k - low[n, 2]
                    if is_inside(kinds[n], x + step * dx, y + step * dy, z + step * dz):
                        cells[i - row, j, k] = class_ids[n]


@numba.njit(cache=True)
def _reduce(cells, solid, label):
    """Fill in, per voxel, whether it is solid, and the class of most sub-cells."""
    nx, ny, nz = solid.shape
    counts = np.zeros(FREE + 1, np.int64)
    rows = cells.view(np.uint32)  # SUB sub-cells of a voxel at a time
    for i in range(nx):
        for j in range(ny):
            for k in range(nz):
                same = cells[i * SUB, j * SUB, k * SUB]
                row = np.uint32(same) * np.uint32(0x01010101)
                differ = np.uint32(0)
                for a in range(SUB):
                    for b in range(SUB):
                        differ |= rows[i * SUB + a, j * SUB + b, k] ^ row
                if differ == 0:
                    solid[i, j, k], label[i, j, k] = same != FREE, same
                    continue
                counts[:] = 0
                for a in range(SUB):
                    for b in range(SUB):
                        for c in range(SUB):
                            counts[cells[i * SUB + a, j * SUB + b, k * SUB + c]] += 1
                solid[i, j, k] = True
                best = 0
                for n in range(1, FREE):
                    if counts[n] > counts[best]:
                        best = n
                label[i, j, k] = best


@dataclass(frozen=True, eq=False)
class VisibilityTargets:
    """The points that sensors look at: the middles of free faces of labelled voxels.

    Attributes:
        points_m: (N, 3) in the ego frame. normals: int (N, 3), outward. voxels: int (N, 3), whose faces they are.
    """

    points_m: np.ndarray
    normals: np.ndarray
    voxels: np.ndarray

    @staticmethod
    def of(solid: np.ndarray, labels: np.ndarray, grid: VoxelGrid) -> VisibilityTargets:
        """Faces at the grid's own border are left out: nobody looks in from outside."""
        padded = np.pad(solid, 1, constant_values=True)
        labelled = labels != FREE
        voxels, normals = [], []
        for normal in np.concatenate([np.eye(3, dtype=np.int64), -np.eye(3, dtype=np.int64)]):
            beside = padded[tuple(slice(1 + d, 1 + d + n) for d, n in zip(normal, grid.shape, strict=True))]
            voxels.append(np.argwhere(labelled & ~beside))
            normals.append(np.broadcast_to(normal, voxels[-1].shape))
        index, normal = np.concatenate(voxels), np.concatenate(normals)
        points = np.array(grid.origin_m) + (index + 0.5 + FACE_DEPTH * normal) * grid.voxel_size_m
        return VisibilityTargets(points, normal, index)


def mark_visible(
    solid: np.ndarray,
    origin_m: np.ndarray,
    targets: VisibilityTargets,
    within: np.ndarray,
    grid: VoxelGrid,
    observed: np.ndarray,
) -> None:
    """Mark in `observed` which targets a sensor at `origin_m` (ego frame) sees; the module states the rules.

    Args:
        within: bool (N,), the targets in the sensor's field of view.
    """
    corner, origin = np.array(grid.origin_m), np.asarray(origin_m, dtype=np.float64)
    where = targets.points_m, targets.normals, targets.voxels
    _mark_visible(solid, origin, np.flatnonzero(within), *where, corner, grid.voxel_size_m, observed)


@numba.njit(cache=True)
def _mark_visible(solid, origin, picked, points, normals, voxels, corner, size, observed):
    """Traversal after Amanatides and Woo (1987), in units of voxels; a path counts once it has reached its target."""
    nx, ny, nz = solid.shape
    start, end = (origin - corner) / size, np.empty(3)
    if not (0 <= start[0] < nx and 0 <= start[1] < ny and 0 <= start[2] < nz):
        return
    path = np.empty((nx + ny + nz + 3, 3), np.int64)
    for n in picked:
        facing = 0.0
        for c in range(3):
            facing += (origin[c] - points[n, c]) * normals[n, c]
            end[c] = (points[n, c] - corner[c]) / size
        if facing <= 0:
            continue
        dx, dy, dz = end[0] - start[0], end[1] - start[1], end[2] - start[2]
        i, j, k = int(start[0]), int(start[1]), int(start[2])
        sx, sy, sz = 1 if dx > 0 else -1, 1 if dy > 0 else -1, 1 if dz > 0 else -1
        tx = ((i + 1 if dx > 0 else i) - start[0]) / dx if dx != 0 else np.inf
        ty = ((j + 1 if dy > 0 else j) - start[1]) / dy if dy != 0 else np.inf
        tz = ((k + 1 if dz > 0 else k) - start[2]) / dz if dz != 0 else np.inf
        ax = abs(1 / dx) if dx != 0 else np.inf
        ay = abs(1 / dy) if dy != 0 else np.inf
        az = abs(1 / dz) if dz != 0 else np.inf
        length = 0
        while True:
            path[length, 0], path[length, 1], path[length, 2] = i, j, k
            length += 1
            if solid[i, j, k]:
                break
            if tx <= ty and tx <= tz:
                i += sx
                tx += ax
            elif ty <= tz:
                j += sy
                ty += ay
            else:
                k += sz
                tz += az
            if not (0 <= i < nx and 0 <= j < ny and 0 <= k < nz):
                break
        if i == voxels[n, 0] and j == voxels[n, 1] and k == voxels[n, 2]:
            for m in range(length):
                observed[path[m, 0], path[m, 1], path[m, 2]] = True
