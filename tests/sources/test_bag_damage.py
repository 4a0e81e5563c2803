"""Bags of other robots: every way in which they are broken."""

import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

pytest.importorskip("rosbags")

from bag_robot import T0, H, W, picture, robot
from rosbags.rosbag2 import StoragePlugin, Writer

from occ_core.bags import messages as msg
from occ_core.errors import CorruptInput, InvalidInput, MissingInput, MissingTransform
from occ_core.sources.bag import BagSource


def no_tf(path):
    robot(tf=False).write(path)


def no_info(path):
    made = robot()
    made.messages = [entry for entry in made.messages if not entry[1].endswith("camera_info")]
    made.write(path)


def no_images(path):
    made = robot()
    made.messages = [entry for entry in made.messages if "image" not in entry[1]]
    made.write(path)


def no_base(path):
    made = robot(tf=False)
    made.static("left", "right", parent="chassis")
    made.write(path)


def one_camera_unplaced(path):
    made = robot(tf=False)
    made.static("left")
    made.moving()
    made.write(path)


def empty(path):
    with Writer(path, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        writer.add_connection("/left/image_raw", "sensor_msgs/msg/Image", typestore=msg.store())


def empty_sqlite(path):
    with Writer(path, version=8, storage_plugin=StoragePlugin.SQLITE3) as writer:
        writer.add_connection("/left/image_raw", "sensor_msgs/msg/Image", typestore=msg.store())


def zero_intrinsics(path):
    made = robot(names=("left",))
    made.messages = [entry for entry in made.messages if not entry[1].endswith("camera_info")]
    made.info("left", T0, k=np.zeros((3, 3)))
    made.write(path)


def wrong_size(path):
    made = robot(names=("left",))
    bad = msg.image(T0, "left_optical", np.zeros((H, W + 2, 3), dtype=np.uint8))
    made.messages = [entry for entry in made.messages if "image" not in entry[1]]
    made.add("/left/image_raw", T0, bad)
    made.write(path)


def lying_size(path):
    made = robot(names=("left",))
    bad = msg.image(T0, "left_optical", picture(1))
    bad.width, bad.height, bad.step = 8000, 4000, 48000
    made.messages = [entry for entry in made.messages if "image" not in entry[1]]
    made.add("/left/image_raw", T0, bad)
    made.write(path)


def broken_jpeg(path):
    made = robot(names=("left",))
    made.messages = [entry for entry in made.messages if "image" not in entry[1]]
    data = cv2.imencode(".jpg", picture(1))[1].tobytes()[:-40]
    made.add("/left/image_raw/compressed", T0, msg.compressed_image(T0, "left_optical", "jpeg", data))
    made.write(path)


def no_frame(path):
    made = robot(names=("left",))
    made.messages = [entry for entry in made.messages if not entry[1].endswith("camera_info")]
    made.info("left", T0, frame="")
    made.write(path)


def no_stamp(path):
    made = robot(names=("left",), images=1)
    image = msg.image(0, "left_optical", picture(1))
    made.add("/left/image_raw", T0 + 5, image)
    made.write(path)


def broken_tf(path):
    made = robot()
    links = [("odom", "base_link", np.eye(4))]
    message = msg.transforms(T0, links)
    message.transforms[0].transform.rotation.w = 0.0
    made.add("/tf", T0 + 1, message)
    made.write(path)


def truncated_mcap(path):
    robot().write(path)
    file = path / f"{path.name}.mcap"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def truncated_db3(path):
    robot().write(path, StoragePlugin.SQLITE3)
    file = path / f"{path.name}.db3"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def no_metadata(path):
    robot().write(path)
    (path / "metadata.yaml").unlink()


def bad_metadata(path):
    robot().write(path)
    (path / "metadata.yaml").write_text("rosbag2_bagfile_information: {version: 5}")


def lost_part(path):
    robot().write(path)
    (path / f"{path.name}.mcap").unlink()


def not_a_bag(path):
    path.with_suffix(".txt").write_text("hello")
    shutil.move(path.with_suffix(".txt"), path)


BROKEN = [
    (no_tf, MissingInput, "no TF"),
    (no_info, MissingInput, "no CameraInfo.*'/left/camera_info'"),
    (no_images, MissingInput, "no image topic"),
    (no_base, MissingInput, "names 'base_link', only: chassis"),
    (empty, MissingInput, "bag is empty"),
    (empty_sqlite, MissingInput, "bag is empty"),
    (zero_intrinsics, InvalidInput, "'/left/camera_info': camera 'left'.*focal"),
    (wrong_size, InvalidInput, "34 x 24 px, CameraInfo says 32 x 24"),
    (lying_size, InvalidInput, "'/left/image_raw': .*holds 2304 bytes"),
    (broken_jpeg, InvalidInput, "'/left/image_raw/compressed': .*cut short"),
    (no_frame, InvalidInput, "'/left/camera_info': empty frame_id"),
    (truncated_mcap, CorruptInput, "cut short"),
    (truncated_db3, CorruptInput, "cannot be read|damaged bag"),
    (no_metadata, MissingInput, "no metadata.yaml"),
    (bad_metadata, CorruptInput, "metadata key is missing"),
    (lost_part, MissingInput, "bag.mcap"),
    (not_a_bag, CorruptInput, "cannot be read as a ROS 2 bag"),
]


@pytest.mark.parametrize(("make", "error", "words"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_broken_bags_are_one_line_that_says_what(tmp_path, make, error, words):
    make(tmp_path / "bag")
    with pytest.raises(error, match=words) as caught:
        list(BagSource(tmp_path / "bag"))
    assert "\n" not in str(caught.value)
    assert "bag" in str(caught.value)


def test_one_bad_part_does_not_lose_the_rest(tmp_path):
    for make, kind, cameras, frames in (
        (one_camera_unplaced, "place", ["left"], 10),
        (no_stamp, "no stamp", ["left"], 1),
        (broken_tf, "transform", ["left", "right"], 10),
    ):
        make(tmp_path / make.__name__)
        source = BagSource(tmp_path / make.__name__)
        assert len(list(source)) == frames
        assert [camera.name for camera in source.cameras] == cameras
        ((problem, count),) = list(source.tally)
        assert (problem.kind, count) == (kind, 10 if kind == "place" else 1) or kind == "place"
        with pytest.raises(InvalidInput, match=str(problem).replace("(", "\\(")[:20]):
            list(BagSource(tmp_path / make.__name__, strict=True))


@pytest.mark.parametrize("make", [no_tf, empty, truncated_mcap, truncated_db3, broken_jpeg])
def test_the_command_line_says_it_too(tmp_path, make):
    make(tmp_path / "bag")
    command = [sys.executable, "-m", "occ_core.cli.main", "bag", "check", str(tmp_path / "bag")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")


def test_no_damage_makes_it_hang_or_crash(tmp_path):
    """Any byte may be wrong: a frame, or one of our errors, and nothing else."""
    for storage in (StoragePlugin.MCAP, StoragePlugin.SQLITE3):
        original = robot(images=3).write(tmp_path / f"bag{storage.name}", storage)
        file = next(path for path in original.iterdir() if path.suffix in (".mcap", ".db3"))
        data = file.read_bytes()
        rng = np.random.default_rng(3)
        for _ in range(25):
            damaged = bytearray(data)
            for at in rng.integers(0, len(data), 4):
                damaged[at] = rng.integers(0, 256)
            file.write_bytes(damaged[: rng.integers(1, len(data) + 1)] if rng.random() < 0.3 else damaged)
            try:
                for frame in BagSource(original):
                    assert frame.images
            except (CorruptInput, InvalidInput, MissingInput, MissingTransform) as error:
                assert str(error)
