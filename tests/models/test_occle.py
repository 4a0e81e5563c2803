"""OccLE: its parts against exact geometry, and all of it learning a room that is known exactly."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from occ_core.errors import InvalidInput
from occ_core.models.config import parse
from occ_core.models.occle.config import OccleConfig

torch = pytest.importorskip("torch")

from room_fixtures import FLOOR, HIGH, LOW, ROOM_GRID, WALL, room  # noqa: E402
from tiny_models import OCCLE as SMALL  # noqa: E402

from occ_core.lidar_points import absent_points  # noqa: E402
from occ_core.losses.projection import projection_losses  # noqa: E402
from occ_core.models.easyocc.heads import blocks_to_cells  # noqa: E402
from occ_core.models.occle.lidar import cells_at, depth_evidence, image_depths, points_in_grid, voxelise  # noqa: E402
from occ_core.models.occle.model import Occle, joint_log_probabilities  # noqa: E402
from occ_core.models.occle.supervision import (  # noqa: E402
    disturbed,
    lidar_evidence,
    points_taught,
    voxels_taught,
)
from occ_core.network_input.projection import cell_centers_m, flat_cell  # noqa: E402
from occ_core.training.config import load_config  # noqa: E402

torch.set_num_threads(1)  # small tensors: more threads only wait for each other
REPOSITORY = Path(__file__).resolve().parents[2]
FREE = 17
ORIGIN_M = np.array([0.9, 0.1, 1.8])  # of the LiDAR


def network(seed=0, **changes) -> Occle:
    torch.manual_seed(seed)
    loss = {**SMALL["loss"], **changes.pop("loss", {})}
    return Occle(parse(OccleConfig, {**SMALL, "loss": loss, **changes}))


def sweep() -> torch.Tensor:
    """Where beams to all sides meet the room, 0.4 m within its faces, as labels have them: [1, P, 5], the last NaN."""
    azimuth, elevation = np.meshgrid(np.radians(np.arange(0, 360, 3)), np.radians(np.arange(-25, 9, 2)))
    rays = np.stack([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], -1)
    rays = rays.reshape(-1, 3)
    rays[np.abs(rays) < 1e-9] = 1e-9
    lengths = (np.where(rays > 0, HIGH, LOW) - ORIGIN_M) / rays
    axis = lengths.argmin(axis=1)
    ends = ORIGIN_M + lengths.min(axis=1, keepdims=True) * rays
    ends[np.arange(len(ends)), axis] += 0.4 * np.sign(rays[np.arange(len(ends)), axis])
    ends = ends[ends[:, 2] < HIGH[2]]  # it has no ceiling
    points = np.concatenate([ends, np.full((len(ends), 1), 0.4), np.zeros((len(ends), 1))], axis=1)
    return torch.from_numpy(np.concatenate([points, np.full((1, 5), np.nan)])).float()[None]


def sample():
    rig_images, targets = room()
    origin_m = torch.from_numpy(ORIGIN_M).float()[None]
    return replace(rig_images, lidar=sweep()), replace(targets, lidar_origin_m=origin_m)


def test_points_are_voxelised_as_by_hand():
    lidar = torch.cat([sweep(), sweep().roll(1, 1) + 0.3])
    lidar[0, 5, :3] = torch.tensor([1e6, 0, 0])
    lidar[..., 4] = torch.rand(lidar.shape[:2])
    block = (2, 2, 4)
    rows = voxelise(points_in_grid(lidar, ROOM_GRID), 2, ROOM_GRID, block).reshape(2, 20, 20, 2, 6 + 16).numpy()
    expected = np.zeros_like(rows)
    held: dict[tuple[int, ...], list[np.ndarray]] = {}
    for m in range(2):
        for row in lidar[m].numpy():
            at = (row[:3] - np.array(ROOM_GRID.origin_m, np.float32)) / np.float32(ROOM_GRID.voxel_size_m)
            if np.isfinite(at).all() and (at >= 0).all() and (at < ROOM_GRID.shape).all():
                held.setdefault((m, *(int(i) // f for i, f in zip(at, block, strict=True))), []).append((row, at))
    for (m, *low), inside in held.items():
        cell = expected[(m, *low)]
        for row, at in inside:
            local = (at - np.array(low) * block) / block  # 0..1
            cell[:3] += (2 * local - 1) / len(inside)
            cell[3:5] += row[3:] / len(inside)
            i, j, k = (int(a) % f for a, f in zip(at, block, strict=True))
            cell[6 + (i * 2 + j) * 4 + k] += 1
        cell[5] = math.log1p(len(inside))
        cell[6:] = np.log1p(cell[6:])
    assert len(held) > 200
    np.testing.assert_allclose(rows, expected, atol=2e-4)


def test_depth_evidence_tells_before_and_behind_surfaces():
    """Against the room's exact depth at the pixel of each cell's centre."""
    rig_images, targets = sample()
    depths = image_depths(rig_images, (12, 8))
    centers_m = cell_centers_m(ROOM_GRID)
    evidence = depth_evidence(centers_m, rig_images, depths)[0]
    labels = targets.labels[0].flatten()
    known = evidence[:, 0] == 1
    inside = (
        known & (labels == FREE) & (centers_m[:, 2] > 1) & ((centers_m[:, :2] - torch.tensor([1.0, 0])).norm(dim=1) < 5)
    )
    outside = known & ((centers_m[:, 0] > 14) | (centers_m[:, 1].abs() > 10.5))
    surface = known & (labels == WALL) & (centers_m[:, 2] > 0.5)
    assert min(inside.sum(), outside.sum(), surface.sum()) > 50
    assert (evidence[inside][:, 1] < -0.9).float().mean() > 0.9  # well before the nearest point
    assert (evidence[outside][:, 3] > 0.7).float().mean() > 0.9  # behind the farthest
    before, behind = evidence[surface][:, 1], evidence[surface][:, 3]
    assert ((before > -0.95) & (behind < 0.95)).float().mean() > 0.8
    assert not evidence[~known].any()


def test_points_that_a_camera_cannot_see_are_left_out():
    rig_images, _ = sample()
    far = torch.tensor([[[30.0, 0.3, 1.6, 0, 0], [8.0, 0.2, 1.55, 0, 0], [8.3, 0.2, 1.55, 0, 0]]])  # in one direction
    depths = image_depths(replace(rig_images, lidar=far), (12, 8))
    assert sorted(depths.point.tolist()) == [1, 2]
    assert depths.nearest_m.isfinite().sum() == 1
    assert 7.4 < float(depths.nearest_m.min()) < float(depths.farthest_m.max()) < 8


def test_lidar_evidence_agrees_with_the_room():
    rig_images, targets = sample()
    torch.manual_seed(0)
    evidence = lidar_evidence(rig_images.lidar, targets.lidar_origin_m, ROOM_GRID, 2000)
    labels = targets.labels[0].flatten()[evidence.cell]
    assert evidence.occupied.sum() > 500 and (~evidence.occupied).sum() > 2000
    assert (labels[~evidence.occupied] == FREE).float().mean() > 0.99
    assert (labels[evidence.occupied] != FREE).float().mean() > 0.95  # a point may lie on a face between two cells


def test_evidence_is_of_the_newest_sweep():
    rig_images, targets = sample()
    old = rig_images.lidar + torch.tensor([0, 0, 0, 0, 0.5])
    old[..., :2] *= 0.3
    both = torch.cat([rig_images.lidar, old], dim=1)
    torch.manual_seed(0)
    evidence = lidar_evidence(both, targets.lidar_origin_m, ROOM_GRID, 10_000)
    centers_m = cell_centers_m(ROOM_GRID)[evidence.cell[evidence.occupied]]
    assert (targets.labels[0].flatten()[evidence.cell[evidence.occupied]] != FREE).float().mean() > 0.95
    assert centers_m[:, :2].norm(dim=1).max() > 12


def test_points_teach_the_class_of_their_pixel_to_their_cell_and_around_it():
    rig_images, targets = sample()
    depths = image_depths(rig_images, (12, 8))
    taught = points_taught(rig_images, depths, targets.class_map, ROOM_GRID, FREE)
    own = cells_at(rig_images.lidar[0, :, :3], ROOM_GRID)[0]
    own = set(flat_cell(own, torch.zeros(len(own), dtype=torch.int64), ROOM_GRID).tolist())
    exact = torch.tensor([cell in own for cell in taught.cell.tolist()])
    points = len(taught.cell) - int((~exact).sum())
    assert points > 300 and points / 3 < (~exact).sum() < points
    height_m = cell_centers_m(ROOM_GRID)[taught.cell][:, 2]
    assert (taught.classes[exact & (height_m > 0.6)] == WALL).float().mean() > 0.97
    assert (taught.classes[exact & (height_m < 0)] == FLOOR).float().mean() > 0.8  # pixels at a wall's foot show it
    unknown = torch.full_like(targets.class_map, 255)
    assert not len(points_taught(rig_images, depths, unknown, ROOM_GRID, FREE).classes)


def test_pseudo_labels_teach_the_classes_of_what_they_call_occupied():
    rig_images, targets = sample()
    nobody = replace(targets, labels=torch.full_like(targets.labels, 255))
    made = replace(nobody, pseudo_labels=targets.labels)
    taught = voxels_taught(targets.labels, FREE)
    assert set(taught.classes.unique().tolist()) == {FLOOR, WALL}
    assert torch.equal(targets.labels.flatten()[taught.cell].long(), taught.classes)
    model = network(loss={"distil_answer": 1.0})
    losses = model(rig_images, made, 0.5)
    hidden = model.hidden(rig_images)
    every = blocks_to_cells(
        model.classes(hidden.fused_semantic, hidden.lifted_log_probs).flatten(4), model.config.block, 17
    ).flatten(0, 3)
    weights = torch.cat([targets.pixel_weights[:FREE], targets.pixel_weights[FREE + 1 :]])
    counts = targets.pixel_weights[taught.classes] > 0
    plain = torch.nn.functional.cross_entropy(every[taught.cell[counts]], taught.classes[counts], weight=weights)
    assert losses["distil_answer"].item() == pytest.approx(plain.item(), rel=1e-4)
    assert "distil_answer" not in model(rig_images, nobody, 0.5)  # the run has none
    assert model(rig_images, replace(made, pseudo_labels=nobody.labels), 0.5)["distil_answer"] == 0


def test_projection_is_the_formula(monkeypatch):
    """A row of cells, walked by one ray, by plain arithmetic."""
    from occ_core.losses import projection

    p, q = [0.1, 0.6, 0.0, 0.9], [0.7, 0.2, 0.5, 0.05]
    occupied = torch.logit(torch.tensor(p).clamp(1e-6)).reshape(1, 4, 1, 1).requires_grad_()
    rows = torch.zeros(1, 4, 1, 1, 2)
    rows[0, :, 0, 0, 1] = torch.logit(torch.tensor(q))
    rows.requires_grad_()
    cell, met = torch.tensor([[0, 1, 1, 2, 3], [0, 1, 1, 2, 3]]), torch.tensor([[True, True, False, True, True]] * 2)
    walks = projection.RayCells(cell, met, torch.tensor([2, 0]))  # the free class is 0
    monkeypatch.setattr(projection, "cells_along_rays", lambda *_: walks)
    weights = torch.tensor([9.0, 1.0, 2.0])
    losses = projection_losses(occupied, lambda cell: rows.flatten(0, 3)[cell], None, None, ROOM_GRID, 0, 1, weights)
    left, met_share, hit = 1.0, 0.0, 0.0
    for p_i, q_i in zip(p, q, strict=True):
        met_share, hit, left = met_share + left * p_i, hit + left * p_i * q_i, left * (1 - p_i)
    assert losses["projection"].item() == pytest.approx(-math.log(hit / met_share), rel=1e-3)
    assert losses["projection_sky"].item() == pytest.approx(-sum(math.log(1 - p_i) for p_i in p) / 4, rel=1e-3)
    assert torch.autograd.grad(losses["projection"], occupied, retain_graph=True, allow_unused=True)[0] is None
    assert (torch.autograd.grad(losses["projection_sky"], occupied)[0] >= 0).all()


def test_projection_is_least_where_the_answer_is_right():
    """The room's own voxels please its class maps best; a wall called floor, or a room that is elsewhere, less."""
    rig_images, targets = room()
    labels = targets.labels[0]

    def loss(cells):
        occupied = torch.where((cells != FREE) & (cells != 255), 6.0, -6.0)
        named = torch.nn.functional.one_hot(cells.long().clamp(max=16), 17).float() * 8
        torch.manual_seed(0)
        rows, ones = (lambda cell: named.flatten(0, 2)[cell]), torch.ones(18)
        terms = projection_losses(occupied[None], rows, targets.class_map, rig_images, ROOM_GRID, FREE, 2000, ones)
        return {name: float(term) for name, term in terms.items()}

    right, swapped = loss(labels), loss(torch.where(labels == WALL, FLOOR, labels))
    assert swapped["projection"] > 3 * right["projection"]
    for cells, axis in ((-1, 2), (1, 2), (-5, 0), (5, 0), (-5, 1), (5, 1)):
        assert loss(labels.roll(cells, axis))["projection"] > 1.5 * right["projection"]
    roof = labels.clone()
    roof[:, :, 7] = WALL
    assert loss(roof)["projection_sky"] > 3 * right["projection_sky"]


