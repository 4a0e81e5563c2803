"""The transform tree against direct matrix composition."""

import math
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from occ_core.errors import InvalidInput, MissingTransform
from occ_core.geometry import interpolate, pose
from occ_core.transforms import JUMP_BACK_NS, TOLERANCE_NS, TransformTree

S = 10**9


def random_pose(rng) -> np.ndarray:
    return pose(rng.normal(0, 30, 3), rng.normal(size=4))


def matrix_inverse(matrix):
    return np.linalg.inv(matrix)  # independent of occ_core.geometry.inverse


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), frames=st.integers(2, 12), data=st.data())
def test_any_tree_any_pair_equals_matrix_composition(seed, frames, data):
    rng = np.random.default_rng(seed)
    tree, root_from = TransformTree(), {"f0": np.eye(4)}
    links = []
    for number in range(1, frames):
        parent = f"f{rng.integers(0, number)}"
        matrix = random_pose(rng)
        root_from[f"f{number}"] = root_from[parent] @ matrix
        links.append((parent, f"f{number}", matrix))
    for index in rng.permutation(len(links)):  # links may arrive in any order
        parent, child, matrix = links[index]
        tree.set(parent, child, 5 * S, matrix, static=bool(rng.integers(0, 2)))
    a, b = (f"f{data.draw(st.integers(0, frames - 1))}" for _ in range(2))
    expected = matrix_inverse(root_from[a]) @ root_from[b]
    np.testing.assert_allclose(tree.lookup(a, b, 5 * S), expected, atol=1e-8)
    np.testing.assert_allclose(tree.lookup(b, a, 5 * S) @ tree.lookup(a, b, 5 * S), np.eye(4), atol=1e-8)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    stamps=st.lists(st.integers(0, 5 * S), min_size=2, max_size=30, unique=True),
    fraction=st.floats(0, 1),
)
def test_interpolates_between_the_bracketing_samples_in_any_arrival_order(seed, stamps, fraction):
    rng = np.random.default_rng(seed)
    poses = {stamp: random_pose(rng) for stamp in stamps}
    tree = TransformTree(buffer_s=math.inf)
    for stamp in stamps:
        tree.set("odom", "base", stamp, poses[stamp])
    ordered = sorted(stamps)
    asked = int(ordered[0] + fraction * (ordered[-1] - ordered[0]))
    before = max(s for s in ordered if s <= asked)
    after = min(s for s in ordered if s >= asked)
    expected = poses[before]
    if before != after:
        expected = interpolate(poses[before], poses[after], (asked - before) / (after - before))
    np.testing.assert_allclose(tree.lookup("odom", "base", asked), expected, atol=1e-9)


