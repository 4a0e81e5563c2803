"""A robot over DDS whose messages are valid and odd: the node's answers stay as they were, or what is odd is named.

One node lives through all runs. Each changes one thing of one camera, of the transforms or of the publishers for a few
seconds; then the robot is as before, and so have to be the answers. Cameras that are not odd send as ever.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import ros_fixtures as fx
from fault_rig import CAMERAS, HEALTHY, MOVING, NODE, RAW, Fault, FaultRig, until
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from tf2_msgs.msg import TFMessage

from occ_core.bags import messages as msg
from occ_ros.messages import stamp_ns_of

S = 10**9
PICTURES = 4
PERIOD_S = 0.4
MODEL = fx.CONFIG.model_copy(update={"name": "tiny_small", "voxel_size_m": 3.2, "grid_shape": (24, 24, 8)})
PARAMETERS = NODE | {"deadline_s": 0.3, "stale_s": 1.2}  # slow cameras and a busy machine
HOLD_S, NAMED_S, BACK_S = 1.5, 8.0, 25.0
"""How long a robot is odd at least, how long the node may take to say so, and to answer as before (a busy machine)."""


@dataclass
class Odd:
    """What is odd of a robot.

    Attributes:
        where: camera, or other part of a status, that has to be named if an answer is another one.
        fault: number of the frame -> what is wrong with it.
        extra: is called with each frame: sends more.
        begin, end: are called once, before and after.
    """

    where: str
    fault: Callable[[int], Fault] = lambda number: HEALTHY
    extra: Callable[[OddRig, int, int], None] = lambda rig, number, now_ns: None
    begin: Callable[[OddRig], None] = lambda rig: None
    end: Callable[[OddRig], None] = lambda rig: None


class OddRig(FaultRig):
    """Keeps what the answers were.

    Attributes:
        odd: of the frames to come; None: none is.
        clouds: (stamp, digest) of each answer.
        shown: stamp of an image -> (number of the pictures, whether its frame was odd).
    """

    def __init__(self, domain: int) -> None:
        self.odd: Odd | None = None
        self.clouds: list[tuple[int, str]] = []
        self.shown: dict[int, tuple[int, bool]] = {}
        super().__init__(domain)
        self.period_s = PERIOD_S

    def _frame(self, fault: Fault) -> None:
        odd = self.odd
        if odd is not None:
            fault = odd.fault(self._number + 1)
            odd.extra(self, self._number + 1, time.time_ns())
        super()._frame(fault)

    def _image(self, fault: Fault, name: str, stamp_ns: int) -> Any:
        self.shown[stamp_ns] = self._number % PICTURES, self.odd is not None
        return super()._image(fault, name, stamp_ns)

    def _on_answer(self, cloud: PointCloud2) -> None:
        self.clouds.append((stamp_ns_of(cloud.header.stamp), hashlib.sha1(bytes(cloud.data)).hexdigest()))
        super()._on_answer(cloud)

    def static(self, moved_m: float = 0.0, camera: str = "") -> None:
        """The mounts of all cameras but the moving one, that of `camera` somewhere else."""
        mounts = [(c.name, c.ego_from_cam.copy()) for c in fx.RIG if c.name != MOVING]
        for name, mount in mounts:
            mount[1, 3] += moved_m * (name == camera)
        links = [("base_link", fx.camera_frame(name), mount) for name, mount in mounts]
        self._static.publish(bytes(msg.serialize(msg.transforms(time.time_ns(), links))))

    def again(self, attribute: str, camera: str, kind: Any, topic: str, qos: QoSProfile) -> None:
        """A publisher of images or infos with another QoS in place of the one that is there."""
        publishers = getattr(self, attribute)
        old, publishers[camera] = publishers[camera], self.node.create_publisher(kind, topic, qos)
        self.node.destroy_publisher(old)


def learn(rig: OddRig) -> dict[int, str]:
    """Digest of the answer to each of the pictures, which two answers have to agree on."""
    seen: dict[int, list[str]] = {number: [] for number in range(PICTURES)}

    def known() -> dict[int, str] | None:
        for digests in seen.values():
            digests.clear()
        for stamp_ns, digest in rig.clouds[:]:
            if stamp_ns in rig.shown:
                seen[rig.shown[stamp_ns][0]].append(digest)
        most = {number: max(d, key=d.count) for number, d in seen.items() if d}
        return most if len(most) == PICTURES and all(seen[n].count(d) > 1 for n, d in most.items()) else None

    answers: dict[int, str] = until(known, 240, lambda: f"answers to {seen}; {rig.status}")
    assert len(set(answers.values())) == PICTURES, "a network that answers all pictures alike shows nothing"
    return answers


# --- what can be odd --------------------------------------------------------------------------------------------------

Maker = Callable[[random.Random, str], Odd]


def some(rng: random.Random, fault: Fault) -> Callable[[int], Fault]:
    """In all frames, or in some of them."""
    share = rng.choice((1.0, 1.0, 0.5, 0.2))
    return lambda number: fault if random.Random(number).random() < share else HEALTHY


def kind_of(camera: str) -> Any:
    return Image if camera == RAW else CompressedImage


def clock(rng: random.Random, camera: str) -> Odd:
    by_ns = round(rng.choice((-1, 1)) * 10 ** rng.uniform(-3, 8.5) * S)
    shifted = Fault(stamp=lambda name, number, stamp_ns: stamp_ns + by_ns * (name == camera))
    return Odd(camera, some(rng, shifted))


def jitter(rng: random.Random, camera: str) -> Odd:
    by_s = 10 ** rng.uniform(-4, 0)

    def stamp(name: str, number: int, stamp_ns: int) -> int:
        return stamp_ns + round(random.Random(number).uniform(-by_s, by_s) * S) * (name == camera)

    return Odd(camera, lambda number: Fault(stamp=stamp))


def drift(rng: random.Random, camera: str) -> Odd:
    """A clock that runs slower or faster."""
    by, first = rng.choice((-1, 1)) * 10 ** rng.uniform(-4, 1), list[int]()

    def stamp(name: str, number: int, stamp_ns: int) -> int:
        first.append(stamp_ns)
        return stamp_ns + round((stamp_ns - first[0]) * by) * (name == camera)

    return Odd(camera, lambda number: Fault(stamp=stamp))


def late(rng: random.Random, camera: str) -> Odd:
    return Odd(camera, some(rng, Fault(delay_s={camera: 10 ** rng.uniform(-3, 0.3)})))


def rate(rng: random.Random, camera: str) -> Odd:
    every = rng.choice((2, 3, 5, 20))
    silent = Fault(silent=frozenset(camera))
    return Odd(camera, lambda number: silent if number % every else HEALTHY)


def rate_of_infos(rng: random.Random, camera: str) -> Odd:
    """None any more, few, or several an image."""
    every, more = rng.choice((1, 3, 10**9)), rng.choice((0, 0, 3))

    def extra(rig: OddRig, number: int, now_ns: int) -> None:
        for step in range(more):
            stamp_ns = now_ns + (step + 1) * round(rig.period_s * S / (more + 1))
            rig._send(rig._infos[camera], rig._info(HEALTHY, camera, stamp_ns), 0.0)

    quiet = Fault(no_info=frozenset(camera))
    return Odd(camera, lambda number: quiet if number % every else HEALTHY, extra)


def on_info(**fields: Callable[[random.Random], Any]) -> Maker:
    def make(rng: random.Random, camera: str) -> Odd:
        values = {name: value(rng) for name, value in fields.items()}

        def change(info: Any) -> None:
            for name, value in values.items():
                setattr(info, name, value)

        return Odd(camera, some(rng, Fault(info={camera: change})))

    return make


def region(rng: random.Random, camera: str) -> Odd:
    """A part of a sensor that has room for it, K moved accordingly; or one that does not fit."""
    x, y, fits = rng.randrange(1, 500), rng.randrange(1, 500), rng.random() < 0.5

    def change(info: Any) -> None:
        roi, sides = info.roi, (info.width, info.height)
        roi.x_offset, roi.y_offset, (roi.width, roi.height) = x, y, sides
        if fits:
            info.width, info.height = sides[0] + x, sides[1] + y
            info.k = info.k + np.array([0, 0, x, 0, 0, y, 0, 0, 0])

    return Odd(camera, some(rng, Fault(info={camera: change})))


def binning(rng: random.Random, camera: str) -> Odd:
    x, y = rng.choice(((2, 2), (1, 2), (4, 1), (100, 100)))
    fits = rng.random() < 0.5

    def change(info: Any) -> None:
        info.binning_x, info.binning_y = x, y
        info.width, info.height = info.width * x * (1 if fits else 3), info.height * y
        info.k = info.k * np.repeat([x, y, 1], 3)

    return Odd(camera, some(rng, Fault(info={camera: change})))


def frame(rng: random.Random, camera: str) -> Odd:
    odd = rng.choice(("", "nobody", "/" + fx.camera_frame(camera), "base_link", "x" * 300))
    return Odd(camera, some(rng, Fault(info={camera: lambda info: setattr(info.header, "frame_id", odd)})))


def raw_image(rng: random.Random, camera: str) -> Odd:
    name, value = rng.choice(
        [("encoding", e) for e in ("16UC1", "32FC1", "mono16", "rgb16", "nv21", "", "jpeg", "x" * 300)]
        + [(side, n) for side in ("width", "height", "step") for n in (0, 1, 7, 159, 2**31)]
        + [("data", np.zeros(n, np.uint8)) for n in (0, 1, 100)]
    )
    return Odd(RAW, some(rng, Fault(image={RAW: lambda image: setattr(image, name, value)})))


def file_of(rng: random.Random, camera: str) -> Odd:
    """A JPEG or PNG that is whole and of another kind, or that `format` says is another one."""
    camera = camera if camera != RAW else "l"
    rgb = fx.images(0)[camera]
    files = [
        cv2.imencode(end, image)[1].tobytes()
        for end in (".jpg", ".png")
        for image in (rgb[::2, ::2], rgb[:-1], np.hstack([rgb, rgb]), rgb[..., 0])
    ]
    files.append(cv2.imencode(".png", rgb[..., 0].astype(np.uint16) * 257)[1].tobytes())
    texts = (
        "",
        "png",
        "x" * 300,
        "bayer_rggb8; jpeg compressed ",
        "mono16; png compressed",
        "16UC1; compressedDepth png",
    )
    if rng.random() < 0.5:
        data = rng.choice(files)
        return Odd(camera, some(rng, Fault(jpeg={camera: lambda _: data})))
    text = rng.choice(texts)
    return Odd(camera, some(rng, Fault(image={camera: lambda image: setattr(image, "format", text)})))


def moving(rng: random.Random, camera: str) -> Odd:
    """The mount that comes by /tf: late, seldom, elsewhere, from two places, or no transform at all."""
    place = rng.choice(("x", "rotation", "parent", "late", "seldom"))
    by = 10 ** rng.uniform(-4, 2)

    def change(stamped: Any) -> None:
        if place == "x":
            stamped.transform.translation.x += by * rng.choice((-1, 1))
        if place == "rotation":
            stamped.transform.rotation.w = rng.choice((0.0, math.nan, 0.3))
        if place == "parent":
            stamped.header.frame_id = rng.choice(("", "nobody", stamped.child_frame_id))

    if place == "late":
        return Odd(MOVING, lambda number: Fault(tf_delay_s=min(2.0, by)))
    if place == "seldom":
        return Odd(MOVING, lambda number: Fault(transform=None) if number % 10 else HEALTHY)
    return Odd(MOVING, some(rng, Fault(transform=change)))


def mount_again(rng: random.Random, camera: str) -> Odd:
    """A fixed mount is published again with each frame, as it is, or elsewhere by turns: two nodes do so."""
    camera = camera if camera != MOVING else "l"
    by_m = rng.choice((0.0, 10 ** rng.uniform(-4, 1)))
    return Odd(
        camera,
        extra=lambda rig, number, now_ns: rig.static(by_m * (number % 2), camera),
        end=lambda rig: rig.static(),
    )


def other_frames(rng: random.Random, camera: str) -> Odd:
    """Transforms that no camera needs: loops, no names, no numbers, another robot's."""
    names = ("arm", "hand", "", "a", "x" * 300, "r2/base_link", "r2/l_optical", "odom")
    topic = rng.choice(("_tf", "_static"))

    def extra(rig: OddRig, number: int, now_ns: int) -> None:
        links = [(rng.choice(names), rng.choice(names), np.eye(4)) for _ in range(rng.randrange(1, 4))]
        message = msg.transforms(now_ns + rng.choice((0, -S, S, 10**9 * S)), links)
        message.transforms[0].transform.translation.x = rng.choice((0.0, math.nan, math.inf, 1e300))
        getattr(rig, topic).publish(bytes(msg.serialize(message)))

    return Odd("", extra=extra)


