"""Runs nodes as processes of their own, for the demo and the benchmark: they are started, watched and always ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from occ_core.errors import OccError

ROOT = Path(__file__).resolve().parents[1]

Process = subprocess.Popen[bytes]


@contextmanager
def node(name: str, log: Path, parameters: Mapping[str, object]) -> Iterator[Process]:
    """Run `occ_ros.<name>` with its output in `log`; SIGINT ends it when the block ends."""
    command = [sys.executable, "-m", f"occ_ros.{name}", "--ros-args"]
    for key, value in parameters.items():
        command += ["-p", f"{key}:={value}"]
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as file:
        running = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment())
        try:
            yield running
        finally:
            if running.poll() is None:
                running.send_signal(signal.SIGINT)
            try:
                running.wait(timeout=15)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def environment() -> dict[str, str]:
    """Environment of nodes: shared memory large enough for images, and a domain apart from other robots on this
    network."""
    mine = {
        "PYTHONUNBUFFERED": "1",
        "FASTDDS_DEFAULT_PROFILES_FILE": str(ROOT / "config" / "fastdds.xml"),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_DOMAIN_ID": str(1 + os.getpid() % 100),
    }
    return {**mine, **os.environ}


def wait_for(name: str, running: Process, log: Path, limit_s: float, beside: Mapping[str, Process]) -> None:
    """Wait until a process ends well, while those beside it live.

    Raises:
        OccError: naming who failed, and the log to read.
    """
    until = time.monotonic() + limit_s
    while running.poll() is None:
        time.sleep(0.1)
        for other, neighbour in beside.items():
            if neighbour.poll():
                raise OccError(f"the {other} ended with code {neighbour.returncode}; see {log.with_name(other)}.log")
        if time.monotonic() > until:
            raise OccError(f"the {name} did not end within {limit_s:.0f} s; see {log}")
    if running.returncode:
        raise OccError(f"the {name} ended with code {running.returncode}; see {log}")
