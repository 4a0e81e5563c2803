"""RayIoU against fine marching, rays by hand and the published ray set; its origins against the drive."""

import json
from collections import Counter

import numpy as np
import pytest
from small_nuscenes import make, world_from_ego
from typer.testing import CliRunner

from occ_core.cli.main import app
from occ_core.errors import InvalidInput, MissingInput, MissingPackage
from occ_core.evaluation import ray_iou
from occ_core.evaluation.ray_iou import RayScores, near_origins, ray_directions, ray_origins, ray_pitches
from occ_core.evaluation.report import SetScores, VoxelScores, evaluate_folders, score_set
from occ_core.grid import OCC3D_GRID, VoxelGrid
from occ_core.occupancy import Occupancy, save_occ3d
from occ_core.sources.nuscenes_tables import NuScenesTables
from occ_core.taxonomy import OCC3D

pytest.importorskip("numba")
from occ_core.evaluation.first_hit import first_cells, first_cells_plain, first_hits

SMALL = VoxelGrid((-2.0, -1.5, -1.0), 0.5, (8, 6, 4))
FREE = 17
ROAD, CAR, TREE = (OCC3D.id_of(name) for name in ("driveable_surface", "car", "vegetation"))


def random_grid(seed: int, grid: VoxelGrid = SMALL, share: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(grid.shape) < share, rng.integers(0, 17, grid.shape), FREE).astype(np.uint8)