def another_robot(rng: random.Random, camera: str) -> Odd:
    """With the same cameras in a namespace of its own, its transforms there or, with names of its own, among ours."""
    prefix = rng.choice(("r2/", ""))
    tf_topic = "/tf" if prefix and rng.random() < 0.5 else "/r2/tf"
    made: dict[str, Any] = {}

    def begin(rig: OddRig) -> None:
        made["tf"] = rig.node.create_publisher(TFMessage, tf_topic, 10)
        made["info"] = rig.node.create_publisher(CameraInfo, f"/r2/{camera}/camera_info", 10)
        made["image"] = rig.node.create_publisher(kind_of(camera), f"/r2/{camera}/image", 10)

    def extra(rig: OddRig, number: int, now_ns: int) -> None:
        link = f"{prefix}base_link", f"{prefix}{fx.camera_frame(camera)}", np.eye(4)
        made["tf"].publish(bytes(msg.serialize(msg.transforms(now_ns, [link]))))
        made["info"].publish(bytes(msg.serialize(rig._info(HEALTHY, camera, now_ns))))
        image = FaultRig._image(rig, HEALTHY, camera, now_ns)
        made["image"].publish(bytes(msg.serialize(image)))

    def end(rig: OddRig) -> None:
        for publisher in made.values():
            rig.node.destroy_publisher(publisher)

    return Odd(camera, extra=extra, begin=begin, end=end)