def test_joint_log_probabilities_are_probabilities():
    torch.manual_seed(0)
    occupied, classes = torch.randn(5), torch.randn(5, 3)
    rows = joint_log_probabilities(occupied, classes, 1)
    torch.testing.assert_close(rows.logsumexp(1), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows[:, 1].exp(), 1 - torch.sigmoid(occupied))
    torch.testing.assert_close(rows[:, [0, 2, 3]].argmax(1), classes.argmax(1))


def trained(steps=24, keep_labels=True, **changes):
    """Losses of the first and the last step, the network and the sample; the average is its copy."""
    rig_images, targets = sample()
    if not keep_labels:
        targets = replace(targets, labels=torch.full_like(targets.labels, 255))
    model = network(**changes).train()
    average = copy.deepcopy(model).eval()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    history = []
    for step in range(steps):
        torch.manual_seed(step)
        losses = model(rig_images, targets, step / steps, average)
        optimiser.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimiser.step()
        with torch.no_grad():
            for mine, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                mine.copy_(torch.lerp(mine.float(), new.float(), 0.3))
        history.append({name: value.item() for name, value in losses.items()})
    return history, model.eval(), rig_images


def test_classes_of_some_cells_are_those_of_all_cells():
    model = network()
    channels, lattice, block = model.config.volume_channels, model.config.lattice, model.config.block
    torch.manual_seed(0)
    volume, lifted_log_probs = torch.randn(2, channels, *lattice), torch.randn(2, *lattice, 17)
    every = blocks_to_cells(model.classes(volume, lifted_log_probs).flatten(4), block, 17)  # [2, X, Y, Z, 17]
    index = torch.randint(2 * ROOM_GRID.cells, (500,))
    torch.testing.assert_close(model.classes_of(volume, lifted_log_probs, index), every.flatten(0, 3)[index])
    assert model.classes_of(volume, lifted_log_probs, index[:0]).shape == (0, 17)


