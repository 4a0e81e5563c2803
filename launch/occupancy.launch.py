"""The occupancy node with its parameters, on live cameras.

ros2 launch occ_ros occupancy.launch.py model:=/path/nano.safetensors cameras:="[front, rear]"

With autostart:=false the node waits: ros2 lifecycle set /occupancy_node configure, then activate.
"""

import os

from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription

SHARE = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
SURROUND = "[cam_front, cam_front_right, cam_back_right, cam_back, cam_back_left, cam_front_left]"
ARGUMENTS = {
    "model": (None, "checkpoint (.safetensors) or exported model (.onnx)"),
    "backend": ("auto", "what runs the network; auto takes the fastest there is"),
    "cameras": (SURROUND, "names of the cameras, as a YAML list"),
    "image_topic": ("/{camera}/image_raw/compressed", "image topic of a camera"),
    "info_topic": ("/{camera}/camera_info", "CameraInfo topic of a camera"),
    "base_frame": ("base_link", "frame of the grid"),
    "rig_file": ("", "YAML with all cameras and their calibration, in place of cameras, CameraInfo and TF"),
    "autostart": ("true", "configure and activate at the start; false: a lifecycle manager does"),
    "params_file": (os.path.join(SHARE, "config", "occupancy_node.yaml"), "all other parameters"),
    "use_sim_time": ("false", "follow /clock"),
    "fastdds_profile": (os.path.join(SHARE, "config", "fastdds.xml"), "shared memory large enough for images"),
}


def generate_launch_description():
    arguments = [
        DeclareLaunchArgument(name, description=text, **({} if default is None else {"default_value": default}))
        for name, (default, text) in ARGUMENTS.items()
    ]
    texts = ("model", "backend", "image_topic", "info_topic", "base_frame", "rig_file")
    overrides = {name: ParameterValue(LaunchConfiguration(name), value_type=str) for name in texts}
    overrides["cameras"] = ParameterValue(LaunchConfiguration("cameras"), value_type=list[str])
    for name in ("use_sim_time", "autostart"):
        overrides[name] = ParameterValue(LaunchConfiguration(name), value_type=bool)
    return LaunchDescription(
        [
            *arguments,
            SetEnvironmentVariable("FASTDDS_DEFAULT_PROFILES_FILE", LaunchConfiguration("fastdds_profile")),
            Node(
                package="occ_ros",
                executable="occupancy_node",
                name="occupancy_node",
                output="screen",
                parameters=[LaunchConfiguration("params_file"), overrides],
            ),
        ]
    )
