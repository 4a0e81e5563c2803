"""What drivers send, through node and bag reader: one verdict."""

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("rosbags")

from bag_robot import T0, H, S, W, base_from, picture, robot

from occ_core.bags import messages as msg
from occ_core.problems import KINDS, Unusable
from occ_core.sensor_messages import camera_from_info, image_header, image_of, is_rectified
from occ_core.sources.bag import BagSource

K = np.array([[20.0, 0, 15.5], [0, 21, 11.5], [0, 0, 1]])
TOPIC = "/odd/image_raw"
RADIAL = [-0.05, 0.01, 0.0005, -0.0003]
RATIONAL = [*RADIAL, 0.01, 0.12, -0.04, 0.008]


def info(**changes):
    """CameraInfo of the camera `odd`; `roi` as (x, y, width, height)."""
    message = robot(("odd",), images=1, tf=False).messages[1][2]
    if "roi" in changes:
        x, y, width, height = changes.pop("roi")
        fields = {"x_offset": x, "y_offset": y, "width": width, "height": height, "do_rectify": False}
        message.roi = msg.new("sensor_msgs/msg/RegionOfInterest", **fields)
    for name, value in changes.items():
        is_array = name in ("d", "k", "r", "p")
        setattr(message, name, np.asarray(value, dtype=np.float64).ravel() if is_array else value)
    return message


def coded(extension, array, declared):
    data = cv2.imencode(extension, array)[1].tobytes()
    return msg.compressed_image(T0, "odd_optical", declared, data)


def raw(encoding, array):
    message = msg.image(T0, "odd_optical", np.zeros((H, W, 3), np.uint8))
    message.encoding, message.step, message.data = encoding, array.strides[0], array.view(np.uint8).reshape(-1)
    return message


def turned(axis, angle):
    return cv2.Rodrigues(np.array(axis, dtype=np.float64) * angle)[0]


GREY = np.full((H, W), 90, np.uint8)
DEPTH = np.full((H, W), 2000, np.uint16)
SENSOR = np.array([[40.0, 0, 31.5], [0, 42, 23.5], [0, 0, 1]])
HALF = SENSOR / np.array([[2], [2], [1]])

