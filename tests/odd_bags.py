"""Bags of valid messages with odd values: whatever is odd leaves the answer as it was, or is named.

Of three cameras `front` is the key camera and never odd; each case changes one thing of another camera, or of
transforms that no camera needs. Cameras that are not odd have to keep all of their images, calibration and poses.
"""

from __future__ import annotations

import copy
import functools
import math
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bag_robot import T0, Robot, S, base_from, picture, robot
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime

from occ_core.bags import messages as msg
from occ_core.geometry import pose
from occ_core.sources.bag import BagSource
from occ_core.sources.bag_roster import TOLD_S

CAMERAS = "front", "left", "right"
FRAMES = 12
SPREAD_S = 0.045
LOST = 1  # images of a camera; single losses are everywhere, and `occ bag check` counts images
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
    by_s = rng.choice((-1, 1)) * 10 ** rng.uniform(-3, 8)
    for message in images(made, camera):
        shifted(message, round(by_s * S))


def one_stamp(made: Robot, camera: str, rng: random.Random) -> None:
    shifted(rng.choice(images(made, camera)[1:-1]), rng.choice((-(10**18), -60 * S, 60 * S, 3600 * S)))


def late(made: Robot, camera: str, rng: random.Random) -> None:
    by_ns = round(10 ** rng.uniform(-3, 0.6) * S)
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


def rate(made: Robot, camera: str, rng: random.Random) -> None:
    """A slower camera, or one that sends images twice."""
    every = rng.choice((0, 2, 3, 4))
    found = images(made, camera)
    lost = {id(message) for number, message in enumerate(found) if every and number % every}
    made.messages = [entry for entry in made.messages if id(entry[2]) not in lost]
    if not every:
        made.messages += [entry for entry in made.messages if entry[1] == f"/{camera}/image_raw"]


def rate_of_infos(made: Robot, camera: str, rng: random.Random) -> None:
    """One for all images, as latched ones are, or several an image, stamped as they come."""
    topic, found = f"/{camera}/camera_info", infos(made, camera)
    if rng.random() < 0.5:
        kept = rng.choice(found)
        made.messages = [entry for entry in made.messages if entry[1] != topic or entry[2] is kept]
        return
    for log_ns, message in [(log_ns, m) for log_ns, name, m in made.messages if name == topic]:
        for step in range(1, rng.randrange(2, 5)):
            again = copy.deepcopy(message)
            shifted(again, step * 20_000_000)
            made.messages.append((log_ns + step * 20_000_000, topic, again))


def jitter(made: Robot, camera: str, rng: random.Random) -> None:
    by_s = 10 ** rng.uniform(-4, -0.5)
    for message in images(made, camera):
        shifted(message, round(rng.uniform(-by_s, by_s) * S))


def drift(made: Robot, camera: str, rng: random.Random) -> None:
    """A clock that runs slower or faster."""
    by = rng.choice((-1, 1)) * 10 ** rng.uniform(-5, -0.5)
    for step, message in enumerate(images(made, camera)):
        shifted(message, round(step * S / 10 * by))


def region(made: Robot, camera: str, rng: random.Random) -> None:
    """A part of a sensor that has room for it, K moved accordingly; or one that does not fit."""
    x, y, fits = rng.randrange(1, 500), rng.randrange(1, 500), rng.random() < 0.5
    for message in infos(made, camera):
        roi, sides = message.roi, (message.width, message.height)
        roi.x_offset, roi.y_offset, (roi.width, roi.height) = x, y, sides
        if fits:
            message.width, message.height = sides[0] + x + rng.choice((0, 100)), sides[1] + y
            message.k = message.k + np.array([0, 0, x, 0, 0, y, 0, 0, 0])


def quality(made: Robot, camera: str, rng: random.Random) -> None:
    """What publishers offered: any of it, several publishers of one topic among them."""
    times = QosTime(0, 0), QosTime(2147483647, 4294967295), QosTime(9223372036, 854775807)
    for topic in ("/tf", "/tf_static", f"/{camera}/image_raw", f"/{camera}/camera_info"):
        made.qos[topic] = [
            Qos(
                rng.choice(list(QosHistory)), rng.choice((0, 1, 2**31 - 1)), rng.choice(list(QosReliability)),
                rng.choice(list(QosDurability)), rng.choice(times), rng.choice(times),
                rng.choice(list(QosLiveliness)), rng.choice(times), rng.random() < 0.1,
            )
            for _ in range(rng.randrange(3))
        ]  # fmt: skip


