"""OccNeRF: its parts joined, on a room that is known exactly."""

from dataclasses import replace

import numpy as np
import pytest

from occ_core.errors import InvalidInput
from occ_core.models.config import parse
from occ_core.models.occnerf.config import OccNerfConfig

torch = pytest.importorskip("torch")

from room_fixtures import FLOOR, ROOM_GRID, WALL, room  # noqa: E402
from tiny_models import OCCNERF as SMALL  # noqa: E402

from occ_core.losses.photometric import as_float, photometric_loss  # noqa: E402
from occ_core.models.occnerf.model import OccNerf, _at_rays  # noqa: E402
from occ_core.models.volume_rendering import sample_volume  # noqa: E402
from occ_core.network_input.rig_images import Targets  # noqa: E402

torch.set_num_threads(1)  # small tensors: more threads only wait for each other


def network(seed=0, **changes) -> OccNerf:
    torch.manual_seed(seed)
    return OccNerf(parse(OccNerfConfig, {**SMALL, **changes}))


def test_room_is_consistent():
    """The neighbours warped by the exact depth are the image: what photometric training asks for has this answer."""
    rig_images, targets = room()
    depth_m = targets.depth_m[0].clamp(max=1e3)
    flat = (rig_images.intrinsics[0], targets.neighbour_from_cam[0], targets.neighbour_present[0])
    at = [
        photometric_loss(depth_m * scale, as_float(rig_images.images[0]), as_float(targets.neighbours[0]), *flat)
        for scale in (1.0, 0.8, 1.25)
    ]
    assert 2 * at[0] < min(at[1:])


@pytest.mark.parametrize("ratio", [2 / 3, 1.0])
@pytest.mark.parametrize("f", [1, 2])
def test_logits_of_the_grid_are_the_volume_at_its_cells(f, ratio):
    model = network(contraction_ratio=ratio, cells_per_feature=f)
    volume = torch.randn(1, 18, *model.config.volume_shape)
    expected = sample_volume(volume[0], model.contraction.contract(model.centers_m)).T
    torch.testing.assert_close(model.grid_logits(volume)[0].flatten(1), expected, rtol=1e-3, atol=1e-3)


def answer_of(volume, rig_images):
    model = network(cells_per_feature=1).eval()
    model.volume = lambda _: volume
    return model, model.answer(rig_images)


def test_answer_follows_from_the_logits():
    rig_images, _ = room()
    rig_images.present[0, 2] = False  # the camera that looks back
    volume = torch.randn(1, 18, 60, 60, 12, generator=torch.Generator().manual_seed(1))
    model, answer = answer_of(volume, rig_images)
    inner = volume[0, :, 10:50, 10:50, 2:10].numpy()
    observed = answer.observed[0].numpy().astype(bool)
    assert not observed[:18, 20].any() and observed[30:, 20].any() and observed.dtype == bool
    expected = np.where(observed, inner.argmax(0), 17)
    assert np.array_equal(answer.labels[0].numpy(), expected)
    p_free = 1 / (1 + np.exp(-inner[17]))
    sure = np.where(expected == 17, p_free, 1 - p_free) * observed
    assert np.abs(answer.confidence[0].numpy() / 255 - sure).max() <= 1 / 255


def test_rendered_depth_of_a_hand_made_room():
    """A volume that is solid where the room's walls are is seen at the depths that ray casting gives."""
    rig_images, targets = room()
    model = network(cells_per_feature=1).eval()
    centers = model.points_ego_m.reshape(60, 60, 12, 3)
    x, y, z = centers.unbind(-1)
    beyond = (x < -11) | (x > 13) | (y < -9) | (y > 9)
    solid = (beyond & (z < 5)) | (z < 0)
    volume = torch.full((1, 18, 60, 60, 12), -20.0)
    volume[0, WALL] = torch.where(solid, 20.0, -20.0)
    volume[0, 17] = -volume[0, WALL]
    model.volume = lambda _: volume
    depth_m = model.rendered_depth(rig_images, (96, 64))
    near = targets.depth_m < 15
    assert depth_m.shape == (1, 4, 64, 96)
    assert (depth_m - targets.depth_m)[
        near
    ].abs().median() < 0.8  # metres: a cell; solid ones begin up to half a cell late
    sky = targets.depth_m.isinf()
    assert sky.any() and (depth_m[sky] > 30).float().mean() > 0.8


def trained(steps, targets=None, **changes):
    """Losses of the first and the last step, and the model."""
    rig_images, everything = room()
    model = network(**changes).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    history = []
    for step in range(steps):
        torch.manual_seed(step)
        losses = model(rig_images, targets or everything, 1.0)
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
        history.append({name: value.item() for name, value in losses.items()})
    return history[0], history[-1], model, rig_images, everything


def test_weight_of_rendered_classes_grows_over_half_of_the_run():
    rig_images, targets = room()
    model = network().eval()
    at = {}
    for share in (0.0, 0.25, 0.5, 1.0):
        torch.manual_seed(0)  # rays are jittered
        with torch.no_grad():
            at[share] = model(rig_images, targets, share)
    assert at[0.0]["semantic"] == 0 < at[1.0]["semantic"]
    torch.testing.assert_close(at[0.25]["semantic"], at[1.0]["semantic"] / 2)
    torch.testing.assert_close(at[0.5]["semantic"], at[1.0]["semantic"])
    torch.testing.assert_close(at[0.0]["photometric"], at[1.0]["photometric"])


