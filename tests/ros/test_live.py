"""`occ view --live`: the real node over DDS, its page as a WebSocket's client and a real browser see it."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (pip install -e '.[ros]')")
pytest.importorskip("tf2_msgs.msg", reason="needs tf2_msgs (python tools/build_tf2_msgs.py)")
pytest.importorskip("torch")
pytest.importorskip("rosbags")
pytest.importorskip("websockets", reason="needs websockets (pip install -e '.[live]')")

import browser
import rclpy
import ros_fixtures as fx
from sensor_msgs.msg import PointCloud2
from websockets.sync.client import connect

from occ_core.grid import OCC3D_GRID
from occ_core.images import decode_compressed
from occ_core.inference.predictor import Predictor
from occ_core.occupancy import Occupancy
from occ_core.taxonomy import OCC3D
from occ_ros.messages import header_of

pytestmark = pytest.mark.ros
DOMAIN = fx.own_domain()
CAMERAS = list(fx.RIG.names)
FRAMES = 4
COUNTS = "[...$('panels').children].map((panel) => parseInt(panel.textContent.match(/[0-9]+/)[0]))"
CELLS = """(async () => {
  const frame = scene.frames[0], volume = await volumeOf(frame.volumes.predicted);
  return { name: frame.name, index: [...volume.index], label: [...volume.label], confidence: [...volume.confidence] };
})()"""


def truth(index: int) -> Occupancy:
    rng = np.random.default_rng(100 + index)
    labels = np.where(rng.random(OCC3D_GRID.shape) < 0.01, rng.integers(0, 17, OCC3D_GRID.shape), 17)
    return Occupancy(OCC3D_GRID, OCC3D, labels.astype(np.uint8), np.ones(OCC3D_GRID.shape, bool))


class Viewer:
    """`occ view --live` as a process; what it says, line by line."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "occ_core.cli.main", "view", "--live", "--port", "0", *arguments]
        environment = fx.environment(DOMAIN) | {"PYTHONUNBUFFERED": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.process = subprocess.Popen(command, env=environment, text=True, **pipes)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line.strip())

    def said(self, words: str) -> str | None:
        return next((line for line in self.lines if words in line), None)

    @property
    def url(self) -> str:
        return fx.wait_for(lambda: self.said("http://"), 120, f"an address in {self.lines}").split()[2]

    def end(self) -> int:
        code = fx.stop(self.process)
        self._reader.join(timeout=10)
        return code


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """The network, and what it says of each frame of the bag that is played."""
    path = fx.tiny_model(tmp_path_factory.mktemp("model"))
    predictor, seen = Predictor.load(path, "torch", 1), fx.rig_over_tf()
    useful = predictor.useful_size(fx.RIG.cameras[0].size)
    pictures = [{n: fx.jpeg(image) for n, image in fx.images(i).items()} for i in range(FRAMES)]
    decoded = [{n: decode_compressed(jpeg, at_least=useful) for n, jpeg in jpegs.items()} for jpegs in pictures]
    return path, [predictor.predict(images, seen) for images in decoded]


@pytest.fixture(scope="module")
def robot(tmp_path_factory, answers):
    """A bag played over and over to the node."""
    folder = tmp_path_factory.mktemp("live")
    fx.write_bag(folder / "bag", FRAMES, truth={i: truth(i) for i in range(FRAMES)})
    node = fx.start_node(
        "occupancy_node", DOMAIN, folder / "node.log", model=answers[0], backend="torch", threads=1, cameras=CAMERAS,
        image_reliability="reliable", deadline_s=5.0,
    )  # fmt: skip
    player = fx.start_node("player_node", DOMAIN, folder / "player.log", bag=folder / "bag", rate=0.5, loop=True)
    try:
        yield folder
        assert fx.stop(player) == 0 and fx.stop(node, signal.SIGTERM) == 0
    finally:
        for process in (node, player):
            if process.poll() is None:
                process.kill()
        print((folder / "node.log").read_text())


@pytest.fixture
def viewer(robot):
    made = Viewer()
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.process.kill()
        print(*made.lines, sep="\n")


