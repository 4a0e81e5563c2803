"""Parts that camera networks share: projection, lifting, backbones, checkpointing, hourglass."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from model_fixtures import camera as camera_of  # noqa: E402
from rig_fixtures import rig_images_of  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from occ_core.camera import Rig  # noqa: E402
from occ_core.errors import CorruptInput, InvalidInput, MissingInput  # noqa: E402
from occ_core.grid import VoxelGrid  # noqa: E402
from occ_core.models import checkpointing  # noqa: E402
from occ_core.models.hourglass import Hourglass, StackedHourglass  # noqa: E402
from occ_core.models.image_network import FeaturePyramid, ImageNetwork  # noqa: E402
from occ_core.models.resnet import ResNet  # noqa: E402
from occ_core.network_input.projection import cell_centers_m, lift, pixel_rays, project  # noqa: E402

YAWS_DEG = {"f": 0, "l": 75, "b": 180, "r": -80}  # fields of view of 94 degrees overlap
RIG = Rig(tuple(camera_of(name, yaw, (96, 64), focal_px=45.0) for name, yaw in YAWS_DEG.items()))


def points_around(count: int, seed: int = 0):
    return torch.from_numpy(np.random.default_rng(seed).uniform((-12, -12, -1), (12, 12, 4), (count, 3))).float()


def test_projection_is_the_camera_s():
    points = points_around(500)
    pixels, depth_m, visible = project(points, rig_images_of(RIG, samples=2))
    for n, camera in enumerate(RIG.cameras):
        cam_from_ego = np.linalg.inv(camera.ego_from_cam)
        points_cam_m = points.double().numpy() @ cam_from_ego[:3, :3].T + cam_from_ego[:3, 3]
        expected, seen = camera.project(points_cam_m)
        for b in range(2):
            np.testing.assert_array_equal(visible[b, n].numpy(), seen)
            np.testing.assert_allclose(pixels[b, n].numpy()[seen], expected[seen], atol=1e-3)
            np.testing.assert_allclose(depth_m[b, n].numpy(), points_cam_m[:, 2], atol=1e-5)
    assert 0.02 < visible.float().mean() < 0.5


def test_absent_camera_sees_nothing():
    rig_images = rig_images_of(RIG)
    rig_images.present[0, 1] = False
    visible = project(points_around(500), rig_images)[2]
    assert not visible[0, 1].any() and visible[0, 0].any()


def bilinear(feature: np.ndarray, u: float, v: float, stride: int) -> np.ndarray:
    """Of one feature map [C, h, w] at one pixel, from the definition of the cells' centres."""
    c, h, w = feature.shape
    total, weights = np.zeros(c), 0.0
    x = min(max((u - (stride - 1) / 2) / stride, 0), w - 1)
    y = min(max((v - (stride - 1) / 2) / stride, 0), h - 1)
    for j in range(h):
        for i in range(w):
            weight = max(0, 1 - abs(i - x)) * max(0, 1 - abs(j - y))
            total, weights = total + weight * feature[:, j, i], weights + weight
    assert math.isclose(weights, 1)
    return total


@pytest.mark.parametrize("per_moment", [False, True])
def test_lifting_is_the_mean_over_cameras_of_bilinear_samples(per_moment):
    rig_images = rig_images_of(RIG, samples=2)
    rig_images.present[1, 0] = False
    features = torch.randn(2, 4, 3, 8, 12, generator=torch.Generator().manual_seed(0))  # stride 8
    points = torch.stack([points_around(60, 1), points_around(60, 2)]) if per_moment else points_around(60, 1)
    lifted, seen = lift(features, points, rig_images)
    assert lifted.shape == (2, 3, 60) and seen.shape == (2, 60)
    pixels, _, visible = project(points, rig_images)
    for b in range(2):
        for k in range(60):
            samples = [
                bilinear(features[b, n].numpy(), *pixels[b, n, k].tolist(), stride=8)
                for n in range(4)
                if visible[b, n, k]
            ]
            assert bool(seen[b, k]) == bool(samples)
            expected = np.mean(samples, axis=0) if samples else np.zeros(3)
            np.testing.assert_allclose(lifted[b, :, k].numpy(), expected, atol=1e-4)
    assert visible.sum(1).max() > 1 and not seen.all()


