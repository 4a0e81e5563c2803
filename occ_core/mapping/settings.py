"""Settings of the map: how strongly one frame counts, and how fast the map forgets."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from occ_core.errors import InvalidInput
from occ_core.grid import VoxelGrid

MAX_MAP_BYTES = 1 << 30  # bounds the memory that a parameter or a file can ask for

Seconds = Annotated[float, Field(gt=0, le=1e9)]
Metres = Annotated[float, Field(gt=0, le=10_000)]


class MapSettings(BaseModel):
    """Log-odds with clamping as OctoMap's (Hornung et al. 2013; hit, lowest, highest are theirs), and decay.

    OctoMap's miss is -0.4, for rays of a LiDAR that graze what they pass. A network that says free means it as
    much as when it says occupied, so that both count alike here.

    A cell's log-odds are ln(p / (1 - p)); 0 is "nobody knows".
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    size_m: tuple[Metres, Metres, Metres] | None = None  # default: holds the grid at any heading, see `map_shape`
    hit: Annotated[float, Field(gt=0, le=10)] = 0.85  # p = 0.70: added where a frame says occupied
    miss: Annotated[float, Field(ge=-10, lt=0)] = -0.85  # p = 0.30: added where it says free
    lowest: Annotated[float, Field(ge=-20, lt=0)] = -2.0  # p = 0.12
    highest: Annotated[float, Field(gt=0, le=20)] = 3.5  # p = 0.97
    known: Annotated[float, Field(gt=0, le=10)] = 0.2  # nearer to 0 than this a cell counts as unobserved
    half_life_s: Seconds = 30.0  # log-odds halve in this time, where nobody looks too
    dynamic_half_life_s: Seconds = 0.5  # the same, of cells whose class can move
    dynamic_weight: Annotated[float, Field(ge=1, le=100)] = 3.0  # so often a hit of such a class and a miss of it count
    max_votes: Annotated[int, Field(ge=1, le=255)] = 15  # of one class in one cell


def settings_of(**values: object) -> MapSettings:
    """MapSettings from named values.

    Raises:
        InvalidInput: naming the value and its limit.
    """
    try:
        return MapSettings(**values)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InvalidInput(f"map setting '{name}': {first['msg'].lower()}, got {first['input']!r}") from None


def map_shape(grid: VoxelGrid, classes: int, settings: MapSettings) -> tuple[int, int, int]:
    """Cells (X, Y, Z) of the map around a robot that sees `grid`.

    By default as wide as twice the grid's farthest corner, so that nothing in view falls outside at any heading, and a
    quarter higher than the grid, for slopes.

    Raises:
        InvalidInput: that much memory would be above the limit.
    """
    if settings.size_m is None:
        x_m, y_m = (max(abs(low), abs(high)) for low, high in list(zip(grid.origin_m, grid.upper_m, strict=True))[:2])
        wide_m = 2 * float(np.hypot(x_m, y_m))
        size_m = (wide_m, wide_m, 1.25 * grid.shape[2] * grid.voxel_size_m)
    else:
        size_m = settings.size_m
    x, y, z = (max(1, int(np.ceil(metres / grid.voxel_size_m - 1e-9))) for metres in size_m)
    if x * y * z * bytes_a_cell(classes) > MAX_MAP_BYTES:
        raise InvalidInput(
            f"a map of {x} x {y} x {z} cells needs {x * y * z * bytes_a_cell(classes) / 2**20:.0f} MiB, "
            f"limit {MAX_MAP_BYTES >> 20} MiB: make it smaller (size_m)"
        )
    return x, y, z


def bytes_a_cell(classes: int) -> int:
    """Log-odds (float32), label and one vote count a class (uint8)."""
    return 4 + 1 + classes