def index_of(name: str) -> int:
    """Which frame of the bag a page's frame is: the stamp of a set is that of its newest image."""
    newest_s = float(name.split(" at ")[1].removesuffix(" s"))
    return round((newest_s - fx.START / 1e9) / (fx.PERIOD_NS / 1e9) - 0.05)


def test_a_client_is_given_what_the_node_answers(viewer, answers):
    with connect(viewer.url.replace("http", "ws") + "/frames", max_size=None) as socket:
        seen = set()
        while len(seen) < 2:  # two different frames, whole and with their truth
            received = json.loads(socket.recv(timeout=120))
            socket.send("next")
            frame = received["frame"]
            if set(frame["images"]) != set(CAMERAS) or "true" not in frame["volumes"]:
                continue
            index = index_of(frame["name"])
            said, true = answers[1][index], truth(index)
            for name, expected in (("predicted", said), ("true", true)):
                steps, label = (
                    zlib.decompress(base64.b64decode(frame["volumes"][name][k])) for k in ("steps", "label")
                )
                cells = np.cumsum(np.frombuffer(steps, "<u4"))
                np.testing.assert_array_equal(cells, np.flatnonzero(expected.occupied))
                np.testing.assert_array_equal(np.frombuffer(label, "u1"), expected.labels.ravel()[cells])
            assert received["scene"]["cameras"] and set(received["scene"]["frusta"]) == set(CAMERAS)
            seen.add(index)
        rclpy_context = rclpy.Context()
        rclpy.init(context=rclpy_context, domain_id=DOMAIN)
        stranger = rclpy.create_node("stranger", context=rclpy_context)
        clouds = stranger.create_publisher(PointCloud2, "/occupancy_node/occupancy", 5)
        bad = 0
        while not bad:  # a cloud without fields
            clouds.publish(PointCloud2(header=header_of(fx.START, "base_link"), width=5, height=1, point_step=4))
            received = json.loads(socket.recv(timeout=120))
            socket.send("next")
            bad = int(received["caption"].split(", ")[1].split()[0])
        stranger.destroy_node()
        rclpy_context.try_shutdown()
        assert viewer.end() == 0  # while somebody looks
    assert viewer.said("ended: ") and not viewer.said("Traceback")


@pytest.mark.slow
def test_a_browser_draws_what_the_node_answers(viewer, answers, tmp_path):
    with browser.open_page(tmp_path / "profile", viewer.url) as page:
        page.until("document.body.dataset.shown === '0' && scene.frames[0].volumes.true && 1")
        page.value("$('play').parentElement.hidden")
        for _ in range(50):
            shown = page.value(CELLS)
            if page.value(f"Object.keys(scene.frames[0].images).length === {len(CAMERAS)}"):
                break
        said = answers[1][index_of(shown["name"])]
        np.testing.assert_array_equal(shown["index"], np.flatnonzero(said.occupied))
        np.testing.assert_array_equal(shown["label"], said.labels[said.occupied])
        np.testing.assert_allclose(shown["confidence"], 255 * said.confidence[said.occupied], atol=0.51)
        first = page.value("$('when').textContent")
        page.until(f"$('when').textContent !== {json.dumps(first)} && 1")  # it goes on by itself
        page.value("$('none').click()")
        page.until(f"{COUNTS}[0] === 0 && 1")
        first = page.value("$('when').textContent")
        page.until(f"$('when').textContent !== {json.dumps(first)} && 1")
        assert page.value(COUNTS)[0] == 0  # what is chosen stays chosen
        page.value("$('all').click()")
        page.until(f"{COUNTS}[0] > 0 && 1")
        assert (
            page.value("[...document.querySelectorAll('#cameras img')].map((image) => image.naturalWidth)") == [160] * 4
        )
        page.screenshot(tmp_path / "live.png")
        assert viewer.end() == 0
        page.until("!$('problem').hidden && 1")  # it says that the server is gone


def test_no_node_is_one_line():
    viewer = Viewer("--node", "absent")
    assert fx.finish(viewer.process, 120) == 2
    (line,) = [line for line in viewer.lines if line.startswith("error: ")]
    assert "no answer of the node '/absent'" in line
