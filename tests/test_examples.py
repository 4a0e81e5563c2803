"""Every script in examples/ runs and does what it says, on small data."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import cv2
import label_fixtures
import numpy as np
import pytest
import small_nuscenes

from occ_core.labels.store import LabelStore
from occ_core.occupancy import load_occ3d
from occ_core.taxonomy import OCC3D

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
for module, extra in {"nuscenes": "nuscenes", "numba": "world", "torch": "torch"}.items():
    pytest.importorskip(module, reason=f"the examples need {module}: pip install 'occ_ros[{extra}]'")


@pytest.fixture
def run(monkeypatch, capsys):
    """`run(name, *arguments)`: the script in this process, as if started by hand; what it printed."""

    def script(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return script


def test_each_is_short_and_is_run_here():
    tested = Path(__file__).read_text()
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert len(names) == 5
    for name in names:
        assert f'run("{name}"' in tested, name
        assert len((EXAMPLES / name).read_text().splitlines()) <= 30, name


def test_predict(run, tmp_path):
    tokens = small_nuscenes.make(tmp_path / "data", keyframes=2, sweeps=0, truth=False)
    said = run("predict.py", tmp_path / "data").splitlines()
    assert [line.split()[0] for line in said] == tokens
    assert all("of the grid observed" in line for line in said)


def test_own_rig(run, tmp_path):
    rng = np.random.default_rng(0)
    cv2.imwrite(str(tmp_path / "front.jpg"), rng.integers(0, 255, (90, 160, 3), dtype=np.uint8))
    assert "occupied cells; the nearest" in run("own_rig.py", tmp_path / "front.jpg")


def test_make_labels(run, tmp_path):
    tokens = label_fixtures.make_city(tmp_path / "data", scenes=1)
    assert f"scene-0001: {len(tokens)} labels" in run("make_labels.py", tmp_path / "data", tmp_path / "out", "oracle")
    assert not list(LabelStore(tmp_path / "out").check())


def test_custom_teacher(run, tmp_path):
    """The labels are the plane that it claims, wherever a camera looks at it, and the record says whose they are."""
    (token,) = small_nuscenes.make(tmp_path / "data", keyframes=1, sweeps=0, truth=False)
    run("custom_teacher.py", tmp_path / "data", tmp_path / "out")
    label = load_occ3d(tmp_path / "out" / "scene-0001" / token / "labels.npz")
    assert set(label.labels[label.occupied]) == {OCC3D.id_of("driveable_surface")}
    z_m = label.grid.centers_m()[label.occupied][:, 2]
    assert len(z_m) > 50 and np.abs(z_m).max() <= label.grid.voxel_size_m
    made_with = LabelStore(tmp_path / "out").record["made_with"]
    assert made_with["teacher"] == "own" and made_with["class_teacher"] == "flat-ground-1"


@pytest.mark.slow
def test_train_and_judge(run, tmp_path):
    label_fixtures.make_city(tmp_path / "data", scenes=2, keyframes=2)
    small_nuscenes.make(tmp_path / "data", keyframes=2, sweeps=1, boxes=False, scenes=2)  # with gts/
    said = run("train_and_judge.py", tmp_path / "data", tmp_path / "out", 1)
    assert "scene-0002: IoU" in said
    assert len(list((tmp_path / "out" / "predictions").glob("*.npz"))) == 2
