"""A bag through the occupancy node, judged by the evaluator; ends by itself and leaves a report.

ros2 launch occ_ros replay.launch.py bag:=/path/bag model:=/path/nano.safetensors report:=report.json
"""

import os

from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    IncludeLaunchDescription,
    RegisterEventHandler,
    SetEnvironmentVariable,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PythonExpression
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription

HERE = os.path.dirname(os.path.abspath(__file__))
PROFILE = os.path.join(HERE, os.pardir, "config", "fastdds.xml")
SURROUND = "[cam_front, cam_front_right, cam_back_right, cam_back, cam_back_left, cam_front_left]"


def stop_if_failed(event, _):
    """Without a bag there is nothing to wait for."""
    return [EmitEvent(event=Shutdown(reason="the player failed"))] if event.returncode else []


def generate_launch_description():
    cameras = ParameterValue(LaunchConfiguration("cameras"), value_type=list[str])
    info_topic = ParameterValue(LaunchConfiguration("info_topic"), value_type=str)
    # The player starts when node and evaluator both listen to the first camera.
    first = ["'", LaunchConfiguration("cameras"), "'.strip('[] ').split(',')[0].strip()"]
    wait = PythonExpression(["['", LaunchConfiguration("info_topic"), "'.replace('{camera}', ", *first, ")]"])
    node = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(os.path.join(HERE, "occupancy.launch.py")),
        launch_arguments=[
            (name, LaunchConfiguration(name)) for name in ("model", "backend", "cameras", "info_topic", "lidar_topic")
        ],
    )
    evaluator = Node(
        package="occ_ros",
        executable="evaluator_node",
        name="evaluator_node",
        output="screen",
        parameters=[
            {
                "cameras": cameras,
                "info_topic": info_topic,
                "report_file": ParameterValue(LaunchConfiguration("report"), value_type=str),
            }
        ],
    )
    player = Node(
        package="occ_ros",
        executable="player_node",
        name="player_node",
        output="screen",
        parameters=[
            {
                "bag": ParameterValue(LaunchConfiguration("bag"), value_type=str),
                "rate": ParameterValue(LaunchConfiguration("rate"), value_type=float),
                "wait_for_topics": ParameterValue(wait, value_type=list[str]),
                "wait_for_subscribers": 2,
            }
        ],
    )
    return LaunchDescription(
        [
            DeclareLaunchArgument("bag", description="folder of the bag"),
            DeclareLaunchArgument("model", description="checkpoint (.safetensors) or exported model (.onnx)"),
            DeclareLaunchArgument("backend", default_value="auto", description="what runs the network"),
            DeclareLaunchArgument("lidar_topic", default_value="", description="PointCloud2 topic of the bag's LiDAR"),
            DeclareLaunchArgument("rate", default_value="1.0", description="how fast the bag plays"),
            DeclareLaunchArgument("report", default_value="report.json", description="where the report goes"),
            DeclareLaunchArgument("cameras", default_value=SURROUND, description="names of the cameras, a YAML list"),
            DeclareLaunchArgument("info_topic", default_value="/{camera}/camera_info", description="CameraInfo topic"),
            SetEnvironmentVariable("FASTDDS_DEFAULT_PROFILES_FILE", PROFILE),  # for the player above all
            node,
            evaluator,
            player,
            RegisterEventHandler(OnProcessExit(target_action=evaluator, on_exit=[EmitEvent(event=Shutdown())])),
            RegisterEventHandler(OnProcessExit(target_action=player, on_exit=stop_if_failed)),
        ]
    )
