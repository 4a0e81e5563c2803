"""What several tests of training share: the tiny network as a kind of model, and data to train it on."""

from pathlib import Path

import pytest


@pytest.fixture
def tiny_network(monkeypatch) -> None:
    """A run may name the kind `tiny`."""
    import tiny_camera_network

    tiny_camera_network.use_tiny(monkeypatch.setattr)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A labelled data set of three scenes for the tiny network, not to be changed."""
    import tiny_camera_network

    root = tmp_path_factory.mktemp("data") / "set"
    tiny_camera_network.make_data(root)
    return root
