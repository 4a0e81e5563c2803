"""Supervision by points along viewing rays, against geometry worked out by hand and loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from model_fixtures import camera  # noqa: E402
from rig_fixtures import rig_images_of  # noqa: E402

from occ_core.camera import Rig  # noqa: E402
from occ_core.grid import VoxelGrid  # noqa: E402
from occ_core.losses.query import Queries, query_losses, sample_queries, trilinear  # noqa: E402
from occ_core.network_input.projection import project  # noqa: E402

GRID = VoxelGrid((-8.0, -8.0, -1.0), 1.0, (16, 16, 4))
RIG = Rig((camera("f", 0, (32, 16), focal_px=20.0), camera("b", 180, (32, 16), focal_px=20.0)))
FREE = 2


def wall(depth_m: float, samples: int = 1):
    """Teachers' maps of walls across both cameras' axes: class 0 ahead, 1 behind."""
    depth = torch.full((samples, 2, 16, 32), depth_m)
    classes = torch.zeros(samples, 2, 16, 32, dtype=torch.uint8)
    classes[:, 1] = 1
    return depth, classes


def inside(points: torch.Tensor) -> bool:
    return bool(GRID.index_of(points.numpy())[1].all())


def test_points_lie_before_and_behind_the_hits():
    torch.manual_seed(0)
    depth, classes = wall(5.0, samples=2)
    queries = sample_queries(depth, classes, rig_images_of(RIG, 2), GRID, FREE, rays=500, buffer_m=0.5)
    x = queries.points_ego_m[:, 0] - 0.5  # the cameras stand at x = 0.5 m
    occupied = queries.occupied
    assert (x[~occupied].abs() <= 5).all() and (x[~occupied].abs() < 1).any() and (x[~occupied].abs() > 4).any()
    assert (x[occupied].abs() >= 5 - 1e-4).all() and (x[occupied].abs() <= 5.5).all()
    assert (queries.classes[occupied] == (x[occupied] < 0)).all() and (queries.classes[~occupied] == 255).all()
    assert inside(queries.points_ego_m) and set(queries.sample.tolist()) == {0, 1}
    assert 300 < occupied.sum() < (~occupied).sum() <= 1000


def test_free_points_are_uniform_along_the_ray():
    torch.manual_seed(0)
    queries = sample_queries(*wall(4.0), rig_images_of(RIG), GRID, FREE, rays=8000, buffer_m=0.5)
    pixels, depth_m, visible = project(queries.points_ego_m[~queries.occupied], rig_images_of(RIG))
    middle = (visible & ((pixels[..., 1] - 7.5).abs() < 2)).any(1)[0]  # rays that stay in the grid up to the wall
    counts = np.histogram(depth_m.amax(1)[0, middle].numpy(), bins=4, range=(0, 4))[0]
    expected = counts.sum() / 4
    assert counts.sum() > 1000 and (np.abs(counts - expected) < 5 * math.sqrt(expected)).all()


def test_behind_a_hit_the_class_is_asked_within_the_buffer_in_metres_along_the_ray():
    torch.manual_seed(0)
    queries = sample_queries(*wall(4.0), rig_images_of(RIG), GRID, FREE, rays=4000, buffer_m=0.5)
    points = queries.points_ego_m[queries.occupied] - torch.tensor([0.5, 0.1, 1.5])
    length = points.norm(dim=1)
    behind = length - length * 4.0 / points[:, 0].abs()  # metres behind the wall, along the ray
    assert behind.min() > -1e-4 and 0.49 < behind.max() <= 0.5 + 1e-4
    assert (length / points[:, 0].abs()).max() > 1.2  # oblique rays are among them


def test_sky_is_free_up_to_the_end_of_the_grid_and_unknown_depth_is_nothing():
    torch.manual_seed(0)
    depth, classes = wall(5.0)
    depth[:, 0], depth[:, 1] = math.inf, math.nan
    queries = sample_queries(depth, classes, rig_images_of(RIG), GRID, FREE, rays=1000, buffer_m=0.5)
    assert not queries.occupied.any() and 400 < len(queries.sample) < 600
    assert torch.isfinite(queries.points_ego_m).all() and inside(queries.points_ego_m)
    assert (queries.points_ego_m[:, 0] >= 0.5).all() and queries.points_ego_m[:, 0].max() > 7


@pytest.mark.parametrize(("depth_m", "points"), [(math.nan, 500), (math.inf, 500), (30.0, 500), (3.0, 0)])
def test_what_the_class_calls_sky_is_free_to_the_end_of_the_grid_unless_the_depth_ends_in_it(depth_m, points):
    torch.manual_seed(0)
    depth, classes = wall(depth_m)
    classes[:] = FREE
    queries = sample_queries(depth, classes, rig_images_of(RIG), GRID, FREE, rays=500, buffer_m=0.5)
    assert not queries.occupied.any() and (queries.classes == 255).all()
    assert points * 0.9 <= len(queries.sample) <= points and inside(queries.points_ego_m)
    assert points == 0 or queries.points_ego_m[:, 0].abs().max() > 7  # not only up to a wall


def test_hits_out_of_the_grid_are_dropped_and_absent_cameras_see_nothing():
    torch.manual_seed(0)
    rig_images = rig_images_of(RIG)
    rig_images.present[0, 1] = False
    queries = sample_queries(*wall(30.0), rig_images, GRID, FREE, rays=500, buffer_m=0.5)
    assert not queries.occupied.any() and inside(queries.points_ego_m) and (queries.points_ego_m[:, 0] > 0.4).all()


def test_trilinear_is_the_loop_over_corners():
    rng = np.random.default_rng(0)
    volume = torch.from_numpy(rng.normal(size=(2, 3, 16, 16, 4))).float()
    points = rng.uniform(GRID.origin_m, GRID.upper_m, (50, 3))
    sample = rng.integers(0, 2, 50)
    ours = trilinear(volume, torch.from_numpy(sample), torch.from_numpy(points).float(), GRID)
    for q in range(50):
        at = np.clip((points[q] - GRID.origin_m) / 1.0 - 0.5, 0, np.array(GRID.shape) - 1)
        expected = np.zeros(3)
        for cell in itertools.product(*(range(n) for n in GRID.shape)):
            weight = np.prod(np.maximum(0, 1 - np.abs(at - cell)))
            if weight:
                expected += weight * volume[(sample[q], slice(None), *cell)].numpy()
        np.testing.assert_allclose(ours[q].numpy(), expected, atol=1e-5)


def test_losses_are_the_loop_over_points():
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(1, 4, 16, 16, 4))).float()
    cells = rng.integers(0, GRID.shape, (30, 3))
    occupied = torch.from_numpy(rng.random(30) < 0.4)
    classes = torch.where(occupied, torch.from_numpy(rng.choice([0, 1, 3, FREE, 255], 30)), 255)
    points = torch.from_numpy(cells + 0.5 + np.array(GRID.origin_m)).float()  # on cell centres: no interpolation
    weights = torch.tensor([1.0, 2.0, 5.0, 0.5])
    queries = Queries(torch.zeros(30, dtype=torch.int64), points, occupied, classes)
    ours = query_losses(logits, queries, GRID, FREE, weights)
    sides: dict[bool, list[float]] = {True: [], False: []}
    total = weight = 0.0
    for q in range(30):
        row = logits[(0, slice(None), *cells[q])].double().tolist()
        e = [math.exp(v) for v in row]
        p_free = e[FREE] / sum(e)
        sides[bool(occupied[q])].append(-math.log(1 - p_free if occupied[q] else p_free))
        c = int(classes[q])
        if occupied[q] and c not in (FREE, 255):
            total -= weights[c].item() * math.log(e[c] / (sum(e) - e[FREE]))
            weight += weights[c].item()
    assert ours["query_occupied"].item() == pytest.approx((np.mean(sides[True]) + np.mean(sides[False])) / 2, rel=1e-4)
    assert weight > 0 and ours["query_class"].item() == pytest.approx(total / weight, rel=1e-4)


def test_no_point_is_no_loss_and_no_gradient():
    logits = torch.zeros(1, 4, 16, 16, 4, requires_grad=True)
    depth, classes = wall(math.nan)
    queries = sample_queries(depth, classes, rig_images_of(RIG), GRID, FREE, rays=100, buffer_m=0.5)
    losses = query_losses(logits, queries, GRID, FREE)
    sum(losses.values()).backward()
    assert all(v.item() == 0 for v in losses.values()) and not logits.grad.any()


def test_gradient_reaches_the_cells_around_the_points_only():
    torch.manual_seed(0)
    logits = torch.zeros(1, 4, 16, 16, 4, requires_grad=True)
    queries = sample_queries(*wall(4.0), rig_images_of(RIG), GRID, FREE, rays=300, buffer_m=0.5)
    sum(query_losses(logits, queries, GRID, FREE).values()).backward()
    touched = logits.grad.abs().sum(1)[0] > 0
    assert touched[4:13].any() and not touched[14:].any() and not touched[:2].any()
