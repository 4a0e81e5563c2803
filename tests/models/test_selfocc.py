"""SelfOcc: its cells and depth against analytic fields, its training on one small sample."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from model_fixtures import camera

from occ_core.errors import InvalidInput
from occ_core.models.config import parse
from occ_core.models.selfocc.config import SelfOccConfig

torch = pytest.importorskip("torch")

from selfocc_fixtures import config, sample  # noqa: E402

from occ_core.models.selfocc.head import Volume  # noqa: E402
from occ_core.models.selfocc.model import SelfOcc, hat_functions  # noqa: E402
from occ_core.models.selfocc.rendering import RenderedRays  # noqa: E402
from occ_core.models.selfocc.supervision import TargetView, neighbour_loss, ray_class_loss  # noqa: E402
from occ_core.network_input.rig_images import Targets  # noqa: E402

torch.set_num_threads(1)

# from the field to cells and depth


def vertex_points_m(c):
    axes = [torch.linspace(o, u, n) for o, u, n in zip(c.grid.origin_m, c.grid.upper_m, c.vertices, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def model_with(c, sdf_m, class_logits=None, v=0.6):
    """A model whose network answers this field."""
    model = SelfOcc(c).eval()
    if class_logits is None:
        class_logits = torch.zeros(*sdf_m.shape, 17)
    volume = Volume(sdf_m[None], torch.full((1, *sdf_m.shape, 3), 0.5), class_logits[None])
    model.volume = lambda rig_images: volume
    with torch.no_grad():
        model.v.fill_(v)
    return model


def test_interpolation_to_cells_is_exact_for_linear_fields():
    c = config()
    a = torch.tensor([0.3, -0.7, 1.1])
    values = (vertex_points_m(c) @ a)[None, ..., None]
    expected = torch.from_numpy(c.grid.centers_m()) @ a
    torch.testing.assert_close(SelfOcc(c)._at_cells(values)[0, ..., 0], expected, rtol=1e-4, atol=1e-4)
    hat = hat_functions(7, 4, values)
    torch.testing.assert_close(hat.sum(1), torch.ones(7))


def test_rendered_depth_of_a_wall_and_a_sphere_is_analytic_and_better_with_larger_s():
    c = config(samples=200, vertices=(81, 81, 33))
    rig_images, _ = sample(cameras=1)
    wall = 5.0 - vertex_points_m(c)[..., 0]  # the camera looks along x from 0.5
    depth_m = model_with(c, wall).rendered_depth(rig_images, (16, 8))
    assert depth_m.shape == (1, 1, 8, 16)
    torch.testing.assert_close(depth_m[0, 0, 3:5], torch.full((2, 16), 4.5), atol=0.03, rtol=0)
    centre, radius = torch.tensor([5.0, 0.1, 1.5]), 1.5
    sphere = (vertex_points_m(c) - centre).norm(dim=-1) - radius
    to_centre = torch.tensor([0.0, 0.0, 4.5])  # camera frame
    u, v = torch.meshgrid(torch.arange(64) - 31.5, torch.arange(32) - 15.5, indexing="xy")
    rays = torch.stack([u / 40, v / 40, torch.ones_like(u)], dim=-1)
    closest = (rays @ to_centre) / rays.square().sum(-1)  # ray parameter = depth
    aside = (closest[..., None] * rays - to_centre).norm(dim=-1)
    expected = closest - (radius**2 - aside**2).clamp(min=0).sqrt() / rays.norm(dim=-1)
    hit = aside < 0.9 * radius
    assert hit.sum() > 300
    errors = []
    for v in (0.1, 0.3, 0.6):
        seen = model_with(c, sphere, v=v).rendered_depth(rig_images, (64, 32))[0, 0]
        errors.append(float((seen - expected)[hit].abs().mean()))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.05


def test_depth_ends_where_the_grid_ends_and_absent_cameras_have_none():
    c = config(samples=64)
    rig_images, _ = sample(cameras=2)
    rig_images = dataclasses.replace(rig_images, present=torch.tensor([[True, False]]))
    depth_m = model_with(c, torch.full(c.vertices, 5.0)).rendered_depth(rig_images, (9, 5))
    assert depth_m[0, 1].isnan().all()
    assert float(depth_m[0, 0, 2, 4]) == pytest.approx(7.5, abs=0.15)  # from x = 0.5 to the border at 8


def test_answer_is_the_sign_of_the_field_the_best_class_and_what_is_in_view():
    c = config()
    points = vertex_points_m(c)
    sdf_m = points[..., 2] - 0.3
    logits = torch.zeros(*c.vertices, 17)
    logits[..., 11] = 1.0
    logits[..., 13] = points[..., 1] + 1  # more than class 11 to the left of the car
    rig_images, _ = sample(cameras=2)
    labels, confidence, observed = model_with(c, sdf_m, logits, v=0.2).answer(rig_images)
    centers = torch.from_numpy(c.grid.centers_m())
    in_view = np.zeros(c.grid_shape, dtype=bool)
    for i in range(2):
        cam = camera(str(i), 70.0 * i, (64, 32), 40.0)
        cam_from_ego = np.linalg.inv(cam.ego_from_cam)
        points_cam_m = c.grid.centers_m().reshape(-1, 3) @ cam_from_ego[:3, :3].T + cam_from_ego[:3, 3]
        in_view |= cam.project(points_cam_m)[1].reshape(c.grid_shape)
    assert np.array_equal(observed[0].numpy(), in_view) and 0 < in_view.mean() < 1
    occupied = (centers[..., 2] - 0.3 <= 0).numpy() & in_view
    expected = np.where(occupied, np.where(centers[..., 1] > 0, 13, 11), 17)
    assert np.array_equal(labels[0].numpy(), expected)
    p = 1 / (1 + np.exp(-math.exp(2.0) * np.abs(centers[..., 2].numpy() - 0.3)))
    assert np.abs(confidence[0].numpy() / 255 - p * in_view).max() <= 1 / 255


def test_without_semantics_all_that_is_occupied_is_the_first_class():
    loss = {"semantic": 0.0}
    c = config(semantics=False, loss=loss)
    model = model_with(c, vertex_points_m(c)[..., 2], torch.zeros(*c.vertices, 0))
    labels = model.answer(sample()[0]).labels
    assert set(labels.unique().tolist()) == {0, 17}


def test_soft_max_of_the_label_logits_is_the_probability_of_the_field():
    c = config()
    sdf_m = vertex_points_m(c)[..., 2] - 0.4
    class_logits = torch.zeros(*c.vertices, 17)
    class_logits[..., 4] = 2.0
    model = model_with(c, sdf_m, class_logits, v=0.05)
    p = model.label_logits(model.volume(None)).softmax(dim=1)[0]
    distance = torch.from_numpy(c.grid.centers_m())[..., 2] - 0.4
    occupied = 1 / (1 + (math.exp(0.5) * distance).exp())
    torch.testing.assert_close(p[17], 1 - occupied, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(p[4], occupied * math.e**2 / (math.e**2 + 16), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(p.sum(0), torch.ones(c.grid_shape))


# what rays are compared with


def rays_ending_at(depth_m, samples=40, far=8.0, sharp=True):
    """Rays whose weight is all on the sample next to a depth (or spread over all), with depths of samples."""
    at = ((torch.arange(samples) + 0.5) / samples * far).expand(len(depth_m), -1)
    weights = torch.nn.functional.one_hot((at - depth_m[:, None]).abs().argmin(1), samples).float()
    if not sharp:
        weights = torch.full_like(weights, 1 / samples)
    depth = (weights * at).sum(1)
    return RenderedRays(depth, at, weights, torch.zeros_like(depth), torch.zeros(len(depth), 3), torch.zeros(1, 0))


def stereo_view(true_m=4.0, size=(48, 24)):
    """A textured wall straight ahead and the same wall from a place to the right: a shift by focal * base / depth."""
    w, h = size
    u, v = torch.meshgrid(torch.arange(w).float(), torch.arange(h).float(), indexing="xy")

    def picture(shift_px):
        waves = ((0.5, 0.3), (0.31, 0.8), (0.9, 0.1))  # of each colour
        return torch.stack([0.5 + 0.4 * torch.sin((u + shift_px) * k + v * m) for k, m in waves])

    focal, base_m = 40.0, 0.4
    intrinsics = torch.tensor([[focal, 0, (w - 1) / 2], [0, focal, (h - 1) / 2], [0, 0, 1]])
    pose = torch.eye(4)
    pose[0, 3] = -base_m  # the neighbour stands to the right: points move to the left in its frame
    pixels = torch.stack([u, v], dim=-1)
    view = TargetView(pixels, picture(0.0)[None], intrinsics[None])
    return view, picture(focal * base_m / true_m)[None], pose[None]


@pytest.mark.parametrize("mvs", [True, False])
def test_photometric_loss_is_least_at_the_true_depth(mvs):
    view, neighbour, pose = stereo_view(true_m=4.1)
    losses = {}
    for depth_m in (1.7, 3.3, 4.1, 5.1, 7.3):
        rays = rays_ending_at(torch.full((48 * 24,), depth_m))
        losses[depth_m] = float(neighbour_loss(rays, view, neighbour, pose, mvs))
    assert min(losses, key=losses.get) == 4.1 and losses[4.1] < 0.02


def test_with_one_hot_weights_both_photometric_losses_are_the_same():
    view, neighbour, pose = stereo_view()
    rays = rays_ending_at(torch.rand(48 * 24, generator=torch.Generator().manual_seed(0)) * 6 + 1)
    with_mvs = neighbour_loss(rays, view, neighbour, pose, True)
    torch.testing.assert_close(with_mvs, neighbour_loss(rays, view, neighbour, pose, False))


def test_class_loss_by_hand():
    classes = torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4], [1.0, 0, 0]])
    rays = RenderedRays(*[torch.zeros(4, 1)] * 3, torch.tensor([0.1, 0.6, 0.25, 0.9]), torch.zeros(4, 3), classes)
    weights = torch.tensor([1.0, 2.0, 0.5, 4.0])  # taxonomy of four with free id 1: columns are ids 0, 2, 3
    loss = ray_class_loss(rays, torch.tensor([2, 3, 1, 255], dtype=torch.uint8), weights, free_id=1)
    expected = -(0.5 * math.log(0.5) + 4 * math.log(0.8) + 2 * math.log(0.25)) / 6.5
    assert float(loss) == pytest.approx(expected, rel=1e-5)


# the whole model


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder": "bev", "checkpoint": True},
        {"encoder": "tpv", "mvs": False, "loss": {"labels": 1.0, "smoothness": 0.1}},
    ],
)
def test_a_few_steps_lower_the_loss_on_one_sample(changes):
    torch.manual_seed(0)
    c = config(**changes)
    model = SelfOcc(c).train()
    rig_images, targets = sample()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    totals = []
    for step in range(12):
        losses = model(rig_images, targets, step / 12)
        total = torch.stack(list(losses.values())).sum()
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        totals.append(float(total.detach()))
        assert np.isfinite(totals[-1])
    assert all(p.grad is not None for p in model.parameters())
    assert np.mean(totals[-3:]) < 0.95 * np.mean(totals[:3])


def test_recomputing_instead_of_keeping_changes_no_gradient():
    gradients = []
    for again in (False, True):
        torch.manual_seed(0)
        model = SelfOcc(config(checkpoint=again)).eval()  # batch norm and jitter aside
        rig_images, targets = sample(batch=2)
        torch.stack(list(model(rig_images, targets, 0.5).values())).sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_reduced_precision_changes_little_and_no_distance_is_rounded():
    torch.manual_seed(0)
    model = SelfOcc(config()).eval()
    rig_images, targets = sample()
    with torch.no_grad():
        exact = model(rig_images, targets, 0.5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model.volume(rig_images).sdf_m.dtype == torch.float32
            rounded = model(rig_images, targets, 0.5)
            assert model.rendered_depth(rig_images, (6, 4)).dtype == torch.float32
            model.answer(rig_images)
    for name, loss in exact.items():
        assert float(rounded[name]) == pytest.approx(float(loss), rel=0.05, abs=1e-4), name


def test_absent_cameras_are_not_looked_at():
    torch.manual_seed(0)
    model = SelfOcc(config()).eval()
    rig_images, targets = sample(cameras=2)
    one = dataclasses.replace(rig_images, present=torch.tensor([[True, False]]))
    other_images = rig_images.images.clone()
    other_images[:, 1] = 255 - other_images[:, 1]
    other = dataclasses.replace(one, images=other_images)
    with torch.no_grad():
        a, b = model(one, targets, 0.5), model(other, targets, 0.5)
        assert all(torch.equal(a[name], b[name]) for name in a)
        assert torch.equal(model.answer(one).labels, model.answer(other).labels)
    none = dataclasses.replace(rig_images, present=torch.tensor([[False, False]]))
    losses = model(none, targets, 0.5)
    assert losses["photometric"].item() == 0 and not model.answer(none).observed.any()
    torch.stack(list(losses.values())).sum().backward()


def test_missing_targets_and_foreign_grids_are_named():
    rig_images, targets = sample()
    model = SelfOcc(config(loss={"labels": 1.0}))
    assert model.config.needs == {"labels", "class_map", "neighbours"}
    for field, term in (
        ("labels", "labels"),
        ("class_weights", "labels"),
        ("class_map", "semantic"),
        ("pixel_weights", "semantic"),
        ("neighbours", "photometric"),
    ):
        with pytest.raises(InvalidInput, match=f"'{term}' .* no {field}"):
            model(rig_images, dataclasses.replace(targets, **{field: None}), 0.0)
    with pytest.raises(InvalidInput, match=r"\(10, 20, 8\).*\(20, 20, 8\)"):
        model(rig_images, dataclasses.replace(targets, labels=targets.labels[:, :10]), 0.0)


def test_needs_follow_the_weights():
    alone = {"photometric": 0, "rgb": 0, "semantic": 0, "labels": 1.0}
    assert config(loss=alone).needs == {"labels"} and not config(loss=alone).loss.renders
    torch.manual_seed(0)
    rig_images, targets = sample()
    labels = Targets(labels=targets.labels, class_weights=targets.class_weights)
    losses = SelfOcc(config(loss=alone))(rig_images, labels, 0.0)
    assert set(losses) == {"eikonal", "hessian", "sparsity", "cross_entropy", "lovasz"}


def test_the_files_of_sizes_are_configs_and_the_published_one_is_the_default():
    folder = Path(__file__).resolve().parents[2] / "config"
    published, small = (
        parse(SelfOccConfig, yaml.safe_load((folder / name).read_text())["model"])
        for name in ("selfocc.yaml", "selfocc_small.yaml")
    )
    assert published == SelfOccConfig()
    assert small.grid == published.grid


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"heads": 3}, "heads must divide the 16"),
        ({"strides": (8, 32), "input_height": 48}, r"multiple of the largest stride, 32 px, got \d+ x 48"),
        ({"strides": (8, 64)}, "strides must be some of"),
        ({"rays": (12, 1)}, "rays must be at least 2 x 2"),
        ({"semantics": False}, "semantics is off"),
        ({"vertices": (21, 21, 2)}, "vertices"),
        ({"encoder": "cube"}, "bev"),
        ({"colour": 1}, "colour"),
    ],
)
def test_config_refuses_nonsense_by_name(record, words):
    with pytest.raises(InvalidInput, match=words):
        config(**record)
