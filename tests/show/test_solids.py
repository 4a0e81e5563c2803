"""Voxels in perspective: what is near hides what is far, what was not observed has no colour, houses have roofs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from occ_core.grid import OCC3D_GRID, VoxelGrid
from occ_core.occupancy import Occupancy
from occ_core.show import solids
from occ_core.taxonomy import OCC3D

CAR, WALL, ROAD = (OCC3D.id_of(name) for name in ("car", "manmade", "driveable_surface"))
SIZE = (400, 300)


def empty(grid: VoxelGrid = OCC3D_GRID) -> Occupancy:
    return Occupancy(grid, OCC3D, np.full(grid.shape, OCC3D.free_id, np.uint8), np.ones(grid.shape, bool))


def one_car(*index: int) -> Occupancy:
    occupancy = empty()
    occupancy.labels[index] = CAR
    return occupancy


def colored(image: np.ndarray, class_id: int) -> np.ndarray:
    """(row, column) of pixels that have a class's colour in some light: the same mixture of red, green and blue."""
    wanted = np.array(OCC3D.colors[class_id]) / sum(OCC3D.colors[class_id])
    total = image.sum(axis=2, keepdims=True)
    mixture = image / np.maximum(total, 1)
    return np.argwhere((np.abs(mixture - wanted).max(axis=2) < 0.02) & (total[..., 0] > 60))


def test_left_is_left_and_near_hides_far():
    left = colored(solids.in_perspective(one_car(100, 150, 3), SIZE), CAR)
    right = colored(solids.in_perspective(one_car(100, 50, 3), SIZE), CAR)
    assert len(left) and len(right)
    assert left[:, 1].max() < 200 < right[:, 1].min()
    wall = one_car(100, 100, 0)
    wall.labels[80, 60:140, :] = WALL  # between the eye and the car
    image = solids.in_perspective(wall, SIZE)
    assert len(colored(image, CAR)) == 0 and len(colored(image, WALL)) > 100


@pytest.mark.parametrize("seed", range(4))
def test_each_pixel_shows_the_first_cell_that_its_ray_meets(seed):
    """Against rays that march through the cells, a fiftieth of a cell a step, from any side."""
    rng = np.random.default_rng(seed)
    grid = VoxelGrid((-3.0, -3.0, -1.0), 0.5, (12, 12, 6))
    occupancy = empty(grid)
    ids = [i for i in OCC3D.occupied_ids if OCC3D.names[i] in ("car", "bus", "pedestrian", "terrain", "motorcycle")]
    filled = rng.random(grid.shape) < 0.15
    occupancy.labels[filled] = rng.choice(ids, int(filled.sum()))
    angle = rng.uniform(0, 2 * np.pi)
    at_m = np.array([9 * np.cos(angle), 9 * np.sin(angle), rng.uniform(-5, 6)])
    eye = solids.Eye(at_m, np.array([0.0, 0.0, 0.5]))
    w, h = 60, 50
    image = solids.in_perspective(occupancy, (w, h), eye)
    towards_m = np.array([0.0, 0.0, 0.5]) - at_m
    forward = towards_m / np.linalg.norm(towards_m)
    right = np.cross(forward, (0, 0, 1)) / np.linalg.norm(np.cross(forward, (0, 0, 1)))
    down = np.cross(forward, right)
    v, u = np.mgrid[0:h, 0:w] + 0.5
    rays = forward + ((u - w / 2)[..., None] * right + (v - h / 2)[..., None] * down) / (eye.focal * h)
    met = np.full((h, w), OCC3D.free_id)
    for far in np.arange(4.0, 16.0, 0.01)[::-1]:
        index, inside = grid.index_of((at_m + far * rays).reshape(-1, 3))
        label = np.where(inside, occupancy.labels[tuple(index.T)], OCC3D.free_id).reshape(h, w)
        met = np.where(label == OCC3D.free_id, met, label)
    palette = np.array([[0, 0, 0]] * len(OCC3D), dtype=float)
    shown = np.full((h, w), OCC3D.free_id)
    for class_id in ids:
        palette[class_id] = OCC3D.colors[class_id]
        rows, columns = colored(image, class_id).T
        shown[rows, columns] = class_id
    # Pixels on an edge are mixtures: only those are compared whose neighbours all meet the same class.
    same = np.ones((h, w), bool)
    for axis in (0, 1):
        for step in (-1, 1):
            same &= np.roll(met, step, axis) == met
    same[[0, -1]] = same[:, [0, -1]] = False
    assert same.sum() > 0.5 * same.size and len(np.unique(met[same])) > 3
    assert (shown == met)[same].mean() > 0.995


def test_faces_in_corners_are_darker():
    occupancy = empty()
    occupancy.labels[:, :, 2] = ROAD
    flat = solids.in_perspective(occupancy, SIZE)
    occupancy.labels[120, 60:140, 3:12] = WALL
    corner = solids.in_perspective(occupancy, SIZE)
    road = colored(corner, ROAD)
    light = corner[tuple(road.T)].sum(axis=1) / flat[tuple(road.T)].sum(axis=1)
    darker = road[light < 1 - solids.CORNER / 8]  # a wall is three of the eight cells around
    assert len(darker) > 30 and light.max() < 1.02
    rows, columns = darker.T  # along the foot of the wall, in one strip across the picture
    assert np.ptp(rows) < 30 and np.ptp(columns) > 80


def test_what_was_not_observed_is_left_out_or_grey():
    car = one_car(100, 100, 3)
    unseen = replace(car, observed=np.zeros_like(car.observed))
    assert np.all(solids.in_perspective(unseen, SIZE) == solids.BACKGROUND_RGB)
    image = solids.in_perspective(unseen, SIZE, with_hidden=True)
    grey = (image != solids.BACKGROUND_RGB).any(axis=2)
    assert grey.any() and np.all(np.ptp(image[grey], axis=1) == 0)
    assert len(colored(solids.in_perspective(car, SIZE, with_hidden=True), CAR)) > 0


def house(height: int) -> Occupancy:
    """Four walls on a road; inside nothing is marked, and only what is outside was observed."""
    occupancy = empty()
    occupancy.labels[:, :, 2] = ROAD
    occupancy.labels[90:111, 90:111, 3 : 3 + height] = WALL
    inside = (slice(91, 110), slice(91, 110), slice(2, 3 + height))
    occupancy.labels[inside] = OCC3D.free_id
    occupancy.observed[inside] = False
    return occupancy


def test_a_house_is_filled_and_so_has_a_roof():
    hidden = solids.hidden(house(height=8))
    assert hidden[91:110, 91:110, 3:11].all()
    assert hidden.sum() == 19 * 19 * 8
    no_walls = house(height=8)
    no_walls.labels[90, 100, :] = OCC3D.free_id  # a gate: now a path leads in
    assert not solids.hidden(no_walls).any()


def test_what_is_lower_than_a_house_and_what_is_below_the_ground_is_not_filled():
    assert not solids.hidden(house(height=solids.WALL_LEVELS - 1)).any()
    ground = empty()
    ground.labels[:, :, 2] = ROAD
    ground.observed[:, :, :2] = False
    assert not solids.hidden(ground).any()