def test_half_way_of_a_quarter_turn_is_an_eighth():
    tree = TransformTree()
    tree.set("odom", "base", 0, np.eye(4))
    tree.set("odom", "base", 2 * S, pose((4, 0, 0), (math.sqrt(0.5), 0, 0, math.sqrt(0.5))))
    half = tree.lookup("odom", "base", 1 * S)
    c = math.sqrt(0.5)
    np.testing.assert_allclose(half, [[c, -c, 0, 2], [c, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], atol=1e-12)


def test_no_extrapolation_beyond_the_tolerance():
    tree = TransformTree()
    tree.set("odom", "base", 10 * S, np.eye(4))
    tree.set("odom", "base", 11 * S, pose((1, 0, 0)))
    assert tree.lookup("odom", "base", 11 * S + TOLERANCE_NS)[0, 3] == 1
    assert tree.lookup("odom", "base", 10 * S - TOLERANCE_NS)[0, 3] == 0
    with pytest.raises(MissingTransform, match=r"'odom' -> 'base'.*10\.000000000 to 11\.000000000 s.*0\.500 s after"):
        tree.lookup("odom", "base", 11 * S + S // 2)
    with pytest.raises(MissingTransform, match="before its first"):
        tree.lookup("odom", "base", 10 * S - TOLERANCE_NS - 1)


def test_names_the_missing_link():
    tree = TransformTree()
    tree.set("map", "odom", 0, np.eye(4), static=True)
    tree.set("base_link", "cam", 0, np.eye(4), static=True)
    with pytest.raises(MissingTransform, match=r"link between 'map' .* and 'base_link' .* is missing"):
        tree.lookup("map", "cam", 0)
    with pytest.raises(MissingTransform, match="nobody published 'lidar'; known: base_link, cam, map, odom"):
        tree.lookup("base_link", "lidar", 0)


def test_loops_and_bad_values_are_refused():
    tree = TransformTree()
    tree.set("a", "b", 0, np.eye(4))
    tree.set("b", "c", 0, np.eye(4))
    with pytest.raises(InvalidInput, match="loop"):
        tree.set("c", "a", 0, np.eye(4))
    with pytest.raises(InvalidInput, match="loop"):
        tree.set("a", "a", 0, np.eye(4))
    with pytest.raises(InvalidInput, match="two frame names"):
        tree.set("", "a", 0, np.eye(4))
    with pytest.raises(InvalidInput, match="rigid"):
        tree.set("x", "y", 0, 2 * np.eye(4))
    with pytest.raises(InvalidInput, match="finite"):
        tree.set("x", "y", 0, np.full((4, 4), np.nan))
    with pytest.raises(InvalidInput, match="> 0 s"):
        TransformTree(buffer_s=0)


def test_a_new_parent_starts_a_new_history():
    tree = TransformTree()
    tree.set("odom", "base", 1 * S, pose((1, 0, 0)))
    tree.set("map", "base", 2 * S, pose((2, 0, 0)))
    assert tree.lookup("map", "base", 2 * S)[0, 3] == 2
    with pytest.raises(MissingTransform, match="odom"):
        tree.lookup("odom", "base", 1 * S)


def test_slashes_repeats_and_static():
    tree = TransformTree()
    tree.set("/odom", "/base", 1 * S, pose((1, 0, 0)))
    tree.set("odom", "base", 1 * S, pose((9, 0, 0)))  # same stamp: the first stays, as in tf2
    tree.set("base", "cam", 0, pose((0, 0, 1)), static=True)
    tree.set("base", "cam", 0, pose((0, 0, 2)), static=True)  # a static link is replaced
    np.testing.assert_allclose(tree.lookup("odom", "cam", 1 * S)[:3, 3], (1, 0, 2))
    assert tree.parent("cam") == "base"
    assert tree.ancestors("cam") == ["cam", "base", "odom"]


def test_time_set_back_clears_the_moving_links_only():
    tree = TransformTree()
    tree.set("base", "cam", 0, pose((0, 0, 1)), static=True)
    for second in range(5):
        tree.set("map", "odom", second * S, pose((second, 0, 0)))
        tree.set("odom", "base", second * S, pose((0, second, 0)))
    tree.set("odom", "base", 4 * S - JUMP_BACK_NS, pose((7, 7, 7)))  # late, but not a jump: ignored as a repeat
    assert tree.lookup("odom", "cam", 3 * S)[1, 3] == 3
    tree.set("odom", "base", 1 * S, pose((0, 50, 0)))
    assert tree.lookup("odom", "cam", 1 * S)[1, 3] == 50
    with pytest.raises(MissingTransform, match="set back"):
        tree.lookup("map", "cam", 1 * S)


def test_memory_is_bounded_and_the_window_is_kept():
    tree = TransformTree(buffer_s=2.0)
    for step in range(5000):
        tree.set("odom", "base", step * S // 100, pose((step, 0, 0)))
    link = tree._links["base"]
    assert len(link.stamps_ns) == len(link.parent_from_child) == 201
    assert tree.lookup("odom", "base", 49 * S)[0, 3] == 4900
    with pytest.raises(MissingTransform, match="known from 47.99"):
        tree.lookup("odom", "base", 47 * S)


def test_an_infinite_buffer_keeps_a_recording_whole():
    tree = TransformTree(buffer_s=math.inf)
    for second in (0, 100, 50):
        tree.set("odom", "base", second * S, pose((second, 0, 0)))
    assert tree.lookup("odom", "base", 75 * S)[0, 3] == pytest.approx(75)


def test_writer_and_reader_threads():
    tree = TransformTree(buffer_s=0.5)
    tree.set("odom", "base", 0, np.eye(4))
    failures: list[BaseException] = []

    def write():
        try:
            for step in range(1, 3000):
                tree.set("odom", "base", step * S // 1000, pose((step / 1000, 0, 0)))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    answers = 0
    while thread.is_alive() or not answers:
        newest = tree._links["base"].stamps_ns[-1]
        try:
            assert tree.lookup("odom", "base", newest)[0, 3] == pytest.approx(newest / S)
            answers += 1
        except MissingTransform:
            pass
    thread.join()
    assert not failures
    assert answers
