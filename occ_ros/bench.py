"""Measures how fast the node is at camera rate: a bag with all sweeps is played in a loop, and the node's own times are
read at the end.

    python -m occ_ros.bench BAG MODEL --seconds 60 --json benchmarks/node.json

Nothing but the player and the node runs beside this process, which only listens.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from occ_core.bench.host import host
from occ_core.errors import OccError
from occ_ros.processes import Process, environment, node
from occ_ros.recorded import image_topic_of, lidar_topic_of

START_S = 90.0
SETTLED_S = 20.0
"""Until then the node still takes memory for what it keeps: its first tables, queues, percentiles."""
PACKAGES = ("numpy", "opencv-python-headless", "onnxruntime", "openvino", "rosbags", "ros-rclpy")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m occ_ros.bench", description=__doc__.splitlines()[0])
    parser.add_argument("bag", type=Path, help="a bag with camera images at their own rate")
    parser.add_argument("model", type=Path, help="checkpoint or exported model")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to measure (default 60)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of the network (default 2)")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    options = parser.parse_args(arguments)
    try:
        record = measure(options.bag.resolve(), options.model.resolve(), options.seconds, options.threads)
    except OccError as error:
        Console().print(f"[red]error:[/] {error}", soft_wrap=True)
        return 2
    show(record)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(bag: Path, model: Path, seconds: float, threads: int) -> dict:
    """Counts and stage times that the node reports, and the number of clouds that arrived here."""
    os.environ.update(environment())  # before rclpy starts: this process listens in the same domain
    with tempfile.TemporaryDirectory(prefix="occ_bench_") as folder:
        times, logs = Path(folder) / "node.json", Path(folder)
        source = {
            "bag": bag, "loop": True, "wait_for_topics": "[/cam_front/camera_info]", "wait_timeout_s": START_S,
        }  # fmt: skip
        worker = {
            "model": model, "threads": threads, "timings_file": times, "image_topic": image_topic_of(bag),
            **lidar_topic_of(bag, model),
        }  # fmt: skip
        with (
            node("occupancy_node", logs / "occupancy_node.log", worker) as occupancy,
            node("player_node", logs / "player_node.log", source) as player,
        ):
            heard = listen(seconds, {"occupancy_node": occupancy, "player_node": player}, logs)
        if not times.is_file():
            raise OccError(f"the node wrote no times: {(logs / 'occupancy_node.log').read_text()[-500:]}")
        record = json.loads(times.read_text(encoding="utf-8"))
    record["model"] = model.name
    return {
        **host(PACKAGES),
        "bag": bag.name,
        "seconds": seconds,
        "threads": threads,
        **heard,
        **record,
        "share_percent": shares(record["stages_ms"]),
    }


def shares(stages_ms: dict) -> dict[str, float]:
    """Percent of the median time from the last image to the cloud, by the medians of its parts.

    `queue`: an image before was still being decoded; `all else`: calibration, Python and the message.
    """
    total = stages_ms["last image to output"]["p50"]
    parts = ("network", "decode", "preprocess", "queue", "all else")
    return {name: round(100 * stages_ms[name]["p50"] / total, 1) for name in parts}


def memory_mb(process: Process) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory_record(samples: list[tuple[float, float]]) -> dict[str, float]:
    """From (seconds, megabytes): the mean of the first and of the last tenth after start-up, and the largest
    deviation."""
    settled = [mb for at_s, mb in samples if at_s >= SETTLED_S] or [mb for _, mb in samples]
    tenth = max(1, len(settled) // 10)
    first, last = (sum(part) / tenth for part in (settled[:tenth], settled[-tenth:]))
    return {
        "first_mb": round(first, 1),
        "last_mb": round(last, 1),
        "change_percent": round(100 * (last / first - 1), 2),
        "least_percent": round(100 * (min(settled) / first - 1), 2),
        "most_percent": round(100 * (max(settled) / first - 1), 2),
    }


def listen(seconds: float, others: dict[str, Process], logs: Path) -> dict:
    """Receive the node's clouds for so long after the first one; returns how many came, and its memory meanwhile."""
    import rclpy
    from rclpy.qos import QoSProfile
    from sensor_msgs.msg import PointCloud2

    rclpy.init()
    listener = rclpy.create_node("occ_bench")
    arrived: list[float] = []
    memory: list[tuple[float, float]] = []
    listener.create_subscription(
        PointCloud2, "/occupancy_node/occupancy", lambda _: arrived.append(time.monotonic()), QoSProfile(depth=5)
    )
    give_up = time.monotonic() + START_S
    try:
        while not arrived or time.monotonic() < arrived[0] + seconds:
            rclpy.spin_once(listener, timeout_sec=0.2)
            dead = [name for name, process in others.items() if process.poll() is not None]
            if dead or (not arrived and time.monotonic() > give_up):
                name = dead[0] if dead else "occupancy_node"
                said = (logs / f"{name}.log").read_text(errors="replace").strip()[-800:]
                raise OccError(f"{name} {'ended' if dead else f'gave nothing for {START_S:.0f} s'}: {said}")
            if arrived and time.monotonic() > arrived[0] + len(memory):
                memory.append((time.monotonic() - arrived[0], memory_mb(others["occupancy_node"])))
    finally:
        listener.destroy_node()
        rclpy.try_shutdown()
    return {"clouds_received": len(arrived), "memory": memory_record(memory)}


def show(record: dict) -> None:
    table = Table("stage", "count", "p50 ms", "p95 ms", "p99 ms", title=f"{record['answered_hz']} answers a second")
    for stage, row in record["stages_ms"].items():
        table.add_row(stage, str(row["count"]), *(f"{row[key]:.1f}" for key in ("p50", "p95", "p99")))
    Console().print(table)
    counts = {key: record[key] for key in record if key.startswith("frames_")}
    Console().print(", ".join(f"{key.removeprefix('frames_')} {value}" for key, value in counts.items()))
    memory = record["memory"]
    Console().print(
        "of the time from the last image to the cloud: "
        + ", ".join(f"{name} {percent} %" for name, percent in record["share_percent"].items())
    )
    Console().print(
        f"memory {memory['first_mb']} MB, then {memory['last_mb']} MB ({memory['least_percent']:+} to "
        f"{memory['most_percent']:+} %)"
    )


if __name__ == "__main__":
    sys.exit(main())
