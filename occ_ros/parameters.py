"""The parameters of the three nodes: name, default, meaning, range."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from occ_core.errors import InvalidInput
from occ_core.grid import OCC3D_GRID
from occ_core.inference.predictor import BACKENDS
from occ_core.mapping.columns import points_a_side
from occ_core.mapping.costs import class_costs
from occ_core.taxonomy import OCC3D
from occ_ros.map_server import MAP_PARAMETERS
from occ_ros.nav_grid import GRID_PARAMETERS
from occ_ros.nav_layers import LAYER_PARAMETERS
from occ_ros.runtime import Parameter, check_values

SURROUND = ["cam_front", "cam_front_right", "cam_back_right", "cam_back", "cam_back_left", "cam_front_left"]

OCCUPANCY_PARAMETERS = (
    Parameter("autostart", True, "Configure and activate at the start; false: a lifecycle manager does."),
    Parameter("model", "", "nano, which ships, or a file: checkpoint (.safetensors), exported (.onnx, .engine)."),
    Parameter("backend", "auto", "What runs the network; auto takes the fastest there is.", choices=BACKENDS),
    Parameter("threads", 2, "CPU threads of the network.", 1, 256),
    Parameter("cameras", SURROUND, "Names of the cameras; they fill in for {camera} in the topic names."),
    Parameter("image_topic", "/{camera}/image_raw/compressed", "Image topic of a camera."),
    Parameter("info_topic", "/{camera}/camera_info", "CameraInfo topic of a camera."),
    Parameter("rig_file", "", "YAML with all cameras and their calibration, in place of cameras, CameraInfo and TF."),
    Parameter(
        "transport", "auto", "Type of the image topics; auto: the type that their publishers have.",
        choices=("auto", "compressed", "raw"),
    ),
    Parameter(
        "image_reliability", "best_effort", "QoS of the image and LiDAR topics; best_effort takes every publisher.",
        choices=("best_effort", "reliable"),
    ),
    Parameter(
        "image_depth", 5, "Images a camera's subscription holds while the node is not scheduled (not for the network).",
        1, 100,
    ),
    Parameter("lidar_topic", "", "PointCloud2 topic of the LiDAR, for a network that takes one; empty: none."),
    Parameter(
        "lidar_max_age_s", 0.15, "How much older than the newest image of a set its sweep may be; newer it may be by "
        "max_spread_s. Both together have to be longer than the sweeps' period. A set waits up to deadline_s for one.",
        0.0, 10.0,
    ),
    Parameter(
        "lidar_intensity_max", 0.0, "Intensity of a return that counts as full; 0: the model's `lidar.intensity_max`.",
        0.0, 1e9,
    ),
    Parameter("base_frame", "base_link", "Frame of the grid: x forward, y left, z up, on the ground."),
    Parameter("deadline_s", 0.15, "Longest wait for the cameras of a set, from its first image.", 0.001, 10.0),
    Parameter(
        "max_spread_s", 0.1, "Largest difference of stamps in a set: above the stagger of the cameras.", 0.0, 10.0,
    ),
    Parameter("offsets_s", [0.0], "How much later than the others each camera takes its image; one number: the same "
              "for all."),
    Parameter("min_cameras", 0, "Sets with fewer cameras are not answered; 0: more than half of them.", 0, 64),
    Parameter(
        "missing_camera", "mask", "An answer without one of the cameras, or without the LiDAR: mask = goes out on all "
        "outputs, blind where only that camera looks; not_current = goes out marked WARN in the diagnostics and not "
        "on ~/grid, ~/nav, ~/segmentation and the fused map.",
        choices=("mask", "not_current"), dynamic=True,
    ),
    Parameter("stale_s", 0.7, "A camera or LiDAR that is silent for longer is reported.", 0.05, 3600.0, dynamic=True),
    Parameter(
        "max_age_s", 0.0, "Images and sweeps older than this on arrival are reported; 0: any (a bag without /clock).",
        0.0, 3600.0, dynamic=True,
    ),
    Parameter(
        "budget_ms", 250.0, "Time from last image to output that is reported when it is exceeded for budget_s.",
        1.0, 60000.0, dynamic=True,
    ),
    Parameter("budget_s", 2.0, "How long the budget may be exceeded.", 0.0, 3600.0, dynamic=True),
    Parameter("marker_rate_hz", 2.0, "Most marker messages a second.", 0.01, 100.0, dynamic=True),
    Parameter("grid_min_z_m", 0.3, "Lower end of the height band of ~/grid.", -100.0, 100.0, dynamic=True),
    Parameter("grid_max_z_m", 2.0, "Upper end of the height band of ~/grid.", -100.0, 100.0, dynamic=True),
    *GRID_PARAMETERS,
    *LAYER_PARAMETERS,
    *MAP_PARAMETERS,
    Parameter("timings_file", "", "Where to write counts and stage times (JSON) at the end; empty: nowhere."),
)  # fmt: skip
DYNAMIC = frozenset(parameter.name for parameter in OCCUPANCY_PARAMETERS if parameter.dynamic)


def check_occupancy(values: Mapping[str, Any], changed: Collection[str]) -> None:
    """Check the `changed` values of the occupancy node, each by itself, and all together.

    Raises:
        InvalidInput: naming the parameter and the limit.
    """
    check_values([parameter for parameter in OCCUPANCY_PARAMETERS if parameter.name in changed], values)
    low_m, high_m = values["grid_min_z_m"], values["grid_max_z_m"]
    if low_m >= high_m:
        raise InvalidInput(f"parameter 'grid_min_z_m' ({low_m}) must be below 'grid_max_z_m' ({high_m})")
    points_a_side(OCC3D_GRID.voxel_size_m, values["costmap_resolution_m"])
    class_costs(OCC3D, values["grid_class_costs"])  # names of other taxonomies pass, too


PLAYER_PARAMETERS = (
    Parameter("bag", "", "Folder of the bag (mcap or sqlite3)."),
    Parameter("rate", 1.0, "Speed; 2 plays twice as fast.", 0.01, 100.0),
    Parameter("start_offset_s", 0.0, "Where to start, from the beginning of the bag.", 0.0, 1e6),
    Parameter("loop", False, "Start again at the end; stamps then jump back."),
    Parameter("clock_hz", 0.0, "Publish /clock this often; 0: not at all.", 0.0, 1000.0),
    Parameter("wait_for_topics", [""], "Start when each of these topics of the bag has its subscribers."),
    Parameter("wait_for_subscribers", 1, "How many subscribers each of wait_for_topics needs.", 1, 100),
    Parameter("wait_timeout_s", 30.0, "Give up waiting after this time, with exit code 1.", 0.0, 3600.0),
    Parameter("start_delay_s", 1.0, "Pause after transforms and calibration, which go first.", 0.0, 60.0),
    Parameter("drain_s", 0.5, "Stay this long after the last message.", 0.0, 60.0),
    Parameter("report_file", "", "Where to write what was played (JSON); empty: nowhere."),
)

EVALUATOR_PARAMETERS = (
    Parameter("cameras", SURROUND, "Names of the cameras; they fill in for {camera}."),
    Parameter("info_topic", "/{camera}/camera_info", "CameraInfo topics; they tell which frames were sent, and when."),
    Parameter("truth_topic", "/ground_truth/occupancy", "True occupancy (PointCloud2 x y z label mask)."),
    Parameter("occupancy_topic", "/occupancy_node/occupancy", "Output of the node."),
    Parameter("lidar_topic", "", "PointCloud2 topic of a LiDAR to judge the answers by as well; empty: none."),
    Parameter("base_frame", "base_link", "As the node's; for lidar_topic."),
    Parameter("map_frame", "odom", "Frame in which the robot moves smoothly; for lidar_topic."),
    Parameter("taxonomy", "occ3d", "What the labels mean.", choices=("occ3d", "semantic_kitti")),
    Parameter("tolerance_s", 0.1, "Truth and answer belong together up to this difference of stamps.", 0.0, 10.0),
    Parameter("max_spread_s", 0.1, "As the node's: largest difference of stamps in a frame.", 0.0, 10.0),
    Parameter("deadline_s", 1.0, "How long to wait for the CameraInfos of a frame.", 0.001, 10.0),
    Parameter("idle_s", 3.0, "End when nothing has come for so long after the first message; 0: never.", 0.0, 3600.0),
    Parameter("start_timeout_s", 60.0, "End with exit code 1 if nothing comes at all; 0: wait for ever.", 0.0, 1e6),
    Parameter("report_file", "report.json", "Where to write the report."),
    Parameter("predictions_dir", "", "Folder for each answer as <stamp_ns>.npz; empty: not saved."),
)