# name, CameraInfo, image, verdict: a kind, or (model, number of coefficients)
CALIBRATIONS = [
    ("plumb_bob of 4", {"d": RADIAL}, ("plumb_bob", 4)),
    ("plumb_bob of 8", {"d": [*RADIAL, 0, 0, 0, 0]}, ("plumb_bob", 8)),
    ("plumb_bob of 6, a zero behind", {"d": [*RADIAL, 0.01, 0]}, ("plumb_bob", 5)),
    ("plumb_bob of 6", {"d": [*RADIAL, 0.01, 0.1]}, "distortion"),
    ("plumb_bob of 3", {"d": [0.1, 0, 0]}, "distortion"),
    ("rational of 5", {"distortion_model": "rational_polynomial", "d": [*RADIAL, 0]}, ("rational_polynomial", 5)),
    (
        "rational of 12",
        {"distortion_model": "rational_polynomial", "d": [*RATIONAL, 1e-3, 0, 1e-3, 0]},
        ("rational_polynomial", 12),
    ),
    (
        "tilted sensor",
        {"distortion_model": "rational_polynomial", "d": [*RATIONAL, 1e-3, 0, 1e-3, 0, 2e-3, 1e-3]},
        ("rational_polynomial", 14),
    ),
    (
        "rational of 14, no tilt",
        {"distortion_model": "rational_polynomial", "d": [*RATIONAL, 0, 0, 0, 0, 0, 0]},
        ("rational_polynomial", 14),
    ),
    (
        "equidistant of 8, zeros behind",
        {"distortion_model": "equidistant", "d": [-0.01, 0.04, -0.04, 0.006, 0, 0, 0, 0]},
        ("equidistant", 4),
    ),
    ("equidistant of 5", {"distortion_model": "equidistant", "d": [-0.01, 0.04, -0.04, 0.006, 0.1]}, "distortion"),
    ("a model of nobody", {"distortion_model": "magic", "d": [0.1] * 5}, "distortion"),
    ("a model of nobody, all zero", {"distortion_model": "magic", "d": [0.0] * 5}, ("none", 0)),
    ("no model, five numbers", {"distortion_model": "", "d": [0.1] * 5}, "distortion"),
    ("not a number", {"d": [*RADIAL, np.nan]}, "distortion"),
    ("K zero", {"k": np.zeros(9), "width": 0, "height": 0}, "uncalibrated"),
    ("K not a number", {"k": [np.nan] * 9}, "calibration"),
    ("K of one unit", {"k": [0.8, 0, 0.5, 0, 0.8, 0.5, 0, 0, 1]}, "calibration"),
    ("K of a telescope", {"k": [2e4, 0, 15.5, 0, 2e4, 11.5, 0, 0, 1]}, "calibration"),
    ("K of two lenses", {"k": [20, 0, 15.5, 0, 200, 11.5, 0, 0, 1]}, "calibration"),
    ("K of a negative focal length", {"k": [-20, 0, 15.5, 0, 20, 11.5, 0, 0, 1]}, "calibration"),
    ("pixels twice as wide as high", {"k": [20, 0, 15.5, 0, 40, 11.5, 0, 0, 1]}, ("none", 0)),
    ("no frame", {"header": msg.header(T0, "")}, "camera frame"),
    ("frame of nobody", {"header": msg.header(T0, "nobody")}, "place"),
    ("another size", {"width": 2 * W, "height": 2 * H}, "size"),
    ("binned", {"width": 2 * W, "height": 2 * H, "k": SENSOR, "binning_x": 2, "binning_y": 2}, HALF),
    ("binned, size of the image", {"k": SENSOR, "binning_x": 2, "binning_y": 2}, HALF),
    ("binning said, K of the image", {"binning_x": 2, "binning_y": 2}, K),
    (
        "cut",
        {"width": 2 * W, "height": 2 * H, "k": SENSOR, "roi": (16, 12, W, H)},
        SENSOR - [[0, 0, 16], [0, 0, 12], [0, 0, 0]],
    ),
    ("cut, size of the image", {"k": SENSOR, "roi": (16, 12, W, H)}, SENSOR - [[0, 0, 16], [0, 0, 12], [0, 0, 0]]),
    (
        "cut and binned",
        {"width": 4 * W, "height": 4 * H, "k": SENSOR, "roi": (8, 4, 2 * W, 2 * H), "binning_x": 2, "binning_y": 2},
        [[20, 0, 11.75], [0, 21, 9.75], [0, 0, 1]],
    ),
    ("whole region", {"roi": (0, 0, W, H)}, K),
    ("binning that leaves another size", {"width": 4 * W, "height": 4 * H, "binning_x": 2, "binning_y": 2}, "size"),
]
IMAGES = [
    ("depth", raw("16UC1", DEPTH), "depth"),
    ("depth of floats", raw("32FC1", DEPTH.astype(np.float32)), "depth"),
    ("mono16", raw("mono16", DEPTH), "depth"),
    ("16 bits of colour", raw("rgb16", np.zeros((H, W, 3), np.uint16)), "bits"),
    ("depth in a PNG", coded(".png", DEPTH, "16UC1; png compressed "), "depth"),
    ("16 bits in a PNG, nothing said", coded(".png", DEPTH, "png"), "depth"),
    ("16 bits of colour in a PNG", coded(".png", np.zeros((H, W, 3), np.uint16), "png"), "bits"),
    ("compressedDepth", coded(".png", DEPTH, "32FC1; compressedDepth png"), "depth"),
    ("an encoding of nobody", raw("yuv420p", GREY), "encoding"),
    ("NV12", raw("nv12", GREY), "encoding"),
    ("WebP", coded(".webp", picture(1), "webp"), "file"),
    ("BMP", coded(".bmp", picture(1), "bmp"), "file"),
    ("TIFF", coded(".tiff", picture(1), "tiff"), "file"),
    ("video", msg.compressed_image(T0, "odd_optical", "h264", b"\0\0\0\1\x67" + bytes(90)), "file"),
    ("PNG with alpha", coded(".png", np.dstack([picture(1), GREY]), "png"), ""),
    ("grey", raw("8UC1", GREY), ""),
    ("Bayer in a JPEG", coded(".jpg", GREY, "bayer_rggb8; jpeg compressed "), ""),
    ("Bayer of 12 bits in a grey PNG", coded(".png", GREY, "bayer_rggb12; png compressed "), "encoding"),
    (
        "cut short",
        msg.compressed_image(T0, "odd_optical", "jpeg", coded(".jpg", GREY, "").data[:-60].tobytes()),
        "damaged image",
    ),
    ("no image at all", msg.compressed_image(T0, "odd_optical", "jpeg", b"hello"), "damaged image"),
]
CASES = [
    *((name, info(**changes), raw("rgb8", picture(1)), verdict) for name, changes, verdict in CALIBRATIONS),
    *((name, info(), image, verdict) for name, image, verdict in IMAGES),
]


