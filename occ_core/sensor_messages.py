"""One judgement of what drivers send: CameraInfo, images, transforms and odometry become a camera, pixels or a pose, or
a named problem.

Node and bag reader both come here. Messages are any objects with the fields of their ROS 2 types: rclpy's, rosbags'.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from occ_core.camera import COEFFICIENTS, Camera
from occ_core.errors import CorruptInput, InvalidInput, OccError
from occ_core.geometry import pose, require_rigid
from occ_core.images import (
    ENCODINGS,
    compressed_info,
    decode_compressed,
    decode_image,
    other_file,
    require_image_fields,
    samples_of,
)
from occ_core.limits import MAX_COEFFICIENTS, MAX_NAME, shown
from occ_core.problems import Problem, Unusable
from occ_core.transforms import TransformTree

MODELS = {"": "none", "fisheye": "equidistant"}  # other names of models
TRANSPORTS = ("compressed", "compressedDepth", "zstd", "theora", "ffmpeg")  # image_transport's last parts of a topic
DEPTH_ENCODINGS = ("16UC1", "16SC1", "32FC1", "32SC1", "64FC1", "mono16")
FOCAL_WIDTHS = 0.05, 100.0
"""Of the image's width, what a focal length can be: from a fisheye that sees all around down to half a degree."""
MAX_ASPECT = 4.0  # of two focal lengths; lines that are skipped or joined make them differ
FOLD_GRID, FOLD_PX = 17, 1.0  # pixels a side that are tried, and how far one may come back from its own place
FAR_M = 50.0  # from the base frame to a camera: beyond it, metres are likely millimetres
ROLLED_DEG = 30.0
SIDES = (
    ({"front", "forward"}, {"back", "rear"}, 0.0), ({"back", "rear"}, {"front", "forward"}, 180.0),
    ({"left"}, {"right"}, 90.0), ({"right"}, {"left"}, -90.0),
)  # fmt: skip
"""Words of a camera's name, those that say the opposite, and the azimuth in degrees that they mean."""
OTHER_SIDE_DEG = 65.0  # so near to the opposite direction
STEEP_DEG = 70.0
"""An optical axis that is so steep is looked at twice: few cameras of vehicles do so."""
NUMBERS = re.compile(r"\d+")


def words_of(name: str) -> set[str]:
    """The words of the last part of a topic, or of a frame: lower case, without numbers (`infra1` is `infra`)."""
    return {NUMBERS.sub("", word) for word in name.rpartition("/")[2].lower().split("_")}


def base_topic(topic: str) -> str:
    """An image topic without image_transport's ending."""
    base, _, last = topic.rpartition("/")
    return base if last in TRANSPORTS and base else topic


def is_rectified(topic: str) -> bool:
    """Whether image_proc's names say so (image_rect, image_rect_color); only the last part counts, not namespaces."""
    return "rect" in words_of(base_topic(topic))


# --- CameraInfo -------------------------------------------------------------------------------------------------------


def camera_from_info(
    name: str,
    info: Any,
    ego_from_frame: np.ndarray,
    rectified: bool = False,
    where: str = "camera_info",
    image_size: tuple[int, int] | None = None,
) -> Camera:
    """Calibration of the images that come with a sensor_msgs/CameraInfo.

    Binning and region of interest are applied as REP 104 has them: K, P, width and height are of the whole sensor.

    Args:
        name: of the camera.
        info: the message.
        ego_from_frame: (4, 4), from the frame that the message names.
        rectified: the images are rectified: P holds instead of K and D, and R turns the camera.
        where: the topic.
        image_size: (width, height) of the images where it is known. Some drivers give width and height of the binned
            or cut image, with K of the sensor; only the images tell.

    Raises:
        Unusable: naming the topic and the value.
    """

    def unusable(kind: str, found: str) -> Unusable:
        return Unusable(Problem(kind, where, found))

    k, p = np.array(info.k, dtype=np.float64).reshape(3, 3), np.array(info.p, dtype=np.float64)
    if not k.any():
        raise unusable("uncalibrated", f"camera '{name}': K is zero, focal lengths must be > 0 px")
    if not (info.width and info.height):
        raise unusable("uncalibrated", f"camera '{name}': size is {info.width} x {info.height} px, must be 1 or more")
    if rectified and p.size == 12 and p.any():
        k = p.reshape(3, 4)[:, :3]
    elif rectified and any(info.d):
        raise unusable("rectification", f"camera '{name}': images are rectified, but P is zero and D is not")
    model, distortion = ("none", ()) if rectified else _distortion(info, where)
    k, size = _of_the_image(k, info, where, image_size)
    try:
        turned = ego_from_frame @ _frame_from_rectified(info) if rectified else ego_from_frame
        camera = Camera(name, k, size, turned, model, distortion)
        _require_lens(camera)
    except InvalidInput as error:
        raise unusable("calibration", str(error)) from None
    return camera