def test_every_part_learns_the_room():
    history, model, rig_images = trained()
    first, last = history[0], history[-1]
    terms = {"cross_entropy", "lovasz", "geometry_labels", "geometry_lidar", "geometry_consistency", "distil_2d",
             "distil_3d", "projection", "projection_sky"}  # fmt: skip
    assert set(last) == terms
    elsewhere = terms & {"geometry_lidar", "geometry_consistency", "projection", "projection_sky"}
    assert all(last[name] == 0 for name in elsewhere)
    for name in terms - elsewhere:
        assert last[name] < 0.7 * first[name], f"{name}: {first[name]} to {last[name]}"
    answer = model.answer(rig_images)
    labels = room()[1].labels
    seen = (answer.observed == 1) & (labels != 255)
    assert (answer.labels[seen] == labels[seen]).float().mean() > 0.8
    assert ((answer.labels != FREE) & (labels != FREE) & seen).sum() > 0.5 * ((labels != FREE) & seen).sum()


def test_without_labels_lidar_and_class_maps_teach_it():
    history, model, rig_images = trained(steps=60, keep_labels=False)
    for values in history:
        assert all(math.isfinite(value) for value in values.values())
    first, last = history[0], history[-1]
    assert first["cross_entropy"] == first["geometry_labels"] == 0
    assert max(values["geometry_consistency"] for values in history) > 0
    for name in ("geometry_lidar", "distil_2d", "distil_3d", "projection"):
        assert last[name] < 0.7 * first[name], f"{name}: {first[name]} to {last[name]}"
    answer, labels = model.answer(rig_images), room()[1].labels
    seen = (answer.observed == 1) & (labels != 255)
    assert (answer.labels[seen & (labels == FREE)] == FREE).float().mean() > 0.8
    hit = (
        voxelise(points_in_grid(rig_images.lidar, ROOM_GRID), 1, ROOM_GRID, (1, 1, 1))[..., 5].reshape(labels.shape) > 0
    )
    assert (hit & seen & (labels == WALL)).sum() > 200
    assert (answer.labels[hit & seen & (labels == WALL)] == WALL).float().mean() > 0.7


