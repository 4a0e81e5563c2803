"""Samples against the files and the drive that they come from, batches against their definition."""

import json
import math

import cv2
import numpy as np
import pytest
import small_nuscenes
from model_fixtures import camera

from occ_core.camera import Rig
from occ_core.errors import CorruptInput, InvalidInput, MissingInput
from occ_core.geometry import apply, inverse
from occ_core.network_input.preprocess import Preprocess
from occ_core.sources.nuscenes import NuScenesSource
from occ_core.teachers.base import ClassMap, DepthMap, Teachers

torch = pytest.importorskip("torch")

import tiny_camera_network as tiny  # noqa: E402

from occ_core.network_input.rig_inputs import calibration  # noqa: E402
from occ_core.training.keyframes import Keyframe, KeyframeSource  # noqa: E402
from occ_core.training.label_files import LabelFiles  # noqa: E402
from occ_core.training.sampler import BatchSampler  # noqa: E402
from occ_core.training.samples import NEEDS, Augmentation, SampleDataset, collate  # noqa: E402

FRONT, BACK = "CAM_FRONT", "CAM_BACK"


class Painter:
    """A teacher whose maps, half the image's size, say where their pixels are: row * 10 + column / 10."""

    version = "painter"

    def classes(self, frame):
        return {name: ClassMap(self._map().astype(np.uint8), np.ones((24, 32), np.float32)) for name in frame.images}

    def depth(self, frame):
        return {name: DepthMap(self._map().astype(np.float32), np.ones((24, 32), np.float32)) for name in frame.images}

    def _map(self):
        return np.arange(24)[:, None] * 10 + np.arange(32) // 10


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("samples")
    tiny.make_data(root, scenes=1, keyframes=3, sweeps=2)
    return root


def opened(root, needs=NEEDS, augmentation=None, keyframes=3) -> SampleDataset:
    frames = NuScenesSource(root)
    scene = frames.scenes[0]
    listed = [Keyframe(scene, token, i) for i, token in enumerate(frames.tokens[:keyframes])]
    source = KeyframeSource(frames, listed, LabelFiles(root / "gts"), Teachers(Painter(), Painter()))
    return SampleDataset([source], tiny.TinyConfig(), frozenset(needs), augmentation)


def files(root, channel) -> list[tuple[int, np.ndarray]]:
    """(microseconds, preprocessed image) of all files of a camera in time order, read without any table."""
    found = [*root.glob(f"samples/{channel}/*.jpg"), *root.glob(f"sweeps/{channel}/*.jpg")]
    read = {int(path.stem.split("__")[-1]): cv2.imread(str(path))[:, :, ::-1] for path in found}
    return [(at, Preprocess(64, 32).image(np.ascontiguousarray(read[at]))) for at in sorted(read)]


def test_a_sample_holds_the_files_images_and_its_neighbours_in_time(root):
    sample = opened(root)[0, 1]
    rig, targets = sample
    assert rig.images.shape == (2, 32, 64, 3) and rig.images.dtype == torch.uint8 and rig.present.all()
    for i, channel in enumerate((FRONT, BACK)):
        drive = files(root, channel)
        keyframe = 3  # with two sweeps after each of the keyframes 0, 1, 2
        assert np.abs(rig.images[i].int().numpy() - drive[keyframe][1]).max() <= 2  # JPEG decoders differ by that
        for side, place in enumerate((keyframe - 1, keyframe + 1)):
            assert np.abs(targets.neighbours[i, side].int().numpy() - drive[place][1]).max() <= 2
    assert targets.neighbour_present.all()
    first, last = opened(root)[0, 0].targets, opened(root)[0, 2].targets
    assert first.neighbour_present.tolist() == [[False, True]] * 2 and not first.neighbours[:, 0].any()
    assert last.neighbour_present.tolist() == [[True, False]] * 2


def test_neighbours_are_keyframes_where_there_are_no_sweeps(tmp_path):
    tiny.make_data(tmp_path, scenes=1, keyframes=3, sweeps=0)
    sample = opened(tmp_path)[0, 1]
    drive = files(tmp_path, FRONT)
    for side, place in enumerate((0, 2)):
        assert np.abs(sample.targets.neighbours[0, side].int().numpy() - drive[place][1]).max() <= 2