def two_publishers(rng: random.Random, camera: str) -> Odd:
    """Of one image topic, or of one CameraInfo; the second one's stamps are its own."""
    made: list[Any] = []
    infos = rng.random() < 0.5
    by_ns = rng.choice((0, round(10 ** rng.uniform(-3, 2) * S), -round(10 ** rng.uniform(-3, 2) * S)))

    def begin(rig: OddRig) -> None:
        kind, topic = (CameraInfo, "camera_info") if infos else (kind_of(camera), "image")
        made.append(rig.node.create_publisher(kind, f"/{camera}/{topic}", 10))

    def extra(rig: OddRig, number: int, now_ns: int) -> None:
        build = rig._info if infos else lambda *about: FaultRig._image(rig, *about)
        made[0].publish(bytes(msg.serialize(build(HEALTHY, camera, now_ns + by_ns))))

    return Odd(camera, extra=extra, begin=begin, end=lambda rig: rig.node.destroy_publisher(made[0]))


def quality(rng: random.Random, camera: str) -> Odd:
    """Publishers with another QoS."""
    qos = QoSProfile(
        depth=rng.choice((1, 10, 1000)),
        reliability=rng.choice((ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT)),
        durability=rng.choice((DurabilityPolicy.VOLATILE, DurabilityPolicy.TRANSIENT_LOCAL)),
    )
    attribute, kind, topic = rng.choice(
        (("images", kind_of(camera), f"/{camera}/image"), ("_infos", CameraInfo, f"/{camera}/camera_info"))
    )
    plain = QoSProfile(depth=10)
    return Odd(
        camera,
        begin=lambda rig: rig.again(attribute, camera, kind, topic, qos),
        end=lambda rig: rig.again(attribute, camera, kind, topic, plain),
    )


