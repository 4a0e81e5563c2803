"""Samples in a row: how they are drawn, what they teach, and how a network that remembers is judged."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import small_nuscenes
from model_fixtures import SMALL
from nano_fixtures import CAR, FREE, PERIOD_NS, WALL, drawn, driven, hand_made, judged, open_scenes, use_scenes

from occ_core.errors import InvalidInput
from occ_core.geometry import inverse
from occ_core.models.easyocc.past import then_from_now
from occ_core.training.cache import SceneCache

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from occ_core.models.easyocc.inputs import SampleSequence  # noqa: E402
from occ_core.models.easyocc.losses import cell_losses  # noqa: E402
from occ_core.models.easyocc.model import EasyOcc  # noqa: E402
from occ_core.models.easyocc.sequence import last_columns  # noqa: E402
from occ_core.training import loop  # noqa: E402
from occ_core.training.augment import mirror, read_sample, turn  # noqa: E402
from occ_core.training.config import TrainingConfig  # noqa: E402
from occ_core.training.ranks import ALONE, Ranks  # noqa: E402
from occ_core.training.samples import Sample  # noqa: E402
from occ_core.training.tabulated import sequence_batch, stacked, targets_of  # noqa: E402
from occ_core.training.task import TrainingTask  # noqa: E402

torch.set_num_threads(1)

CONFIG = SMALL.model_copy(update={"memory_channels": 6})


def with_arrays(scene: SceneCache, **arrays) -> SceneCache:
    return SceneCache(scene.name, scene.tokens, lambda name: arrays[name] if name in arrays else scene[name])


def settings(batch_size=1, **of_nano) -> TrainingConfig:
    of_nano = {"memory_steps": 1, "memory_frames": 3, "columns": 400, **of_nano}
    return TrainingConfig(model=CONFIG, batch_size=batch_size, nano=of_nano, color_jitter=0.0, camera_dropout=0.0)


# --- sequences -------------------------------------------------------------------------------------------------------


def number(images: torch.Tensor, scene: SceneCache) -> int:
    return next(i for i in range(len(scene.tokens)) if np.array_equal(scene["images"][i], images))


def test_sequences_are_samples_in_a_row_of_all_lengths():
    scene = hand_made("s", 5)
    batches = drawn([scene], settings(flip=0.0), "sequences")
    lengths = set()
    for _ in range(40):
        sequence, targets = next(batches)
        numbers = [number(frame.images, scene) for frame in sequence.frames]
        assert numbers == list(range(numbers[0], numbers[-1] + 1)) and sequence.linked.all()
        lengths.add((numbers[-1], len(numbers)))
        assert len(targets.columns) == 400 and len(targets.depth) == 4  # of the newest sample
        for k, motion in enumerate(sequence.then_from_now[:, 0]):
            a, b = scene["world_from_ego"][numbers[k]], scene["world_from_ego"][numbers[k + 1]]
            np.testing.assert_allclose(motion, then_from_now(a, b))
    assert {length for _, length in lengths} == {1, 2, 3, 4}  # memory_frames before it, or fewer, or none
    assert all(length <= last + 1 for last, length in lengths)
    last = next(drawn([scene], settings(flip=0.0), "sequences", step=39)).rig_images
    assert len(last.frames) == len(sequence.frames)
    assert np.array_equal(last.frames[-1].images, sequence.frames[-1].images)


@pytest.mark.parametrize("broken", ["stamp_ns", "world_from_ego", "rig"])
def test_sequences_end_where_a_deployed_network_forgets(broken):
    scene = hand_made("s", 4)
    array = np.array(scene[broken])
    array[2:] += 5 * PERIOD_NS if broken == "stamp_ns" else 1
    if broken == "world_from_ego":
        array = driven(4)
        array[2:, 0, 3] += 200.0
    tables = {name: np.repeat(scene[name], 2, axis=0) for name in ("voxel_index", "pillar_index", "rays")}
    scene = with_arrays(scene, **{broken: array}, **tables)
    batches = drawn([scene], settings(flip=0.0), "sequences")
    seen = {tuple(number(frame.images, scene) for frame in next(batches).rig_images.frames) for _ in range(40)}
    assert seen == {(0,), (1,), (2,), (3,), (0, 1), (2, 3)}


def test_a_batch_of_sequences_of_unlike_length_is_each_sequence_by_itself():
    torch.manual_seed(0)
    model, scene = EasyOcc(CONFIG), hand_made("s", 3)
    with torch.no_grad():
        model.birds_eye.memory.change.weight.normal_()
    config = settings(batch_size=2, flip=0.0)
    sequences = (batch.rig_images for batch in drawn([scene], config, "sequences"))
    sequence = next(c for c in sequences if len(c.frames) == 3 and not c.linked.all())
    both = last_columns(model, sequence)
    for b in range(2):
        alone = [frame for k, frame in enumerate(sequence.frames) if k == 2 or sequence.linked[k:, b].all()]
        numbers = [number(frame.images[4 * b : 4 * b + 4], scene) for frame in alone]
        sequential = model.eval().sequential()
        hidden = [sequential.hidden(inputs) for inputs, _ in judged(part(scene, numbers))][-1]
        torch.testing.assert_close(both[b], hidden.columns[0], rtol=1e-3, atol=1e-3)


def part(scene: SceneCache, numbers: list[int]) -> SceneCache:
    kept = ("images", "present", "labels", "depth", "pixel_class", "rig", "stamp_ns", "world_from_ego")
    return SceneCache(
        scene.name,
        [scene.tokens[i] for i in numbers],
        lambda name: scene[name][numbers] if name in kept else scene[name],
    )


def test_a_mirrored_robot_drives_the_mirrored_way():
    scene = hand_made("s", 2)
    plain = [read_sample(scene, i, CONFIG).world_from_ego for i in range(2)]
    flipped = [mirror(read_sample(scene, i, CONFIG), CONFIG).world_from_ego for i in range(2)]
    swap = np.diag([1.0, -1.0, 1.0, 1.0])
    np.testing.assert_allclose(inverse(flipped[0]) @ flipped[1], swap @ inverse(plain[0]) @ plain[1] @ swap, atol=1e-9)
    assert then_from_now(*plain)[1, 0] > 0.05 and then_from_now(*flipped)[1, 0] < -0.05  # a bend to the other side
    never, always = (next(drawn([scene], settings(flip=p), "sequences", step=3)).rig_images.frames for p in (0.0, 1.0))
    for a, b in zip(never, always, strict=True):
        assert torch.equal(a.images.flip(2), b.images)


def test_the_samples_of_a_sequence_are_turned_alike():
    scene = hand_made("s", 4)
    plain, turned = (
        drawn([scene], settings(flip=0.0), "sequences"),
        drawn([scene], settings(flip=0.0, turn=1.0), "sequences"),
    )
    quarters_met = set()
    for _ in range(30):
        before, after = next(plain).rig_images, next(turned).rig_images
        numbers = [number(frame.images, scene) for frame in after.frames]
        assert numbers == [number(frame.images, scene) for frame in before.frames]
        samples = [read_sample(scene, i, CONFIG) for i in numbers]
        alike = [[turn(sample, quarters, CONFIG) for sample in samples] for quarters in (1, 2, 3)]
        (quarters,) = (q for q, row in enumerate(alike, 1) if np.array_equal(row[0].table.rays, after.frames[0].rays))
        quarters_met.add(quarters)
        for sample, frame in zip(alike[quarters - 1], after.frames, strict=True):
            assert np.array_equal(sample.table.rays, frame.rays)
            assert np.array_equal(sample.table.voxel_index, frame.voxel_index)
        expected = sequence_batch([alike[quarters - 1]], CONFIG)
        np.testing.assert_array_equal(after.then_from_now, expected.then_from_now)
        spin = np.linalg.matrix_power(np.array([[0.0, -1], [1, 0]]), quarters)
        for a, b in zip(before.then_from_now[:, 0].numpy(), after.then_from_now[:, 0].numpy(), strict=True):
            np.testing.assert_allclose(b, np.c_[spin @ a[:, :2] @ spin.T, spin @ a[:, 2]], atol=1e-5)
    assert quarters_met == {1, 2, 3}


def test_what_stands_still_stays_where_it_is_around_a_turned_robot():
    """A place in the world lies in the turned grids of two samples where their motion says."""
    scene = hand_made("s", 2)
    cell_m, corner_m = SMALL.voxel_size_m, np.array(SMALL.grid_origin_m[:2])
    then_from_moved = np.array([[0.0, -1, 0, 5 * cell_m], [1, 0, 0, -3 * cell_m], [0, 0, 1, 0], [0, 0, 0, 1]])
    start = scene["world_from_ego"][0]
    labels = np.full((2, *SMALL.grid_shape), FREE, dtype=np.uint8)
    for i, ego_from_then in enumerate((np.eye(4), inverse(then_from_moved))):
        place_m = ego_from_then @ [*corner_m + (30.5 * cell_m, 14.5 * cell_m), 0, 1]
        x, y = np.floor((place_m[:2] - corner_m) / cell_m).astype(int)
        labels[i, x, y, 3] = CAR
    scene = with_arrays(scene, world_from_ego=np.stack([start, start @ then_from_moved]), labels=labels)
    for quarters in (0, 1, 2, 3):
        for flip in (False, True):
            then, now = (read_sample(scene, i, CONFIG) for i in range(2))
            then, now = (turn(mirror(s, CONFIG) if flip else s, quarters, CONFIG) for s in (then, now))
            place_then_m, place_now_m = (
                (np.argwhere(s.labels == CAR)[0, :2] + 0.5) * cell_m + corner_m for s in (then, now)
            )
            motion = then_from_now(then.world_from_ego, now.world_from_ego)
            np.testing.assert_allclose(motion @ [*place_now_m, 1], place_then_m, atol=1e-4)


def test_the_cache_knows_when_and_where(tmp_path):
    small_nuscenes.make(tmp_path / "set", keyframes=3, sweeps=0)
    config = CONFIG.model_copy(
        update={"grid_shape": (200, 200, 16), "grid_origin_m": (-40.0, -40.0, -1.0), "voxel_size_m": 0.4}
    )
    (scene,) = open_scenes(tmp_path / "set", "gts", config, tmp_path / "cache")
    from occ_core.sources.nuscenes import NuScenesSource

    frames = NuScenesSource(tmp_path / "set")
    for i in range(3):
        assert scene["stamp_ns"][i] == frames[i].stamp_ns
        assert np.array_equal(scene["world_from_ego"][i], frames[i].world_from_ego)


# --- what is learned -------------------------------------------------------------------------------------------------


def test_the_image_network_stands_still_and_what_is_kept_learns_from_what_it_was_good_for():
    torch.manual_seed(0)
    model, config = EasyOcc(CONFIG), settings(flip=0.0)
    memory = model.birds_eye.memory
    torch.nn.init.normal_(memory.change.weight, std=0.1)
    sequence = next(c for c in drawn([hand_made("s", 4)], config, "sequences") if len(c.rig_images.frames) == 3)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    geometry(model, sequence).backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    image_parts = ("backbone.", "neck.", "to_hazard.", "to_context.", "to_pixel_class.")
    assert not any(name.startswith(image_parts) for name in learned)
    assert {name for name, _ in model.named_parameters() if name.startswith("birds_eye.")} <= learned
    assert all(part.weight.grad.abs().max() > 0 for part in (memory.now, memory.then, memory.change, memory.keep))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_a_network_learns_from_the_sample_before_what_this_one_does_not_show():
    """Two drives that differ in their first sample alone, but in the truth of the second: how far is the wall?"""
    torch.manual_seed(0)
    noise = np.random.default_rng(0).integers(0, 120, (2, 4, 64, 128, 3), dtype=np.uint8)
    scenes = []
    for name, wall, brighter in (("near", 26, 130), ("far", 34, 0)):
        labels = np.full((2, *SMALL.grid_shape), FREE, dtype=np.uint8)
        labels[:, wall:, :, 1:] = WALL
        images = noise.copy()
        images[0] += np.uint8(brighter)
        scenes.append(with_arrays(hand_made(name, 2), labels=labels, images=images))
    # untrained, the default backbone does not get there in so many steps
    network = CONFIG.model_copy(update={"backbone": "mobilenetv4-small"})
    config = settings(flip=0.0)
    contested = np.arange(26 * 40, 34 * 40)
    rows = [[read_sample(s, i, CONFIG) for i in range(2)] for s in scenes]
    near, far = (Sample(sequence_batch([row], CONFIG), targets_of(row[1:], [contested], config.nano)) for row in rows)
    assert torch.equal(near.rig_images.frames[1].images, far.rig_images.frames[1].images)
    model = EasyOcc(network)
    find_range(model, scenes)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(300):
        optimizer.zero_grad()
        loss = geometry(model, near) + geometry(model, far)
        if loss < 0.2:
            break
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert loss < 0.2  # of the second sample alone: at least 2 x ln 2 x 7/8 = 1.2, for 7 of 8 heights could be either
    (_, now), linked, motion = near.rig_images
    others = SampleSequence((far.rig_images.frames[0], now), linked, motion)
    alone = SampleSequence((now,), linked[1:], motion[1:])
    with torch.no_grad():
        # the past of the other drive makes it say what is true there
        assert geometry(model, Sample(others, near.targets)) > 1.2
        assert geometry(model, Sample(alone, near.targets)) > 0.2


def find_range(model: EasyOcc, scenes: list[SceneCache]) -> None:
    """Give the batch norms of an untrained network the statistics of these scenes."""
    for norm in (module for module in model.train().modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.momentum = None
    samples = [read_sample(scene, i, CONFIG) for scene in scenes for i in range(len(scene.tokens))]
    inputs = stacked(samples, CONFIG)
    with torch.no_grad():
        model.logits(inputs.images, *inputs.table, inputs.rays)


def geometry(model: EasyOcc, sequence: Sample) -> torch.Tensor:
    targets = replace(sequence.targets, class_weights=torch.ones(18))
    return cell_losses(model, last_columns(model, sequence.rig_images), targets)["geometry"]


# --- the loop --------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Trains on hand-made scenes: run(out, ...) -> (folder, record)."""
    scenes = [hand_made("a", 4, seed=1), hand_made("b", 3, seed=2), hand_made("c", 2, seed=3)]
    use_scenes(monkeypatch, scenes[:1], scenes[1:2], scenes[2:])
    base = {"data": (tmp_path,), "validation_scenes": 1, "threads": 1, "seed": 3, "warmup_steps": 1, "ema_decay": 0.5}
    base |= {"log_every": 1, "learning_rate": 4e-3, "model": CONFIG}

    def start(out: str, resume=False, **changes):
        nano_part = {"threshold_scenes": 1, "columns": 400, "memory_frames": 2} | changes.pop("nano", {})
        path = loop.train(TrainingConfig(**{**base, **changes, "nano": nano_part}), tmp_path / out, resume)
        return tmp_path / out, json.loads(path.with_suffix(".json").read_text())

    return start


