"""The fast path against the plain one of the benchmark, which shares no code with it; and the benchmark's table."""

from __future__ import annotations

import numpy as np
import pytest

from occ_core.bench.label_speed import _frame, _maps, bench_labels, plain_label
from occ_core.grid import OCC3D_GRID
from occ_core.labels.fuse import Fuser
from occ_core.labels.lift import Lifter
from occ_core.labels.recipes import Recipe
from occ_core.taxonomy import OCC3D
from occ_core.world.sensors import nuscenes_rig


@pytest.fixture(scope="module")
def street():
    frame = _frame(nuscenes_rig((160, 90), seed=3), number=2)
    return frame, _maps(frame)


def test_single_frame_equals_plain_numpy(street):
    frame, maps = street
    recipe = Recipe(sky=True)
    evidence = Lifter(recipe, OCC3D_GRID, OCC3D).lift(frame, *maps)
    ours, _ = Fuser(recipe, OCC3D_GRID, OCC3D).fuse(evidence, [])
    labels, observed = plain_label(frame, maps)
    assert (labels != OCC3D.free_id).sum() > 3000
    different = np.argwhere(labels != ours.labels)
    assert len(different) <= 3  # points on the very border of two cells
    # Samples may skip the corner of a cell, and stop 0.4 m early; they never see what the traversal does not.
    missed = observed & ~ours.observed
    assert missed.sum() <= 0.002 * observed.sum()
    assert observed.sum() > 0.85 * ours.observed.sum()


def test_table_has_every_row():
    table = bench_labels(height=45, width=80, frames=2, repeats=2)
    assert set(table["ms"]) == {"keyframe", "window", "numpy", "open3d"}
    assert all(len(table["ms"][name]["all"]) == 2 for name in ("keyframe", "window"))
    assert table["ms"]["keyframe"]["median"] > 0 and table["megabytes_a_frame_kept"] > 1
    assert isinstance(table["ms"]["open3d"], (str, dict))