def _distortion(info: Any, where: str) -> tuple[str, tuple[float, ...]]:
    """(model, coefficients), without zeros behind the model's own."""
    found = f"distortion_model '{shown(info.distortion_model)}' with {len(info.d)} coefficients"
    if len(info.d) > MAX_COEFFICIENTS:
        text = f"at most {MAX_COEFFICIENTS} distortion coefficients, got {len(info.d)}"
        raise Unusable(Problem("distortion", where, text))
    d = tuple(float(v) for v in info.d)
    model = MODELS.get(info.distortion_model, info.distortion_model)
    if not any(d):  # of a fisheye that is the ideal one, not a pinhole
        return ("equidistant", (0.0,) * 4) if model == "equidistant" and d else ("none", ())
    if model not in COEFFICIENTS or model == "none":
        known = ", ".join(name for name in COEFFICIENTS if name != "none")
        text = f"distortion_model '{shown(info.distortion_model)}' is not one of {known}, and D is not zero"
        raise Unusable(Problem("distortion", where, text))
    counts = COEFFICIENTS[model]
    meant = len(np.trim_zeros(d, "b"))
    if len(d) not in counts:
        fitting = [count for count in counts if meant <= count < len(d)]
        if not fitting:
            text = f"{found}, {list(d)}: it takes {' or '.join(map(str, counts))} (zeros behind them do not count)"
            raise Unusable(Problem("distortion", where, text))
        d = d[: fitting[0]]
    if not np.isfinite(d).all():
        raise Unusable(Problem("distortion", where, f"{found}: they must be finite, got {list(d)}"))
    return model, d


def _of_the_image(
    k: np.ndarray, info: Any, where: str, image_size: tuple[int, int] | None
) -> tuple[np.ndarray, tuple[int, int]]:
    """(K, size) of the images, by binning and region of interest."""
    whole, roi = (int(info.width), int(info.height)), getattr(info, "roi", None)
    binning = max(1, int(getattr(info, "binning_x", 0))), max(1, int(getattr(info, "binning_y", 0)))
    offset, cut = (0, 0), whole
    if roi is not None and roi.width and roi.height:
        offset, cut = (int(roi.x_offset), int(roi.y_offset)), (int(roi.width), int(roi.height))
    elif roi is not None:
        offset = int(roi.x_offset), int(roi.y_offset)
        cut = whole[0] - offset[0], whole[1] - offset[1]
    if binning == (1, 1) and offset == (0, 0) and cut == whole:
        return k, whole
    size = cut[0] // binning[0], cut[1] // binning[1]
    inside = all(o + c <= w for o, c, w in zip(offset, cut, whole, strict=True))
    moved = k.copy()
    moved[:2, 2] -= offset
    moved[:2] /= np.array(binning)[:, None]
    if min(size) < 1:
        text = f"binning {binning[0]} x {binning[1]} and region of interest {cut} px leave nothing of {whole} px"
        raise Unusable(Problem("size", where, text))
    near = image_size is None or all(abs(a - b) <= 1 for a, b in zip(size, image_size, strict=True))
    if inside and near:
        return moved, image_size or size
    if image_size in (None, whole):  # width and height are the image's own; K is the sensor's where it says so itself
        middle = (np.array(whole) - 1) / 2
        divided = np.abs(moved[:2, 2] - middle).sum() <= np.abs(k[:2, 2] - middle).sum()
        return (moved if divided else k), whole
    text = (
        f"images are {image_size[0]} x {image_size[1]} px; {whole[0]} x {whole[1]} px with binning {binning[0]} x "
        f"{binning[1]} and region of interest {cut[0]} x {cut[1]} at {offset} are {size[0]} x {size[1]}"
    )
    raise Unusable(Problem("size", where, text))


def _frame_from_rectified(info: Any) -> np.ndarray:
    """(4, 4): R takes the camera's rays to the rectified camera's."""
    r = np.array(getattr(info, "r", np.eye(3)), dtype=np.float64).reshape(3, 3)
    matrix = np.eye(4)
    if r.any():
        matrix[:3, :3] = r.T
    return require_rigid("rectification R", matrix)


