"""Promises of the package as a whole: no ROS in the core, quick help, one-line errors."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from occ_core.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
ROS = {"rclpy", "sensor_msgs", "std_msgs", "nav_msgs", "geometry_msgs", "visualization_msgs", "diagnostic_msgs"}
ROS |= {"tf2_msgs", "tf2_ros", "cv_bridge", "builtin_interfaces", "ament_index_python", "occ_ros"}
HEAVY = {
    "numpy",
    "cv2",
    "torch",
    "onnx",
    "onnxruntime",
    "numba",
    "nuscenes",
    "rosbags",
    "rerun",
    "matplotlib",
    "scipy",
    "ray",
}


def imported_modules(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", sorted((ROOT / "occ_core").rglob("*.py")), ids=lambda path: path.stem)
def test_core_file_imports_neither_ros_nor_our_ros_package(path):
    assert not imported_modules(path) & ROS


def test_imports_are_found_wherever_they_stand(tmp_path):
    """What the test above relies on: also inside a function, under another name, or of a submodule."""
    path = tmp_path / "late.py"
    path.write_text("import numpy as np\ndef f():\n    from occ_ros.runtime import x\n    import rclpy.node as n\n")
    assert imported_modules(path) == {"numpy", "occ_ros", "rclpy"}


def test_no_room_imports_one_beside_or_above_it():
    """The contracts of pyproject.toml; a line that breaks one is named, with its chain."""
    pytest.importorskip("importlinter")
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    result = subprocess.run(
        [*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_core_imports_where_ros_is_absent():
    """Every module of occ_core imports with all ROS packages made unimportable."""
    code = f"""
import importlib, pkgutil, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {ROS!r}:
            raise ImportError(name + ' is a ROS package')
sys.meta_path.insert(0, Refuse())
import occ_core
names = [m.name for m in pkgutil.walk_packages(occ_core.__path__, 'occ_core.')]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 20


def test_help_imports_nothing_heavy():
    code = "import sys, occ_core.cli.main; print(' '.join(sorted({m.split('.')[0] for m in sys.modules})))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not HEAVY & set(result.stdout.split())


def run_occ(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "occ_core.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_every_command_has_help_with_an_example():
    top = run_occ("--help")
    assert top.returncode == 0
    commands = [("world", "make"), ("world", "show"), ("world", "stats"), ("bag", "make")]
    commands += [("labels", name) for name in ("make", "check", "show", "score")]
    commands += [("bench", "labels")]
    commands += [("train",), ("predict",), ("eval",), ("export",), ("view",)]
    for command in commands:
        result = CliRunner().invoke(app, [*command, "--help"])
        assert result.exit_code == 0, (command, result.output)
        assert "Example" in result.output, f"help of occ {' '.join(command)} shows no example"


def test_a_mistake_is_one_line_without_a_stack_trace(tmp_path):
    result = run_occ("eval", str(tmp_path / "nothing"), str(tmp_path / "nowhere"))
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert "nothing" in result.stderr or "nowhere" in result.stderr
