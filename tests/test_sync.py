"""The synchroniser against brute-force grouping and exact accounting under faults."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from occ_core.errors import InvalidInput
from occ_core.sync import MAX_OPEN_SETS, FrameSynchroniser

MS = 1_000_000
CAMERAS = tuple(f"cam{i}" for i in range(6))
PERIOD = 83 * MS
START = 1_700_000_000_000_000_000


def cycle(index, stagger=8 * MS, start=START):
    """(camera, stamp) of one cycle of the rig."""
    return [(camera, start + index * PERIOD + i * stagger) for i, camera in enumerate(CAMERAS)]


def feed(sync, events, delay=2 * MS):
    """Events are (camera, stamp[, arrival]); returns all sets, those of a last flush included."""
    out = []
    for camera, stamp, *arrival in events:
        out += sync.add(camera, stamp, (camera, stamp), arrival[0] if arrival else stamp + delay)
    return out


def accounted(sync):
    s = sync.statistics
    assert sum(s.received.values()) == sum(s.used.values()) + sum(s.dropped.values()) + sync.pending
    assert sum(s.dropped.values()) == sum(s.reasons.values())
    if sync.pending == 0:
        for camera in sync.cameras:
            assert s.received[camera] == s.used[camera] + s.dropped[camera]


def brute_force(events, max_spread):
    """All sets with one image of each camera within the spread: for clean input each image is in exactly one."""
    stamps = {camera: sorted(stamp for name, stamp, *_ in events if name == camera) for camera in CAMERAS}
    return [
        dict(zip(CAMERAS, combination, strict=True))
        for combination in itertools.product(*stamps.values())
        if max(combination) - min(combination) <= max_spread
    ]


@pytest.mark.parametrize("stagger_ms", [0, 4, 8, 12])
def test_clean_input_equals_brute_force(stagger_ms):
    events = [event for i in range(5) for event in cycle(i, stagger_ms * MS)]
    sync = FrameSynchroniser(CAMERAS, 0.2, 0.065)
    sets = feed(sync, events)
    truth = brute_force(events, 65 * MS)
    if stagger_ms == 12:  # 60 ms of 83 ms: the brute force also finds mixtures of two cycles; the synchroniser must not
        truth = [t for t in truth if len({(s - START) // PERIOD for s in t.values()}) == 1]
    assert [s.stamps_ns for s in sets] == truth
    assert all(s.complete and s.stamp_ns == max(s.stamps_ns.values()) for s in sets)
    assert sync.statistics.complete == 5
    assert not sync.statistics.dropped
    accounted(sync)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_arrival_jitter_and_reordering_lose_nothing(seed):
    """Images that arrive up to 60 ms late, in any order of cameras, still make every set."""
    rng = np.random.default_rng(seed)
    events = [(c, s, s + int(rng.integers(1, 60)) * MS) for i in range(12) for c, s in cycle(i, 5 * MS)]
    events.sort(key=lambda event: event[2])
    sync = FrameSynchroniser(CAMERAS, 0.15, 0.04)
    sets = feed(sync, events)
    assert [s.stamps_ns for s in sets] == [dict(cycle(i, 5 * MS)) for i in range(12)]
    accounted(sync)


def test_offsets_allow_a_spread_smaller_than_the_stagger():
    offsets = {camera: i * 12 * MS for i, camera in enumerate(CAMERAS)}
    events = [event for i in range(10) for event in cycle(i, 12 * MS)]
    sync = FrameSynchroniser(CAMERAS, 0.2, 0.002, offsets)
    assert [s.stamps_ns for s in feed(sync, events)] == [dict(cycle(i, 12 * MS)) for i in range(10)]
    assert feed(FrameSynchroniser(CAMERAS, 0.2, 0.002), events) == []  # without them nothing fits


def test_one_dead_camera_gives_partial_sets_at_the_deadline():
    sync = FrameSynchroniser(CAMERAS, 0.06, 0.05)
    sets = feed(sync, [event for i in range(10) for event in cycle(i) if event[0] != "cam4"])
    sets += sync.poll(START + 11 * PERIOD)
    assert len(sets) == 10
    assert all(set(s.items) == set(CAMERAS) - {"cam4"} and not s.complete for s in sets)
    first = sets[0]
    assert first.stamp_ns == START + 5 * 8 * MS
    assert (first.first_arrival_ns, first.last_arrival_ns) == (START + 2 * MS, START + 42 * MS)
    accounted(sync)


def test_too_few_cameras_are_dropped_and_counted():
    sync = FrameSynchroniser(CAMERAS, 0.06, 0.05)
    assert feed(sync, [event for i in range(4) for event in cycle(i)[:3]]) == []
    assert sync.flush() == []
    assert sync.statistics.incomplete == 4
    assert sync.statistics.reasons == {"incomplete": 12}
    accounted(sync)
    two = FrameSynchroniser(CAMERAS, 0.06, 0.05, min_cameras=3)
    assert len(feed(two, [event for i in range(4) for event in cycle(i)[:3]]) + two.flush()) == 4


def test_recovers_after_an_outage_and_a_clock_reset():
    """The case in which the approximate synchroniser of message_filters gave 0 outputs in 600 complete frames."""
    sync = FrameSynchroniser(CAMERAS, 0.06, 0.05)
    outage = [event for i in range(30) for event in cycle(i) if event[0] != "cam4"]
    back = START - 50_000 * MS
    after = [(c, s, START + 40 * PERIOD + s - back) for i in range(600) for c, s in cycle(i, start=back)]
    feed(sync, outage)
    sets = feed(sync, after)
    assert [s.stamps_ns for s in sets if s.complete] == [dict(cycle(i, start=back)) for i in range(600)]
    assert sync.statistics.resets == 1
    accounted(sync)


def turns_in(sets, start=START):
    return [{(s - start + PERIOD // 20) // PERIOD for s in group.stamps_ns.values()} for group in sets]


@pytest.mark.parametrize("stagger_ms", [0, 4, 8, 12])
@pytest.mark.parametrize("first_camera", range(6))
def test_turns_do_not_mix_though_the_spread_allows_it(stagger_ms, first_camera):
    """The node's default spread is above a period of 12 Hz. It may begin in the middle of a cycle; images get lost."""
    rng = np.random.default_rng(first_camera)
    cycles = [[(c, s + int(rng.integers(-2, 3)) * MS) for c, s in cycle(i, stagger_ms * MS)] for i in range(120)]
    cycles[0] = cycles[0][first_camera:]
    lost = {(int(rng.integers(10, 110)), int(rng.integers(6))) for _ in range(20)}
    lost |= {(50, 0), (51, 0), (52, 0), (53, 5)}
    events = [e for i, cycle in enumerate(cycles) for e in cycle if (i, CAMERAS.index(e[0])) not in lost]
    sync = FrameSynchroniser(CAMERAS, 0.2, 0.1)
    sets = feed(sync, sorted(events, key=lambda event: event[1])) + sync.flush()
    known = [cycles for cycles in turns_in(sets) if min(cycles) >= 8]
    assert all(len(cycles) == 1 for cycles in known)
    assert sorted(min(cycles) for cycles in known) == list(range(8, 120))
    whole = {min(cycles) for s, cycles in zip(sets, turns_in(sets), strict=True) if s.complete}
    assert set(range(8, 120)) - {i for i, _ in lost} <= whole
    accounted(sync)