def _require_lens(camera: Camera) -> None:
    """Raise an error if the numbers, though each within bounds, make no lens: its view has to be a camera's, with a
    viewing ray in every corner."""
    w, h = camera.size
    fx, fy = camera.intrinsics[0, 0], camera.intrinsics[1, 1]
    if not FOCAL_WIDTHS[0] <= fx / w <= FOCAL_WIDTHS[1] or not 1 / MAX_ASPECT <= fx / fy <= MAX_ASPECT:
        low, high = (limit * w for limit in FOCAL_WIDTHS)
        raise InvalidInput(
            f"camera '{camera.name}': focal lengths must be {low:g} to {high:g} px for {w} px of width, and at most "
            f"{MAX_ASPECT:g} times each other, got {fx:g} and {fy:g} px"
        )
    corners = np.array([(u, v) for u in (0, (w - 1) / 2, w - 1) for v in (0, (h - 1) / 2, h - 1)], dtype=np.float64)
    if not np.isfinite(camera.rays(corners)).all():
        raise InvalidInput(f"camera '{camera.name}': no viewing ray at a corner of its {w} x {h} px: D does not fit K")


def lens_problem(camera: Camera) -> Problem | None:
    """Calibration that can be used, and hardly is right: its centre far from the image's, or D that folds."""
    w, h = camera.size
    cx, cy = camera.intrinsics[:2, 2]
    if not (w / 4 < cx < 3 * w / 4 and h / 4 < cy < 3 * h / 4):
        found = f"the principal point ({cx:g}, {cy:g}) px is outside the middle half of the image of {w} x {h} px"
        return Problem("centre", "", found)
    if camera.distortion_model in ("none", "equidistant"):  # a fisheye may end within its image
        return None
    u, v = np.meshgrid(np.linspace(0, w - 1, FOLD_GRID), np.linspace(0, h - 1, FOLD_GRID))
    pixels = np.stack([u.ravel(), v.ravel()], axis=1)
    seen, _ = camera.project(camera.rays(pixels))
    with np.errstate(invalid="ignore"):
        share = 1 - float((np.abs(seen - pixels).max(axis=1) < FOLD_PX).mean())
    return Problem("folds", "", f"D has no viewing ray for {100 * share:.0f} % of the image") if share else None


def view_deg(camera: Camera) -> tuple[float, float]:
    """(azimuth, elevation) in degrees of where a camera on the vehicle looks: 0 ahead, 90 to the left; 90 up."""
    x, y, z = camera.ego_from_cam[:3, 2]
    return float(np.degrees(np.arctan2(y, x))), float(np.degrees(np.arcsin(np.clip(z, -1, 1))))


def lens_words(camera: Camera) -> str:
    """Model, number of coefficients, and focal length in pixels."""
    model = "pinhole" if camera.distortion_model == "none" else f"{camera.distortion_model}, {len(camera.distortion)}"
    return f"{model}, f {camera.intrinsics[0, 0]:.0f} px"


def frames_problem(info_frame: str, image_frame: str) -> Problem | None:
    """CameraInfo and images that name different frames; an image without a name says nothing."""
    if not image_frame or image_frame.lstrip("/") == info_frame.lstrip("/"):
        return None
    return Problem("frames", "", f"CameraInfo names '{shown(info_frame)}', its images '{shown(image_frame)}'")


def mount_problems(camera: Camera, frame: str) -> Iterator[Problem]:
    """What is odd about a camera's place on the vehicle, though it can be used.

    Args:
        frame: that its CameraInfo names; empty for one of a rig file.
    """
    _, elevation_deg = view_deg(camera)
    place_m = camera.ego_from_cam[:3, 3]
    if elevation_deg >= STEEP_DEG:  # as a body frame (x forward) in place of an optical one looks
        found = f"looks at the sky: its optical axis points {elevation_deg:.0f} degrees up"
        if frame and "optical" not in frame:
            yield Problem("body frame", "", f"{found}, and frame '{shown(frame)}' does not call itself optical")
        else:
            yield Problem("sky", "", found)
    elif abs(elevation_deg) < STEEP_DEG and abs(roll := _roll_deg(camera)) > ROLLED_DEG:
        yield Problem("rolled", "", f"is rolled by {roll:.0f} degrees about its axis: its images are not upright")
    if side := _other_side(camera):
        yield Problem("side", "", side)
    if np.linalg.norm(place_m) > FAR_M:
        at = ", ".join(f"{v:g}" for v in place_m)
        yield Problem("far", "", f"is {np.linalg.norm(place_m):.0f} m from the base frame, at ({at}) m")
    elif place_m[2] <= 0:
        yield Problem("below", "", f"is {-place_m[2]:.2f} m below the base frame, or at its height")


