"""A small robot of somebody else, whose messages become a bag: a fixture of tests on bags as a source."""

import functools
from pathlib import Path

import cv2
import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer

from occ_core.bags import messages as msg
from occ_core.camera import Camera
from occ_core.geometry import pose, quaternion_from_rotation

S = 10**9
T0 = 1_000 * S
OPTICAL = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
W, H = 32, 24


def base_from(sensor: str) -> np.ndarray:
    """Places of the sensors on this robot."""
    height = {"left": 0.2, "right": -0.2}.get(sensor, 0.0)
    return pose((0.5, height, 1.0), quaternion_from_rotation(OPTICAL))


@functools.cache
def picture(seed: int) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return cv2.resize(small, (W, H), interpolation=cv2.INTER_CUBIC)


class Robot:
    """Collects messages and writes them in the order of their log times."""

    def __init__(self):
        self.messages = []
        self.qos = {}  # topic -> what its publishers offered

    def add(self, topic, stamp_ns, message, delay_ns=0):
        self.messages.append((stamp_ns + delay_ns, topic, message))

    def image(self, name, stamp_ns, seed, topic="image_raw", **extra):
        self.add(f"/{name}/{topic}", stamp_ns, msg.image(stamp_ns, f"{name}_optical", picture(seed)), **extra)

    def info(self, name, stamp_ns, model="plumb_bob", d=(0.0,) * 5, frame=None, k=None, p=None):
        info = msg.camera_info(stamp_ns, f"{name}_optical", _camera())
        info.distortion_model, info.d = model, np.array(d, dtype=np.float64)
        if frame is not None:
            info.header.frame_id = frame
        if k is not None:
            info.k = np.array(k, dtype=np.float64).ravel()
        if p is not None:
            info.p = np.array(p, dtype=np.float64).ravel()
        self.add(f"/{name}/camera_info", stamp_ns, info)

    def static(self, *names, parent="base_link"):
        links = [(parent, f"{name}_optical", base_from(name)) for name in names]
        self.add("/tf_static", T0, msg.transforms(T0, links))

    def moving(self, parent="odom", child="base_link", seconds=3):
        for step in range(seconds * 10 + 1):
            stamp = T0 + step * S // 10
            self.add("/tf", stamp, msg.transforms(stamp, [(parent, child, pose((step * 0.1, 0, 0)))]))

    def write(self, path, storage=StoragePlugin.MCAP) -> Path:
        with Writer(path, version=8, storage_plugin=storage) as writer:
            connections = {}
            for stamp, topic, message in sorted(self.messages, key=lambda entry: entry[0]):
                if topic not in connections:
                    kind, qos = message.__msgtype__, self.qos.get(topic, ())
                    connections[topic] = writer.add_connection(
                        topic, kind, typestore=msg.store(), offered_qos_profiles=qos
                    )
                writer.write(connections[topic], stamp, msg.serialize(message))
        return path


def _camera():
    return Camera("any", np.array([[20.0, 0, 15.5], [0, 21, 11.5], [0, 0, 1]]), (W, H), np.eye(4))


def robot(names=("left", "right"), images=10, tf=True) -> Robot:
    """10 Hz cameras, the second 20 ms later."""
    made = Robot()
    for number, name in enumerate(names):
        for step in range(images):
            stamp = T0 + step * S // 10 + number * 20_000_000
            made.image(name, stamp, seed=100 * number + step)
            made.info(name, stamp)
    if tf:
        made.static(*names)
        made.moving()
    return made