@pytest.mark.parametrize("cameras", [2, 4, 6])
@pytest.mark.parametrize("seed", range(4))
def test_cameras_at_even_distances_lose_nothing_by_jitter(cameras, seed):
    """Then any camera may begin a cycle, but always the same one."""
    rng, names, period = np.random.default_rng(seed), CAMERAS[:cameras], 100 * MS
    events = [
        (name, START + cycle * period + i * period // cameras + int(rng.integers(-1500, 1501)) * 1000)
        for cycle in range(100)
        for i, name in enumerate(names)
    ]
    sync = FrameSynchroniser(names, 0.15, 0.1)
    sets = feed(sync, events)
    assert sum(s.complete for s in sets) >= 97
    assert sync.statistics.incomplete <= 1
    accounted(sync)


def test_a_camera_that_dies_at_once_does_not_let_turns_mix():
    cycles = [[e for e in cycle(i) if e[0] != "cam4" or i < 2] for i in range(60)]
    events = [e for i, cycle in enumerate(cycles) for e in cycle if not (i in (30, 31) and e[0] == "cam0")]
    sync = FrameSynchroniser(CAMERAS, 0.2, 0.1)
    sets = feed(sync, events) + sync.flush()
    assert all(len(cycles) == 1 for cycles in turns_in(sets) if min(cycles) >= 8)
    assert len({min(cycles) for cycles in turns_in(sets)} & set(range(8, 60))) == 52


def test_cameras_of_different_rates_still_make_sets():
    """They have no common period: what the spread allows is a set."""
    fast = [(c, START + i * 33 * MS) for i in range(90) for c in CAMERAS[:5]]
    slow = [("cam5", START + i * 99 * MS + MS) for i in range(30)]
    sync = FrameSynchroniser(CAMERAS, 0.06, 0.016)
    sets = feed(sync, sorted(fast + slow, key=lambda event: event[1])) + sync.flush()
    assert sum(s.complete for s in sets) == 30
    assert len(sets) == 90
    accounted(sync)


def test_bag_loop_gives_every_set_again():
    sync = FrameSynchroniser(CAMERAS, 0.06, 0.05)
    drive = [event for i in range(20) for event in cycle(i)]
    now = itertools.count(START, 3 * MS)
    sets = feed(sync, [(c, s, next(now)) for _ in range(3) for c, s in drive])
    assert len(sets) == 60
    assert sync.statistics.resets == 2
    accounted(sync)


@pytest.mark.parametrize("cycles", [2, 3, 7])
def test_a_bag_shorter_than_a_second_that_loops_is_answered_in_each_loop(cycles):
    """At most the first cycle of a loop is lost; before, nothing was answered after the first loop."""
    sync = FrameSynchroniser(CAMERAS, 0.06, 0.05)
    drive = [event for i in range(cycles) for event in cycle(i)]
    now = itertools.count(START, 3 * MS)
    feed(sync, [(c, s, next(now)) for c, s in drive])
    for loop in range(4):
        sets = [s for s in feed(sync, [(c, s, next(now)) for c, s in drive]) if s.complete]
        assert len(sets) >= cycles - 1, loop
    assert sync.statistics.resets >= 4
    accounted(sync)


def test_one_camera_far_ahead_does_not_silence_the_others():
    """Where one camera is enough for a set, its stamps from next year must not make all others late for ever."""
    sync = FrameSynchroniser(CAMERAS, 0.06, 0.05, min_cameras=1)
    year = 365 * 24 * 3600 * 1000 * MS
    feed(sync, [("cam0", START + year, START), ("cam0", START + year + PERIOD, START + PERIOD)])
    sets = feed(sync, [(c, s, s + PERIOD) for i in range(2, 12) for c, s in cycle(i) if c != "cam0"])
    sets += sync.poll(START + 20 * PERIOD)
    assert sum(len(s.items) == 5 for s in sets) >= 8
    accounted(sync)


def test_one_camera_that_sends_in_a_wrong_order_resets_nothing():
    sync = FrameSynchroniser(CAMERAS, 0.06, 0.05)
    swapped = [(c, s - 2 * PERIOD if c == "cam1" and i % 2 else s, s + MS) for i in range(20) for c, s in cycle(i)]
    sets = feed(sync, swapped) + sync.flush()
    assert sum(len(s.items) >= 5 for s in sets) == 20
    assert sync.statistics.resets == 0
    accounted(sync)


def test_clock_of_the_caller_running_backward_is_a_reset():
    sync = FrameSynchroniser(("a", "b"), 0.1, 0.01)
    assert sync.add("a", START, 1, 1000) == []
    assert sync.poll(500) == []
    assert sync.statistics.reasons == {"reset": 1}
    assert sync.pending == 0


def test_a_simulated_clock_that_begins_closes_no_set():
    """Images that come before the first /clock have come at 0."""
    sync = FrameSynchroniser(CAMERAS, 0.06, 0.05)
    events = cycle(0)
    sets = feed(sync, [(camera, stamp, 0) for camera, stamp in events[:3]])
    sets += feed(sync, events[3:])
    assert [s.stamps_ns for s in sets] == [dict(events)]
    assert sets[0].complete
    accounted(sync)


def test_one_camera_with_a_wrong_clock_does_not_stop_the_others():
    for error in (-5000 * MS, 5000 * MS):
        sync = FrameSynchroniser(CAMERAS, 0.06, 0.05)
        events = [(c, s + (error if c == "cam2" else 0), s + MS) for i in range(30) for c, s in cycle(i)]
        sets = feed(sync, events) + sync.flush()
        assert sum(len(s.items) == 5 for s in sets) >= 28, error
        assert sync.statistics.resets == 0
        accounted(sync)


def test_stamp_zero_duplicates_and_late_images_are_counted():
    sync = FrameSynchroniser(("a", "b"), 0.05, 0.01)
    sync.add("a", 0, None, START)
    sync.add("a", START, None, START)
    sync.add("a", START, None, START)
    sets = sync.add("b", START + MS, None, START + MS)
    assert len(sets) == 1
    sync.add("b", START + MS, None, START + 2 * MS)  # again, after its set is out
    sync.add("a", START - 30 * MS, None, START + 2 * MS)
    assert sync.statistics.reasons == {"no_stamp": 1, "duplicate": 2, "late": 1}
    accounted(sync)


@pytest.mark.parametrize(("camera", "reason"), [("cam0", "late"), ("cam4", "late"), ("cam5", "incomplete")])
def test_a_camera_that_becomes_slow_is_late_and_the_last_of_its_cycle_incomplete(camera, reason):
    """The set went out without it. An image with an older stamp than the set's newest is late, a newer one alone."""
    events = [(c, s, s + (75 if c == camera and i >= 10 else 2) * MS) for i in range(30) for c, s in cycle(i)]
    sync = FrameSynchroniser(CAMERAS, 0.06, 0.05)
    sets = feed(sync, sorted(events, key=lambda event: event[2])) + sync.flush()
    assert turns_in(sets) == [{i} for i in range(30)]
    assert all((camera in group.items) == (i < 10) for i, group in enumerate(sets))
    assert sync.statistics.reasons == {reason: 20}
    accounted(sync)


def test_memory_is_bounded_when_nothing_fits():
    sync = FrameSynchroniser(CAMERAS, 60.0, 0.0, min_cameras=6)
    for i in range(1000):
        sync.add(CAMERAS[i % 6], START + i * MS, bytes(10), START)  # the caller's clock stands still
        assert sync.pending <= MAX_OPEN_SETS
    accounted(sync)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2), st.integers(-3, 400), st.integers(-1, 60), st.sampled_from(["go", "go", "go", "poll"])
        ),
        max_size=60,
    ),
    st.integers(1, 3),
)
def test_exact_accounting_under_any_input(steps, min_cameras):
    """Outage, loop, jitter, repeated stamps, clock jumps: images in = images in sets + images dropped."""
    cameras = CAMERAS[:3]
    sync = FrameSynchroniser(cameras, 0.05, 0.03, {"cam1": 10 * MS}, min_cameras)
    now, out = START, []
    seen = []
    for camera, stamp, passed, what in steps:
        now += passed * MS
        before = sync.statistics.resets
        stamp_ns = START + stamp * 20 * MS if stamp >= 0 else 0
        sets = sync.poll(now) if what == "poll" else sync.add(cameras[camera], stamp_ns, len(seen), now)
        if what != "poll":
            seen.append((cameras[camera], stamp_ns))
        if sync.statistics.resets > before:
            out = []
        else:
            out += sets
        accounted(sync)
        for group in sets:
            aligned = [s - (10 * MS if c == "cam1" else 0) for c, s in group.stamps_ns.items()]
            assert max(aligned) - min(aligned) <= 30 * MS
            assert min_cameras <= len(group.items) <= 3
            assert group.complete == (len(group.items) == 3)
            assert all(seen[item] == (c, group.stamps_ns[c]) for c, item in group.items.items())
        newest = [max(s - (10 * MS if c == "cam1" else 0) for c, s in g.stamps_ns.items()) for g in out]
        assert newest == sorted(set(newest))  # strictly rising between resets
    sync.flush()
    assert sync.pending == 0
    accounted(sync)


@pytest.mark.parametrize(
    "arguments",
    [
        ((), 0.1, 0.1),
        (("a", "a"), 0.1, 0.1),
        (("a",), 0.0, 0.1),
        (("a",), float("nan"), 0.1),
        (("a",), 0.1, -1.0),
        (("a",), 0.1, 0.1, {"b": 1}),
        (("a",), 0.1, 0.1, None, 2),
    ],
)
def test_bad_arguments_are_named(arguments):
    with pytest.raises(InvalidInput, match="got|names no camera"):
        FrameSynchroniser(*arguments)


def test_unknown_camera_is_named():
    with pytest.raises(InvalidInput, match="'x'.*only: a"):
        FrameSynchroniser(("a",), 0.1, 0.1).add("x", 1, None, 1)
