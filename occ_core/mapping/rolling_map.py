"""A voxel map that is fixed in the world and moves along with the robot by whole cells."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from occ_core.errors import InvalidInput
from occ_core.geometry import inverse, require_rigid
from occ_core.grid import VoxelGrid
from occ_core.mapping.lattice import Lattice, lattice_of, seen_of
from occ_core.mapping.settings import MapSettings, map_shape
from occ_core.mapping.update import MapCells, Step, update_plain
from occ_core.occupancy import Occupancy
from occ_core.taxonomy import Taxonomy

JUMP_BACK_NS = 1_000_000_000
"""A frame this much older than the newest means that time was set back (a bag starts over)."""
FARTHEST_M = 1e7  # from the world's origin; beyond it cell numbers and float32 points lose their meaning


class MapState(NamedTuple):
    """Everything that a map remembers, in world order; `occ_core.mapping.map_file` writes it."""

    first_cell: tuple[int, int, int]  # number of the lowest cell: its corner lies at number * voxel_size_m
    log_odds: np.ndarray  # float32 [X, Y, Z]
    label: np.ndarray  # uint8 [X, Y, Z]
    votes: np.ndarray  # uint8 [X, Y, Z, classes]


class RollingMap:
    """Log-odds and class votes of the cells around a robot. Memory is fixed: what leaves the box is forgotten.

    The axes are the world's (odom or map); cells lie at whole multiples of the voxel size, so that the same place is
    the same cell for ever. Not safe to use from several threads at once.

    Args:
        grid: of the answers that will be fused, in the ego frame.
        taxonomy: of their labels.

    Raises:
        InvalidInput: the map would need too much memory.
    """

    def __init__(self, grid: VoxelGrid, taxonomy: Taxonomy, settings: MapSettings | None = None) -> None:
        self.seen_grid, self.taxonomy = grid, taxonomy
        self.settings = settings or MapSettings()
        self.shape = map_shape(grid, len(taxonomy), self.settings)
        self.voxel_size_m = grid.voxel_size_m
        self._is_dynamic = np.zeros(256, dtype=bool)
        self._is_dynamic[list(taxonomy.dynamic_ids)] = True
        # Storage is a ring along each axis: the cell with number c lies at c modulo the size, so nothing is ever moved.
        self._cells = MapCells(
            np.zeros(self.shape, dtype=np.float32),
            np.full(self.shape, taxonomy.free_id, dtype=np.uint8),
            np.zeros((*self.shape, len(taxonomy)), dtype=np.uint8),
        )
        self._first = np.zeros(3, dtype=np.int64)
        self._stamp_ns: int | None = None
        self._update = _fastest_update()

    @property
    def grid(self) -> VoxelGrid:
        """The map's grid at its present position, in the world frame."""
        x, y, z = (float(number) * self.voxel_size_m for number in self._first)
        return VoxelGrid((x, y, z), self.voxel_size_m, self.shape)

    def reset(self) -> None:
        """Forget everything."""
        self._clear((slice(None),) * 3)
        self._stamp_ns = None

    def fuse(
        self,
        occupancy: Occupancy,
        world_from_ego: np.ndarray,  # [4, 4] at the stamp
        stamp_ns: int,
    ) -> None:
        """Add one answer. What it did not observe stays as it is; a stamp a second back or more starts a new map.

        Raises:
            InvalidInput: another grid or taxonomy, or no rigid transform.
        """
        if occupancy.grid != self.seen_grid or occupancy.taxonomy.name != self.taxonomy.name:
            raise InvalidInput(
                f"the map is of {self.taxonomy.name} in {self.seen_grid}, this is {occupancy.taxonomy.name} in "
                f"{occupancy.grid}"
            )
        pose = require_rigid("world_from_ego", world_from_ego)
        if np.abs(pose[:3, 3]).max() > FARTHEST_M:
            raise InvalidInput(f"robot is at {pose[:3, 3].tolist()} m in the world, limit {FARTHEST_M:g} m")
        if self._stamp_ns is not None and stamp_ns < self._stamp_ns - JUMP_BACK_NS:
            self.reset()
        self._move_to(pose[:3, 3])
        self._update(self._cells, seen_of(occupancy), self._lattice(pose), self._is_dynamic, self._step(stamp_ns))
        self._stamp_ns = stamp_ns if self._stamp_ns is None else max(stamp_ns, self._stamp_ns)

    def occupancy(self) -> Occupancy:
        """The map as it is now: `grid` is the world's, `observed` where the log-odds say something, `confidence` the
        probability of what the cell is said to be."""
        log_odds, label = self._in_order(self._cells.log_odds), self._in_order(self._cells.label)
        occupied = log_odds >= self.settings.known
        observed = occupied | (log_odds <= -self.settings.known)
        confidence = 1 / (1 + np.exp(-np.abs(log_odds)))
        return Occupancy(
            self.grid, self.taxonomy, np.where(occupied, label, np.uint8(self.taxonomy.free_id)), observed, confidence
        )

    def state(self) -> MapState:
        """A copy of all that the map remembers."""
        x, y, z = (int(number) for number in self._first)
        return MapState((x, y, z), *(self._in_order(array) for array in self._cells))

    def restore(self, state: MapState) -> None:
        """Take over what another map of the same grid, taxonomy and size remembered.

        Raises:
            InvalidInput: the size is another.
        """
        if state.log_odds.shape != self.shape or state.votes.shape != self._cells.votes.shape:
            raise InvalidInput(f"map of {state.votes.shape} cells and classes, needed {self._cells.votes.shape}")
        self._first = np.array(state.first_cell, dtype=np.int64)
        for mine, theirs in zip(self._cells, state[1:], strict=True):
            mine[:] = np.roll(theirs, self._ring_start(), axis=(0, 1, 2))
        self._stamp_ns = None  # time passes from the next frame on: a map of yesterday is not a day forgotten

    def _move_to(self, robot_world_m: np.ndarray) -> None:
        """Centre the box on the robot (in height: on the middle of what it sees); cells that come in are unknown."""
        middle_m = (self.seen_grid.origin_m[2] + self.seen_grid.upper_m[2]) / 2
        center = (robot_world_m + (0, 0, middle_m)) / self.voxel_size_m
        first = np.floor(center - np.array(self.shape) / 2 + 0.5).astype(np.int64)
        for axis, (old, new, size) in enumerate(zip(self._first, first, self.shape, strict=True)):
            entering = np.arange(old + size, new + size) if new > old else np.arange(new, old)
            where: list[slice | np.ndarray] = [slice(None)] * 3
            where[axis] = entering % size if len(entering) < size else slice(None)
            if len(entering):
                self._clear(tuple(where))
        self._first = first

    def _clear(self, where: tuple[slice | np.ndarray, ...]) -> None:
        for array, nothing in zip(self._cells, (0, self.taxonomy.free_id, 0), strict=True):
            array[where] = nothing

    def _lattice(self, world_from_ego: np.ndarray) -> Lattice:
        """Compute where each plane of the storage lies in the seen grid."""
        in_order = lattice_of(self.seen_grid, inverse(world_from_ego), self.grid)
        return Lattice(*(np.roll(table, at, axis=0) for table, at in zip(in_order, self._ring_start(), strict=True)))

    def _step(self, stamp_ns: int) -> Step:
        s = self.settings
        passed_s = 0.0 if self._stamp_ns is None else max(0, stamp_ns - self._stamp_ns) / 1e9
        return Step(
            s.hit,
            s.miss,
            s.dynamic_weight,
            s.lowest,
            s.highest,
            0.5 ** (passed_s / s.half_life_s),
            0.5 ** (passed_s / s.dynamic_half_life_s),
            s.max_votes,
            self.taxonomy.free_id,
        )

    def _ring_start(self) -> tuple[int, ...]:
        """The index in the storage of the lowest cell."""
        return tuple(int(number) % size for number, size in zip(self._first, self.shape, strict=True))

    def _in_order(self, array: np.ndarray) -> np.ndarray:
        """A copy from the lowest cell of the world to the highest."""
        return np.roll(array, tuple(-at for at in self._ring_start()), axis=(0, 1, 2))


def _fastest_update() -> Callable[[MapCells, np.ndarray, Lattice, np.ndarray, Step], None]:
    if importlib.util.find_spec("numba") is None:
        return update_plain
    from occ_core.mapping.update_fast import update_fast

    return update_fast