def weights(folder) -> dict[str, torch.Tensor]:
    return safetensors_torch.load_file(folder / "model.safetensors")


def test_a_run_with_memory_goes_through_three_phases_and_resumes_to_the_same_bits(run, monkeypatch):
    phases = {"image_steps": 1, "memory_steps": 3}
    unbroken, record = run("a", steps=4, nano=phases)
    rows = (unbroken / "log.csv").read_text().splitlines()
    assert len(rows) == 1 + 5 and record["training"]["step"] == 5
    header = rows[0].split(",")
    depth, geometry = header.index("depth"), header.index("geometry")
    filled = [(bool(row.split(",")[depth]), bool(row.split(",")[geometry])) for row in rows[1:]]
    assert filled == [(True, False), (True, True)] + [(False, True)] * 3  # images; all; samples in a row
    assert record["model"]["memory_channels"] == 6 and record["training"]["metrics"]["step"] == 5
    original = loop.train_step

    def interrupted(state, *rest):
        if state.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return original(state, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "train_step", interrupted)
        run("b", steps=4, nano=phases)
    resumed, _ = run("b", resume=True, steps=4, nano=phases)
    first, second = weights(unbroken), weights(resumed)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_finished_checkpoint_without_memory_gains_one(run):
    plain, _ = run("plain", model=SMALL, steps=2)
    start = plain / "model.safetensors"
    grown, record = run("grown", steps=2, nano={"memory_steps": 2}, start_from=start)
    assert record["training"]["start_from_lacked"] == ["birds_eye.memory"]
    before, after = weights(plain), weights(grown)
    assert {name for name in after if name not in before} == {n for n in after if n.startswith("birds_eye.memory.")}
    for name in before:  # the image network is as it was
        if name.startswith(("backbone.", "neck.", "to_hazard.", "to_context.", "to_pixel_class.")):
            assert torch.equal(before[name], after[name]), name
    assert not torch.equal(before["birds_eye.block1.second.0.weight"], after["birds_eye.block1.second.0.weight"])
    assert after["birds_eye.memory.change.weight"].abs().max() > 0
    longer, record = run("longer", steps=1, nano={"memory_steps": 1}, start_from=grown / "model.safetensors")
    assert "start_from_lacked" not in record["training"]
    by_ground = SMALL.model_copy(update={"depth_by_ground": True, "foot_heads": 2})
    grounded, record = run("grounded", model=by_ground, steps=1, nano={"image_steps": 2}, start_from=start)
    assert record["training"]["start_from_lacked"] == ["to_ground", "foot"]
    assert all(weights(grounded)[name].any() for name in ("to_ground.weight", "foot.to_hazard.weight"))
    with pytest.raises(InvalidInput, match="memory_channels 6, this one 0"):
        run("back", model=SMALL, steps=1, start_from=grown / "model.safetensors")


