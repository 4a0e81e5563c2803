"""The occupancy node with its parameters, on live cameras.

ros2 launch occ_ros occupancy.launch.py model:=/path/nano.safetensors cameras:="[front, rear]"

With autostart:=false the node waits: ros2 lifecycle set /occupancy_node configure, then activate.
"""

import os

from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription

SHARE = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
PARAMETERS = {  # of the node: type, what it is; one that is not given is as params_file says
    "model": (str, "checkpoint (.safetensors) or exported model (.onnx)"),
    "backend": (str, "what runs the network; auto takes the fastest there is"),
    "cameras": (list[str], "names of the cameras, as a YAML list"),
    "image_topic": (str, "image topic of a camera, such as /{camera}/image_raw/compressed"),
    "info_topic": (str, "CameraInfo topic of a camera, such as /{camera}/camera_info"),
    "lidar_topic": (str, "PointCloud2 topic of the LiDAR, for a network that takes one"),
    "base_frame": (str, "frame of the grid"),
    "rig_file": (str, "YAML with all cameras and their calibration, in place of cameras, CameraInfo and TF"),
    "autostart": (bool, "configure and activate at the start; false: a lifecycle manager does"),
    "use_sim_time": (bool, "follow /clock"),
}
FILES = {
    "params_file": (os.path.join(SHARE, "config", "occupancy_node.yaml"), "all parameters"),
    "fastdds_profile": (os.path.join(SHARE, "config", "fastdds.xml"), "shared memory large enough for images"),
}


def start(context):
    given = {
        name: ParameterValue(LaunchConfiguration(name), value_type=kind)
        for name, (kind, _) in PARAMETERS.items()
        if LaunchConfiguration(name).perform(context)
    }
    node = Node(
        package="occ_ros",
        executable="occupancy_node",
        name="occupancy_node",
        output="screen",
        parameters=[LaunchConfiguration("params_file"), *([given] if given else [])],
    )
    return [SetEnvironmentVariable("FASTDDS_DEFAULT_PROFILES_FILE", LaunchConfiguration("fastdds_profile")), node]


def generate_launch_description():
    parameters = [
        DeclareLaunchArgument(name, default_value="", description=f"{text} (default: as params_file says)")
        for name, (_, text) in PARAMETERS.items()
    ]
    files = [DeclareLaunchArgument(name, default_value=path, description=text) for name, (path, text) in FILES.items()]
    return LaunchDescription([*parameters, *files, OpaqueFunction(function=start)])
