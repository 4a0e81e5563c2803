"""What leaves a map: costs of columns against plain loops, files against damage of every kind."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from map_fixtures import GRID, HERE, STAMP, center_m, occupancy_of_cells, random_occupancy, turned, walked

from occ_core.errors import CannotWrite, CorruptInput, InvalidInput, MissingInput
from occ_core.geometry import apply
from occ_core.mapping.costs import class_costs, column_costs, column_costs_in_world
from occ_core.mapping.map_file import load_map, save_map
from occ_core.mapping.rolling_map import RollingMap
from occ_core.mapping.settings import MapSettings
from occ_core.taxonomy import OCC3D, SEMANTIC_KITTI

COSTS = class_costs(OCC3D, ["terrain:30", "vegetation: 60", "road:5", ""])


def test_class_costs():
    by_name = {name: int(COSTS[i]) for i, name in enumerate(OCC3D.names)}
    assert by_name["free"] == by_name["driveable_surface"] == by_name["sidewalk"] == by_name["other_flat"] == 0
    assert (by_name["terrain"], by_name["vegetation"]) == (30, 60)
    assert {by_name[name] for name in ("car", "pedestrian", "manmade", "others", "barrier")} == {100}
    assert class_costs(SEMANTIC_KITTI, ["road:5"])[SEMANTIC_KITTI.id_of("road")] == 5


@pytest.mark.parametrize(
    "entry, text",
    [
        ("terrain", "cost of 0..100"),
        ("terrain:101", "cost of 0..100"),
        ("terrain:-1", "cost of 0..100"),
        ("terrain:ten", "cost of 0..100"),
        ("lava:3", "no class 'lava'"),
        ("free:3", "no class 'free'"),
    ],
)
def test_bad_class_cost_is_named(entry, text):
    with pytest.raises(InvalidInput, match=f"'{entry}'.*{text}"):
        class_costs(OCC3D, [entry])


def cost_of_cells(cells) -> int:
    """(observed, label) of a column's cells in the band -> cost, as docs/mapping.md words it."""
    seen = [label for observed, label in cells if observed]
    if not seen:
        return -1
    table = {"driveable_surface": 0, "other_flat": 0, "sidewalk": 0, "terrain": 30, "vegetation": 60, "free": 0}
    return max(table.get(OCC3D.names[label], 100) for label in seen)


def test_column_costs_against_plain_loops():
    rng = np.random.default_rng(3)
    found = set()
    for _ in range(5):
        seen = random_occupancy(rng)
        seen.observed[rng.random(GRID.shape[:2]) < 0.3] = False
        costs = column_costs(seen, (-0.3, 0.8), COSTS)
        levels = [k for k in range(4) if -0.3 <= -0.8 + (k + 0.5) * 0.4 <= 0.8]
        assert levels == [1, 2, 3]
        for x, y in np.ndindex(costs.shape):
            expected = cost_of_cells([(seen.observed[x, y, k], seen.labels[x, y, k]) for k in levels])
            assert costs[x, y] == expected
            found.add(expected)
    assert found == {-1, 0, 30, 60, 100}


def test_column_costs_in_the_world_against_plain_loops():
    """Axes of the world, whole multiples of the cell, band over the robot: each column by the cells at its centres."""
    rng = np.random.default_rng(4)
    seen, world_from_ego, band_m = random_occupancy(rng), turned(33.3, -7.7, 0.6, 5.1, 0.1), (-0.3, 0.8)
    costs, grid = column_costs_in_world(seen, world_from_ego, band_m, COSTS)
    first = np.array(grid.origin_m[:2]) / 0.4
    np.testing.assert_allclose(first, np.round(first), atol=1e-9)
    assert costs.dtype == np.int8 and costs.shape == grid.shape[:2]
    ego_from_world = np.linalg.inv(world_from_ego)
    for x, y in np.ndindex(costs.shape):
        cells = []
        for z in range(grid.shape[2]):
            center = center_m((x, y, z), grid)
            assert band_m[0] - 1e-6 <= center[2] - 5.1 <= band_m[1] + 1e-6
            index, inside = GRID.index_of(apply(ego_from_world, center)[None])
            cell = tuple(index[0])
            cells.append((inside[0] and seen.observed[cell], seen.labels[cell]))
        assert costs[x, y] == cost_of_cells(cells)
    corners = [[x, y, z, 1] for x in (-2, 2) for y in (-2, 2) for z in (-0.8, 0.8)]
    outer = (np.array(corners) @ world_from_ego.T)[:, :2]
    assert (outer >= np.array(grid.origin_m[:2]) - 1e-6).all() and (outer <= np.array(grid.upper_m[:2]) + 1e-6).all()
    assert {-1, 0, 100} <= set(costs.ravel().tolist())