def test_memory_steps_and_memory_channels_need_each_other(run):
    with pytest.raises(InvalidInput, match="memory_steps is 0, the model's memory_channels 6"):
        run("a", steps=2)
    with pytest.raises(InvalidInput, match="memory_steps is 1, the model's memory_channels 0"):
        run("b", steps=2, model=SMALL, nano={"memory_steps": 1})
    with pytest.raises(InvalidInput, match="last of all 2 steps, got 3"):
        run("c", steps=2, nano={"memory_steps": 3})


def test_processes_judge_whole_scenes_of_a_network_that_remembers(monkeypatch):
    """Two of them together what one judges alone, though a sample is answered with what was before it."""
    scenes = [hand_made(name, 3, seed) for seed, name in enumerate("abc")]
    use_scenes(monkeypatch, scenes[:1], [], scenes)
    torch.manual_seed(0)
    model = EasyOcc(CONFIG).eval()
    with torch.no_grad():
        model.birds_eye.memory.change.weight.normal_(0, 5.0)
        model.to_class.weight.normal_(0, 5.0)
        model.to_occupied.bias.fill_(20.0)
        model.to_observed.bias.fill_(9.0)
    task = TrainingTask(settings(), ALONE, print)
    whole = task.confusion(model)
    parts = []
    for rank in range(2):
        task.ranks = Ranks(rank, 2, ALONE.device)
        parts.append(task.confusion(model))
    assert np.array_equal(whole, parts[0] + parts[1]) and parts[0].sum() == 2 * parts[1].sum() > 0
    one_by_one = [frame.rig_images for frame in judged(*scenes, config=CONFIG)]
    sequential = model.sequential()
    turns = [(sequential.answer(inputs).labels, model.answer(inputs).labels) for inputs in one_by_one]
    assert [torch.equal(*answers) for answers in turns] == [True, False, False] * 3
