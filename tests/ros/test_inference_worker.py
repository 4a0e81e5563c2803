"""The inference thread with a real network: faults inside, cameras that are missing, exact accounting."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (pip install -e '.[ros]')")
pytest.importorskip("tf2_msgs.msg", reason="needs tf2_msgs (python tools/build_messages.py)")
pytest.importorskip("torch")
pytest.importorskip("rosbags")

import ros_fixtures as fx
import tiny_lidar_node as tiny
from rclpy.logging import get_logger
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage
from tf2_msgs.msg import TFMessage

from occ_core.bags import messages as msg
from occ_core.clouds import LIDAR_POINT
from occ_core.geometry import pose
from occ_core.images import decode_compressed
from occ_core.inference.predictor import Predictor
from occ_core.models.easyocc.past import StampedPose
from occ_core.sync import SyncedSet
from occ_core.transforms import TransformTree
from occ_ros.calibration import Calibration
from occ_ros.cameras import CameraInput, ImageSlot
from occ_ros.inference_worker import InferenceWorker
from occ_ros.messages import cloud_of
from occ_ros.odometry import Odometry
from occ_ros.pipeline import ring, sweeps_for
from occ_ros.timings import StageTimes

CAMERAS = fx.RIG.names


class Faulty:
    """A session that does for one call what it is told to."""

    def __init__(self, session):
        self.session, self.config, self.cameras = session, session.config, len(CAMERAS)
        self.next = None
        self.calls = 0

    def run(self, images, rig, missing):
        self.calls += 1
        fault, self.next = self.next, None
        if isinstance(fault, BaseException):
            raise fault
        if isinstance(fault, threading.Event):
            assert fault.wait(30.0)
        labels, confidence, observed = self.session.run(images, rig, missing)
        if fault == "nan":
            confidence = np.full(confidence.shape, np.nan, dtype=np.float32)
        if fault == "labels":
            labels = np.full(labels.shape, 99, dtype=np.uint8)
        if fault == "nothing":
            observed = np.zeros_like(observed)
        return labels, confidence, observed


class Recorder:
    """Stands where the outputs are."""

    def __init__(self):
        self.answers = []
        self.listeners = 1

    def wanted(self):
        return self.listeners > 0

    def publish(self, occupancy, stamp_ns, current=True):
        self.answers.append((occupancy, stamp_ns, current))


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    loaded = Predictor.load(fx.tiny_model(tmp_path_factory.mktemp("model")), "torch", 1)
    loaded.session = Faulty(loaded.session)
    return loaded


class Setup:
    def __init__(self, predictor, known=CAMERAS, sweeps=None, **values):
        self.predictor, self.outputs = predictor, Recorder()
        topics = {name: (f"/{name}/camera_info", False) for name in CAMERAS}
        self.calibration = Calibration(topics, "base_link")
        transforms = deserialize_message(bytes(msg.serialize(fx.static_transforms())), TFMessage)
        assert self.calibration.add_transforms(transforms, static=True) == []
        for name in known:
            self.know(name)
        self.values = {"missing_camera": "mask", "budget_ms": 1e6, **values}
        asks = predictor.moving_rig or predictor.memory
        odometry = Odometry(self.calibration.tree, "base_link", "odom") if asks else None
        self.worker = InferenceWorker(
            predictor,
            self.calibration,
            self.outputs,
            CAMERAS,
            3,
            self.values,
            StageTimes(),
            get_logger("test"),
            sweeps,
            odometry,
        )
        self.worker.start()
        self.index = 0

    def know(self, name):
        info = msg.camera_info(fx.START, fx.camera_frame(name), fx.RIG[name])
        self.calibration.add_info(name, deserialize_message(bytes(msg.serialize(info)), CameraInfo))

    def set_of(self, cameras=CAMERAS):
        stamps = {name: stamp for name, stamp in fx.stamps(self.index).items() if name in cameras}
        items = {}
        for name, pixels in fx.images(self.index).items():
            if name in cameras:
                camera = CameraInput(name, f"/{name}", "", True)
                items[name] = ImageSlot(camera, CompressedImage(data=fx.jpeg(pixels)), time.monotonic())
        self.index += 1
        return SyncedSet(max(stamps.values()), items, stamps, len(items) == len(CAMERAS), 0, 0)

    def send(self, cameras=CAMERAS):
        """Offer a set and wait for its end."""
        before, _ = self.worker.counts()
        self.worker.offer(self.set_of(cameras))
        fx.wait_for(lambda: self.worker.counts()[0] == before + 1, 30.0, "end of the set")

    def expected(self, index, cameras=CAMERAS):
        decoded = {name: decode_compressed(fx.jpeg(image)) for name, image in fx.images(index).items()}
        return self.predictor.predict({name: decoded[name] for name in cameras}, fx.rig_over_tf())


@pytest.fixture
def make(predictor):
    made = []

    def setup(**values):
        made.append(Setup(predictor, **values))
        return made[-1]

    yield setup
    for one in made:
        assert one.worker.stop()
        accounted(one.worker)


def accounted(worker):
    finished, ended = worker.counts()
    assert finished == sum(ended[how] for how in ("answered", "skipped", "failed", "superseded", "stopped"))
    assert ended["failed"] == sum(count for how, count in ended.items() if how.startswith("failed: "))


@pytest.mark.parametrize(
    "fault, reason, words",
    [
        (RuntimeError("CUDA error\nand more"), "RuntimeError", "RuntimeError: CUDA error"),
        (MemoryError(), "MemoryError", "MemoryError"),
        ("nan", "InvalidInput", "confidence is not finite in 640000 cells"),
        ("labels", "InvalidInput", "label 99 is not in taxonomy"),
        ("nothing", "InvalidInput", "calls no cell observed: its numbers are not finite"),
    ],
)
def test_a_fault_costs_one_frame_and_is_named(make, fault, reason, words):
    setup = make()
    setup.send()
    setup.predictor.session.next = fault
    setup.send()
    _, ended = setup.worker.counts()
    assert (ended["answered"], ended["failed"], ended[f"failed: {reason}"]) == (1, 1, 1)
    assert words in setup.worker.failure
    assert "\n" not in setup.worker.failure
    setup.send()
    assert setup.worker.failure == ""
    assert [stamp for _, stamp, _ in setup.outputs.answers] == [max(fx.stamps(i).values()) for i in (0, 2)]
    accounted(setup.worker)


def test_a_camera_without_calibration_is_masked_not_guessed(make):
    """The network was trained on four cameras; the fourth has no CameraInfo yet."""
    setup = make(known=CAMERAS[:3])
    assert setup.calibration.rig({}).rig.names == CAMERAS[:3]
    setup.send()
    occupancy, _, current = setup.outputs.answers[0]
    np.testing.assert_array_equal(occupancy.labels, setup.expected(0, CAMERAS[:3]).labels)
    assert current
    assert setup.worker.without == {CAMERAS[3]}
    setup.know(CAMERAS[3])
    setup.send()
    np.testing.assert_array_equal(setup.outputs.answers[1][0].labels, setup.expected(1).labels)
    assert not setup.worker.without


def test_not_current_marks_answers_without_a_camera(make):
    setup = make(missing_camera="not_current")
    setup.send()
    setup.send(CAMERAS[1:])
    setup.send()
    assert [current for _, _, current in setup.outputs.answers] == [True, False, True]


def test_too_few_cameras_are_a_failure_that_is_named(make):
    setup = make(known=CAMERAS[:2])
    setup.send()
    assert setup.worker.failure.startswith("2 of 4 cameras are usable, at least 3 needed")
    assert not setup.outputs.answers


def test_the_newest_set_wins_and_what_waits_at_the_end_is_counted(make):
    setup = make()
    setup.send()
    setup.predictor.session.next = go_on = threading.Event()
    calls = setup.predictor.session.calls
    setup.worker.offer(setup.set_of())
    fx.wait_for(lambda: setup.predictor.session.calls > calls, 30.0, "the network")
    for _ in range(3):
        setup.worker.offer(setup.set_of())
    assert setup.worker.counts()[0] == 3  # one answered, two superseded; one is being answered, one waits
    accounted(setup.worker)
    threading.Timer(0.2, go_on.set).start()
    assert setup.worker.stop()
    _, ended = setup.worker.counts()
    assert (ended["answered"], ended["superseded"], ended["stopped"]) == (2, 2, 1)
    setup.worker.start()
    setup.send()
    assert len(setup.outputs.answers) == 3


def test_over_budget_is_noticed_and_forgotten(make):
    setup = make(budget_ms=0.001)
    setup.send()
    since_s = setup.worker.over_since_s
    setup.send()
    assert since_s is not None
    assert setup.worker.over_since_s == since_s
    setup.values["budget_ms"] = 1e6
    setup.send()
    assert setup.worker.over_since_s is None


def test_nobody_listens_nothing_is_computed(make):
    setup = make()
    setup.outputs.listeners = 0
    calls = setup.predictor.session.calls
    setup.send()
    assert setup.predictor.session.calls == calls
    assert setup.worker.counts()[1]["skipped"] == 1


class Watched:
    """A session that remembers the rigs it was asked with."""

    def __init__(self, session):
        self.session, self.config, self.cameras = session, session.config, len(CAMERAS)
        self.rigs = []

    def run(self, images, rig, missing, lidar=None):
        self.rigs.append(rig)
        return self.session.run(images, rig, missing, lidar)


def test_cameras_are_where_they_were_at_their_own_stamps(tmp_path, monkeypatch):
    """10 m/s ahead; for a network that takes the rig as data, while odometry is there."""
    tiny.use_tiny_lidar(monkeypatch.setattr)
    predictor = Predictor.load(tiny.checkpoint(tmp_path / "tiny.safetensors", 0.3), "torch", 1)
    predictor.session = Watched(predictor.session)
    setup = Setup(predictor)
    try:
        setup.send()
        still = predictor.session.rigs[-1]
        assert not setup.worker.odometry_late
        for tenth in range(-20, 20):
            place = pose((float(tenth), 0.0, 0.0), (1.0, 0.0, 0.0, 0.0))
            setup.calibration.tree.set("odom", "base_link", fx.START + tenth * 10**8, place)
        stamps_ns = fx.stamps(setup.index)
        setup.send()
        moved, newest_ns = predictor.session.rigs[-1], max(stamps_ns.values())
        assert min(stamps_ns.values()) < newest_ns
        for name, stamp_ns in stamps_ns.items():
            way_m = moved[name].ego_from_cam[:3, 3] - still[name].ego_from_cam[:3, 3]
            np.testing.assert_allclose(way_m, (10.0 * (stamp_ns - newest_ns) / 1e9, 0.0, 0.0), atol=1e-6)
        setup.index += 100  # long after the last sample
        setup.send()
        assert predictor.session.rigs[-1].fingerprint == still.fingerprint
        assert "no transform 'odom' <- 'base_link'" in setup.worker.odometry_late
    finally:
        assert setup.worker.stop()


def test_what_is_remembered_moves_with_the_robot(tmp_path):
    """5 m/s ahead while there is odometry; then it jumps, then it ends."""
    path = fx.tiny_model(tmp_path, fx.REMEMBERING)
    setup, own = Setup(Predictor.load(path, "torch", 1)), Predictor.load(path, "torch", 1)
    alone = Predictor.load(path, "torch", 1)
    alone.memory = None

    def drive(first_s: float, last_s: float, from_m: float) -> None:
        for tenth in range(round(10 * first_s), round(10 * last_s) + 1):
            place = pose((from_m + 0.5 * tenth, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0))
            setup.calibration.tree.set("odom", "base_link", fx.START + tenth * 10**8, place)

    def answer(there: Predictor, index: int, x_m: float | None) -> np.ndarray:
        decoded = {name: decode_compressed(fx.jpeg(image)) for name, image in fx.images(index).items()}
        stamp_ns = max(fx.stamps(index).values())
        stamped = None if x_m is None else StampedPose(stamp_ns, pose((x_m, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0)))
        return there.predict(decoded, fx.rig_over_tf(), pose=stamped).confidence

    try:
        drive(-0.1, 1.2, 0.0)
        drive(1.3, 2.2, 60.0)
        why = ["no frame before", "", "", "jump: 62.5 m in 0.500 s, limit 70.0 m/s", ""]
        for index in range(5):
            setup.send()
            x_m = 5.0 * (max(fx.stamps(index).values()) - fx.START) / 1e9 + (60.0 if index >= 3 else 0.0)
            said = setup.outputs.answers[-1][0].confidence
            np.testing.assert_allclose(said, answer(own, index, x_m), atol=0.01)
            assert setup.worker.without_memory == why[index]
            assert np.allclose(said, answer(alone, index, None), atol=0.01) == bool(why[index])
        setup.index = 10  # after the last sample
        setup.send()
        assert setup.worker.without_memory.startswith("no odometry: no transform 'odom' <- 'base_link'")
        assert "after its last sample" in setup.worker.odometry_late
        np.testing.assert_array_equal(setup.outputs.answers[-1][0].confidence, answer(alone, 10, None))
        ended = setup.worker.counts()[1]
        assert {how: count for how, count in ended.items() if "memory" in how} == {
            "without memory: no frame before": 1, "with memory": 3, "without memory: jump": 1,
            "without memory: no odometry": 1,
        }  # fmt: skip
    finally:
        assert setup.worker.stop()


def sweeps_of(predictor, intensity_max=0.0):
    """A LiDAR in the middle of base_link."""
    tree = TransformTree()
    tree.set("base_link", "lidar", 0, np.eye(4), static=True)
    values = {"lidar_topic": "/points", "model": "tiny", "lidar_max_age_s": 0.1, "max_spread_s": 0.1}
    values["lidar_intensity_max"] = intensity_max
    return sweeps_for(values, predictor, Odometry(tree, "base_link", "odom"))


def sweep(stamp_ns):
    point = np.zeros(1, dtype=LIDAR_POINT)
    point["x"], point["intensity"] = 5.0, 0.25
    return cloud_of(point, stamp_ns, "lidar")


def test_a_set_is_answered_with_the_sweeps_it_was_handed_on_with(tmp_path, monkeypatch):
    """Though so many have come since that they are no longer kept for others."""
    tiny.use_tiny_lidar(monkeypatch.setattr)
    predictor = Predictor.load(tiny.checkpoint(tmp_path / "tiny.safetensors", 0.3), "torch", 1)
    kept = sweeps_of(predictor)
    setup = Setup(predictor, sweeps=kept)
    try:
        group = setup.set_of()
        kept.add(sweep(group.stamp_ns))
        taken = kept.taken(group.stamp_ns)
        for i in range(1, 40):
            kept.add(sweep(group.stamp_ns + i * 50_000_000))
        setup.worker.offer(group, taken)
        fx.wait_for(lambda: setup.worker.counts()[0] == 1, 30.0, "end of the set")
        assert not setup.worker.without_lidar and kept.topic.joined == 1
    finally:
        assert setup.worker.stop()


@pytest.mark.parametrize("parameter, share", [(0.0, 0.5), (1.0, 0.25)])
def test_full_intensity_is_the_models_unless_the_node_is_told(tmp_path, monkeypatch, parameter, share):
    tiny.use_tiny_lidar(monkeypatch.setattr)
    predictor = Predictor.load(tiny.checkpoint(tmp_path / "tiny.safetensors", 0.3, intensity_max=0.5), "torch", 1)
    kept = sweeps_of(predictor, parameter)
    kept.add(sweep(fx.START))
    assert kept.cloud(fx.START)[0, 3] == pytest.approx(share)


def test_warm_up_rig_looks_all_around():
    forward = np.array([camera.ego_from_cam[:3, 2] for camera in ring(("a", "b", "c", "d"))])
    np.testing.assert_allclose(forward, [[1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]], atol=1e-12)
