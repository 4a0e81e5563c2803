"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data():
    """`shared_data(name)`: folder of a real sample; the test skips where it is absent (it may not be copied)."""
    root = Path(os.environ.get("OCC_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))

    def folder(name: str) -> Path:
        if not (root / name).is_dir():
            pytest.skip(f"real data sample '{name}' is not at {root} (set OCC_SHARED_DATA to its folder)")
        return root / name

    return folder


def pytest_configure(config: pytest.Config) -> None:
    """One thread for a worker of pytest-xdist: there is one a core."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"  # before a test imports torch


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A worker with other work than nodes steps back for the one whose nodes have deadlines."""
    if "PYTEST_XDIST_WORKER" in os.environ and not item.nodeid.startswith("tests/ros/") and os.nice(0) < 10:
        os.nice(10)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Share out whole files, for the sake of their fixtures, and `tests/ros` as one: deadlines of nodes are of real
    time, and what runs beside a node must not be another node."""
    from xdist.scheduler import LoadFileScheduling

    class OneWorkerForNodes(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "tests/ros" if nodeid.startswith("tests/ros/") else super()._split_scope(nodeid)

    return OneWorkerForNodes(config, log)