@pytest.mark.parametrize("changes", [{"lidar": None}, {"fusion": "conv"}, {"fusion": "none"}])
def test_variants_learn_and_answer(changes):
    history, model, rig_images = trained(steps=3, **changes)
    assert ({"distil_3d", "geometry_lidar"} & set(history[0]) == set()) is ("lidar" in changes)
    answer = model.answer(replace(rig_images, lidar=None) if "lidar" in changes else rig_images)
    assert answer.labels.shape == answer.confidence.shape == answer.observed.shape == (1, *ROOM_GRID.shape)
    assert all(part.dtype == torch.uint8 for part in answer)
    assert (answer.labels[answer.observed == 0] == FREE).all() and not answer.confidence[answer.observed == 0].any()


def test_terms_of_weight_zero_need_nothing():
    terms = "geometry_lidar", "geometry_consistency", "distil_2d", "distil_3d", "distil_answer", "projection"
    off = dict.fromkeys(terms, 0.0)
    model = network(loss=off)
    assert model.config.needs == {"labels"} and not model.config.mean_teacher
    rig_images, targets = sample()
    only = replace(targets, class_map=None, lidar_origin_m=None, pixel_weights=None)
    assert set(model(rig_images, only, 0.0)) == {"cross_entropy", "lovasz", "geometry_labels"}