def in_a_bag(folder, calibration, image):
    """Kind of the problem with camera `odd`, or the camera; beside a good one, which is used whatever happens."""
    made = robot(images=3)
    made.static("odd")
    topic = TOPIC + ("/compressed" if hasattr(image, "format") else "")
    for step in range(3):
        made.add(topic, T0 + step * S // 10, at(image, T0 + step * S // 10))
        made.add("/odd/camera_info", T0 + step * S // 10, calibration)
    source = BagSource(made.write(folder / "bag"))
    frames = list(source)
    assert len(frames) == 3 and {"left", "right"} <= frames[0].images.keys()
    if "odd" in source.refused:
        assert not any("odd" in frame.rig.names for frame in frames)
        return source.refused["odd"].kind
    return frames[0].rig["odd"]


def at(message, stamp_ns):
    fields = {name: getattr(message, name) for name in message.__dataclass_fields__ if not name.startswith("__")}
    return type(message)(**{**fields, "header": msg.header(stamp_ns, message.header.frame_id)})


def in_the_node(calibration_message, image):
    """As `in_a_bag`."""
    from rclpy.serialization import deserialize_message
    from sensor_msgs import msg as ros

    from occ_ros.calibration import Calibration
    from occ_ros.cameras import CameraInput, ImageSlot, problems
    from occ_ros.sensors import ERROR, Surroundings

    def over_the_wire(message):
        return deserialize_message(bytes(msg.serialize(message)), getattr(ros, message.__msgtype__.rpartition("/")[2]))

    calibration = Calibration({"odd": ("/odd/camera_info", False)}, "base_link")
    calibration.tree.set("base_link", "odd_optical", 0, base_from("odd"), static=True)
    calibration.add_info("odd", over_the_wire(calibration_message))
    camera = CameraInput("odd", TOPIC, "/odd/camera_info", hasattr(image, "format"))
    camera.came(T0, T0, 10.0)
    for _ in range(2):  # the first image may tell what a CameraInfo means
        known = calibration.rig({"odd": T0})
        if known is None:
            break
        slot = ImageSlot(camera, over_the_wire(image), 10.0)
        if slot.pixels(known.rig["odd"].size, (1, 1)) is None and slot.size:
            calibration.images_have("odd", slot.size)
    around = Surroundings(10.1, 0.7, 0.0, frozenset({"Image", "CompressedImage"}))
    errors = [found for found in problems(camera, calibration, around) if found.level == ERROR]
    return errors[0].kind if errors else calibration.rig({"odd": T0}).rig["odd"]


@pytest.mark.parametrize(
    ("calibration", "image", "verdict"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_one_verdict_in_bag_and_node(tmp_path, calibration, image, verdict):
    pytest.importorskip("rclpy", reason="needs ROS 2 (pip install -e '.[ros]')")
    for found in (in_a_bag(tmp_path, calibration, image), in_the_node(calibration, image)):
        if isinstance(verdict, str) and verdict:
            assert found == verdict
            continue
        assert not isinstance(found, str), found
        assert found.size == (W, H)
        if isinstance(verdict, tuple):
            assert (found.distortion_model, len(found.distortion)) == verdict
        elif not isinstance(verdict, str):
            np.testing.assert_allclose(found.intrinsics, verdict)


@pytest.mark.parametrize("count", [4, 5, 8, 12, 14])
def test_coefficients_are_opencvs(count):
    d = [*RATIONAL, 1e-3, -2e-3, 1e-3, 2e-3, 0.02, -0.01][:count]
    camera = camera_from_info("odd", info(d=d), np.eye(4))
    points = np.random.default_rng(0).uniform((-0.5, -0.4, 1), (0.5, 0.4, 1), (50, 3))
    expected = cv2.projectPoints(points, np.zeros(3), np.zeros(3), K, np.array(d))[0][:, 0]
    pixels, _ = camera.project(points)
    np.testing.assert_allclose(pixels, expected, atol=1e-9)
    np.testing.assert_allclose(camera.rays(expected), points, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("k", [20, 0, 0, 0, 21, 0, 0, 0, 1], "centre"),
        ("d", [-0.9, 0, 0, 0, 0], "folds"),
        ("frame", "another", "frames"),
        ("mount", (0.5, 0.0, -0.3), "below"),
        ("mount", (500.0, 0.0, 1200.0), "far"),
    ],
)
def test_what_is_used_and_hardly_right_is_named_alike(tmp_path, field, value, kind):
    pytest.importorskip("rclpy", reason="needs ROS 2 (pip install -e '.[ros]')")
    from sensor_msgs.msg import Image

    from occ_ros.calibration import Calibration
    from occ_ros.cameras import CameraInput, ImageSlot, problems
    from occ_ros.sensors import WARN, Surroundings

    place, calibration = base_from("odd"), info(**{field: value} if field in ("k", "d") else {})
    image = raw("rgb8", picture(1))
    if field == "mount":
        place[:3, 3] = value
    if field == "frame":
        image.header = msg.header(T0, value)
    made = robot(images=3)
    made.add("/tf_static", T0, msg.transforms(T0, [("base_link", "odd_optical", place)]))
    for step in range(3):
        made.add(TOPIC, T0 + step * S // 10, at(image, T0 + step * S // 10))
        made.add("/odd/camera_info", T0 + step * S // 10, calibration)
    source = BagSource(made.write(tmp_path / "bag"))
    assert len(list(source)) == 3 and "odd" not in source.refused
    bag = {problem.kind: problem.found for problem, _ in source.tally.of(TOPIC)}

    node = Calibration({"odd": ("/odd/camera_info", False)}, "base_link")
    node.tree.set("base_link", "odd_optical", 0, place, static=True)
    node.add_info("odd", calibration)
    node.rig({"odd": T0})
    camera = CameraInput("odd", TOPIC, "/odd/camera_info", False)
    camera.came(T0, T0, 10.0)
    seen = Image(encoding="rgb8", width=W, height=H, step=3 * W, data=picture(1).tobytes())
    seen.header.frame_id = image.header.frame_id
    assert ImageSlot(camera, seen, 10.0).pixels((W, H), (1, 1)) is not None
    around = Surroundings(10.1, 0.7, 0.0, frozenset({"Image"}))
    found = {found.kind: found.text for found in problems(camera, node, around) if found.level == WARN}
    assert bag == found and list(bag) == [kind]


def test_r_turns_the_camera_of_rectified_images():
    """Pixels of a point: rectified by P and R as CameraInfo has them, or seen by the turned camera."""
    r, p = turned((0, 1, 0), 0.1) @ turned((1, 0, 0), -0.05), [[30, 0, 15, 0], [0, 30, 11, 0], [0, 0, 1, 0]]
    message = info(r=r, p=p, d=[-0.2, 0.02, 0, 0, 0])
    ego_from_frame = base_from("odd")
    camera = camera_from_info("odd", message, ego_from_frame, rectified=True)
    point_frame = np.array([0.3, -0.2, 4.0])
    expected = np.array(p)[:, :3] @ r @ point_frame
    point_ego = ego_from_frame @ [*point_frame, 1]
    pixel, _ = camera.project((np.linalg.inv(camera.ego_from_cam) @ point_ego)[None, :3])
    np.testing.assert_allclose(pixel[0], expected[:2] / expected[2])
    assert camera.distortion_model == "none"
    unrotated = camera_from_info("odd", info(r=np.zeros(9), p=p), ego_from_frame, rectified=True)
    np.testing.assert_array_equal(unrotated.ego_from_cam, ego_from_frame)
    for fields in ({"r": 2 * np.eye(3), "p": p}, {"p": np.zeros(12), "d": [0.1] * 5}):
        with pytest.raises(Unusable):
            camera_from_info("odd", info(**fields), ego_from_frame, rectified=True)


def test_rectified_is_told_by_the_last_part_of_a_name():
    for topic in ("/a/image_rect", "/a/image_rect_color/compressed", "/infra1/image_rect_raw"):
        assert is_rectified(topic)
    for topic in ("/direct/image_raw", "/image_rect/image_raw/compressed", "/a/image_corrected", "/a/direct"):
        assert not is_rectified(topic)


@pytest.mark.parametrize("extension", [".png", ".jpg"])
@pytest.mark.parametrize(
    ("pattern", "at_red"), [("rggb", (0, 0)), ("bggr", (1, 1)), ("gbrg", (1, 0)), ("grbg", (0, 1))]
)
def test_a_mosaic_in_a_file_becomes_colours(extension, pattern, at_red):
    rgb = np.zeros((48, 64, 3), np.uint8)
    rgb[:, :32], rgb[:, 32:] = (220, 30, 30), (30, 30, 220)
    mosaic, (y, x) = rgb[..., 1].copy(), at_red
    mosaic[y::2, x::2], mosaic[1 - y :: 2, 1 - x :: 2] = rgb[y::2, x::2, 0], rgb[1 - y :: 2, 1 - x :: 2, 2]
    name = {".png": "png", ".jpg": "jpeg"}[extension]
    message = coded(extension, mosaic, f"bayer_{pattern}8; {name} compressed ")
    found = image_of(message, at_least=(1, 1)).astype(int)
    assert image_header(message).mosaic == f"bayer_{pattern}8" and found.shape == (48, 64, 3)
    for columns, color in ((slice(4, 28), (220, 30, 30)), (slice(36, 60), (30, 30, 220))):
        np.testing.assert_allclose(found[4:-4, columns].mean((0, 1)), color, atol=12)
    already = coded(".png", rgb[..., ::-1], f"bayer_{pattern}8; png compressed bgr8")
    np.testing.assert_array_equal(image_of(already), rgb)


def test_the_page_of_troubles_has_the_words_that_are_printed():
    page = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text()
    for kind, (cause, cure) in KINDS.items():
        assert f"| {kind} | {cause} | {cure} |" in page, kind
