"""The launch files with the real `launch` and `launch_ros`, where they are installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

pytest.importorskip(
    "launch_ros", reason="needs launch and launch_ros, which come with a ROS 2 installation, not from PyPI"
)
pytest.importorskip("launch")
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction, SetEnvironmentVariable
from launch.launch_description_sources import PythonLaunchDescriptionSource

from launch import LaunchContext, LaunchDescription, LaunchService

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


def description(name):
    return PythonLaunchDescriptionSource(str(LAUNCH / name)).get_launch_description(LaunchContext())


@pytest.mark.parametrize(
    "name, required",
    [("occupancy.launch.py", set()), ("replay.launch.py", {"model", "bag"})],
)
def test_arguments_are_declared_and_explained(name, required):
    arguments = [e for e in description(name).entities if isinstance(e, DeclareLaunchArgument)]
    assert {argument.name for argument in arguments if argument.default_value is None} == required
    assert all(len(argument.description) > 5 for argument in arguments)
    assert {"cameras", "info_topic", "backend"} <= {argument.name for argument in arguments}


@pytest.mark.parametrize("name", ["occupancy.launch.py", "replay.launch.py"])
def test_every_launch_file_sets_the_shared_memory_profile(name):
    entities = description(name).entities
    context = LaunchContext()
    for argument in (e for e in entities if isinstance(e, DeclareLaunchArgument) and e.default_value is not None):
        argument.execute(context)
    for entity in entities:
        if isinstance(entity, OpaqueFunction):
            entity.execute(context)[0].execute(context)
        elif isinstance(entity, SetEnvironmentVariable):
            entity.execute(context)
    profile = Path(context.environment["FASTDDS_DEFAULT_PROFILES_FILE"])
    assert "segment_size" in profile.read_text()


def test_what_is_not_given_is_as_the_parameter_file_says():
    context = LaunchContext()
    context.launch_configurations["cameras"] = "[front, rear]"
    for entity in description("occupancy.launch.py").entities:
        if isinstance(entity, DeclareLaunchArgument):
            entity.execute(context)
        elif isinstance(entity, OpaqueFunction):
            node = entity.execute(context)[1]
    node._perform_substitutions(context)
    given_parameters = [
        yaml.safe_load(Path(name).read_text()) for name, is_file in node._Node__expanded_parameter_arguments if is_file
    ]
    assert given_parameters[0]["/**"]["ros__parameters"]["max_spread_s"] == 0.1
    (given,) = (part["ros__parameters"] for part in given_parameters[1].values())
    assert given == {"cameras": ["front", "rear"]}


@pytest.mark.ros
def test_replay_for_real(tmp_path, monkeypatch):
    """Needs the package installed by colcon or apt, so that launch finds its executables."""
    packages = pytest.importorskip("ament_index_python.packages")
    try:
        prefix = Path(packages.get_package_prefix("occ_ros"))
    except (packages.PackageNotFoundError, OSError):  # OSError: AMENT_PREFIX_PATH is not set
        pytest.skip("occ_ros is not installed in an ament prefix (colcon build)")
    if not (prefix / "lib" / "occ_ros" / "occupancy_node").is_file():
        pytest.skip(f"{prefix}/lib/occ_ros has no executables: installed by pip, not by colcon")
    import ros_fixtures as fx

    for name, value in fx.environment(99).items():
        monkeypatch.setenv(name, value)
    model = fx.tiny_model(tmp_path)
    arguments = {
        "bag": fx.write_bag(tmp_path / "bag", 4),
        "model": model,
        "backend": "torch",
        "cameras": f"[{', '.join(fx.RIG.names)}]",
        "report": tmp_path / "report.json",
    }
    include = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(LAUNCH / "replay.launch.py")),
        launch_arguments=[(name, str(value)) for name, value in arguments.items()],
    )
    service = LaunchService()
    service.include_launch_description(LaunchDescription([include]))
    assert service.run() == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["frames_sent"] == 4
    assert report["frames_unreported"] == 0