def another_robot(made: Robot, camera: str, rng: random.Random) -> None:
    """With cameras of the same names in a namespace of its own, its transforms there or among ours."""
    other, frames, space = robot((camera,), FRAMES), rng.choice(("", "r2/")), rng.choice(("/r2", ""))
    base = f"{frames}base_link" if frames else rng.choice(("r2_base", "base_link"))
    for log_ns, topic, message in other.messages:
        if topic.startswith("/tf"):
            for stamped in message.transforms:
                names = {"base_link": base, "odom": rng.choice((f"{frames}odom", "odom"))}
                stamped.header.frame_id = names.get(stamped.header.frame_id, stamped.header.frame_id)
                stamped.child_frame_id = names.get(stamped.child_frame_id, f"{frames}{stamped.child_frame_id}")
                stamped.transform.translation.x += 3.0
            made.messages.append((log_ns + 1, f"{space}{topic}", message))
        else:
            message.header.frame_id = f"{frames}{message.header.frame_id}"
            made.messages.append((log_ns + 1, f"/r2{topic}", message))


def restated(made: Robot, camera: str, rng: random.Random) -> None:
    """The camera's mount published again, as it was or elsewhere, on either topic."""
    by_m = rng.choice((0.0, 10 ** rng.uniform(-4, 1)))
    for step in range(rng.randrange(1, 5)):
        place = base_from(camera)
        place[1, 3] += by_m
        stamp = T0 + step * S // 5
        mount = msg.transforms(stamp, [("base_link", f"{camera}_optical", place)])
        made.add(rng.choice(("/tf_static", "/tf")), stamp, mount)


def order(made: Robot, camera: str, rng: random.Random) -> None:
    """Log times that are another host's, or all alike."""
    change = rng.choice((lambda log: log + 10**6 * S, lambda log: T0, lambda log: log // S * S))
    made.messages = [(change(log), name, message) for log, name, message in made.messages]


ODD: dict[str, Odd] = {
    "rate": rate,
    "rate of CameraInfo": rate_of_infos,
    "jitter": jitter,
    "drift": drift,
    "region": region,
    "QoS": quality,
    "another robot": another_robot,
    "mount again": restated,
    "log times": order,
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


def shot_ns(camera: str, image: np.ndarray) -> int:
    """When a picture of the robot was taken, by its pixels."""
    number = CAMERAS.index(camera)
    steps = (step for step in range(FRAMES) if np.array_equal(picture(100 * number + step), image))
    return T0 + next(steps, -(10**6)) * S // 10 + number * 20_000_000


def alike(found: tuple[Any, ...], plain: tuple[Any, ...]) -> bool:
    """The same answer, but that a stamp, and with it the pose, may be off by what no reader can tell."""
    return found == plain or (found[1:4] == plain[1:4] and abs(found[0] - found[5]) <= TOLD_S * S)


def answer(source: BagSource) -> dict[int, dict[str, tuple[Any, ...]]]:
    """By key stamp: of each image its stamp, calibration, pose and when it was taken."""
    frames = {}
    for found in source:
        frames[found.stamp_ns] = {
            name: (
                found.camera_stamp_ns[name],
                found.rig[name].intrinsics.tobytes(),
                found.rig[name].distortion,
                np.round(found.rig[name].ego_from_cam, 9).tobytes(),
                np.round(found.camera_world_from_ego[name], 9).tobytes(),
                shot_ns(name, image),
            )
            for name, image in found.images.items()
            if name in CAMERAS
        }
    return frames


@functools.cache
def plain_answer() -> dict[int, dict[str, tuple[Any, ...]]]:
    with tempfile.TemporaryDirectory() as folder:
        bag = robot(CAMERAS, FRAMES).write(Path(folder) / "plain")
        return answer(BagSource(bag, max_spread_s=SPREAD_S))


def finding(folder: Path, seed: int) -> str:
    """What one odd bag shows that should not be; empty if nothing."""
    rng = random.Random(seed)
    name, camera = rng.choice(sorted(ODD)), rng.choice(CAMERAS[1:])
    expected, made = plain_answer(), robot(CAMERAS, FRAMES)
    ODD[name](made, camera, rng)
    source = BagSource(made.write(folder / "odd"), max_spread_s=SPREAD_S)
    found, case = answer(source), f"seed {seed}: {name} of {camera}"
    if found.keys() != expected.keys():
        return f"{case}: {len(found)} frames, not {len(expected)}"
    for stamp_ns, images_of in expected.items():
        for other in set(CAMERAS) - {camera}:
            if found[stamp_ns].get(other) != images_of[other]:
                return f"{case}: camera {other} is another at {stamp_ns}"
    named = [f"{problem.where} {problem.found}" for problem, _ in source.tally] + list(source.skipped)
    named = [said for said in named if camera in said or "/tf" in said or "/wheels" in said]
    lost = sum(camera not in found[stamp_ns] for stamp_ns in expected)
    same = all(alike(found[t].get(camera, of_all[camera]), of_all[camera]) for t, of_all in expected.items())
    if lost <= LOST and same or named:
        return ""
    return f"{case}: changed, {lost} of {len(expected)} lost, and nothing is named"