def test_an_obstacle_stays_where_it_is_however_the_robot_turns():
    for yaw in (0.0, 0.5, 1.2, 3.0):
        world_from_ego = turned(10.0, 20.0, yaw)
        wall_world_m = np.array([[10.6, 20.2, 0.6]])
        index, _ = GRID.index_of(apply(np.linalg.inv(world_from_ego), wall_world_m))
        seen = occupancy_of_cells([tuple(index[0][:2]) + (z,) for z in range(4)])
        costs, grid = column_costs_in_world(seen, world_from_ego, (-0.5, 0.5), COSTS)
        away_m = [np.abs(center_m((*cell, 0), grid)[:2] - wall_world_m[0, :2]).max() for cell in np.argwhere(costs > 0)]
        assert away_m and max(away_m) <= 0.4 * np.sqrt(2)


def test_band_without_a_level_is_refused():
    with pytest.raises(InvalidInput, match="band 5.00..6.00 m holds no voxel centre of -0.60..0.60"):
        column_costs(occupancy_of_cells(), (5.0, 6.0), COSTS)
    with pytest.raises(InvalidInput, match="band 5.00..6.00 m"):
        column_costs_in_world(occupancy_of_cells(), HERE, (5.0, 6.0), COSTS)


def assert_same(one, other):
    for name, a, b in zip(one.state()._fields, one.state(), other.state(), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_saved_map_comes_back_and_goes_on(tmp_path):
    saved, loaded = walked(), RollingMap(GRID, OCC3D, MapSettings(size_m=(8.0, 8.0, 2.4)))
    save_map(tmp_path / "new" / "street.npz", saved, "odom")
    load_map(tmp_path / "new" / "street.npz", loaded, "odom")
    assert_same(saved, loaded)
    assert loaded.occupancy().occupied.sum() > 50
    pose = turned(*(np.array(saved.grid.origin_m) + 4.0)[:2], 0.2, 0.4)
    for each in (saved, loaded):
        each._stamp_ns = None  # else time has passed for the one
        each.fuse(random_occupancy(np.random.default_rng(6)), pose, STAMP)
    assert_same(saved, loaded)
    year_ns = 365 * 86_400 * 1_000_000_000
    load_map(tmp_path / "new" / "street.npz", loaded, "odom")
    loaded.fuse(occupancy_of_cells(observed=False), pose, STAMP + year_ns)
    assert loaded.occupancy().occupied.any()  # a map of last year is not a year forgotten


@pytest.mark.parametrize(
    "other, frame, text",
    [
        (RollingMap(GRID, OCC3D, MapSettings(size_m=(8.0, 8.0, 2.4))), "map", "frame odom, needed map"),
        (RollingMap(GRID, SEMANTIC_KITTI, MapSettings(size_m=(8.0, 8.0, 2.4))), "odom", "taxonomy occ3d, needed sem"),
        (RollingMap(GRID, OCC3D, MapSettings(size_m=(8.0, 8.0, 2.8))), "odom", r"shape \[20, 20, 6\], needed \[20, 20"),
    ],
)
def test_map_of_another_kind_is_refused_by_name(tmp_path, other, frame, text):
    save_map(tmp_path / "m.npz", walked(), "odom")
    before = other.state()
    with pytest.raises(InvalidInput, match=rf"m\.npz: map has {text}"):
        load_map(tmp_path / "m.npz", other, frame)
    for a, b in zip(before, other.state(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_damaged_map_is_refused_and_the_old_one_stays(tmp_path):
    path = tmp_path / "m.npz"
    save_map(path, walked(), "odom")
    whole = path.read_bytes()
    rolling_map = walked(MapSettings(size_m=(8.0, 8.0, 2.4), half_life_s=7))
    before = rolling_map.state()
    rng = np.random.default_rng(7)
    refused = 0
    for case in range(80):
        data = bytearray(whole)
        if case < 20:
            data = data[: int(rng.integers(0, len(data)))]
        else:
            data[int(rng.integers(0, len(data)))] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(data)
        try:
            load_map(path, rolling_map, "odom")
            rolling_map.restore(before)  # a bit that means nothing, such as a member's date
        except (CorruptInput, InvalidInput) as error:
            refused += 1
            assert str(error).startswith(str(path)) and "\n" not in str(error)
        for a, b in zip(before, rolling_map.state(), strict=True):
            np.testing.assert_array_equal(a, b)
    assert refused > 40
    with pytest.raises(MissingInput, match="absent.npz: no such file"):
        load_map(tmp_path / "absent.npz", rolling_map, "odom")


def repacked(path: Path, **arrays) -> None:
    """The file with some arrays replaced."""
    with np.load(path) as archive:
        there = {name: archive[name] for name in archive.files}
    np.savez_compressed(path, **(there | arrays))


def test_numbers_that_cannot_be_are_refused(tmp_path):
    path, rolling_map = tmp_path / "m.npz", walked()
    shape = rolling_map.shape
    about = {"first_cell": [0, 0, 10**12]}
    bad_odds = np.zeros(shape, np.float32)
    bad_odds[0, 0, 0] = np.nan
    for changed in (
        {"log_odds": bad_odds},
        {"log_odds": np.zeros(shape, np.float64)},
        {"label": np.full(shape, 200, np.uint8)},
        {"votes": np.zeros((*shape, 3), np.uint8)},
        {"about": np.zeros(100_000, np.uint8)},
        {"about": about},
        {"label": np.array([object()] * 3, dtype=object)},
    ):
        save_map(path, rolling_map, "odom")
        if changed.get("about") is about:
            with np.load(path) as archive:
                text = json.loads(archive["about"].tobytes())
            changed = {"about": np.frombuffer(json.dumps({**text, **about}).encode(), np.uint8)}
        repacked(path, **changed)
        with pytest.raises(CorruptInput, match=r"m\.npz"):
            load_map(path, rolling_map, "odom")


def test_a_bomb_takes_no_memory(tmp_path):
    """An array that claims, and has, far more cells than the map: only its header is read."""
    path, rolling_map = tmp_path / "m.npz", walked()
    save_map(path, rolling_map, "odom")
    with np.load(path) as archive:
        about = archive["about"]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("about.npy", "w") as file:
            np.lib.format.write_array(file, about)
        with archive.open("log_odds.npy", "w") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "<f4", "fortran_order": False, "shape": (20000, 20000, 6)}
            )
            for _ in range(64):
                file.write(bytes(1 << 20))
    code = (
        "import resource, sys; from pathlib import Path; sys.path.insert(0, 'tests/fixtures');"
        "from map_fixtures import walked; from occ_core.mapping.map_file import load_map;"
        "m = walked(); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"try: load_map(Path({str(path)!r}), m, 'odom')\n"
        "except Exception as error: print(error)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    message, grown_mb = done.stdout.strip().splitlines()
    assert "'log_odds' has shape (20000, 20000, 6)" in message
    assert int(grown_mb) < 20


def test_full_disk_is_named_and_keeps_the_old_file(tmp_path):
    path, rolling_map = tmp_path / "m.npz", walked()
    save_map(path, rolling_map, "odom")
    before = path.read_bytes()
    old_limit, old_handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails as it does on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old_limit[1]))
    try:
        with pytest.raises(CannotWrite, match=r"m\.npz: cannot write \d+ bytes"):
            save_map(path, rolling_map, "odom")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["m.npz"]
