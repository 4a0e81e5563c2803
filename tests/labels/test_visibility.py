"""Passes of rays against a brute-force walk that sorts all crossings, and analytic cases."""

from __future__ import annotations

import numpy as np
import pytest

from occ_core.geometry import pose
from occ_core.grid import OCC3D_GRID, VoxelGrid
from occ_core.labels.visibility import add_passes, ray_step_px

GRID = VoxelGrid((-2.0, -1.6, -0.5), 0.5, (9, 7, 5))


def passes_by_sorting(rays, depth_m, casts, ego_from_cam, grid, weight):
    """Twin: crossings with all planes of the grid, sorted; a cell counts whose span ends by the depth."""
    out = np.zeros(grid.shape, dtype=np.uint32)
    for row in range(rays.shape[0]):
        for column in range(rays.shape[1]):
            if not casts[row, column]:
                continue
            slope = ego_from_cam[:3, :3] @ np.array([*rays[row, column].astype(float), 1.0])
            start = ego_from_cam[:3, 3]
            crossings = [0.0]
            for axis in range(3):
                planes = grid.origin_m[axis] + np.arange(grid.shape[axis] + 1) * grid.voxel_size_m
                if slope[axis] != 0:
                    crossings += [t for t in (planes - start[axis]) / slope[axis] if t > 0]
            crossings.sort()
            for begin, end in zip(crossings, crossings[1:], strict=False):
                cell, inside = grid.index_of((start + slope * (begin + end) / 2)[None])
                if inside[0] and end <= depth_m[row, column]:
                    out[tuple(cell[0])] += weight
    return out


@pytest.mark.parametrize("place", [(0.1, 0.2, 0.3), (-4.0, 0.3, 0.4), (0.2, 5.0, 3.0), (9.0, 0, 0)])
@pytest.mark.parametrize("weight", [1, 9])
def test_passes_equal_those_of_sorted_crossings(place, weight):
    rng = np.random.default_rng(3)
    rays = rng.normal(0, 0.8, (30, 34, 2)).astype(np.float32)
    depth_m = rng.uniform(0.1, 8, (30, 34)).astype(np.float32)
    depth_m[rng.random((30, 34)) < 0.3] = np.inf
    casts = rng.random((30, 34)) < 0.9
    yaw = {-4.0: 0.1, 0.2: -1.7, 9.0: 3.1}.get(place[0], 0.7)
    ego_from_cam = pose(place, (np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)))
    ego_from_cam[:3, :3] = ego_from_cam[:3, :3] @ np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    passes = np.zeros(GRID.shape, dtype=np.uint32)
    add_passes(passes, rays, depth_m, casts, ego_from_cam, GRID, weight)
    expected = passes_by_sorting(rays, depth_m, casts, ego_from_cam, GRID, weight)
    assert expected.any()
    np.testing.assert_array_equal(passes, expected)


def test_ray_along_an_axis_passes_exactly_the_cells_before_its_end():
    passes = np.zeros(GRID.shape, dtype=np.uint32)
    ego_from_cam = np.eye(4)
    ego_from_cam[:3, :3], ego_from_cam[:3, 3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]], (-1.9, 0.0, 0.1)
    one = np.ones((1, 1), dtype=bool)
    add_passes(passes, np.zeros((1, 1, 2), np.float32), np.array([[1.65]], np.float32), one, ego_from_cam, GRID, 1)
    # Starts in cell 0 (-2 .. -1.5), ends at x = -0.25 in cell 3 (-0.5 .. 0): that one is where something is.
    assert np.argwhere(passes).tolist() == [[0, 3, 1], [1, 3, 1], [2, 3, 1]]


def test_ray_that_misses_the_grid_passes_nothing():
    passes = np.zeros(GRID.shape, dtype=np.uint32)
    ego_from_cam = np.eye(4)
    ego_from_cam[:3, 3] = (0, 50.0, -9.0)
    add_passes(passes, np.zeros((2, 2, 2), np.float32), np.full((2, 2), np.inf, np.float32), np.ones((2, 2), bool),
               ego_from_cam, GRID, 1)  # fmt: skip
    assert not passes.any()


def test_step_leaves_two_rays_a_cell_at_the_far_face():
    assert ray_step_px(630.0, OCC3D_GRID) == 3  # 0.4 m at 40 m are 6.3 px
    assert ray_step_px(200.0, OCC3D_GRID) == 1