def _roll_deg(camera: Camera) -> float:
    """How far an image is turned clockwise about its axis, against one whose lines are level."""
    right, _, axis = camera.ego_from_cam[:3, :3].T
    level = np.cross(axis, (0.0, 0.0, 1.0))
    return float(np.degrees(np.arctan2(np.dot(np.cross(level, right), axis), np.dot(level, right))))


def _other_side(camera: Camera) -> str:
    """Where the name says one side, and the axis points to the opposite one."""
    azimuth_deg, _ = view_deg(camera)
    said = set(re.split(r"[^a-z]+", camera.name.lower()))
    for words, opposite, at_deg in SIDES:
        away_deg = abs((azimuth_deg - at_deg + 180) % 360 - 180)
        if said & words and not said & opposite and away_deg > 180 - OTHER_SIDE_DEG:
            return f"is called '{shown(camera.name)}' and looks {azimuth_deg:+.0f} degrees: the opposite side"
    return ""


# --- images -----------------------------------------------------------------------------------------------------------


class Header(NamedTuple):
    """What an image message is, before anything is decoded.

    Attributes:
        size: (width, height).
        encoding: of the pixels, or what `format` says of those of a file.
        channels: 1 for grey, and for a mosaic.
        mosaic: the Bayer encoding of a JPEG or PNG of one channel; else empty.
    """

    size: tuple[int, int]
    encoding: str
    channels: int
    mosaic: str = ""


def image_header(message: Any, where: str = "") -> Header:
    """Of a sensor_msgs/Image or CompressedImage.

    Raises:
        Unusable: `depth`, `bits`, `encoding` or `damaged image`.
    """
    try:
        return _compressed_header(message, where) if hasattr(message, "format") else _raw_header(message, where)
    except Unusable:
        raise
    except OccError as error:
        raise Unusable(Problem("damaged image", where, str(error))) from None


def _raw_header(message: Any, where: str) -> Header:
    _require_eight_bits(message.encoding, where)
    if message.encoding not in ENCODINGS:
        text = f"image encoding '{shown(message.encoding)}' is not one of {', '.join(ENCODINGS)}"
        raise Unusable(Problem("encoding", where, text))
    require_image_fields(message.encoding, message.width, message.height, message.step, len(message.data))
    channels = (
        ENCODINGS[message.encoding][0] if not message.encoding.startswith(("yuv", "uyvy", "yuyv", "bayer")) else 3
    )
    return Header((message.width, message.height), message.encoding, channels)


def _compressed_header(message: Any, where: str) -> Header:
    declared = message.format.partition(";")[0].strip()
    if "compresseddepth" in message.format.lower():
        raise Unusable(Problem("depth", where, f"format '{shown(message.format)}' is of distances"))
    if declared in DEPTH_ENCODINGS:
        _require_eight_bits(declared, where)
    if other := other_file(message.data):
        raise Unusable(Problem("file", where, f"images are {other}; only JPEG and PNG are read"))
    _, width, height = compressed_info(message.data)
    channels, bits = samples_of(message.data)
    if bits > 8:
        kind = "depth" if channels == 1 else "bits"
        raise Unusable(Problem(kind, where, f"{bits} bits a sample in {channels} channels; only 8 bits are supported"))
    mosaic = declared if channels == 1 and declared.startswith("bayer") else ""
    if mosaic and mosaic not in ENCODINGS:
        raise Unusable(Problem("encoding", where, f"format '{shown(message.format)}': unknown Bayer pattern"))
    return Header((width, height), declared, channels, mosaic)


def _require_eight_bits(encoding: str, where: str) -> None:
    if encoding in DEPTH_ENCODINGS:
        text = f"image encoding '{encoding}' is not one of colours; only 8 bits a sample are supported"
        raise Unusable(Problem("depth", where, text))
    of_many = any(bits in encoding for bits in ("10", "12", "16", "32", "64"))
    if of_many and not encoding.startswith(("nv", "NV")) and len(encoding) < MAX_NAME:
        text = f"image encoding '{shown(encoding)}' has too many bits; only 8 bits a sample are supported"
        raise Unusable(Problem("bits", where, text))