def test_classes_that_never_occur_are_no_reason_to_diverge():
    rig_images, targets = sample()
    nothing = replace(targets, pixel_weights=torch.zeros(18), labels=torch.full_like(targets.labels, 255))
    losses = network()(rig_images, nothing, 0.5)
    assert all(bool(term.isfinite()) for term in losses.values()) and losses["distil_3d"] == 0


def test_a_cloud_is_asked_for_if_only_that_of_no_points():
    rig_images, _ = room()
    model = network(lidar={"dropout": 0.2}).eval()
    with pytest.raises(InvalidInput, match="'occle' takes LiDAR, got no cloud"):
        model.answer(rig_images)
    nothing, padded = torch.from_numpy(absent_points())[None], torch.full((1, 3, 5), torch.nan)
    answers = [model.answer(replace(rig_images, lidar=cloud)).confidence for cloud in (nothing, padded, sweep())]
    assert torch.equal(answers[0], answers[1]) and not torch.equal(answers[0], answers[2])


def test_only_samples_that_the_averaged_network_teaches_are_disturbed():
    rig_images, _ = sample()
    three = _stacked([rig_images] * 3)
    torch.manual_seed(0)
    changed = disturbed(three, torch.tensor([False, True, False]))
    for kept in (0, 2):
        assert torch.equal(changed.images[kept], three.images[kept])
        torch.testing.assert_close(changed.lidar[kept], three.lidar[kept], rtol=0, atol=0, equal_nan=True)
    gain = changed.images[1].float().mean(dim=(1, 2, 3)) / three.images[1].float().mean(dim=(1, 2, 3))
    assert (gain != 1).sum() >= 3 and gain.min() > 0.75 and gain.max() < 1.3
    points = [cloud[1].isfinite().all(1) for cloud in (changed.lidar, three.lidar)]
    assert 0.65 < points[0].sum() / points[1].sum() < 0.85