def test_a_sweep_that_is_not_there_gives_way_to_the_next_one_and_times_are_known(tmp_path):
    tiny.make_data(tmp_path, scenes=1, keyframes=3, sweeps=2)
    assert (
        opened(tmp_path).neighbour_gap_s() == pytest.approx(0.5 / 3, abs=1e-3)
        and opened(tmp_path, {"labels"}).neighbour_gap_s() is None
    )
    expected = files(tmp_path, FRONT)
    sorted(tmp_path.glob(f"sweeps/{FRONT}/*.jpg"))[1].unlink()  # the last before the second keyframe
    sorted(tmp_path.glob(f"sweeps/{FRONT}/*.jpg"))[1].write_bytes(b"")  # the first after it
    sample = opened(tmp_path)[0, 1]
    for side, place in enumerate((1, 5)):
        assert np.abs(sample.targets.neighbours[0, side].int().numpy() - expected[place][1]).max() <= 2
    assert sample.targets.neighbour_present.all()
    for path in tmp_path.glob("sweeps/*/*.jpg"):
        path.unlink()
    assert opened(tmp_path).neighbour_gap_s() == pytest.approx(0.5, abs=1e-3)


def test_an_image_through_another_lens_is_no_neighbour(tmp_path):
    tiny.make_data(tmp_path, scenes=1, keyframes=3, sweeps=0)
    tables = {name: tmp_path / f"v1.0-mini/{name}.json" for name in ("sample_data", "calibrated_sensor")}
    data, calibrations = (json.loads(path.read_text()) for path in tables.values())
    first = min((row for row in data if FRONT in row["filename"]), key=lambda row: row["timestamp"])
    other = dict(next(row for row in calibrations if row["token"] == first["calibrated_sensor_token"]), token="other")
    other["camera_intrinsic"] = (np.array(other["camera_intrinsic"]) * [[1.1], [1.1], [1.0]]).tolist()
    first["calibrated_sensor_token"] = "other"
    for path, rows in zip(tables.values(), (data, [*calibrations, other]), strict=True):
        path.write_text(json.dumps(rows))
    assert opened(tmp_path)[0, 1].targets.neighbour_present.tolist() == [[False, True], [True, True]]


def test_a_point_seen_by_a_camera_is_where_its_neighbour_sees_it(root):
    """Through the world along the drive's own formula, not through the tables."""
    samples = opened(root)
    moved = samples[0, 1].targets.neighbour_from_cam.double().numpy()
    rig = NuScenesSource(root)[1].rig
    points_cam = np.random.default_rng(0).uniform((-5, -2, 3), (5, 2, 30), (50, 3))
    for i, channel in enumerate((FRONT, BACK)):
        times = [at for at, _ in files(root, channel)]
        pose = rig[channel].ego_from_cam
        world = apply(small_nuscenes.world_from_ego(times[3]) @ pose, points_cam)
        for side, place in enumerate((2, 4)):
            there = apply(inverse(small_nuscenes.world_from_ego(times[place]) @ pose), world)
            np.testing.assert_allclose(apply(moved[i, side], points_cam), there, atol=1e-4)
    assert np.linalg.norm(moved[0, 1, :3, 3]) == pytest.approx(8 / 6, rel=0.05)  # 8 m/s, a sixth of a second


def test_calibration_is_that_of_the_preprocessed_image(root):
    """A point's pixel in the original image, moved as resize and crop move pixels, is its pixel in the network's."""
    rig = NuScenesSource(root)[0].rig
    intrinsics, ego_from_cam = calibration(rig, Preprocess(64, 32))
    (w, h), left, top = Preprocess(64, 32).plan((64, 48))
    assert (w, h, left) == (64, 48, 0) and top > 0
    points_ego = np.random.default_rng(1).uniform((4, -3, 0), (30, 3, 3), (40, 3))
    for i, original in enumerate(rig):
        points_cam = apply(inverse(original.ego_from_cam), points_ego)
        pixels, _ = original.project(points_cam)
        homogeneous = intrinsics[i].double().numpy() @ apply(inverse(ego_from_cam[i].double().numpy()), points_ego).T
        front = points_cam[:, 2] > 0
        found = (homogeneous[:2] / homogeneous[2]).T
        np.testing.assert_allclose(found[front], (pixels - (left, top))[front], atol=1e-3)


