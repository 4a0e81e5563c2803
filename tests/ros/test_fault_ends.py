"""Ends and starts: signals at any moment, kill -9, a model cut short, a full disk."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (pip install -e '.[ros]')")
pytest.importorskip("tf2_msgs.msg", reason="needs tf2_msgs (python tools/build_messages.py)")
pytest.importorskip("torch")
pytest.importorskip("rosbags")

import ros_fixtures as fx
from fault_rig import SMALL, FaultRig, start, until

pytestmark = [pytest.mark.ros, pytest.mark.slow]
DOMAIN = fx.own_domain()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return fx.tiny_model(tmp_path_factory.mktemp("model"), SMALL)


@pytest.fixture(scope="module")
def rig():
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ["FASTDDS_DEFAULT_PROFILES_FILE"] = str(Path(__file__).resolve().parents[2] / "config" / "fastdds.xml")
    made = FaultRig(DOMAIN)
    made.start()
    yield made
    made.stop()


def _listens_to(process: subprocess.Popen, number: int) -> bool:
    """The process has a handler of its own for a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16)
    return bool(caught >> (number - 1) & 1)


@pytest.mark.parametrize("seed", range(6))
def test_a_signal_at_any_moment_ends_it_cleanly(tmp_path, model, rig, seed):
    rng = random.Random(seed)
    process = start(tmp_path, model, DOMAIN)
    try:
        until(lambda: _listens_to(process, signal.SIGTERM), 60, lambda: "no handler of SIGTERM")
        time.sleep(rng.uniform(0.0, 12.0) if seed else 0.0)
        code = fx.stop(process, rng.choice((signal.SIGINT, signal.SIGTERM)))
    finally:
        process.kill()
    log = (tmp_path / "node.log").read_text()
    assert code == 0, log
    assert "Traceback" not in log


def test_killed_at_any_moment_it_starts_again(tmp_path, model, rig):
    rng = random.Random(0)
    for _ in range(3):
        process = start(tmp_path, model, DOMAIN)
        time.sleep(rng.uniform(0.0, 12.0))
        process.kill()
        process.wait()
    process = start(tmp_path, model, DOMAIN)
    started_s = time.monotonic()
    try:
        until(lambda: rig.answers and rig.answers[-1][0] > started_s, 60, lambda: (tmp_path / "node.log").read_text())
        assert fx.stop(process, signal.SIGTERM) == 0
    finally:
        process.kill()


@pytest.mark.parametrize("kept", [0, 100, 0.9])
def test_model_cut_short(tmp_path, model, kept):
    data = model.read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    shutil.copy(model.with_suffix(".json"), cut.with_suffix(".json"))
    code = fx.finish(start(tmp_path, cut, DOMAIN), 60.0)
    log = (tmp_path / "node.log").read_text()
    assert code == 2, log
    assert log.startswith(f"error: {cut}: not a safetensors file")
    assert log.count("\n") == 1


def test_disk_full_while_the_times_are_written(tmp_path, model, monkeypatch):
    """A limit on the size of files, which a process meets as it meets a full disk: in the middle of a write."""
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path / "log"))
    out = tmp_path / "times"
    process = start(tmp_path, model, DOMAIN, piped=True, timings_file=out / "times.json")
    words = ""
    with process.stdout as pipe:
        while "active" not in words:
            assert (line := pipe.readline().decode()), words
            words += line
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (256, 256))  # not before: shared memory is files, too
        process.send_signal(signal.SIGTERM)
        words += pipe.read().decode()
    assert fx.finish(process, 30.0) == 0, words
    assert f"{out / 'times.json'}: cannot write" in words
    assert "Traceback" not in words
    assert [path.name for path in out.rglob("*")] == []
