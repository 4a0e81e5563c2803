"""What a newcomer meets first: `import occ_core`, names of what ships, and one line for each extra that is missing."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import occ_core
from occ_core import shipped
from occ_core.errors import EXTRAS, MissingInput

PACKAGE = Path(occ_core.__file__).parent
ROOT = PACKAGE.parent
HIDE = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)
sys.meta_path.insert(0, Hide())
"""


def python(code: str, *, cwd: Path, hidden: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run code that imports the packages under test, in another folder, where some modules are not there."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HIDE.format(hidden=hidden) + code]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_the_door_is_light_and_each_name_leads_to_its_home(tmp_path):
    code = """
import occ_core
heavy = {'numpy', 'cv2', 'torch', 'numba', 'pydantic', 'tempfile'} & set(sys.modules)
assert not heavy, heavy
assert set(occ_core.__all__) <= set(dir(occ_core))
for name in ('VoxelGrid', 'Taxonomy', 'Camera', 'Rig', 'Frame', 'Occupancy', 'open_source', 'Predictor', 'evaluate'):
    assert getattr(occ_core, name).__name__ == name
assert 'torch' not in sys.modules
try:
    occ_core.Voxelgrid
except AttributeError as error:
    print(error)
"""
    result = python(code, cwd=tmp_path)
    assert result.stdout == "module 'occ_core' has no attribute 'Voxelgrid'\n", result.stderr


def test_type_checkers_are_told_the_same_homes():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    found_homes = {
        alias.name: node.module for node in checked.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert found_homes == {name: f"occ_core.{home}" for name, home in occ_core._HOMES.items()}
    assert sorted(found_homes) == occ_core.__all__


def test_what_ships_is_found_from_any_folder(tmp_path, monkeypatch):
    from occ_core.training.config import load_config

    monkeypatch.chdir(tmp_path)
    assert load_config("easyocc_nano", steps=3).steps == 3
    assert shipped.network_file("nano").is_file() and shipped.network_file("nano").with_suffix(".json").is_file()
    (tmp_path / "easyocc_nano").write_text("steps: 7")  # one's own file comes first
    assert load_config("easyocc_nano").steps == 7
    with pytest.raises(MissingInput, match="easyocc_giant: no such config file, nor .* easyocc_base, easyocc_nano"):
        load_config("easyocc_giant")
    with pytest.raises(MissingInput, match="giant: no such model, nor the name of one that ships: nano"):
        occ_core.Predictor.load("giant")


def test_every_preset_is_a_config(tmp_path):
    from occ_core.training.config import load_config

    names = shipped.presets()
    assert {"easyocc_nano", "easyocc_base", "occnerf", "selfocc", "occle_small"} <= set(names)
    for name in names:
        assert load_config(name).model.kind


def test_data_and_type_marks_are_in_the_wheel(monkeypatch):
    """Each file that is found by name matches a pattern of setup.py's package_data."""
    given_to_setup = _setup(monkeypatch)
    files = [*(PACKAGE / "assets").iterdir(), *(PACKAGE / "presets").iterdir(), PACKAGE / "py.typed"]
    for file in [*files, ROOT / "occ_ros" / "py.typed"]:
        package, within = file.relative_to(ROOT).parts[0], Path(*file.relative_to(ROOT).parts[1:])
        assert any(within.match(pattern) for pattern in given_to_setup["package_data"][package]), file


def _setup(monkeypatch) -> dict:
    given_to_setup: dict = {}
    monkeypatch.setattr("setuptools.setup", lambda **given: given_to_setup.update(given))
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    return given_to_setup


def test_every_extra_brings_the_modules_that_are_said_to_be_its(monkeypatch):
    extras = _setup(monkeypatch)["extras_require"]
    named = {extra: {_plain(re.split(r"[<>=\[; ]", line)[0]) for line in lines} for extra, lines in extras.items()}
    assert set(EXTRAS) == set(extras) - {"dev", "docs", "all"}
    known = importlib.metadata.packages_distributions()
    brought_by_another = {"lz4", "tf2_msgs", "vision_msgs"}  # by rosbags; by tools/build_messages.py
    for extra, modules in EXTRAS.items():
        for module in set(modules) - brought_by_another:
            if extra != "ros" and module in known:
                assert {_plain(name) for name in known[module]} & named[extra], f"'{extra}' does not bring {module}"


def _pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_the_constraints_for_numpy_1_and_2_differ_only_where_numpy_decides():
    two, one = _pins("constraints.txt"), _pins("constraints-numpy1.txt")
    assert two["numpy"].startswith("2.") and one["numpy"].startswith("1.26.")
    assert set(two) == set(one)
    assert {name for name in one if two[name] != one[name]} == {
        "numpy", "opencv-python-headless", "ml_dtypes", "rerun-sdk"
    }  # fmt: skip


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


MISSING = {
    "train easyocc_nano --data x": "torch",
    "predict nano x out --backend torch": "torch",
    "export nano out.onnx": "torch",
    "bench step easyocc_small x": "torch",
    "bag make x out --scene s": "bags",
    "bag check x.mcap": "bags",
    "world make out": "world",
    "labels make x out --teacher oracle": "world",
    "predict nano.onnx x out": "openvino",
    "doctor": "ros",
}


def test_a_missing_extra_is_one_line_that_names_it(tmp_path):
    """Each command where no extra is installed; in one process, for imports take their time."""
    (tmp_path / "x").mkdir()
    for name in ("x.mcap", "x.yaml", "nano.onnx"):
        (tmp_path / name).touch()
    code = f"""
from occ_core.cli.main import main
for line in {list(MISSING)!r}:
    sys.argv = ['occ', *line.split()]
    try:
        main()
        print('nothing was missing', file=sys.stderr)
    except SystemExit as end:
        assert end.code == 2, (line, end.code)
"""
    result = python(code, cwd=tmp_path, hidden=tuple(module for modules in EXTRAS.values() for module in modules))
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == len(MISSING), result.stderr
    for (command, extra), line in zip(MISSING.items(), lines, strict=True):
        assert line.startswith("error: this needs the Python package "), (command, line)
        assert f"pip install 'occ_ros[{extra}]'" in line, (command, line)


def test_a_node_without_ros_says_so_in_one_line(tmp_path):
    code = """
from occ_ros import commands
for node in (commands.occupancy_node, commands.player_node, commands.evaluator_node):
    try:
        node()
    except SystemExit as end:
        assert end.code == 2
"""
    result = python(code, cwd=tmp_path, hidden=("rclpy",))
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 3, result.stderr
    for line in lines:
        assert "source a ROS 2 installation" in line and "pip install 'occ_ros[ros]'" in line


def test_a_name_of_the_door_says_which_extra_it_needs(tmp_path):
    code = "import occ_core\ntry:\n    occ_core.train\nexcept ImportError as error:\n    print(error)"
    result = python(code, cwd=tmp_path, hidden=("torch",))
    assert "pip install 'occ_ros[torch]'" in result.stdout, result.stderr


def test_a_module_of_no_extra_is_an_error_of_ours_and_keeps_its_trace(tmp_path):
    result = python("from occ_core.errors import naming_extras\nwith naming_extras():\n    import numpie", cwd=tmp_path)
    assert "Traceback" in result.stderr and "ModuleNotFoundError: No module named 'numpie'" in result.stderr
