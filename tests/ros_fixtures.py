"""What the tests of the nodes share: a small model, a small bag, nodes as processes on a DDS domain of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from model_fixtures import ring_rig
from rosbags.rosbag2 import StoragePlugin, Writer

from occ_core.bags import messages as msg
from occ_core.camera import Camera, Rig
from occ_core.clouds import truth_points
from occ_core.geometry import pose, quaternion_from_rotation
from occ_core.models.checkpoint import describe, save_checkpoint
from occ_core.models.easyocc.config import EasyOccConfig
from occ_core.models.easyocc.model import EasyOcc
from occ_core.models.easyocc.table import build_table
from occ_core.network_input.preprocess import Preprocess
from occ_core.occupancy import Occupancy

START = 1_700_000_000_000_000_000
PERIOD_NS = 500_000_000
STAGGER_NS = 8_000_000
RIG = ring_rig((160, 90))
CONFIG = EasyOccConfig(
    name="tiny",
    input_width=64,
    input_height=32,
    depth_bins=8,
    feature_channels=4,
    pillar_heights=4,
    neck_channels=8,
    bev_channels=(8, 8, 8),
    head_channels=8,
)  # on the grid of Occ3D
REMEMBERING = CONFIG.model_copy(update={"memory_channels": 7})


def tiny_model(folder: Path, config: EasyOccConfig = CONFIG) -> Path:
    """A random network that calls a few cells in a hundred occupied, others for other images."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = EasyOcc(config).train()
    table = build_table(RIG, config)
    rays = [torch.from_numpy(array) for array in (table.voxel_index, table.pillar_index, table.rays)]
    preprocess = Preprocess(config.input_width, config.input_height)
    with torch.no_grad():
        model.to_occupied.weight.normal_(std=1.0)
        if model.birds_eye.memory is not None:
            model.birds_eye.memory.change.weight.normal_(std=1.0)
        for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.momentum = None  # plain mean over the passes below
        for index in range(3):  # lets the batch norms find their range, without which the output is constant
            batch = np.stack([preprocess.image(image) for image in images(index).values()])
            occupied = model(torch.from_numpy(batch), *rays)[0]
        model.to_occupied.bias -= torch.quantile(occupied.flatten()[::37], 0.96)
    path = folder / "tiny.safetensors"
    save_checkpoint(path, model.state_dict(), describe(config, {}))
    return path


def images(index: int, rig: Rig = RIG) -> dict[str, np.ndarray]:
    """RGB by camera; smooth, so that JPEG changes little."""
    rng = np.random.default_rng(index)
    small = {camera.name: rng.integers(0, 256, (6, 10, 3), dtype=np.uint8) for camera in rig}
    return {name: cv2.resize(image, rig[name].size, interpolation=cv2.INTER_CUBIC) for name, image in small.items()}


def jpeg(rgb: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", rgb[..., ::-1])[1].tobytes()


def stamps(index: int, rig: Rig = RIG) -> dict[str, int]:
    return {camera.name: START + index * PERIOD_NS + i * STAGGER_NS for i, camera in enumerate(rig)}


def rig_over_tf(rig: Rig = RIG) -> Rig:
    """The rig as a node sees it: TF carries quaternions, whose rounding can move a border cell to its neighbour."""
    poses = {c.name: pose(c.ego_from_cam[:3, 3], quaternion_from_rotation(c.ego_from_cam[:3, :3])) for c in rig}
    return Rig(tuple(Camera(c.name, c.intrinsics, c.size, poses[c.name]) for c in rig))


def camera_frame(name: str) -> str:
    return f"{name}_optical_frame"


def static_transforms(rig: Rig = RIG):
    return msg.transforms(START, [("base_link", camera_frame(c.name), c.ego_from_cam) for c in rig])


def write_bag(
    path: Path,
    frames: int,
    rig: Rig = RIG,
    truth: dict[int, Occupancy] | None = None,
    storage: StoragePlugin = StoragePlugin.MCAP,
    tf: bool = True,
    clouds: dict[str, np.ndarray] | None = None,
) -> Path:
    """A bag of `frames` sets of images, with the truth of some of them and `clouds` by topic, stamped as the newest
    image."""
    connections = {}
    with Writer(path, version=8, storage_plugin=storage) as writer:

        def write(topic, stamp_ns, message):
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, message.__msgtype__, typestore=msg.store())
            writer.write(connections[topic], stamp_ns, bytes(msg.serialize(message)))

        if tf:
            write("/tf_static", START, static_transforms(rig))
        for index in range(frames):
            pixels = images(index, rig)
            for camera in rig:
                stamp_ns, frame = stamps(index, rig)[camera.name], camera_frame(camera.name)
                write(f"/{camera.name}/camera_info", stamp_ns, msg.camera_info(stamp_ns, frame, camera))
                data = msg.compressed_image(stamp_ns, frame, "jpeg", jpeg(pixels[camera.name]))
                write(f"/{camera.name}/image_raw/compressed", stamp_ns, data)
            for topic, points in (clouds or {}).items():
                write(topic, stamp_ns, msg.cloud(stamp_ns, "base_link", points))
            if truth and index in truth:
                write("/ground_truth/occupancy", stamp_ns, msg.cloud(stamp_ns, "base_link", truth_points(truth[index])))
    return path


def environment(domain: int) -> dict[str, str]:
    return os.environ | {
        "ROS_DOMAIN_ID": str(domain),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "OMP_NUM_THREADS": "1",
        "RCUTILS_COLORIZED_OUTPUT": "0",
    }


def start_node(module: str, domain: int, log: Path, **parameters) -> subprocess.Popen:
    """Start `python -m occ_ros.<module>` with parameters; output goes to `log`."""
    command = [sys.executable, "-m", f"occ_ros.{module}", *ros_args(parameters)]
    with open(log, "w") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment(domain))


def ros_args(parameters: dict) -> list[str]:
    """What a node's command ends with."""
    return ["--ros-args", *(arg for name, value in parameters.items() for arg in ("-p", f"{name}:={yaml_of(value)}"))]


def yaml_of(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{','.join(str(v) for v in value)}]" if isinstance(value, list | tuple) else str(value)


def finish(process: subprocess.Popen, timeout_s: float = 30.0) -> int:
    """Wait for the end; a node that hangs is killed and fails the test."""
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def stop(process: subprocess.Popen, with_signal: int = signal.SIGINT, timeout_s: float = 60.0) -> int:
    if process.poll() is None:
        process.send_signal(with_signal)
    return finish(process, timeout_s)


def wait_for(condition, timeout_s: float = 15.0, what: str = "condition"):
    """The first true value of `condition()`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {timeout_s} s")