def quality_of_transforms(rng: random.Random, camera: str) -> Odd:
    qos = QoSProfile(depth=rng.choice((1, 100)), reliability=rng.choice(list(ReliabilityPolicy)[1:3]))

    def change(to: QoSProfile) -> Callable[[OddRig], None]:
        def renew(rig: OddRig) -> None:
            old, rig._tf = rig._tf, rig.node.create_publisher(TFMessage, "/tf", to)
            rig.node.destroy_publisher(old)

        return renew

    return Odd(MOVING, begin=change(qos), end=change(QoSProfile(depth=10)))


ODD: dict[str, Maker] = {
    "clock": clock,
    "jitter": jitter,
    "drift": drift,
    "late": late,
    "rate": rate,
    "rate of CameraInfo": rate_of_infos,
    "region": region,
    "binning": binning,
    "frame": frame,
    "raw image": raw_image,
    "file": file_of,
    "moving mount": moving,
    "mount again": mount_again,
    "other frames": other_frames,
    "another robot": another_robot,
    "two publishers": two_publishers,
    "QoS": quality,
    "QoS of transforms": quality_of_transforms,
    "D": on_info(d=lambda rng: np.array([rng.choice((math.nan, 1e9))] * rng.choice((4, 5, 8)))),
    "length of D": on_info(d=lambda rng: np.full(rng.choice((1, 2, 3, 6, 7, 9, 13, 15)), 0.01)),
    "model": on_info(distortion_model=lambda rng: rng.choice(("magic", "", "x" * 300))),
    "K": on_info(k=lambda rng: np.full(9, rng.choice((0.0, math.nan, -1.0, 1e12)))),
    "R and P of images as they are": on_info(
        r=lambda rng: np.full(9, rng.choice((0.0, math.nan, 7.0))),
        p=lambda rng: np.full(12, rng.choice((0.0, math.nan))),
    ),
    "size": on_info(
        width=lambda rng: rng.choice((0, 1, 64, 31, 2**31)), height=lambda rng: rng.choice((24, 0, 48, 90))
    ),
}


