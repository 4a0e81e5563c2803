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
