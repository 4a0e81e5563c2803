"""See odd_bags.py; thousands by `python benchmarks/odd_bags.py`."""

import pytest

pytest.importorskip("rosbags")

import odd_bags


@pytest.mark.parametrize("first", range(0, 24, 6))
def test_what_is_odd_is_named_or_changes_nothing(tmp_path, first):
    for seed in range(first, first + 6):
        assert not odd_bags.finding(tmp_path / str(seed), seed)