# --- one run ----------------------------------------------------------------------------------------------------------


def case(seed: int) -> tuple[str, Odd]:
    """(what it is, the odd robot) of a seed."""
    rng = random.Random(seed)
    name, camera = rng.choice(sorted(ODD)), rng.choice(CAMERAS[1:])
    odd = ODD[name](rng, camera)
    return f"seed {seed}: {name} of {odd.where or 'no camera'}", odd


def finding(rig: OddRig, plain: dict[int, str], seed: int) -> str:
    """What the node does with one odd robot that it should not; empty if nothing."""
    what, odd = case(seed)
    begun_s, first = time.monotonic(), len(rig.clouds)
    odd.begin(rig)
    rig.odd = odd

    def answered() -> list[tuple[int, str]]:
        """(pictures, digest) of the answers to odd frames."""
        stamped = [(rig.shown[stamp_ns], digest) for stamp_ns, digest in rig.clouds[first:] if stamp_ns in rig.shown]
        return [(number, digest) for (number, is_odd), digest in stamped if is_odd]

    def named() -> bool:
        return any(at_s > begun_s and level and odd.where in f"{name} {text}" for at_s, name, level, text in rig.said)

    with contextlib.suppress(AssertionError):
        until(lambda: time.monotonic() > begun_s + HOLD_S and (named() or len(answered()) > 1), NAMED_S, str)
    is_named, answers = named(), answered()
    rig.odd = None
    odd.end(rig)
    changed = sum(plain[number] != digest for number, digest in answers)
    found = ""
    if not is_named and (changed or not answers):
        found = f"{what}: {changed} of {len(answers)} answers are others, and nothing is named"
    return found or ("" if _is_back(rig, plain) else f"{what}: not as before after {BACK_S} s: {_said(rig)}")


def _is_back(rig: OddRig, plain: dict[int, str]) -> bool:
    """Two answers are as they were, and nothing is named any more."""
    first, ended_s = len(rig.clouds), time.monotonic()

    def back() -> bool:
        well = [s for s, digest in rig.clouds[first:] if s in rig.shown and plain[rig.shown[s][0]] == digest]
        statuses = rig.status.values()
        return len(well) > 1 and all(level == 0 and at_s > ended_s for at_s, level, *_ in statuses)

    try:
        until(back, BACK_S, str)
    except AssertionError:
        return False
    return True


def _said(rig: OddRig) -> str:
    return "; ".join(f"{name}: {text}" for name, (_, level, text, _) in rig.status.items() if level) or "all well"
