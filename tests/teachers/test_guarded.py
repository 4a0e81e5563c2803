"""What goes wrong in a network costs its image; how many processes ask; where maps are kept."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from teacher_fixtures import make_frame

from occ_core.errors import CorruptInput, OccError
from occ_core.teachers.base import ClassMap
from occ_core.teachers.cache import CachedClasses, default_cache, folder_for, size_of
from occ_core.teachers.guarded import GuardedClasses, GuardedDepth
from occ_core.teachers.names import is_network, processes_for

FRAME = make_frame({"A": np.zeros((8, 8, 3), np.uint8)}, token="t7")
MAPS = {"A": ClassMap(np.zeros((8, 8), np.uint8), np.ones((8, 8), np.float32))}


class Network:
    """A teacher of both that raises what it is given."""

    version = "network-1"

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error

    def classes(self, frame):
        if self.error is not None:
            raise self.error
        return MAPS

    depth = classes


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("CUDA error: no kernel\nmore lines"), "RuntimeError: CUDA error: no kernel$"),
        (MemoryError(), "MemoryError$"),
        (CorruptInput("NaN everywhere"), "NaN everywhere$"),
        (ZeroDivisionError("x"), "ZeroDivisionError: x$"),
    ],
)
def test_any_exception_becomes_ours_and_names_the_frame(error, said):
    with pytest.raises(OccError, match=f"^the class teacher failed on 't7': {said}"):
        GuardedClasses(Network(error)).classes(FRAME)
    with pytest.raises(OccError, match=f"^the depth teacher failed on 't7': {said}"):
        GuardedDepth(Network(error)).depth(FRAME)


def test_ctrl_c_stays_what_it_is():
    with pytest.raises(KeyboardInterrupt):
        GuardedClasses(Network(KeyboardInterrupt())).classes(FRAME)


def test_answers_and_version_are_the_teachers(tmp_path):
    asked = GuardedClasses(Network())
    assert asked.version == "network-1" and asked.classes(FRAME) is MAPS and asked.reads(FRAME) == []
    cached = CachedClasses(asked, tmp_path)
    cached.classes(FRAME)
    assert size_of(tmp_path) == sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) > 0
    asked.teacher.error = RuntimeError("asked again")
    np.testing.assert_array_equal(cached.classes(FRAME)["A"].class_id, MAPS["A"].class_id)


def test_which_names_are_networks():
    networks = ("grounded-sam+metric3d", "lidar+metric3d", "a/b+lidar", "thin:street+lidar", "files:x+metric3d")
    others = ("oracle", "realistic+lidar", "realistic+oracle+lidar", "lidar", "files:maps", "files:maps+lidar")
    assert all(map(is_network, networks)) and not any(map(is_network, others))


def test_one_process_a_gpu_and_each_its_own(monkeypatch):
    torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")
    from occ_core.teachers.networks import pick_device

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert processes_for("metric3d+metric3d", None) == 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert processes_for("grounded-sam+metric3d", None) == 3
    assert processes_for("grounded-sam+metric3d", "cuda:1") == 1
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    assert processes_for("oracle", None) == 5
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    taken = []
    for name in ("MainProcess", *(f"SpawnProcess-{n}" for n in (4, 5, 6))):
        monkeypatch.setattr(multiprocessing, "current_process", lambda name=name: SimpleNamespace(name=name))
        taken.append(str(pick_device(None)))
    assert taken == ["cuda:0", "cuda:0", "cuda:1", "cuda:2"]


def test_stores_beside_each_other_share_their_maps(tmp_path):
    assert default_cache(tmp_path / "labels-a") == default_cache(tmp_path / "labels-b") == tmp_path / "teacher-maps"
    assert size_of(Path(tmp_path / "teacher-maps")) == 0


def test_maps_of_networks_are_kept_unless_one_says_off(tmp_path):
    assert folder_for(None, "grounded-sam+lidar", tmp_path / "labels") == tmp_path / "teacher-maps"
    assert folder_for(None, "realistic+lidar", tmp_path / "labels") is None
    assert folder_for(Path("off"), "grounded-sam+lidar", tmp_path / "labels") is None
    assert folder_for(tmp_path / "mine", "oracle", tmp_path / "labels") == tmp_path / "mine"