def test_rays_are_not_opaque_from_the_start():
    model = network().eval()
    rig_images, _ = room()
    with torch.no_grad():
        opacity = model._render(model.volume(rig_images), rig_images, (16, 8), jittered=False).opacity
    assert float(opacity.min()) > 0.05 and float(opacity.max()) < 0.8


def test_rendering_teaches_depth_and_classes():
    first, last, model, rig_images, targets = trained(30)
    assert set(first) == {"photometric", "smoothness", "entropy", "distortion", "semantic"}
    assert last["semantic"] < 0.5 * first["semantic"] and last["photometric"] < 0.9 * first["photometric"]
    depth_m = model.eval().rendered_depth(rig_images, (96, 64))
    untrained = network().eval().rendered_depth(rig_images, (96, 64))
    near = targets.depth_m < 15

    def error(d):
        return ((d - targets.depth_m).abs() / targets.depth_m)[near].median()

    assert error(depth_m) < 0.4 < 2 < error(untrained)


def test_labels_alone_teach_cells_without_rendering():
    loss = {"photometric": 0, "smoothness": 0, "entropy": 0, "distortion": 0, "semantic": 0, "labels": 1.0}
    labels_only = Targets(labels=room()[1].labels, class_weights=torch.ones(18))
    first, last, model, rig_images, targets = trained(35, labels_only, loss=loss)
    assert sum(last.values()) < 0.5 * sum(first.values())
    answer = model.eval().answer(rig_images)
    both = (targets.labels != 255) & (answer.observed == 1)
    for label in (FLOOR, WALL):
        assert (answer.labels[both & (targets.labels == label)] == label).float().mean() > 0.4


def twice(record, but=frozenset()):
    """Its tensors as of two moments that are alike."""
    return {k: torch.cat([v, v]) for k, v in vars(record).items() if v is not None and k not in but}


def test_batch_of_two_and_a_camera_less_train():
    rig_images, targets = room()
    two = replace(rig_images, **twice(rig_images))
    two.present[1, 0] = False
    weights = {"class_weights", "pixel_weights"}
    pair = replace(targets, **twice(targets, but=weights))
    model = network(loss={"labels": 1.0}, checkpoint=True, rays_per_chunk=1000)
    losses = model(two, pair, 0.0)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.eval().answer(two).labels.shape == (2, *ROOM_GRID.shape)


def test_half_precision_changes_the_losses_little():
    """Where points are and how weights add up stays in full precision; only the networks are coarse."""
    rig_images, targets = room()
    model = network(loss={"labels": 1.0}).eval()
    found = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append({name: value.item() for name, value in model(rig_images, targets, 0.0).items()})
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, rel=0.05, abs=1e-4), name


def test_an_absent_camera_is_not_compared_with():
    rig_images, targets = room()
    rig_images.present[0, 1] = False
    model = network().eval()

    def total(seed, images):
        images, maps = rig_images.images.clone(), targets.class_map.clone()
        generator = torch.Generator().manual_seed(seed)
        images[0, 1] = torch.randint(0, 255, images[0, 1].shape, generator=generator, dtype=torch.uint8)
        maps[0, 1] = torch.randint(0, 18, maps[0, 1].shape, generator=generator, dtype=torch.uint8)
        torch.manual_seed(0)
        with torch.no_grad():
            return sum(model(replace(rig_images, images=images), replace(targets, class_map=maps), 0.0).values())

    assert total(0, None) == total(1, None)


def test_rays_read_the_pixel_at_their_centre():
    maps = torch.arange(6 * 8).reshape(1, 6, 8)
    assert _at_rays(maps, (4, 3))[0].tolist() == [[9, 11, 13, 15], [25, 27, 29, 31], [41, 43, 45, 47]]
    assert torch.equal(_at_rays(maps, (8, 6)), maps)


def test_loss_says_which_targets_it_lacks():
    rig_images, targets = room()
    model = network(loss={"labels": 1.0})
    assert model.config.needs == {"neighbours", "class_map", "labels"}
    for field, term in (("neighbours", "photometric"), ("class_map", "semantic"), ("labels", "labels")):
        with pytest.raises(InvalidInput, match=f"'{term}'.*{field}"):
            model(rig_images, replace(targets, **{field: None}), 0.0)
    with pytest.raises(InvalidInput, match=r"\(40, 40, 4\).*\(40, 40, 8\)"):
        model(rig_images, replace(targets, labels=targets.labels[..., :4]), 0.0)
    with pytest.raises(InvalidInput, match="none of 4 cameras"):
        model(replace(rig_images, present=torch.zeros(1, 4, dtype=torch.bool)), targets, 0.0)


def test_published_size_has_the_published_volume():
    config = OccNerfConfig()
    assert config.volume_shape == (300, 300, 24) and config.needs == {"neighbours", "class_map"}
    assert OccNerfConfig(contraction_ratio=1.0, cells_per_feature=2).volume_shape == (100, 100, 8)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"contraction_ratio": 0.7}, "whole number"),
        ({"cells_per_feature": 3}, "cells_per_feature"),
        ({"depth_m": (5, 2)}, "near < far"),
        ({"samples": 50}, "divide the 50"),
        ({"loss": {"photometric": 0, "semantic": 0}}, "nothing teaches"),
        ({"loss": {"rgb": 1}}, "rgb"),
        ({"colour": 1}, "colour"),
    ],
)
def test_config_refuses_nonsense_by_name(record, words):
    with pytest.raises(InvalidInput, match=words):
        parse(OccNerfConfig, {**SMALL, **record})
