"""The whole pipeline in one command: a simulated drive, its bag, three nodes over DDS, a score, pictures.

    python -m occ_ros.demo runs/demo

This is what `make demo` runs. Each step is an `occ` command or a node that can be run by hand; the log shows which.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from occ_core.errors import InvalidInput, MissingInput, OccError
from occ_ros.processes import ROOT, node, wait_for
from occ_ros.recorded import lidar_topic_of

MODEL = ROOT / "occ_core" / "assets" / "easyocc_nano.safetensors"
DEMO_SEED = 2028  # no training or evaluation scene has it
SCENE = "scene-0001"
SIZE = "270x480"  # rendering is most of the demo's time
START_S, END_S = 90.0, 120.0  # limits for processes to start, and to end after the bag has been played
WAITS = {"deadline_s": 0.15, "stale_s": 0.7}  # the node's own, for a bag at its own speed
MATCH_NS = 100_000_000  # an answer's stamp is its newest image's, at most this far from its keyframe's

console = Console(highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m occ_ros.demo", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for everything that is made; an earlier demo in it is replaced")
    parser.add_argument("--keyframes", type=int, default=16, help="length of the drive, two a second (default 16)")
    parser.add_argument("--model", type=Path, default=MODEL, help="checkpoint or exported model")
    parser.add_argument(
        "--rate", type=float, default=1.0, help="speed of the replay; lower for slow networks (default 1)"
    )
    options = parser.parse_args(arguments)
    began = time.monotonic()
    try:
        run(options.out.resolve(), options.keyframes, options.model.resolve(), options.rate)
    except OccError as error:
        console.print(f"[red]error:[/] {error}", soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted; nothing is left running")
        return 130
    console.print(f"done in {time.monotonic() - began:.0f} s")
    return 0


def run(out: Path, keyframes: int, model: Path, rate: float = 1.0) -> None:
    """Run all steps in order.

    Raises:
        OccError: a step failed; the message names its log.
    """
    if not 0.05 <= rate <= 1.0:
        raise InvalidInput(f"rate must be in 0.05..1, got {rate}")
    if not model.is_file():
        raise MissingInput(f"{model}: no such model")
    for name in ("drive", "predictions", "pictures", "logs", "by_stamp"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("recording.rrd", "report.json", "report.html", "player.json", "node.json"):
        (out / name).unlink(missing_ok=True)
    (out / "logs").mkdir(parents=True)
    city, drive = out / "city", out / "drive"
    world = ["--scenes", "1", "--seed", str(DEMO_SEED), "--keyframes", str(keyframes), "--size", SIZE]
    occ("1/6 a drive through the simulated city", "world", "make", str(city), *world)
    occ("2/6 the drive as a ROS 2 bag", "bag", "make", str(city), str(drive), "--scene", SCENE)
    console.print("[bold]3/6 player, occupancy node and evaluator, three processes over DDS[/]")
    replay(out, drive, model, rate)
    console.print("[bold]4/6 the score[/]")
    console.print((out / "logs" / "evaluator_node.log").read_text(encoding="utf-8").strip(), markup=False)
    name_by_token(out / "by_stamp", out / "predictions", city)
    occ("5/6 pictures and recording", "view", str(out / "predictions"), "--data", str(city), "--out", str(out))
    page = out / "report.html"
    occ("6/6 a page to look at", "eval", str(out / "predictions"), str(city / "gts"), "--html", str(page))
    check(out)
    console.print(f"report     {out / 'report.json'}\npage       {page}\npictures   {out / 'pictures'}")
    console.print(f"recording  {Path(sys.executable).parent / 'rerun'} {out / 'recording.rrd'}", soft_wrap=True)


def occ(title: str, *arguments: str) -> None:
    """Run one `occ` command and show its progress."""
    console.print(f"[bold]{title}[/]\n$ occ {' '.join(arguments)}", soft_wrap=True)
    result = subprocess.run([sys.executable, "-m", "occ_core.cli.main", *arguments], check=False)
    if result.returncode:
        raise OccError(f"`occ {' '.join(arguments[:2])}` ended with code {result.returncode}; its message is above")


def replay(out: Path, drive: Path, model: Path, rate: float = 1.0) -> None:
    """Play the bag to the node while the evaluator listens; returns when the evaluator has written its report.

    Played slower than recorded, the images of a set are as much farther apart, and the node waits as much longer.
    """
    logs = out / "logs"
    judge = {"report_file": out / "report.json", "predictions_dir": out / "by_stamp", "idle_s": 4.0 / rate}
    worker = {"model": model, "timings_file": out / "node.json", **lidar_topic_of(drive, model)}
    worker |= {name: seconds / rate for name, seconds in WAITS.items()}
    source = {
        "bag": drive,
        "report_file": out / "player.json",
        "wait_for_topics": "[/cam_front/camera_info]",
        "wait_for_subscribers": 2,  # node and evaluator
        "wait_timeout_s": START_S,
        "start_delay_s": 3.0,  # the node builds its table
        "rate": rate,
    }
    with (
        node("evaluator_node", logs / "evaluator_node.log", judge) as evaluator,
        node("occupancy_node", logs / "occupancy_node.log", worker) as occupancy,
        node("player_node", logs / "player_node.log", source) as player,
    ):
        others = {"occupancy_node": occupancy}
        wait_for("player_node", player, logs / "player_node.log", START_S + 60 / rate + END_S, others)
        wait_for("evaluator_node", evaluator, logs / "evaluator_node.log", END_S, others)


def name_by_token(by_stamp: Path, predictions: Path, dataroot: Path) -> None:
    """Rename answers, which carry stamps, to the sample tokens of their keyframes, as predictions on disk are named."""
    from occ_core.sources.nuscenes_tables import NuScenesTables

    samples = NuScenesTables(dataroot, None).samples(SCENE)
    stamps_ns = np.array([stamp_ns for _, stamp_ns in samples])
    predictions.mkdir(parents=True, exist_ok=True)
    for path in sorted(by_stamp.glob("*.npz")):
        nearest = int(np.abs(stamps_ns - int(path.stem)).argmin())
        if abs(int(stamps_ns[nearest]) - int(path.stem)) <= MATCH_NS:
            path.replace(predictions / f"{samples[nearest][0]}.npz")
    shutil.rmtree(by_stamp, ignore_errors=True)


def check(out: Path) -> None:
    """Check that nothing was lost unreported."""
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    sent, answered, dropped = (report[f"frames_{what}"] for what in ("sent", "answered", "dropped"))
    if sent > answered + dropped:  # images of a frame that come as two sets are reported twice
        raise OccError(f"{sent} frames were sent but {answered} answered and {dropped} reported dropped")


if __name__ == "__main__":
    sys.exit(main())