def test_a_sample_without_points_is_no_evidence_and_spoils_no_loss():
    rig_images, targets = sample()
    nothing = torch.full_like(rig_images.lidar, torch.nan)
    two = _stacked([rig_images, replace(rig_images, lidar=nothing)])
    taught = _stacked([targets, replace(targets, lidar_origin_m=torch.full((1, 3), torch.nan))])
    evidence = lidar_evidence(two.lidar, taught.lidar_origin_m, ROOM_GRID, 2000)
    assert len(evidence.cell) > 2500 and evidence.cell.max() < ROOM_GRID.cells  # of the first sample alone
    taught = replace(taught, labels=torch.full_like(taught.labels, 255))
    model = network(lidar={"dropout": 0.2})
    losses = model(two, taught, 0.5, copy.deepcopy(model))
    assert all(bool(term.isfinite()) for term in losses.values()) and losses["geometry_lidar"] > 0
    sum(losses.values()).backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def _stacked(parts):
    """One batch of batches; weights of classes are those of the run."""
    tensors = {name: [getattr(part, name) for part in parts] for name in vars(parts[0])}
    whole = {name for name, values in tensors.items() if values[0] is None or name.endswith("_weights")}
    return type(parts[0])(**{name: v[0] if name in whole else torch.cat(v) for name, v in tensors.items()})


def test_shipped_configs_are_what_they_say():
    small, kitti = (load_config(REPOSITORY / "config" / f"occle_{size}.yaml") for size in ("small", "kitti"))
    assert small.model.grid_shape == (200, 200, 16) and kitti.model.grid_shape == (256, 256, 32)
    for config in (small, kitti):
        assert isinstance(config.model, OccleConfig) and config.unlabelled and config.teacher and config.model.lidar
        assert (
            config.model.needs == {"labels", "pseudo_labels", "class_map", "lidar_origin_m"}
            and config.model.mean_teacher
        )
    assert kitti.validation_scenes == ("08",)


def test_config_refuses_what_cannot_be():
    with pytest.raises(InvalidInput, match="nothing teaches classes"):
        network(loss={"labels": 0.0, "projection": 0.0, "distil_3d": 0.0})
    by_points = {"labels": 0.0, "projection": 0.0, "distil_3d": 0.1}
    assert network(loss=by_points).config.needs >= {"class_map"}
    with pytest.raises(InvalidInput, match="nothing teaches classes"):
        network(loss=by_points, lidar=None)
    with pytest.raises(InvalidInput, match="fusion_heads"):
        network(fusion_heads=3)
    with pytest.raises(InvalidInput, match="multiples of 4"):
        network(grid_shape=(41, 40, 8))


def test_a_checkpoint_answers_alike(tmp_path):
    from occ_core.inference.backends.torch_backend import load_model
    from occ_core.models.checkpoint import describe, save_checkpoint

    rig_images, _ = sample()
    model = network(seed=3).eval()
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model.state_dict(), describe(model.config, {"data": {"cameras": 4}}))
    again = load_model(path)
    for mine, theirs in zip(model.answer(rig_images), again.answer(rig_images), strict=True):
        assert torch.equal(mine, theirs)


def test_activations_computed_twice_give_the_same_gradients():
    rig_images, targets = sample()
    gradients = []
    for checkpoint in (False, True):
        model = network(checkpoint=checkpoint).train()
        torch.manual_seed(1)
        sum(model(rig_images, targets, 0.0).values()).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
