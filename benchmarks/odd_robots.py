"""Robots over DDS with odd messages, by the hundred (fixtures/odd_robots.py): named, or the node answers as it did.

python benchmarks/odd_robots.py --count 300 --seed 0

One node with a tiny network lives through all of them; one that dies is a finding, and another one is started. Each run
comes of its seed alone, so they can be split; a run that is stopped says with which seed to go on.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "fixtures")]
EVERY = 10


class Robot:
    """The rig, and a node that answers it."""

    def __init__(self, folder: Path, domain: int) -> None:
        import odd_robots
        import ros_fixtures as fx

        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        os.environ["FASTDDS_DEFAULT_PROFILES_FILE"] = str(ROOT / "config" / "fastdds.xml")
        self._finding = odd_robots.finding
        model = fx.tiny_model(folder, odd_robots.MODEL, occupied_share=0.9)
        self.log = folder / "node.log"
        self.process = fx.start_node("occupancy_node", domain, self.log, model=str(model), **odd_robots.PARAMETERS)
        self.rig = odd_robots.OddRig(domain)
        self.rig.start()
        try:
            self.plain = odd_robots.learn(self.rig)
        except AssertionError:
            self.stop()
            raise

    def finding(self, seed: int) -> str:
        found: str = self._finding(self.rig, self.plain, seed)
        if self.process.poll() is not None:
            return f"seed {seed}: the node died with {self.process.returncode}: {self.log.read_text()[-2000:]}"
        return found

    def stop(self) -> None:
        import ros_fixtures as fx

        self.rig.stop()
        with contextlib.suppress(subprocess.TimeoutExpired):  # then it was killed
            fx.stop(self.process, signal.SIGTERM)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    domain, begun_s, findings, done = 1 + (os.getpid() + 29) % 100, time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory(prefix="odd-") as folder:
        robot: Any = Robot(Path(folder), domain)
        try:
            for seed in range(asked.seed, asked.seed + asked.count):
                found = robot.finding(seed)
                done += 1
                if found:
                    findings += 1
                    print(found, flush=True)
                if found:  # what follows must not suffer from it
                    robot.stop()
                    robot = Robot(Path(folder), domain)
                if done % EVERY == 0:
                    each_s = (time.monotonic() - begun_s) / done
                    print(f"{done} of {asked.count} runs, {findings} findings, {each_s:.1f} s each", flush=True)
        except KeyboardInterrupt:
            print(f"stopped; go on with --seed {asked.seed + done} --count {asked.count - done}")
        finally:
            robot.stop()
    print(f"{done} runs (seeds {asked.seed} to {asked.seed + done - 1}), {findings} findings")
    sys.exit(findings > 0 or done < asked.count)


if __name__ == "__main__":
    main()
