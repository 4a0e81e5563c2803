"""Damages images, messages, bags and model files by the thousand; only `occ_core.errors` may come out.

    python benchmarks/fuzz.py --count 10000 --seed 0 --json benchmarks/fuzz.json

Every kind of input is read in a process of its own whose address space is limited to what it holds before the first
case and `HEADROOM_BYTES` more. A case that ends the process, or takes longer than `LIMIT_S`, is a finding, too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/fixtures")]

HEADROOM_BYTES = 3 << 29
LIMIT_S = 20.0


def fuzz(name: str, count: int, seed: int) -> dict[str, Any]:
    """Counts of what became of `count` damaged inputs of one kind, and the findings, each with its case's number."""
    counts: Counter[str] = Counter()
    findings: list[str] = []
    peak_mib, at, start_s = 0.0, 0, time.monotonic()
    while at < count:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            command = [sys.executable, __file__, "--worker", name, folder, str(at), str(count), str(seed)]
            worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
            ready = False
            try:
                for line in _lines(worker):
                    outcome, detail = line["outcome"], line["detail"]
                    if outcome == "ready":
                        ready = True
                        continue
                    peak_mib = max(peak_mib, line["grown_mib"])
                    counts[outcome] += 1
                    if outcome == "finding":
                        findings.append(f"case {at}: {detail}")
                    at += 1
                if not ready:
                    raise SystemExit(f"{name}: the worker did not start: {_ended(worker)}")
                if at < count:
                    counts["finding"] += 1
                    findings.append(f"case {at}: {_ended(worker)}")
                    at += 1
            finally:
                worker.kill()
                worker.wait()
    return {
        "cases": count,
        **{outcome: counts[outcome] for outcome in ("read", "refused", "refused below", "finding")},
        "peak_growth_mib": round(peak_mib, 1),
        "seconds": round(time.monotonic() - start_s, 1),
        "findings": findings,
    }


def _lines(worker: subprocess.Popen[bytes]):
    """What a worker says, until it ends or is silent for too long."""
    assert worker.stdout is not None
    rest, limit_s = b"", 600.0  # the first line comes after its imports
    while select.select([worker.stdout], [], [], limit_s)[0] and (data := os.read(worker.stdout.fileno(), 1 << 16)):
        *whole, rest = (rest + data).split(b"\n")
        yield from map(json.loads, whole)
        limit_s = LIMIT_S


def _ended(worker: subprocess.Popen[bytes]) -> str:
    try:
        code = worker.wait(1.0)
    except subprocess.TimeoutExpired:
        return f"no end within {LIMIT_S} s"
    last = (worker.stderr.read().decode(errors="replace").strip().splitlines() or [""])[-1]
    return f"the process ended with code {code} {last}"


def work(name: str, folder: Path, first: int, count: int, seed: int) -> None:
    """One process: a line of JSON per case."""
    from fuzz_targets import RefusedBelow, targets

    from occ_core.errors import OccError

    target = targets(folder, (name,))[name]
    for original in target.originals:
        target.read(original)  # has to succeed, and brings all imports
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + HEADROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out = os.dup(1)
    os.dup2(2, 1)  # what libraries print goes elsewhere

    def say(outcome: str, detail: str = "") -> None:
        grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        os.write(out, (json.dumps({"outcome": outcome, "detail": detail, "grown_mib": grown_mib}) + "\n").encode())

    say("ready")
    for case in range(first, count):
        rng = random.Random(f"{name} {seed} {case}")
        try:
            target.read(target.damage(rng.choice(target.originals), rng))
            say("read")
        except OccError as error:
            say("refused" if len(str(error)) < 2000 else "finding", f"a message of {len(str(error))} characters")
        except RefusedBelow:
            say("refused below")
        except BaseException as error:
            say("finding", f"{type(error).__name__}: {str(error)[:300]}")


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        name, folder, first, count, seed = sys.argv[2:]
        work(name, Path(folder), int(first), int(count), int(seed))
        return 0
    from fuzz_targets import MAKERS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="damaged inputs, of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=MAKERS, action="append", help="this kind of input; may be given again")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    names = asked.only or list(MAKERS)
    columns = ("cases", "read", "refused", "refused below", "finding", "peak_growth_mib")
    print("| input | cases | read | refused | refused by the middleware | findings | peak growth MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    rows = {}
    for name in names:
        row = rows[name] = fuzz(name, -(-asked.count // len(names)), asked.seed)
        print(f"| {name} | " + " | ".join(str(row[column]) for column in columns) + " |", flush=True)
    for name, row in rows.items():
        for finding in row["findings"]:
            print(f"{name}, {finding}", file=sys.stderr)
    if asked.json:
        from occ_core.bench.host import host

        packages = ("numpy", "opencv-python-headless", "rosbags", "torch", "safetensors", "onnxruntime", "ros-rclpy")
        asked.json.write_text(json.dumps({"seed": asked.seed, "host": host(packages), "rows": rows}, indent=1) + "\n")
    return int(any(row["finding"] for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