def random_rays(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rays from in and around the grid, some along an axis."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(count, 3))
    directions[::7, :2] = 0
    directions[3::7, 1:] = 0
    return rng.uniform(-2.2, 2.2, (count, 3)), directions / np.linalg.norm(directions, axis=1, keepdims=True)


def marched(labels: np.ndarray, grid: VoxelGrid, origin: np.ndarray, direction: np.ndarray, step_m: float = 5e-4):
    """Class, begin and end of the first occupied cell, by steps of half a millimetre."""
    at_m = np.arange(0, 12, step_m)
    index, inside = grid.index_of(origin + at_m[:, None] * direction)
    hit = np.flatnonzero(inside & (labels[tuple(index.T)] != FREE))
    if not len(hit):
        return FREE, np.inf, np.inf
    same = (index[hit[0] :] == index[hit[0]]).all(axis=1) & inside[hit[0] :]
    length = len(same) if same.all() else int(same.argmin())
    return labels[tuple(index[hit[0]])], at_m[hit[0]], at_m[hit[0]] + length * step_m


def test_first_hits_are_those_of_fine_marching():
    for seed in range(3):
        labels, (origins, directions) = random_grid(seed, share=0.2), random_rays(seed, 80)
        classes, enter_m, leave_m = first_cells(labels, FREE, SMALL, origins, directions)
        assert (classes != FREE).sum() > 10 and (classes == FREE).sum() > 10
        expected = [marched(labels, SMALL, o, d) for o, d in zip(origins, directions, strict=True)]
        # A step may jump over a corner that a ray cuts off; no such ray is among these.
        assert classes.tolist() == [c for c, _, _ in expected]
        assert np.allclose(np.stack([enter_m, leave_m], axis=1), [ends for _, *ends in expected], atol=2e-3)
        assert 0 < (enter_m == 0).sum() < 20  # some start within


def test_first_hits_equal_their_plain_twin():
    labels, (origins, directions) = random_grid(9, share=0.05), random_rays(9, 1500)
    classes, *ends_m = first_cells(labels, FREE, SMALL, origins, directions)
    plain_classes, *plain_m = first_cells_plain(labels, FREE, SMALL, origins, directions)
    assert np.array_equal(classes, plain_classes) and np.allclose(ends_m, plain_m)
    hit_classes, hit_m = first_hits(labels, FREE, SMALL, origins, directions)
    assert np.array_equal(hit_classes, classes) and np.array_equal(hit_m, ends_m[1])


def test_ray_set_is_the_published_one():
    pitches = np.rad2deg(ray_pitches())
    assert len(pitches) == 39 and ray_directions().shape == (39 * 360, 3)
    ground_m = 1 / np.tan(-np.deg2rad(pitches[:10]))  # where rays from one metre up meet level ground
    assert np.allclose(ground_m, np.arange(1, 11))
    assert np.allclose(np.diff(pitches)[8:], 0.62960, atol=1e-4)
    assert pitches[-1] == pytest.approx(12.548, abs=1e-3) and pitches[-2] < np.rad2deg(0.21) < pitches[-1]
    directions = ray_directions()
    assert np.allclose(np.linalg.norm(directions, axis=1), 1)
    assert np.allclose(directions[0], [np.sqrt(0.5), 0, -np.sqrt(0.5)])
    assert np.allclose(directions[90], [0, np.sqrt(0.5), -np.sqrt(0.5)])
    assert Counter(np.rint(np.rad2deg(np.arctan2(*directions[:, 1::-1].T))).astype(int) % 360) == dict.fromkeys(
        range(360), 39
    )


def brute_counts(truth, predicted, grid, origins):
    """Rays by what they end in, one after another, by the twin."""
    hits, of_truth, of_prediction = Counter(), Counter(), Counter()
    for origin in origins:
        starts = np.tile(origin, (14040, 1))
        a = zip(*first_cells_plain(truth, FREE, grid, starts, ray_directions())[::2], strict=True)
        b = zip(*first_cells_plain(predicted, FREE, grid, starts, ray_directions())[::2], strict=True)
        for (true_class, true_m), (found_class, found_m) in zip(a, b, strict=True):
            if true_class == FREE:
                continue
            of_truth[true_class] += 1
            of_prediction[found_class] += 1
            for threshold_m in (1, 2, 4):
                if true_class == found_class and abs(true_m - found_m) < threshold_m:
                    hits[threshold_m, true_class] += 1
    return hits, of_truth, of_prediction


def test_scores_are_those_of_one_ray_after_another():
    grid = VoxelGrid((-4.0, -4.0, -1.0), 1.0, (8, 8, 4))
    truth, predicted = random_grid(1, grid), random_grid(2, grid)
    predicted[4:] = truth[4:]
    predicted[predicted == 3], truth[truth == 3] = FREE, FREE  # a class that is nowhere
    origins = np.array([[0.3, 0.2, 0.9]])
    scores = RayScores(grid=grid)
    scores.add(truth, predicted, origins)
    hits, of_truth, of_prediction = brute_counts(truth, predicted, grid, origins)
    report = scores.report()
    assert report["rays"] == sum(of_truth.values()) and 3 not in of_truth
    means = {}
    for threshold_m in (1, 2, 4):
        iou = {
            c: 100 * hits[threshold_m, c] / (of_truth[c] + of_prediction[c] - hits[threshold_m, c])
            for c in range(17)
            if of_truth[c] + of_prediction[c]
        }
        assert len(iou) > 5
        means[threshold_m] = [np.mean(list(iou.values())), np.mean([v for c, v in iou.items() if c not in (0, 12)])]
        assert report[f"at_{threshold_m}m"] == pytest.approx(means[threshold_m][0])
        assert report[f"at_{threshold_m}m_15"] == pytest.approx(means[threshold_m][1])
        for c, name in enumerate(OCC3D.names[:17]):
            assert report[f"per_class_at_{threshold_m}m"][name] == (pytest.approx(iou[c]) if c in iou else None)
    assert report["rayiou_17"] == pytest.approx(np.mean([m[0] for m in means.values()]))
    assert report["rayiou_15"] == pytest.approx(np.mean([m[1] for m in means.values()]))
    assert report["per_class"]["bus"] is None


def test_a_wall_by_hand():
    """A wall of cells in front; the answer sees its middle 2.8 m too near, its left third as trees, its right not."""
    grid = VoxelGrid((0.0, -3.0, -40.0), 1.0, (20, 6, 80))
    truth = np.full(grid.shape, FREE, dtype=np.uint8)
    truth[10] = CAR
    predicted = np.full(grid.shape, FREE, dtype=np.uint8)
    predicted[10, 4:], predicted[7, 2:4] = TREE, CAR
    scores = RayScores(grid=grid)
    scores._directions = np.array([[1.0, 0, 0]])  # one ray from each origin, straight ahead
    for y in (-2.5, -1.5, -0.5, 0.5, 1.5, 2.5):
        scores.add(truth, predicted, np.array([[0.5, y, 0.5]]))
    report = scores.report()
    assert report["rays"] == 6 and scores.samples == 6
    assert report["at_1m"] == report["at_2m"] == 0
    # At 4 m 2 of 6 rays are right: IoU of car 2 / (6 + 2 - 2), of trees 0 / 2.
    assert report["per_class_at_4m"]["car"] == pytest.approx(100 / 3)
    assert report["per_class_at_4m"]["vegetation"] == 0 and report["at_4m"] == pytest.approx(100 / 6)


def test_truth_against_itself_is_perfect_and_parts_add_up():
    truths, origins = [random_grid(s) for s in range(3)], np.array([[0.1, 0.2, 0.3], [1.1, -0.2, 0.4]])
    whole, parts = RayScores(grid=SMALL), [RayScores(grid=SMALL) for _ in range(2)]
    for i, truth in enumerate(truths):
        whole.add(truth, truths[i - 1], origins)
        parts[i % 2].add(truth, truths[i - 1], origins)
    parts[0].merge(parts[1])
    assert parts[0].report() == whole.report() and whole.report()["samples"] == 3
    same = RayScores(grid=SMALL)
    same.add(truths[0], truths[0], origins)
    assert same.report()["at_1m"] == same.report()["rayiou_15"] == 100
    assert np.isnan(RayScores().report()["rayiou_17"])


def test_bad_input_names_both_sides():
    scores, good, origins = RayScores(grid=SMALL), random_grid(0), np.zeros((1, 3))
    with pytest.raises(InvalidInput, match=r"prediction must be uint8 \(8, 6, 4\), got uint8 \(8, 6, 3\)"):
        scores.add(good, good[..., :3], origins)
    with pytest.raises(InvalidInput, match="prediction holds label 18, limit 17"):
        scores.add(good, np.full_like(good, 18), origins)
    with pytest.raises(InvalidInput, match=r"\(N, 3\) in metres, got \(3,\)"):
        scores.add(good, good, np.zeros(3))
    assert scores.samples == 0 and not scores.truth.any()


def test_without_numba_one_line_says_what_to_install(monkeypatch):
    def lacking(module, extra):
        raise MissingPackage(f"{module} {extra}")

    monkeypatch.setattr(ray_iou, "need", lacking)
    with pytest.raises(MissingPackage, match="numba world"):
        RayScores()


def test_eight_origins_are_spread_over_those_near():
    places = np.stack([np.linspace(-60, 60, 41), np.zeros(41), np.full(41, 1.8)], axis=1)
    near = places[np.abs(places[:, 0]) < 39]
    chosen = near_origins(places)
    assert len(chosen) == 8 and (chosen[0] == near[0]).all() and (chosen[-1] == near[-1]).all()
    gaps = np.diff([int(np.flatnonzero((near == row).all(axis=1))[0]) for row in chosen])
    assert gaps.max() - gaps.min() <= 1
    assert np.array_equal(near_origins(places[20:23]), places[20:23])
    assert len(near_origins(places[:, [1, 0, 2]])) == 8  # y is limited as x is


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("rays") / "set"
    return root, make(root, keyframes=3, sweeps=1)


def test_origins_are_where_the_drive_has_the_lidar(dataset):
    root, tokens = dataset
    tables = NuScenesTables(root)
    found = ray_origins(root, tokens[:2])
    assert set(found) == set(tokens[:2])
    stamps_us = [stamp_ns // 1000 for _, stamp_ns in tables.samples("scene-0001")]
    for number, token in enumerate(tokens[:2]):
        for row, stamp_us in zip(found[token], stamps_us, strict=True):
            in_world = world_from_ego(stamp_us) @ (0.9, 0, 1.8, 1)
            assert np.allclose(row, (np.linalg.inv(world_from_ego(stamps_us[number])) @ in_world)[:3], atol=1e-6)
        assert np.allclose(found[token][number], (0.9, 0, 1.8), atol=1e-9)  # the own frame
    with pytest.raises(MissingInput, match="no LiDAR pose of 1 of 2 samples, first: stranger"):
        ray_origins(tables, [tokens[0], "stranger"])


def test_command_line_finds_the_poses_beside_the_truth(dataset, tmp_path):
    root, tokens = dataset
    arguments = ["eval", str(root / "gts"), str(root / "gts"), "--json", str(tmp_path / "report.json")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert {"rayiou_17", "rayiou_15", "at_1m", "at_2m", "at_4m", "per_class"} <= set(report["ray"])
    assert report["ray"]["rayiou_17"] == 100 and report["ray"]["samples"] == len(tokens)
    assert "RayIoU" in result.output and "no RayIoU" not in result.output


def test_command_line_says_why_there_is_no_ray_part(dataset, tmp_path):
    root, tokens = dataset
    (tmp_path / "gts").symlink_to(root / "gts")
    alone = tmp_path / "alone"
    labels = np.full(OCC3D_GRID.shape, FREE, np.uint8)
    labels[:, :, 2] = ROAD
    truth = Occupancy(OCC3D_GRID, OCC3D, labels, np.ones(OCC3D_GRID.shape, bool))
    save_occ3d(alone / "gts" / "scene-0001" / "token" / "labels.npz", truth)
    arguments = ["eval", str(alone / "gts"), str(alone / "gts"), "--json", str(tmp_path / "report.json")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "no RayIoU" in result.output and "--data" in result.output
    assert set(json.loads((tmp_path / "report.json").read_text())) == {
        "camera",
        "camera_and_lidar",
        "full",
        "confusion",
    }
    result = CliRunner().invoke(app, [*arguments, "--data", str(root)])
    assert result.exit_code != 0 and isinstance(result.exception, MissingInput)
    assert "no LiDAR pose of 1 of 1 samples" in str(result.exception)


def test_scores_in_memory_and_in_two_processes_are_those_of_files(dataset, tmp_path):
    root, tokens = dataset
    origins = ray_origins(root, tokens)
    rng, truths, predictions = np.random.default_rng(0), {}, {}
    for token in tokens:
        labels = random_grid(int(rng.integers(1000)), OCC3D_GRID, 0.02)
        seen, hit = rng.random((2, *OCC3D_GRID.shape)) < 0.5
        truths[token] = Occupancy(OCC3D_GRID, OCC3D, labels, seen, mask_lidar=hit)
        predictions[token] = np.where(rng.random(labels.shape) < 0.7, labels, FREE).astype(np.uint8)
        save_occ3d(tmp_path / "gts" / "scene-0001" / token / "labels.npz", truths[token])
        (tmp_path / "pred").mkdir(exist_ok=True)
        np.savez_compressed(tmp_path / "pred" / f"{token}.npz", pred=predictions[token])
    expected = score_set((truths[t], predictions[t], origins[t]) for t in tokens)
    steps: list[tuple[int, int]] = []
    found, samples = evaluate_folders(
        tmp_path / "pred",
        tmp_path / "gts",
        progress=lambda *step: steps.append(step),
        origins_ego_m=origins,
        workers=2,
    )
    assert found == expected and samples == 3 and steps[-1] == (3, 3)
    assert 0 < found["ray"]["rayiou_15"] < 100
    voxels = VoxelScores()
    for token in tokens:
        voxels.add(truths[token], predictions[token])
    assert {k: v for k, v in found.items() if k not in ("ray", "confusion")} == voxels.report()
    assert found["confusion"] == voxels.confusion()
    with pytest.raises(MissingInput, match="no ray origins for 1 predictions"):
        evaluate_folders(tmp_path / "pred", tmp_path / "gts", origins_ego_m={t: origins[t] for t in tokens[1:]})


def test_ray_origins_come_with_all_samples_or_none():
    truth = Occupancy(SMALL, OCC3D, random_grid(0), np.ones(SMALL.shape, dtype=bool))
    total, other = SetScores(grid=SMALL), SetScores(grid=SMALL)
    total.add(truth, truth.labels, np.zeros((1, 3)))
    with pytest.raises(InvalidInput, match="all samples or none"):
        total.add(truth, truth.labels)
    other.add(truth, truth.labels)
    with pytest.raises(InvalidInput, match="all samples or none"):
        total.merge(other)
    total.merge(SetScores(grid=SMALL))
    assert total.voxels.samples == total.report()["ray"]["samples"] == 1