def test_maps_are_cut_as_images_are_and_nothing_in_them_is_mixed():
    """Against a loop over pixels: the map's pixel under the centre of each of the network's pixels."""
    rng = np.random.default_rng(0)
    for (width, height), size, shape in (((64, 32), (160, 90), (45, 80)), ((96, 64), (80, 60), (60, 80))):
        preprocess, values = Preprocess(width, height), rng.integers(0, 255, shape, dtype=np.uint8)
        found = preprocess.nearest(values, size)
        (w, h), left, top = preprocess.plan(size)
        assert found.shape == (height, width) and found.dtype == np.uint8
        for y in range(0, height, 3):
            for x in range(0, width, 3):
                u = (x + left + 0.5) / w * shape[1]
                v = (y + top + 0.5) / h * shape[0]
                assert found[y, x] == values[math.floor(v), math.floor(u)]


def test_maps_of_a_teacher_lie_on_the_images_pixels(root):
    targets = opened(root)[0, 0].targets
    top = Preprocess(64, 32).plan((64, 48))[2]
    expected = (np.arange(32)[:, None] + top) // 2 * 10 + np.arange(64) // 2 // 10  # a map of half the size
    assert np.array_equal(targets.class_map[0].numpy(), expected) and targets.class_map.dtype == torch.uint8
    assert np.array_equal(targets.depth_m[1].numpy(), expected) and targets.depth_m.dtype == torch.float32


def test_labels_say_255_where_nobody_looked_and_only_what_is_needed_is_read(root):
    targets = opened(root, {"labels"})[0, 0].targets
    assert targets.labels.shape == (20, 20, 2) and (targets.labels[:2] == 255).all()
    assert (targets.labels[2:, :, 0] == 11).all() and (targets.labels[2:, :, 1] == 17).all()
    assert targets.class_map is None and targets.depth_m is None and targets.neighbours is None
    assert opened(root, {"depth_m"})[0, 0].targets.labels is None


def test_labels_of_another_grid_or_missing_ones_are_refused(root, tmp_path):
    small_nuscenes.make(tmp_path / "large", keyframes=1, sweeps=0)
    with pytest.raises(CorruptInput, match=r"shape \(200, 200, 16\), the grid has \(20, 20, 2\)"):
        opened(tmp_path / "large", {"labels"}, keyframes=1)[0, 0]
    small_nuscenes.make(tmp_path / "none", keyframes=1, sweeps=0, truth=False)
    with pytest.raises(MissingInput, match=r"labels\.npz"):
        opened(tmp_path / "none", {"labels"}, keyframes=1)[0, 0]


def test_a_lens_that_distorts_is_refused_by_name():
    bent = camera("fish", 0, distortion_model="equidistant", distortion=(0.1, 0.0, 0.0, 0.0))
    with pytest.raises(InvalidInput, match="'fish' has a lens of model 'equidistant'.*rectify"):
        calibration(Rig((camera("f", 0), bent)), Preprocess(64, 32))


def test_an_absent_camera_is_black_and_teaches_nothing_and_one_is_always_left(root):
    half = opened(root, augmentation=Augmentation(camera_dropout=0.5, seed=1))
    kept = set()
    for serial in range(12):
        rig, targets = half[serial, 1]
        gone = ~rig.present
        kept.add(tuple(rig.present.tolist()))
        assert rig.present.any() and not rig.images[gone].any() and rig.images[rig.present].any()
        assert (targets.class_map[gone] == 255).all() and targets.depth_m[gone].isnan().all()
        assert not targets.neighbour_present[gone].any() and targets.neighbour_present[rig.present].all()
    assert kept == {(True, True), (True, False), (False, True)}
    everything = opened(root, augmentation=Augmentation(camera_dropout=1.0))[0, 1]
    assert everything.rig_images.present.all()