def image_of(
    message: Any, at_least: tuple[int, int] | None = None, where: str = "", header: Header | None = None
) -> np.ndarray:
    """RGB uint8 (height, width, 3) of an image message; of a JPEG perhaps smaller, see `decode_compressed`.

    Args:
        header: where it is known already.

    Raises:
        Unusable: as `image_header`.
    """
    header = header or image_header(message, where)
    try:
        if hasattr(message, "format"):
            return decode_compressed(message.data, at_least=at_least, mosaic=header.mosaic)
        return decode_image(message.encoding, message.width, message.height, message.step, message.data)
    except (CorruptInput, InvalidInput) as error:
        raise Unusable(Problem("damaged image", where, str(error))) from None


def require_size(there: tuple[int, int], size: tuple[int, int], where: str) -> None:
    """Whether an image has the size of its calibration.

    Raises:
        Unusable: `size`.
    """
    if there != size:
        text = f"image is {there[0]} x {there[1]} px, its calibration says {size[0]} x {size[1]} px"
        raise Unusable(Problem("size", where, text))


def looks_like_a_mosaic(rgb: np.ndarray) -> bool:
    """A grey image whose pixels are liker to the second than to the next neighbour: a colour filter's pattern."""
    grey = rgb[..., 0].astype(np.int16)
    if min(grey.shape) < 8 or (rgb[..., 0] != rgb[..., 1]).any() or (rgb[..., 0] != rgb[..., 2]).any():
        return False
    ways = [(np.abs(grey[:, 1:] - grey[:, :-1]), np.abs(grey[:, 2:] - grey[:, :-2]))]
    ways += [(np.abs(grey[1:] - grey[:-1]), np.abs(grey[2:] - grey[:-2]))]
    return all(float(near.mean()) > 1.5 * float(far.mean()) + 1.0 for near, far in ways)


# --- transforms and odometry ------------------------------------------------------------------------------------------


class Link(NamedTuple):
    """One sample of a transform; frames without a leading '/'."""

    parent: str
    child: str
    stamp_ns: int
    parent_from_child: np.ndarray


def stamp_of(message: Any) -> int:
    """Time of a message's header in nanoseconds."""
    stamp = message.header.stamp
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def link_of(stamped: Any, where: str) -> Link:
    """Of a geometry_msgs/TransformStamped.

    Raises:
        Unusable: `transform`.
    """
    t, q = stamped.transform.translation, stamped.transform.rotation
    return _link("transform", where, stamped, stamped.child_frame_id, t, q)


def odometry_link(message: Any, where: str) -> Link:
    """Of a nav_msgs/Odometry: where its child frame is.

    Raises:
        Unusable: `odometry`.
    """
    pose_message = message.pose.pose
    return _link("odometry", where, message, message.child_frame_id, pose_message.position, pose_message.orientation)


def _link(kind: str, where: str, message: Any, child: str, t: Any, q: Any) -> Link:
    parent, child = message.header.frame_id.lstrip("/"), child.lstrip("/")
    names = f"'{shown(parent)}' -> '{shown(child)}'"
    if max(len(parent), len(child)) > MAX_NAME:
        raise Unusable(Problem(kind, where, f"{names}: names of frames have at most {MAX_NAME} characters"))
    if not parent or not child:
        raise Unusable(Problem(kind, where, f"{names}: needs two frame names"))
    if parent == child:
        raise Unusable(Problem(kind, where, f"{names}: a frame cannot be its own parent"))
    try:
        return Link(parent, child, stamp_of(message), pose((t.x, t.y, t.z), (q.w, q.x, q.y, q.z)))
    except InvalidInput as error:
        raise Unusable(Problem(kind, where, f"{names}: {error}")) from None


def add_transforms(tree: TransformTree, message: Any, static: bool, where: str) -> list[tuple[str, Problem]]:
    """Put a tf2_msgs/TFMessage into the tree; returns child frame and problem of each transform that was refused."""
    refused = []
    for stamped in message.transforms:
        try:
            link = link_of(stamped, where)
            put(tree, link, static, where)
        except Unusable as error:
            refused.append((stamped.child_frame_id.lstrip("/"), error.problem))
    return refused


def put(tree: TransformTree, link: Link, static: bool, where: str, kind: str = "transform") -> None:
    """Add a link to the tree.

    Raises:
        Unusable: it would close a loop, or the tree is full.
    """
    try:
        tree.set(*link, static)
    except InvalidInput as error:
        found = f"'{shown(link.parent)}' -> '{shown(link.child)}': {error}"
        raise Unusable(Problem(kind, where, found)) from None
