"""Bags of valid messages with odd values: whatever is odd leaves the answer as it was, or is named.

Of three cameras `front` is the key camera and never odd; each case changes one thing of another camera, or of
transforms that no camera needs. Cameras that are not odd have to keep all of their images, calibration and poses.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bag_robot import T0, Robot, S, base_from, robot

from occ_core.bags import messages as msg
from occ_core.geometry import pose
from occ_core.sources.bag import BagSource

CAMERAS = "front", "left", "right"
FRAMES = 12
Odd = Callable[[Robot, str, random.Random], None]


def of(made: Robot, topic: str) -> list[Any]:
    return [message for _, name, message in made.messages if name == topic]


def images(made: Robot, camera: str) -> list[Any]:
    return of(made, f"/{camera}/image_raw")


def infos(made: Robot, camera: str) -> list[Any]:
    return of(made, f"/{camera}/camera_info")


def on_infos(**fields: Callable[[random.Random], Any]) -> Odd:
    """The same odd value in all CameraInfos, or only in the first ones."""

    def change(made: Robot, camera: str, rng: random.Random) -> None:
        values = {name: make(rng) for name, make in fields.items()}
        found = infos(made, camera)
        for message in found[: rng.choice((1, 3, len(found)))]:
            for name, value in values.items():
                setattr(message, name, value)

    return change


def shifted(message: Any, by_ns: int) -> None:
    stamp = message.header.stamp
    message.header.stamp = msg.header(max(0, stamp.sec * S + stamp.nanosec + by_ns), "").stamp


def clock(made: Robot, camera: str, rng: random.Random) -> None:
    by_s = rng.choice((-3600, -37, -10, -1.2, 0.6, 1, 10, 37, 3600, 10**8))
    for message in images(made, camera):
        shifted(message, round(by_s * S))


def one_stamp(made: Robot, camera: str, rng: random.Random) -> None:
    shifted(rng.choice(images(made, camera)[1:-1]), rng.choice((-(10**18), -60 * S, 60 * S, 3600 * S)))


def late(made: Robot, camera: str, rng: random.Random) -> None:
    by_ns = rng.choice((10**6, 3 * 10**8, 9 * 10**8, 3 * S))
    made.messages = [(log + by_ns * name.startswith(f"/{camera}/"), name, m) for log, name, m in made.messages]


def encoding(made: Robot, camera: str, rng: random.Random) -> None:
    odd = rng.choice(("16UC1", "32FC1", "mono16", "rgb16", "bayer_rggb12", "nv21", "", "jpeg", "x" * 300))
    found = images(made, camera)
    for message in found[: rng.choice((1, len(found)))]:
        message.encoding = odd


def shape(made: Robot, camera: str, rng: random.Random) -> None:
    found = images(made, camera)
    for message in found[: rng.choice((1, len(found)))]:
        name = rng.choice(("width", "height", "step", "data"))
        setattr(message, name, message.data[:100] if name == "data" else rng.choice((0, 1, 7, 31, 2**31)))


def fewer(made: Robot, camera: str, rng: random.Random) -> None:
    lost = {id(message) for message in images(made, camera)[rng.choice((0, 1, 3)) :]}
    made.messages = [entry for entry in made.messages if id(entry[2]) not in lost]


def frame(made: Robot, camera: str, rng: random.Random) -> None:
    odd = rng.choice(("", "nobody", f"/{camera}_optical", "base_link", "x" * 300))
    for message in infos(made, camera):
        message.header.frame_id = odd


def binning(made: Robot, camera: str, rng: random.Random) -> None:
    """Of the sensor, as REP 104 has it, with which the images are as they were; or of a size that does not fit."""
    x, y = rng.choice(((2, 2), (1, 2), (4, 1), (100, 100)))
    fits = rng.random() < 0.5
    for message in infos(made, camera):
        message.binning_x, message.binning_y = x, y
        message.width, message.height = message.width * x * (1 if fits else 3), message.height * y
        message.k = message.k * np.repeat([x, y, 1], 3)


def transform(made: Robot, camera: str, rng: random.Random) -> None:
    """Beside those of the cameras: no number, no name, loops, other parents of frames that no camera needs."""
    links = [("arm", "hand"), ("hand", "arm"), ("a", "a"), ("", "b"), ("b", ""), ("x" * 300, "b"), ("odom", "hand")]
    for _ in range(rng.randrange(1, 6)):
        message = msg.transforms(T0, [(*rng.choice(links), base_from("left"))])
        place = message.transforms[0].transform
        place.translation.x = rng.choice((0.0, math.nan, math.inf, 1e300))
        place.rotation.w = rng.choice((1.0, 0.0, math.nan))
        made.add(rng.choice(("/tf", "/tf_static", "/other/tf")), T0 + rng.randrange(S), message)


def odometry(made: Robot, camera: str, rng: random.Random) -> None:
    for step in range(5):
        message = msg.odometry(T0 + step * S // 10, pose((9, 9, 9)), np.zeros(3), np.zeros(3))
        message.child_frame_id = rng.choice(("", "odom", "base_link", "imu"))
        made.add("/wheels", T0 + step * S // 10, message)


def second_transport(made: Robot, camera: str, rng: random.Random) -> None:
    for message in images(made, camera)[: rng.choice((1, 3, FRAMES))]:
        stamp_ns = message.header.stamp.sec * S + message.header.stamp.nanosec
        garbage = msg.compressed_image(stamp_ns, f"{camera}_optical", "jpeg", b"\xff\xd8\xff")
        made.add(f"/{camera}/image_raw/compressed", stamp_ns, garbage)


ODD: dict[str, Odd] = {
    "clock": clock,
    "one stamp": one_stamp,
    "late": late,
    "encoding": encoding,
    "shape": shape,
    "fewer": fewer,
    "frame": frame,
    "binning": binning,
    "transform": transform,
    "odometry": odometry,
    "second transport": second_transport,
    "D": on_infos(d=lambda rng: np.array([rng.choice((math.nan, 1e9))] * rng.choice((4, 5, 8)))),
    "length of D": on_infos(d=lambda rng: np.full(rng.choice((1, 2, 3, 6, 7, 9, 13, 15)), 0.01)),
    # not "fisheye": with four zeros that is another lens, not an odd value
    "model": on_infos(distortion_model=lambda rng: rng.choice(("magic", "", "x" * 300))),
    "K": on_infos(k=lambda rng: np.full(9, rng.choice((0.0, math.nan, -1.0, 1e12)))),
    "R and P of images as they are": on_infos(
        r=lambda rng: np.full(9, rng.choice((0.0, math.nan, 7.0))),
        p=lambda rng: np.full(12, rng.choice((0.0, math.nan))),
    ),
    "size": on_infos(width=lambda rng: rng.choice((0, 1, 64, 31, 2**31)), height=lambda rng: rng.choice((24, 0, 48))),
}


def answer(source: BagSource) -> dict[int, dict[str, tuple[Any, ...]]]:
    """By key stamp: of each image its stamp, calibration and pose."""
    frames = {}
    for found in source:
        frames[found.stamp_ns] = {
            name: (
                found.camera_stamp_ns[name],
                found.rig[name].intrinsics.tobytes(),
                found.rig[name].distortion,
                np.round(found.rig[name].ego_from_cam, 9).tobytes(),
                np.round(found.camera_world_from_ego[name], 9).tobytes(),
            )
            for name in found.images
        }
    return frames


def finding(folder: Path, seed: int) -> str:
    """What one odd bag shows that should not be; empty if nothing."""
    rng = random.Random(seed)
    name, camera = rng.choice(sorted(ODD)), rng.choice(CAMERAS[1:])
    options = {"max_spread_s": 0.045}
    expected = answer(BagSource(robot(CAMERAS, FRAMES).write(folder / "plain"), **options))
    made = robot(CAMERAS, FRAMES)
    ODD[name](made, camera, rng)
    source = BagSource(made.write(folder / "odd"), **options)
    found, case = answer(source), f"seed {seed}: {name} of {camera}"
    if found.keys() != expected.keys():
        return f"{case}: {len(found)} frames, not {len(expected)}"
    for stamp_ns, images_of in expected.items():
        for other in set(CAMERAS) - {camera}:
            if found[stamp_ns].get(other) != images_of[other]:
                return f"{case}: camera {other} is another at {stamp_ns}"
    named = {problem.where for problem, _ in source.tally}
    same = all(found[stamp_ns].get(camera) == images_of[camera] for stamp_ns, images_of in expected.items())
    return "" if same or named else f"{case}: changed, and nothing is named"