def test_lifting_agrees_with_grid_sample_forward_and_backward():
    rig_images, points = rig_images_of(RIG), points_around(300)
    features = torch.randn(1, 4, 3, 16, 24, generator=torch.Generator().manual_seed(0)).requires_grad_()
    pixels, _, visible = project(points, rig_images)
    grid = (pixels[0] + 0.5) / torch.tensor([96, 64]) * 2 - 1  # [N, K, 2]
    samples = torch.nn.functional.grid_sample(features[0], grid[:, None], align_corners=False, padding_mode="border")[
        :, :, 0
    ]  # [N, C, K]
    mean = (samples * visible[0][:, None]).sum(0) / visible[0].sum(0).clamp(min=1)
    lifted, _ = lift(features, points, rig_images)
    torch.testing.assert_close(lifted[0], mean, atol=1e-4, rtol=1e-4)
    weight = torch.randn(3, 300, generator=torch.Generator().manual_seed(1))
    (ours,) = torch.autograd.grad((lifted[0] * weight).sum(), features)
    (theirs,) = torch.autograd.grad((mean * weight).sum(), features)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_no_camera_lifts_zeros():
    rig_images = rig_images_of(RIG)
    rig_images.present[:] = False
    features = torch.ones(1, 4, 3, 8, 12, requires_grad=True)
    lifted, seen = lift(features, points_around(10), rig_images)
    lifted.sum().backward()
    assert not lifted.any() and not seen.any() and not features.grad.any()


def test_cell_centers():
    grid = VoxelGrid((-2.0, 0.0, -1.0), 0.5, (8, 4, 2))
    np.testing.assert_allclose(cell_centers_m(grid).numpy(), grid.centers_m().reshape(-1, 3))
    blocks = grid.centers_m().reshape(4, 2, 2, 2, 1, 2, 3).mean(axis=(1, 3, 5)).reshape(-1, 3)
    np.testing.assert_allclose(cell_centers_m(grid, 2).numpy(), blocks, atol=1e-6)
    with pytest.raises(InvalidInput, match=r"cells_per_feature 3 .* \(8, 4, 2\)"):
        cell_centers_m(grid, 3)


def test_pixel_rays_return_to_their_pixels():
    rig_images = rig_images_of(RIG)
    origins, directions = pixel_rays(rig_images, (12, 8))
    for n, camera in enumerate(RIG.cameras):
        points = origins[0, n] + 7.0 * directions[0, n].reshape(-1, 3)
        pixels, depth_m, visible = project(points, rig_images)
        assert visible[0, n].all()
        torch.testing.assert_close(depth_m[0, n], torch.full((96,), 7.0), atol=1e-5, rtol=0)
        torch.testing.assert_close(pixels[0, n].reshape(8, 12, 2)[5, 3], torch.tensor([27.5, 43.5]), atol=1e-3, rtol=0)
        np.testing.assert_allclose(origins[0, n].numpy(), camera.ego_from_cam[:3, 3], atol=1e-6)


# Parameters with the classifier, as published with the weights (torchvision's documentation), and the classifier's.
@pytest.mark.parametrize(
    ("name", "total", "classifier"),
    [("resnet18", 11_689_512, 513_000), ("resnet50", 25_557_032, 2_049_000), ("resnet101", 44_549_160, 2_049_000)],
)
def test_resnet_has_the_published_number_of_parameters(name, total, classifier):
    with torch.device("meta"):
        network = ResNet(name)
        features = network(torch.empty(2, 3, 64, 96))
    assert sum(p.numel() for p in network.parameters()) == total - classifier
    shapes = [(2, c, 64 // s, 96 // s) for c, s in zip(network.channels, (4, 8, 16, 32), strict=True)]
    assert [tuple(f.shape) for f in features] == shapes


def test_resnet_is_torchvision_s():
    models = pytest.importorskip("torchvision.models", exc_type=(ImportError, RuntimeError))
    theirs, ours = models.resnet50().eval(), ResNet("resnet50").eval()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not missing and set(unexpected) == {"fc.weight", "fc.bias"}
    images = torch.randn(1, 3, 64, 96)
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
    x = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))
    torch.testing.assert_close(ours(images)[3], x)


def test_resnet_names():
    with torch.device("meta"):
        names = set(ResNet("resnet101").state_dict())
    assert {
        "conv1.weight",
        "bn1.running_mean",
        "layer1.0.downsample.0.weight",
        "layer1.0.downsample.1.bias",
        "layer3.22.conv3.weight",
        "layer4.2.bn3.running_var",
    } <= names
    assert "layer2.1.downsample.0.weight" not in names and "layer3.23.conv1.weight" not in names


