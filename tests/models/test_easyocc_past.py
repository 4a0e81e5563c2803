"""What a network remembers: moved as geometry says, used where it may be, and nothing where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from model_fixtures import SMALL, camera, ring_rig

from occ_core.camera import Rig
from occ_core.errors import InvalidInput
from occ_core.geometry import apply, inverse, pose
from occ_core.models.easyocc.past import MAX_AGE_S, Memory, StampedPose, empty_past, refusal, then_from_now

torch = pytest.importorskip("torch")

from occ_core.inference.predictor import Predictor  # noqa: E402
from occ_core.models.checkpoint import describe, save_checkpoint  # noqa: E402
from occ_core.models.easyocc.config import parse_config  # noqa: E402
from occ_core.models.easyocc.deployed import Deployed  # noqa: E402
from occ_core.models.easyocc.model import Answer, EasyOcc  # noqa: E402
from occ_core.models.easyocc.table import build_table  # noqa: E402

torch.set_num_threads(1)

KEPT = 5
CONFIG = SMALL.model_copy(update={"memory_channels": KEPT})
CELL_M = 2 * SMALL.voxel_size_m  # of the state
SHAPE = SMALL.pillar_grid_shape[:2]
HALF_S = 500_000_000


def remembering(seed: int = 0) -> EasyOcc:
    """A network that was never trained, whose answers depend much on what it remembers."""
    torch.manual_seed(seed)
    model = EasyOcc(CONFIG).eval()
    with torch.no_grad():
        model.to_occupied.weight *= 20
        model.to_occupied.bias.zero_()
        model.to_class.weight *= 20
        model.birds_eye.memory.change.weight.normal_(std=2.0)
        model.birds_eye.memory.keep.weight.normal_(std=2.0)
    return model


def inputs(seed: int = 0) -> list[torch.Tensor]:
    table = build_table(ring_rig(), CONFIG)
    images = np.random.default_rng(seed).integers(0, 255, (4, 64, 128, 3), dtype=np.uint8)
    return [torch.from_numpy(a) for a in (images, table.voxel_index, table.pillar_index, table.rays)]


def at(x_m: float = 0.0, y_m: float = 0.0, yaw_rad: float = 0.0, z_m: float = 0.0) -> np.ndarray:
    """world_from_ego."""
    return pose((x_m, y_m, z_m), (np.cos(yaw_rad / 2), 0.0, 0.0, np.sin(yaw_rad / 2)))


# --- the state moves as the robot does -------------------------------------------------------------------------------


def moved(state: np.ndarray, then: np.ndarray, now: np.ndarray) -> np.ndarray:
    memory = EasyOcc(CONFIG).birds_eye.memory
    motion = torch.from_numpy(then_from_now(then, now)[None])
    return memory.moved(torch.from_numpy(state[None]), motion)[0].detach().numpy()


def some_state(seed: int = 0) -> np.ndarray:
    state = np.random.default_rng(seed).normal(size=(KEPT + 1, *SHAPE)).astype(np.float32)
    state[-1] = 1.0
    return state


def test_who_drives_two_cells_ahead_and_one_to_the_right_finds_what_was_there():
    state = some_state()
    found = moved(state, at(7.0, -3.0), at(7.0 + 2 * CELL_M, -3.0 - CELL_M))
    np.testing.assert_allclose(found[:, :-2, 1:], state[:, 2:, :-1], atol=1e-4)
    assert abs(found[:, -2:]).max() < 1e-4 and abs(found[:, :, 0]).max() < 1e-4  # the grid did not reach there


def test_who_turns_left_finds_what_was_ahead_to_the_right():
    state = some_state()
    found = moved(state, at(yaw_rad=0.4), at(yaw_rad=0.4 + np.pi / 2))
    np.testing.assert_allclose(found, np.rot90(state, -1, axes=(1, 2)), atol=1e-4)
    ahead = np.zeros_like(state)
    ahead[0, 15, 9:11] = 1.0  # x > 0, y = 0
    right = moved(ahead, at(), at(yaw_rad=np.pi / 2))
    assert right[0, 9:11, 4].min() > 0.99 and right[0].sum() == pytest.approx(2.0, abs=1e-3)  # x = 0, y < 0


def test_any_motion_equals_bilinear_sampling_cell_by_cell():
    state = some_state()
    then, now = at(100.0, 50.0, 2.0), at(101.3, 48.9, 2.35)
    found = moved(state, then, now)
    then_from_now_ = inverse(then) @ now
    expected = np.zeros_like(found)
    low_m = np.array(SMALL.grid_origin_m[:2])
    for i, j in np.ndindex(*SHAPE):
        point_now = np.array([*(low_m + (np.array([i, j]) + 0.5) * CELL_M), 0.0])
        place = (apply(then_from_now_, point_now)[:2] - low_m) / CELL_M - 0.5
        corner = np.floor(place).astype(int)
        for di, dj in np.ndindex(2, 2):
            k, m = corner[0] + di, corner[1] + dj
            share = (1 - abs(place[0] - k)) * (1 - abs(place[1] - m))
            if 0 <= k < SHAPE[0] and 0 <= m < SHAPE[1]:
                expected[:, i, j] += share * state[:, k, m]
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert found[-1].min() == 0 and found[-1].max() == pytest.approx(1.0, abs=1e-5)


def test_motion_is_that_in_the_plane_of_the_ground():
    """A robot on a slope, seen from itself: neither its height nor a little tilt bends the plane."""
    pitch = pose((0, 0, 0), (np.cos(0.05), 0.0, np.sin(0.05), 0.0))
    motion = then_from_now(at(3, 4, 0.5, z_m=2.0), at(3, 4, 0.5, z_m=2.0) @ at(1.0, 0.2, 0.1, z_m=0.3) @ pitch)
    np.testing.assert_allclose(motion[:, :2] @ motion[:, :2].T, np.eye(2), atol=1e-6)
    np.testing.assert_allclose(motion[:, 2], (1.0, 0.2), atol=1e-6)
    assert np.arctan2(motion[1, 0], motion[0, 0]) == pytest.approx(0.1, abs=1e-3)


# --- one set of weights, with a past and without ---------------------------------------------------------------------


@pytest.mark.parametrize("network", [Answer, Deployed])
def test_a_state_of_zeros_is_none_and_none_is_the_network_without_memory(network):
    model = remembering()
    plain = EasyOcc(SMALL).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if ".memory." not in k})
    nothing = [torch.from_numpy(array) for array in empty_past(CONFIG)]
    with torch.inference_mode():
        expected = network(plain)(*inputs())
        alone, zeros = network(model)(*inputs()), network(model)(*inputs(), *nothing)
        moving = network(model)(*inputs(), nothing[0], torch.tensor([[[0.8, -0.6, 3.0], [0.6, 0.8, 1.0]]]))
    assert len(expected) == 3 and len(alone) == 4
    for other in (alone, zeros, moving):
        assert all(torch.equal(a, b) for a, b in zip(expected, other[:3], strict=True))
        assert torch.equal(other[3], alone[3])


def test_an_untrained_memory_changes_nothing_and_a_trained_one_only_where_it_knows_something():
    model, past = remembering(), torch.from_numpy(some_state()[None])
    stays = torch.eye(2, 3)[None]
    past[..., :, :10] = 0.0  # nothing is known of y < 0
    memory, features = model.birds_eye.memory, torch.rand(1, 16, *SHAPE)
    with torch.inference_mode():
        changed = memory(features, memory.moved(past, stays)) != features
        assert changed[..., :10].sum() == 0 and changed[..., 10:].all()
        memory.change.weight.zero_()
        assert torch.equal(memory(features, past), features)


def test_states_are_bounded_and_know_something_everywhere():
    model = remembering()
    past = [torch.from_numpy(array) for array in empty_past(CONFIG)]
    with torch.inference_mode():
        for seed in range(3):
            *_, past[0] = Answer(model)(*inputs(seed), *past)
            assert past[0].shape == (1, KEPT + 1, *SHAPE) and (past[0][:, -1] == 1).all()
            assert past[0][:, :-1].std() > 0.1 and past[0].abs().max() <= 1


def test_the_exported_order_of_computing_remembers_alike():
    model = remembering()
    slow, fast = ([torch.from_numpy(array) for array in empty_past(CONFIG)] for _ in range(2))
    with torch.inference_mode():
        for seed in range(3):
            slow[1] = fast[1] = torch.from_numpy(then_from_now(at(), at(0.9, 0.2, 0.15))[None])
            *a, slow[0] = Answer(model)(*inputs(seed), *slow)
            *b, fast[0] = Deployed(model)(*inputs(seed), *fast)
            assert all((p.int() - q.int()).abs().float().mean() < 1e-3 for p, q in zip(a, b, strict=True))
            torch.testing.assert_close(slow[0], fast[0], atol=1e-3, rtol=1e-3)


def test_a_memory_beyond_all_reason_is_refused():
    with pytest.raises(InvalidInput, match="a memory of 20490000 numbers is too large, at most 16777216"):
        parse_config({"memory_channels": 2048})
    assert parse_config({}).memory_channels == 0


# --- whether it may be used ------------------------------------------------------------------------------------------


def stamped_pose(seconds: float, x_m: float = 0.0, yaw_rad: float = 0.0, **other) -> StampedPose:
    return StampedPose(round(1e18 + seconds * 1e9), at(x_m, 0.0, yaw_rad), **other)


@pytest.mark.parametrize(
    ("now", "kind"),
    [
        (stamped_pose(0.5, 10.0, 0.4), None),
        (stamped_pose(MAX_AGE_S), None),
        (stamped_pose(MAX_AGE_S + 0.01), "gap"),
        (stamped_pose(0.0), "time did not go on"),
        (stamped_pose(-0.5), "time did not go on"),
        (stamped_pose(0.1, 20.0), "jump"),
        (stamped_pose(0.1, yaw_rad=1.0), "jump"),
        (StampedPose(10**18 + HALF_S, pose((0, 0, 0), (np.cos(0.2), np.sin(0.2), 0.0, 0.0))), "jump"),
        (stamped_pose(0.5, scene="other"), "another scene"),
        (stamped_pose(0.5, rig="other"), "another calibration"),
    ],
)
def test_what_was_seen_then_counts_now_unless(now, kind):
    found = refusal(stamped_pose(0.0), now)
    assert (found and found.kind) == kind


def state_of(value: float) -> np.ndarray:
    return np.full((1, KEPT + 1, *SHAPE), value, dtype=np.float32)


def test_a_state_is_renewed_at_the_rhythm_of_training_whatever_the_cameras():
    """At 10 Hz and memory_interval_s 0.4 each fifth moment is remembered; the motion is that since then."""
    memory = Memory(CONFIG)
    ages = []
    for tenth in range(12):
        now = stamped_pose(0.1 * tenth, x_m=0.5 * tenth)
        past = memory.before(now)
        ages.append(past.then_from_now[0, 0, 2] / 5.0 if past.state.any() else None)
        memory.keep(state_of(1.0), now)
    assert ages[0] is None
    np.testing.assert_allclose(ages[1:], [0.1, 0.2, 0.3, 0.4, 0.1, 0.2, 0.3, 0.4, 0.1, 0.2, 0.3], atol=1e-6)
    assert memory.counts == {"no frame before": 1, "used": 11} and memory.refusal is None


def test_what_is_no_number_is_not_remembered():
    memory = Memory(CONFIG)
    memory.before(stamped_pose(0.0))
    memory.keep(state_of(float("nan")), stamped_pose(0.0))
    assert not memory.before(stamped_pose(0.5)).state.any() and str(memory.refusal) == "no frame before"
    with pytest.raises(InvalidInput, match="world_from_ego must be finite"):
        memory.before(StampedPose(0, np.full((4, 4), np.nan)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "memory.safetensors"
    save_checkpoint(path, remembering().state_dict(), describe(CONFIG, {}))
    return path


def pictures(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {c.name: rng.integers(0, 255, (180, 320, 3), dtype=np.uint8) for c in ring_rig()}


def test_a_predictor_remembers_and_starts_afresh_where_it_must(checkpoint):
    """After each break the answers are those of a predictor that was just loaded."""
    rig = ring_rig()
    other = Rig((*rig.cameras[:3], camera("r", -81)))
    predictor = Predictor.load(checkpoint, "torch", 1)

    def fresh(*steps):
        memory = predictor.memory
        predictor.memory = Memory(CONFIG)
        answers = [predictor.predict(pictures(seed), rig_, pose=now) for seed, rig_, now in steps]
        predictor.memory = memory
        return answers[-1].labels

    predictor.prepare(rig)
    predictor.predict(pictures(0), rig, pose=stamped_pose(0.0))
    second = predictor.predict(pictures(1), rig, pose=stamped_pose(0.5, 2.0)).labels
    assert predictor.memory.refusal is None
    alone = predictor.session.run(predictor.images_of({n: predictor.preprocess_one(p, rig[n]) for n, p in
                                                       pictures(1).items()}, rig), rig, frozenset())[0]  # fmt: skip
    assert (second != alone).mean() > 0.01
    assert np.array_equal(second, fresh((0, rig, stamped_pose(0.0)), (1, rig, stamped_pose(0.5, 2.0))))
    breaks = [
        (2, rig, stamped_pose(2.0), "gap"),
        (3, rig, stamped_pose(1.0), "time did not go on"),
        (4, rig, stamped_pose(1.1, 50.0), "jump"),
        (5, other, stamped_pose(1.2, 50.0), "another calibration"),
        (6, other, None, "no odometry"),
        (7, other, stamped_pose(1.4, 50.0), "no frame before"),
        (8, other, stamped_pose(1.5, 50.0, scene="b"), "another scene"),
    ]
    for seed, rig_, now, kind in breaks:
        answer = predictor.predict(pictures(seed), rig_, pose=now)
        assert predictor.memory.refusal.kind == kind
        assert np.array_equal(answer.labels, fresh((seed, rig_, now)))


def test_a_camera_that_is_lost_for_a_moment_does_not_end_the_memory(checkpoint):
    predictor, rig = Predictor.load(checkpoint, "torch", 1), ring_rig()
    predictor.predict(pictures(0), rig, pose=stamped_pose(0.0))
    part = {name: image for name, image in pictures(1).items() if name != "f"}
    with_past = predictor.predict(part, rig, pose=stamped_pose(0.5)).labels
    assert predictor.memory.refusal is None
    predictor.memory = Memory(CONFIG)
    assert not np.array_equal(with_past, predictor.predict(part, rig, pose=stamped_pose(0.5)).labels)


def test_a_fault_of_the_backend_is_not_remembered(checkpoint):
    predictor, rig = Predictor.load(checkpoint, "torch", 1), ring_rig()
    with torch.no_grad():
        broken = predictor.session.run_after

    def with_labels(*arguments):
        labels, *rest = broken(*arguments)
        return (np.full_like(labels, 99), *rest)

    predictor.session.run_after = with_labels
    with pytest.raises(InvalidInput, match="label 99"):
        predictor.predict(pictures(0), rig, pose=stamped_pose(0.0))
    predictor.session.run_after = broken
    predictor.predict(pictures(1), rig, pose=stamped_pose(0.5))
    assert predictor.memory.refusal.kind == "no frame before"
