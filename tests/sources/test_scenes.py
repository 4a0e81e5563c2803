"""Recordings scene by scene: which frames are keyframes, and that a bag's have the reference of its data set."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="bags need rosbags: pip install 'occ_ros[bags]'")

import small_nuscenes
from bag_robot import S, robot
from small_kitti import make_kitti

from occ_core.bags.writer import write_bag
from occ_core.errors import MissingInput
from occ_core.frame import Shot
from occ_core.grid import SEMANTIC_KITTI_VOXELS
from occ_core.sources.nuscenes_tables import NuScenesTables
from occ_core.sources.scenes import KEYFRAME_S, STILL_S, Recording, keyframes_of
from occ_core.taxonomy import SEMANTIC_KITTI


def driven(stamps_s: np.ndarray, x_m: np.ndarray, yaw_rad: np.ndarray | float = 0.0) -> np.ndarray:
    poses = np.tile(np.eye(4), (len(stamps_s), 1, 1))
    yaw = np.broadcast_to(yaw_rad, stamps_s.shape)
    poses[:, 0, 0], poses[:, 0, 1], poses[:, 1, 0], poses[:, 1, 1] = np.cos(yaw), -np.sin(yaw), np.sin(yaw), np.cos(yaw)
    poses[:, 0, 3] = x_m
    return poses


@pytest.mark.parametrize("rate_hz", [1, 2, 7, 10, 30])
def test_keyframes_are_half_a_second_apart_however_fast_the_camera_is(rate_hz):
    stamps_s = np.arange(0, 20, 1 / rate_hz) + np.random.default_rng(0).uniform(-0.004, 0.004, 20 * rate_hz)
    chosen = keyframes_of((1e9 * stamps_s).astype(np.int64), driven(stamps_s, 2 * stamps_s))
    gaps_s = np.diff(stamps_s[chosen])
    assert chosen[0] and (np.abs(gaps_s - max(KEYFRAME_S, 1 / rate_hz)) < 0.5 / rate_hz + 0.01).all()


def test_a_pause_gives_few_keyframes_and_a_turn_on_the_spot_is_none():
    """10 s of driving at 10 Hz, 60 s of standing with a little noise, 10 s of turning."""
    stamps_s = np.arange(0, 80, 0.1)
    x_m = np.minimum(stamps_s, 10) + 0.005 * np.sin(7 * stamps_s)
    chosen = keyframes_of((1e9 * stamps_s).astype(np.int64), driven(stamps_s, x_m, np.maximum(stamps_s - 70, 0)))
    at_s = stamps_s[chosen]
    assert len(at_s[at_s < 10]) == 20 and len(at_s[at_s >= 70.4]) >= 19
    standing_s = at_s[(at_s > 11) & (at_s < 70)]
    assert len(standing_s) == pytest.approx(59 / STILL_S, abs=1)


def test_without_poses_nobody_knows_of_pauses():
    stamps_s = np.arange(0, 10, 0.1)
    assert keyframes_of((1e9 * stamps_s).astype(np.int64), driven(stamps_s, 0 * stamps_s), has_pose=False).sum() == 20
    assert keyframes_of(np.zeros(0, np.int64), np.zeros((0, 4, 4))).sum() == 0


def test_a_bags_keyframes_and_their_reference_are_those_of_its_data_set(tmp_path):
    small_nuscenes.make(tmp_path / "set", 3, sweeps=2, boxes=False, truth=False)
    write_bag(NuScenesTables(tmp_path / "set"), "scene-0001", tmp_path / "scene-0001")
    theirs = Recording(tmp_path / "set").scene("scene-0001")
    recording = Recording(tmp_path / "scene-0001")
    ours = recording.scene("scene-0001")
    assert recording.scenes == ["scene-0001"] and list(ours.tokens) == list(theirs.tokens)
    for index in range(3):
        a, b = theirs[index], ours[index]
        assert (
            (a.stamp_ns, a.token)
            == (b.stamp_ns, b.token)
            == (ours.source.stamp_and_pose(ours.source_indices[index])[0], a.token)
        )
        np.testing.assert_allclose(a.world_from_ego, b.world_from_ego, atol=1e-9)
        for name in a.images:
            np.testing.assert_array_equal(a.images[name], b.images[name.lower()])
            np.testing.assert_allclose(
                a.ego_from_camera_at_its_stamp(name), b.ego_from_camera_at_its_stamp(name.lower()), atol=1e-9
            )
        assert ours.shots(index) == {name.lower(): Shot(shot.stamp_ns) for name, shot in theirs.shots(index).items()}
    between = recording.scene("scene-0001", between=True)
    assert [token for token in between.tokens if token] == list(ours.tokens) and len(between) > len(ours)
    with pytest.raises(MissingInput, match="no scene 'scene-0009', only: scene-0001"):
        recording.require_scenes(["scene-0009"])


def test_a_bag_that_names_no_keyframes_has_them_by_time(tmp_path):
    """A robot of somebody else: images at 5 Hz for 2 s, driving 1 m/s."""
    recording = Recording(robot(images=10).write(tmp_path / "drive"))
    frames = recording.scene(recording.scenes[0])
    stamps_ns = [frames[index].stamp_ns for index in range(len(frames))]
    assert [round((stamp - stamps_ns[0]) / S, 1) for stamp in stamps_ns] == pytest.approx(
        np.arange(len(stamps_ns)) * (stamps_ns[1] - stamps_ns[0]) / S, abs=0.11
    )
    assert list(frames.tokens) == [f"{recording.scenes[0]}_{stamp}" for stamp in stamps_ns]


def test_semantic_kitti_has_its_own_meaning_and_every_fifth_frame(tmp_path):
    recording = Recording(make_kitti(tmp_path, frames=11))
    assert (recording.grid, recording.taxonomy) == (SEMANTIC_KITTI_VOXELS, SEMANTIC_KITTI)
    frames = recording.scene("03")
    assert list(frames.tokens) == ["000000", "000005", "000010"]
    assert frames.shots(1) == {"image_2": Shot(500_000_000, "sequences/03/image_2/000005.png")}
    assert frames[1].image_files == {"image_2": "sequences/03/image_2/000005.png"}


def test_images_of_a_key_have_other_keys_when_they_change(tmp_path):
    frames = Recording(make_kitti(tmp_path / "a", frames=2)).scene("03")
    more = tmp_path / "map.png"
    more.write_bytes(b"1")
    keys = {frames.key(0, False), frames.key(0, True), frames.key(0, False, [more])}
    more.write_bytes(b"2")
    assert len(keys | {frames.key(0, False, [more])}) == 4
