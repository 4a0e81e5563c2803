"""SemanticKITTI's truth from labelled scans: rules by hand, cells against plain loops, and the real files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_kitti import CALIBRATION, ROW
from typer.testing import CliRunner

from occ_core.cli.main import app
from occ_core.errors import CorruptInput, MissingInput
from occ_core.evaluation.first_hit import first_cells_plain
from occ_core.evaluation.ssc import read_ssc_truth
from occ_core.geometry import apply, inverse, pose
from occ_core.grid import SEMANTIC_KITTI_VOXELS, VoxelGrid
from occ_core.labels.voxelise import LabelledScan, read_scan, voxelise, voxelise_frame
from occ_core.sources.kitti import SemanticKittiSource
from occ_core.taxonomy import SEMANTIC_KITTI

GRID = VoxelGrid((-8.03, -7.91, -4.07), 1.0, (16, 16, 8))  # no LiDAR stands in a corner of its cells
CAR, ROAD, POLE = (SEMANTIC_KITTI.id_of(name) for name in ("car", "road", "pole"))
UNKNOWN = 255


def scan(points: list[tuple[float, ...]], classes: list[int], moving: bool = False, at=None) -> LabelledScan:
    n = len(points)
    return LabelledScan(
        np.float32(points), np.uint8(classes), np.full(n, moving), pose((0, 0, 0)) if at is None else at
    )


def cell(*point_m: float) -> tuple[int, ...]:
    return tuple(GRID.index_of(np.array([point_m]))[0][0])


def test_most_points_name_a_cell_and_points_without_class_do_not_count():
    own = scan([(4.5, 0.5, 0.5)] * 5, [CAR, ROAD, ROAD, UNKNOWN, UNKNOWN])
    other = scan([(4.5, 0.5, 0.5), (-3.5, 0.5, 0.5)], [ROAD, UNKNOWN])
    labels = voxelise_frame(own, [other], GRID)
    assert labels[cell(4.5, 0.5, 0.5)] == ROAD and labels[cell(-3.5, 0.5, 0.5)] == UNKNOWN
    assert labels[cell(2.5, 0.5, 0.5)] == 0 and labels[cell(-2.5, 0.5, 0.5)] == 0  # passed
    assert labels[cell(6.5, 0.5, 0.5)] == UNKNOWN and labels[cell(-5.5, 0.5, 0.5)] == UNKNOWN  # behind the points
    assert labels[cell(6.5, 0.5, 2.5)] == 0 and labels[cell(-5.5, 3.5, 0.5)] == 0  # above, beside


def test_things_that_move_are_where_the_own_scan_has_them():
    """The other scan is 3 m to the left, turned by 90 degrees."""
    there = pose((0, 3, 0), (np.sqrt(0.5), 0, 0, np.sqrt(0.5)))
    moving = scan([(5.5, 0.5, 0.5)], [CAR], True, there)  # at (-0.5, 8.5): out; seen from `there`
    near = scan([(2.5, 1.5, 0.5)], [CAR], True, there)  # at (-1.5, 5.5)
    still = scan([(2.5, 1.5, 0.5)], [POLE], False, there)
    own = scan([(4.5, 0.5, 0.5)], [CAR], True)
    assert voxelise_frame(own, [moving, near], GRID)[cell(4.5, 0.5, 0.5)] == CAR
    assert voxelise_frame(own, [moving, near], GRID)[cell(-1.5, 5.5, 0.5)] == 0
    assert voxelise_frame(own, [still], GRID)[cell(-1.5, 5.5, 0.5)] == POLE
    far_moving = scan([(20.5, 1.5, 0.5)], [CAR], True, there)  # its ray passes the cell before
    assert voxelise_frame(own, [far_moving], GRID)[cell(-0.5, 5.5, 0.5)] == 0


def test_free_cells_are_those_that_a_ray_or_a_look_enters_and_leaves():
    """Every ray, and every look from a LiDAR to a cell on the grid's faces, against every cell's six planes."""
    rng, scans = np.random.default_rng(0), []
    for k in range(2):
        directions = rng.normal(size=(60, 3)) * (1, 1, 0.3)
        at = pose((6.3 * k, 0.4 * k, 0.1 * k), (np.cos(0.2 * k), 0, 0, np.sin(0.2 * k)))
        points = directions / np.linalg.norm(directions, axis=1)[:, None] * rng.uniform(2, 12, (60, 1))
        scans.append(scan(points.tolist(), [ROAD] * 60, False, at))
    labels = voxelise_frame(scans[0], scans[1:], GRID)
    lower_m = GRID.centers_m().astype(float) - 0.5
    rays = []
    met, touched, hit = (np.zeros(GRID.shape, dtype=bool) for _ in range(3))
    for one in scans:
        own_from_lidar = inverse(scans[0].world_from_lidar) @ one.world_from_lidar
        start = own_from_lidar[:3, 3]
        ends = apply(own_from_lidar, one.points_lidar_m.astype(float))
        hit[tuple(GRID.index_of(ends)[0][GRID.index_of(ends)[1]].T)] = True
        rays.append((start, ends))
    cells = GRID.centers_m().astype(float)
    outer = cells[(np.abs(cells - (0, 0, 0)) > (7, 7, 3)).any(-1)]
    for start, _ in list(rays):
        ways = (outer - start) / np.linalg.norm(outer - start, axis=1)[:, None]
        _, _, depth_m = first_cells_plain(hit.astype(np.uint8), 0, GRID, np.tile(start, (len(ways), 1)), ways)
        rays.append((start, start + ways * np.minimum(depth_m, 50)[:, None]))
    for start, ends in rays:
        for end in ends:
            planes = np.stack([(lower_m - start) / (end - start), (lower_m + 1 - start) / (end - start)])
            enter, leave = planes.min(0).max(-1).clip(0), planes.max(0).min(-1)
            met |= (leave - enter > 1e-5) & (leave < 1)
            touched |= (np.abs(leave - enter) <= 1e-5) & (leave < 1)
    assert np.array_equal(labels == ROAD, hit) and hit.sum() > 30
    free = labels == 0
    assert not (met & ~hit & ~free).any() and not (free & ~(met | touched)).any() and free.sum() > 200


def write_sequence(root: Path, raw: list[list[int]]) -> Path:
    """One point for each raw label, 5 m ahead of the first frame and 1 m apart to the left; frames 2 m apart."""
    folder = root / "sequences/03"
    for name in ("velodyne", "labels"):
        (folder / name).mkdir(parents=True)
    (folder / "calib.txt").write_text(CALIBRATION)
    (folder / "poses.txt").write_text("".join(ROW.format(x=0, z=2 * n) for n in range(len(raw))))
    (folder / "times.txt").write_text("".join(f"{n / 10}\n" for n in range(len(raw))))
    for n, labels in enumerate(raw):
        rows = [(5.1 - 2 * n, 0.1 + i, -1.9, 0.5) for i in range(len(labels))]
        np.float32(rows).tofile(folder / f"velodyne/{n:06d}.bin")
        (np.uint32(labels) | np.uint32(7 << 16)).tofile(folder / f"labels/{n:06d}.label")
    return root


def test_files_are_read_as_the_data_sets_own(tmp_path):
    #                           road, moving car, other structure, outlier, parked car
    write_sequence(tmp_path, [[40, 252, 52, 1, 10], [60, 252, 52, 1, 10, 81]])
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["labels", "voxelise", str(tmp_path), str(out)], catch_exceptions=False)
    assert result.exit_code == 0 and "2 frames in" in result.output
    truth = [read_ssc_truth(out / f"sequences/03/voxels/00000{n}.label") for n in range(2)]
    for n in range(2):
        points = [(5.1 - 2 * n, 0.1 + i, -1.9) for i in range(6)]
        index, _ = SEMANTIC_KITTI_VOXELS.index_of(np.array(points))
        names = [SEMANTIC_KITTI.names[c] if c != 255 else None for c in truth[n][tuple(index.T)]]
        assert names == ["road", "car", None, "empty", "car", "traffic_sign"]
    assert (truth[0] == 0).mean() > 0.99 and (truth[0] == 255).sum() > 2  # one without class, and what hides
    path = out / "sequences/03/voxels/000001.label"
    path.unlink()
    (out / "sequences/03/voxels/000000.label").write_bytes(b"kept")
    assert [p.name for p in voxelise(tmp_path, out, ["03"], every=1)] == ["000000.label", "000001.label"]
    assert path.stat().st_size == 2 * SEMANTIC_KITTI_VOXELS.cells
    assert (out / "sequences/03/voxels/000000.label").read_bytes() == b"kept"
    assert len(list(voxelise(tmp_path, tmp_path / "fifth", every=2))) == 1


def test_labels_that_are_absent_or_of_another_scan(tmp_path):
    write_sequence(tmp_path, [[40, 40]])
    path = tmp_path / "sequences/03/labels/000000.label"
    path.write_bytes(b"\0" * 4)
    with pytest.raises(CorruptInput, match="03/labels/000000.label: 1 labels for 2 points"):
        list(voxelise(tmp_path, tmp_path / "out"))
    path.unlink()
    with pytest.raises(MissingInput, match="03/labels/000000.label: no labels of the scan's points"):
        list(voxelise(tmp_path, tmp_path / "out"))


def bits(path: Path) -> np.ndarray:
    return np.unpackbits(np.fromfile(path, np.uint8)).reshape(SEMANTIC_KITTI_VOXELS.shape) == 1


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("frame", [0, 5])
def test_real_scans_fill_the_cells_of_the_real_files(shared_data, frame):
    root = shared_data("semantickitti_seq08_10f")
    source, voxels = SemanticKittiSource(root), root / "sequences/08/voxels"
    given, invalid = (bits(voxels / f"{frame:06d}.{kind}") for kind in ("bin", "invalid"))
    scans = [read_scan(source, n) for n in (frame, *(n for n in range(10) if n != frame))]
    known = replace(scans[0], classes=np.full_like(scans[0].classes, ROAD))  # `.bin` has points without class, too
    alone, together = voxelise_frame(known, []), voxelise_frame(scans[0], scans[1:])
    assert iou(alone == ROAD, given) >= 0.93
    occupied = (together != 0) & (together != UNKNOWN)
    assert occupied.sum() > 2 * given.sum() and given[occupied].mean() > 0.2
    # Theirs adds up ten times as many scans, which hide more from each place and look from more of them.
    unknown = together == UNKNOWN
    assert abs(unknown.mean() - invalid.mean()) < 0.05 and iou(unknown, invalid) > 0.5
    assert invalid[~unknown].mean() < 0.1