def test_colours_change_alike_in_an_image_and_its_neighbours(tmp_path):
    """Every file shows the same picture, so what is equal before must be equal after."""
    tiny.make_data(tmp_path, scenes=1, keyframes=3, sweeps=1)
    source = next(tmp_path.glob(f"samples/{FRONT}/*.jpg")).read_bytes()
    for path in tmp_path.rglob("*.jpg"):
        path.write_bytes(source)
    plain = opened(tmp_path, {"neighbours"})[5, 1]
    bright = opened(tmp_path, {"neighbours"}, Augmentation(color_jitter=0.4, seed=3))
    rig, targets = bright[5, 1]
    assert not torch.equal(rig.images, plain.rig_images.images)
    for side in range(2):
        assert torch.equal(targets.neighbours[:, side], rig.images)
    assert not torch.equal(rig.images[0], rig.images[1])  # but each camera has its own
    assert torch.equal(bright[5, 1].rig_images.images, rig.images)  # the same draw, the same colours
    assert not torch.equal(bright[6, 1].rig_images.images, rig.images)


def test_a_batch_of_rigs_of_two_sizes_fills_up_with_absent_cameras(root):
    samples = opened(root)
    whole = samples[0, 0]
    rig, targets = whole
    single = type(whole)(
        type(rig)(*(getattr(rig, name)[:1] for name in ("images", "intrinsics", "ego_from_cam", "present"))),
        type(targets)(labels=targets.labels, class_map=targets.class_map[:1], depth_m=targets.depth_m[:1]),
    )
    batch = collate([single, whole])
    assert batch.rig_images.present.tolist() == [[True, False], [True, True]]
    assert not batch.rig_images.images[0, 1].any() and (batch.targets.class_map[0, 1] == 255).all()
    assert batch.targets.depth_m[0, 1].isnan().all() and batch.targets.labels.shape == (2, 20, 20, 2)
    assert batch.rig_images.intrinsics[0, 1].det() != 0  # can be inverted
    assert torch.equal(batch.rig_images.images[1], rig.images) and batch.targets.neighbours is None
    with pytest.raises(InvalidInput, match="at least one sample"):
        collate([])


def batches_of(count, steps, accumulate=1, rank=0, world=1, batch_size=1, first=0, labelled=(), share=None):
    found = iter(BatchSampler(count, 7, batch_size, accumulate, rank, world, first, labelled, share))
    return [next(found) for _ in range(steps * accumulate)]


def test_every_epoch_visits_every_sample_once_and_a_resumed_stream_goes_on():
    keys = [key for batch in batches_of(5, 15, batch_size=2) for key in batch]
    assert [serial for serial, _ in keys] == list(range(30))
    epochs = [[index for _, index in keys[e * 5 : e * 5 + 5]] for e in range(6)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs) and len({tuple(epoch) for epoch in epochs}) > 3
    assert batches_of(5, 6, accumulate=2, first=4) == batches_of(5, 10, accumulate=2)[8:]


def test_labelled_samples_get_their_share_of_the_draws():
    labelled = [3, 8]
    found = [index for batch in batches_of(10, 80, labelled=labelled, share=0.25) for _, index in batch]
    at = [serial for serial, index in enumerate(found) if index in labelled]
    assert len(at) == 20 and set(np.diff(at)) == {4} and all(found.count(index) == 10 for index in labelled)
    assert {found.count(index) for index in set(range(10)) - set(labelled)} == {7, 8}
    later = [index for batch in batches_of(10, 30, first=50, labelled=labelled, share=0.25) for _, index in batch]
    assert later == found[50:]
    assert batches_of(4, 9, labelled=range(4), share=0.5) == batches_of(4, 9) == batches_of(4, 9, share=0.5)


@pytest.mark.parametrize("share", [None, 0.5, 0.25])
def test_processes_and_accumulation_share_out_the_same_samples(share):
    def samples(step, accumulate, world):
        parts = [batches_of(11, 1, accumulate, rank, world, 1, step, [2, 7], share) for rank in range(world)]
        return [key for part in parts for batch in part for key in batch]

    for step in range(8):
        alone = samples(step, 6, 1)
        for world in (2, 3, 6):
            shared = samples(step, 6 // world, world)
            assert sorted(shared) == alone and len(shared) == 6


@pytest.mark.parametrize("share", [0.5, 0.25, 0.1])
@pytest.mark.parametrize("world", range(1, 9))
def test_every_process_sees_its_share_of_labelled_samples(world, share):
    labelled = [3, 8]
    for rank in range(world):
        batches = batches_of(40, 800, rank=rank, world=world, labelled=labelled, share=share)
        assert np.mean([index in labelled for batch in batches for _, index in batch]) == pytest.approx(share, abs=0.05)