@pytest.mark.parametrize(("backbone", "stride"), [("mobilenetv4-small", 4), ("mobilenetv4-small", 16), ("resnet18", 8)])
def test_image_network_gives_features_of_its_stride(backbone, stride):
    network = ImageNetwork(backbone, 8, stride).eval()
    images = torch.zeros(2, 3, 64, 96, 3, dtype=torch.uint8)
    images[1, 2] = 255
    with torch.no_grad():
        features = network(images)
    assert features.shape == (2, 3, 8, 64 // stride, 96 // stride)
    torch.testing.assert_close(features[0, 0], features[1, 1])  # images do not meet
    assert not torch.allclose(features[0, 0], features[1, 2])


@pytest.mark.parametrize("backbone", ["mobilenetv4-small", "resnet18"])
def test_size_needs_to_be_a_multiple_of_16_only(backbone):
    """336 rows, as published, are 10.5 features of stride 32."""
    features = ImageNetwork(backbone, 8, 4)(torch.zeros(1, 2, 80, 112, 3, dtype=torch.uint8))
    assert features.shape == (1, 2, 8, 20, 28)


def test_pyramid_gives_its_levels_in_order_and_trains_all_it_has():
    network = FeaturePyramid("resnet18", 8, (32, 8))
    levels = network(torch.zeros(1, 2, 64, 96, 3, dtype=torch.uint8))
    assert [tuple(f.shape) for f in levels] == [(1, 2, 8, 2, 3), (1, 2, 8, 8, 12)]
    sum(f.square().sum() for f in levels).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_image_network_refuses_odd_sizes():
    with pytest.raises(InvalidInput, match="multiple of 16 px, got 90 x 64"):
        ImageNetwork("mobilenetv4-small", 8, 8)(torch.zeros(1, 1, 64, 90, 3, dtype=torch.uint8))
    with pytest.raises(InvalidInput, match="multiple of 32 px, got 96 x 80"):
        FeaturePyramid("resnet18", 8, (8, 32))(torch.zeros(1, 1, 80, 96, 3, dtype=torch.uint8))
    with pytest.raises(InvalidInput, match="strides must be some of"):
        FeaturePyramid("resnet18", 8, (2,))


def test_backbone_weights_are_loaded_by_name(tmp_path):
    source, network = ImageNetwork("resnet18", 8, 8), ImageNetwork("resnet18", 8, 8)
    weights = {k: v for k, v in source.pyramid.backbone.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(weights | {"fc.bias": torch.zeros(1000)}, tmp_path / "whole.safetensors")
    network.pyramid.load_backbone(tmp_path / "whole.safetensors")
    for name, tensor in network.pyramid.backbone.state_dict().items():
        if name in weights:
            torch.testing.assert_close(tensor, weights[name])
    save_file({k: v for k, v in weights.items() if k != "layer1.0.bn1.bias"}, tmp_path / "part.safetensors")
    with pytest.raises(InvalidInput, match="part.safetensors: lacks 1 .*'layer1.0.bn1.bias'"):
        network.pyramid.load_backbone(tmp_path / "part.safetensors")
    save_file(weights | {"conv1.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(InvalidInput, match=r"'conv1.weight' is \(64, 3, 3, 3\), the backbone's is \(64, 3, 7, 7\)"):
        network.pyramid.load_backbone(tmp_path / "other.safetensors")
    with pytest.raises(MissingInput, match="nowhere"):
        network.pyramid.load_backbone(tmp_path / "nowhere")
    (tmp_path / "broken").write_bytes(b"abc")
    with pytest.raises(CorruptInput, match="broken"):
        network.pyramid.load_backbone(tmp_path / "broken")


def test_checkpointing_changes_neither_result_nor_gradients_nor_running_means():
    results = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(inplace=True))
        x = torch.randn(2, 3, 8, 8, requires_grad=True)
        y = checkpointing.run(module, x, checkpointed)
        y.square().sum().backward()
        results.append([y, x.grad, module[0].weight.grad, module[1].running_mean, module[1].running_var])
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=0, atol=0)
    assert module[1].momentum == 0.1


@pytest.mark.parametrize("shape", [(8, 8, 4), (7, 9, 5)])
def test_hourglass_keeps_the_shape_and_sees_far(shape):
    torch.manual_seed(0)
    network = Hourglass(4).eval()
    x = torch.randn(1, 4, *shape, requires_grad=True)
    y = network(x)
    assert y.shape == x.shape
    y[0, 0, 0, 0, 0].backward()
    reach = x.grad[0].abs().sum(0)
    assert reach[6, 6, 3] > 0  # two 3 x 3 x 3 convolutions alone would reach 2 cells


def test_stacked_hourglasses_with_checkpoints_are_the_same_network():
    results = []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        network = StackedHourglass(3, 4, 2, checkpoint)
        y = network(torch.randn(2, 3, 8, 8, 4))
        y.square().sum().backward()
        results.append([y, *(p.grad for p in network.parameters())])
    assert results[0][0].shape == (2, 4, 8, 8, 4) and len(network.stacks) == 2
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(plain, checkpointed)
