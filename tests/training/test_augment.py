"""What nano's training is given: the cache, batches, and what is done to samples and images on the way."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import small_nuscenes
from model_fixtures import SMALL, ring_rig
from nano_fixtures import CAR, UNSEEN, drawn, hand_made, open_scenes

from occ_core.camera import Camera, Rig
from occ_core.errors import InvalidInput, MissingInput
from occ_core.models.easyocc.table import build_table, feature_rays, leaning_rays, zoomed_rays
from occ_core.network_input.preprocess import Preprocess

torch = pytest.importorskip("torch")

from occ_core.models.easyocc.model import EasyOcc  # noqa: E402
from occ_core.training import augment  # noqa: E402
from occ_core.training.augment import mirror, pick_columns, read_sample, retextured, turn, zoomed  # noqa: E402
from occ_core.training.config import TrainingConfig  # noqa: E402
from occ_core.training.rays import ray_targets  # noqa: E402
from occ_core.training.tabulated import stacked  # noqa: E402

torch.set_num_threads(1)  # small tensors: more threads only wait for each other


def test_columns_prefer_rare_classes_and_a_few_are_hidden():
    scene = hand_made("s")
    rare = np.zeros(256, dtype=bool)
    rare[CAR] = True
    picked = pick_columns(scene["labels"][0], 50, rare, np.random.default_rng(0))
    assert len(picked) == 50 == len(set(picked))
    assert 22 * 40 + 10 in picked  # the only column with a car
    assert (picked % 40 < 2).sum() == 50 // 8  # y = 0, 1 are unobserved


def test_mirroring_twice_is_nothing_and_once_swaps_left_and_right():
    sample = read_sample(hand_made("s"), 1, SMALL)
    twice = mirror(mirror(sample, SMALL), SMALL)
    for name in ("images", "labels", "depth", "pixel_class"):
        assert np.array_equal(getattr(sample, name), getattr(twice, name))
    assert np.array_equal(sample.table.voxel_index, twice.table.voxel_index)
    assert mirror(sample, SMALL).labels[22, 40 - 1 - 11, 2] == CAR


def test_a_sample_is_turned_with_all_that_belongs_to_it():
    """As if the robot, and its cameras with it, had stood turned clockwise in the same world."""
    rig, scene = ring_rig(), hand_made("s")
    sample = read_sample(scene, 1, SMALL)
    for quarters, (cos, sin) in ((1, (0, 1)), (2, (-1, 0)), (3, (0, -1))):
        spin = np.array([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=float)
        table = build_table(Rig(tuple(replace(c, ego_from_cam=spin @ c.ego_from_cam) for c in rig)), SMALL)
        got = turn(sample, quarters, SMALL)
        np.testing.assert_allclose(got.table.rays, table.rays, atol=1e-6)
        assert (got.table.voxel_index == table.voxel_index).mean() > 0.999  # rounding, at borders of pixels and bins
        assert (got.table.pillar_index == table.pillar_index).mean() > 0.99
        for cell in ((5, 7, 3), (22, 11, 2)):
            there = spin[:2, :2] @ (np.array(cell[:2]) - 19.5) + 19.5
            assert got.labels[int(there[0]), int(there[1]), cell[2]] == sample.labels[cell]
    with pytest.raises(InvalidInput, match="only a square grid around the ego"):
        turn(sample, 1, SMALL.model_copy(update={"grid_origin_m": (0.0, -16.0, -1.0)}))


def test_a_batch_of_two_answers_as_two_batches_of_one():
    config = SMALL
    model = EasyOcc(config).eval()
    scene = hand_made("s")
    samples = [read_sample(scene, 0, config, dropped=[1]), read_sample(scene, 1, config)]

    def cells(*samples):
        inputs = stacked(samples, config)
        with torch.no_grad():
            return model.logits(inputs.images, *inputs.table, inputs.rays).classes

    both = cells(*samples)
    for i, sample in enumerate(samples):
        torch.testing.assert_close(both[i], cells(sample)[0], rtol=1e-4, atol=1e-5)


def test_every_epoch_visits_every_sample_once_and_a_resumed_stream_goes_on():
    scenes = [hand_made("a", 2), hand_made("b", 3)]
    config = TrainingConfig(model=SMALL, color_jitter=0, camera_dropout=0, nano={"flip": 0, "columns": 10})
    batches = drawn(scenes, config)
    firsts = [next(batches).rig_images.images.numpy() for _ in range(5)]
    known = np.concatenate([scene["images"] for scene in scenes])
    assert sorted(next(k for k in range(5) if np.array_equal(known[k], f)) for f in firsts) == [0, 1, 2, 3, 4]
    assert np.array_equal(next(drawn(scenes, config, step=3)).rig_images.images, firsts[3])


def test_single_images_are_drawn_once_an_epoch_and_mirrored_with_their_rays():
    scenes = [hand_made("a", 2), hand_made("b", 1)]
    config = TrainingConfig(model=SMALL, color_jitter=0, nano={"flip": 0, "image_batch": 4})
    image_batches = drawn(scenes, config, "images")
    batches = [next(image_batches) for _ in range(3)]
    images = np.concatenate([batch.rig_images.images for batch in batches])
    known = np.concatenate([scene["images"].reshape(-1, *images.shape[1:]) for scene in scenes])
    assert sorted(next(k for k in range(12) if np.array_equal(known[k], image)) for image in images) == list(range(12))
    assert torch.equal(next(drawn(scenes, config, "images", step=2)).targets.depth, batches[2].targets.depth)
    always = config.model_copy(update={"nano": config.nano.model_copy(update={"flip": 1.0})})
    plain, flipped = batches[0], next(drawn(scenes, always, "images"))
    mirror_y = torch.tensor([1.0, -1, 1, 1, 1, 1])[:, None, None]
    assert torch.equal(flipped.rig_images.images, plain.rig_images.images.flip(2))
    assert torch.equal(flipped.targets.depth, plain.targets.depth.flip(-1))
    assert torch.equal(flipped.rig_images.rays, plain.rig_images.rays.flip(-1) * mirror_y)  # through the mirrored pixel


def test_cache_is_built_once_from_a_data_set_and_mirrors_its_labels(tmp_path):
    tokens = small_nuscenes.make(tmp_path / "set", keyframes=2, sweeps=0)
    config = SMALL.model_copy(
        update={"grid_shape": (200, 200, 16), "grid_origin_m": (-40.0, -40.0, -1.0), "voxel_size_m": 0.4}
    )
    (scene,) = open_scenes(tmp_path / "set", "gts", config, tmp_path / "cache")
    assert scene.tokens == tokens and scene["images"].shape == (2, 2, 64, 128, 3) and scene["present"].all()
    truth = np.load(tmp_path / "set/gts/scene-0001" / tokens[0] / "labels.npz")
    seen = truth["mask_camera"] > 0
    assert (
        np.array_equal(scene["labels"][0][seen], truth["semantics"][seen])
        and (scene["labels"][0][~seen] == UNSEEN).all()
    )
    (folder,) = (tmp_path / "cache").iterdir()
    before = folder.stat().st_mtime_ns
    open_scenes(tmp_path / "set", "gts", config, tmp_path / "cache")
    assert [p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()] == [before]
    with pytest.raises(MissingInput, match="no labels"):
        open_scenes(tmp_path / "set", "nothing", config, tmp_path / "cache")


def test_an_image_zoomed_by_nothing_is_itself(monkeypatch):
    monkeypatch.setattr(augment, "MOST_ZOOM", 1.0)
    scene = hand_made("s")
    image, depth, classes, rays = zoomed(scene, 1, 2, SMALL, np.random.default_rng(0))
    for name, array in (("images", image), ("depth", depth), ("pixel_class", classes)):
        np.testing.assert_array_equal(array, scene[name][1, 2])
    np.testing.assert_allclose(rays, scene["rays"][0, 2], atol=1e-6)


def test_rays_of_a_part_are_those_of_a_camera_with_a_longer_lens():
    camera = Preprocess(SMALL.input_width, SMALL.input_height).camera(ring_rig()["l"])
    zoom, left, top = 1.6, 24, 12  # px
    longer = camera.cropped(left, top, (80, 40)).resized((128, 64))
    w, h = SMALL.feature_size
    columns, rows = (start / 8 + (np.arange(n) + 0.5) / zoom - 0.5 for start, n in ((left, w), (top, h)))
    rays = zoomed_rays(build_table(Rig((ring_rig()["l"],)), SMALL).rays[0], rows, columns, zoom)
    expected = feature_rays(longer, SMALL)
    angle_rad = np.arccos(np.clip((rays[:3].transpose(1, 2, 0) * expected).sum(-1), -1, 1))
    assert angle_rad.max() < 1e-3  # a tenth of a pixel
    np.testing.assert_allclose(rays[3], longer.intrinsics[0, 0] / 1000, rtol=1e-5)
    np.testing.assert_allclose(rays[5], 1.5)
    below = expected[..., 2] < -0.05
    np.testing.assert_allclose(rays[4][below], np.clip(-expected[..., 2] / 1.5, 0, 1)[below], atol=1e-3)


def test_leaning_rays_are_those_of_a_camera_that_leans():
    camera, lean_rad = ring_rig()["l"], np.array([0.02, -0.015])
    leaning = camera.ego_from_cam.copy()
    leaning[:3, :3] = cv2.Rodrigues(np.array([*lean_rad, 0.0]))[0] @ leaning[:3, :3]
    leaning[2, 3] *= 1.05
    expected = build_table(Rig((replace(camera, ego_from_cam=leaning),)), SMALL).rays[0]
    given = leaning_rays(build_table(Rig((camera,)), SMALL).rays[0], lean_rad, 1.05)
    assert given.dtype == np.float32 and np.abs(given - expected).max() < 5e-4
    assert np.abs(leaning_rays(expected, np.zeros(2), 1.0) - expected).max() < 1e-6


def test_only_images_of_their_own_lean_and_what_their_rays_meet_stays():
    scenes = [hand_made("s")]
    config = TrainingConfig(model=SMALL, color_jitter=0, nano={"flip": 0, "columns": 10})
    leaning = config.model_copy(update={"nano": config.nano.model_copy(update={"lean_deg": 1.0})})
    for kind, changed in (("images", True), ("samples", False)):
        plain, lean = next(drawn(scenes, config, kind)), next(drawn(scenes, leaning, kind))
        assert torch.equal(plain.targets.depth, lean.targets.depth)
        assert torch.equal(plain.rig_images.images, lean.rig_images.images)
        assert (not torch.equal(plain.rig_images.rays, lean.rig_images.rays)) == changed
        assert (plain.rig_images.rays - lean.rig_images.rays)[:, :3].abs().max() < 0.2


def test_a_zoomed_image_its_rays_and_what_they_meet_belong_together():
    """Each pixel's colour is its own place, so the rays' places in the whole image can be read in the part."""
    scene, camera = hand_made("s"), Preprocess(SMALL.input_width, SMALL.input_height).camera(ring_rig()["f"])
    u, v = np.meshgrid(np.arange(SMALL.input_width), np.arange(SMALL.input_height))
    ramp = np.broadcast_to(np.stack([u, v, u], axis=-1).astype(np.uint8), (3, 4, 64, 128, 3))
    painted = augment.SceneCache("s", scene.tokens, lambda name: ramp if name == "images" else scene[name])
    image, depth, classes, rays = zoomed(painted, 1, 0, SMALL, np.random.default_rng(0))
    zoom = float(rays[3, 0, 0] / scene["rays"][0, 0, 3, 0, 0])
    assert 1.05 < zoom < augment.MOST_ZOOM
    w, h = SMALL.feature_size
    places = image.reshape(h, 8, w, 8, 3)[:, 3:5, :, 3:5, :2].mean(axis=(1, 3))
    seen = camera.rays(places.reshape(-1, 2)) @ camera.ego_from_cam[:3, :3].T
    seen /= np.linalg.norm(seen, axis=1, keepdims=True)
    angle_rad = np.arccos(np.clip((seen.reshape(h, w, 3) * rays[:3].transpose(1, 2, 0)).sum(-1), -1, 1))
    assert angle_rad.max() < 1 / camera.intrinsics[0, 0]  # a pixel, of which colours are rounded
    part = Camera("part", camera.intrinsics * [[zoom], [zoom], [1]], (128, 64), camera.ego_from_cam)
    corner = np.array([places[0, 0] - 3.5 / zoom])  # where the whole image shows the part's first pixel
    part.intrinsics[:2, 2] = (camera.intrinsics[:2, 2] - corner[0]) * zoom
    expected = ray_targets(scene["labels"][1], Rig((part,)), SMALL)
    assert (np.abs(depth.astype(int) - expected[0][0]) <= 1).mean() > 0.95
    assert (classes == expected[1][0]).mean() > 0.95


def test_own_pixels_stay_unknown_in_a_zoomed_image():
    scene = hand_made("s")
    own = np.zeros((1, 4, *SMALL.feature_size[::-1]), dtype=bool)
    own[:, :, 4:] = True
    painted = augment.SceneCache("s", scene.tokens, lambda name: own if name == "own" else scene[name])
    rng = np.random.default_rng
    (_, depth, classes, _), (_, free_depth, _, _) = (zoomed(s, 0, 0, SMALL, rng(5)) for s in (painted, scene))
    lost = (depth == UNSEEN) & (free_depth != UNSEEN)
    assert lost.any(axis=1).sum() >= 3 and not lost[0].any()
    assert (classes[lost] == UNSEEN).all()


def test_a_frozen_image_network_stands_still_while_the_rest_learns():
    scene = hand_made("s")
    config = TrainingConfig(model=SMALL, nano={"columns": 200, "freeze_images": True})
    torch.manual_seed(0)
    model = EasyOcc(SMALL).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs, targets = next(drawn([scene], config))
    losses = model(inputs, replace(targets, class_weights=torch.ones(18), pixel_weights=torch.ones(18)), 0.0)
    assert set(losses) == {"geometry", "semantics", "lovasz", "observed"}
    sum(losses.values()).backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    changed = {
        name.split(".")[0] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert not changed & {"backbone", "neck", "to_hazard", "to_pixel_class"}
    assert changed >= {"to_context", "birds_eye", "head", "to_occupied", "to_class"}


def test_another_texture_keeps_shapes_where_they_are():
    image = np.full((64, 128, 3), 60, dtype=np.uint8)
    image[20:40, 30:90] = (200, 180, 90)
    rng, edge = np.random.default_rng(0), np.zeros((64, 128), dtype=bool)
    edge[16:44, 26:94], edge[24:36, 34:86] = True, False
    changed = [retextured(image, rng) for _ in range(20)]
    for other in changed:
        assert other.dtype == np.uint8 and other.shape == image.shape
        step = np.abs(np.diff(other.astype(float), axis=1)).max(axis=-1)[:, 8:-8]  # not what the border reflects
        assert step[edge[:, 9:-8]].max() > 1.5 * np.median(step)  # the box is still there to be seen
    assert len({other.tobytes() for other in changed}) == 20
    means = np.array([other[40:, 95:].mean(axis=(0, 1)) for other in changed])
    assert means.std(axis=0).min() > 5  # and its colours are other ones
