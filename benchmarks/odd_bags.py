"""Bags of valid messages with odd values by the thousand (fixtures/odd_bags.py): named, or the answer is as it was.

python benchmarks/odd_bags.py --count 3000 --seed 0

Each bag comes of its seed alone, so a run can be split (`--seed 0 --count 1000`, `--seed 1000 --count 1000`, ...); one
that is stopped says with which seed to go on.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "fixtures")]
EVERY = 100


def finding(seed: int) -> str:
    """What this seed's bag shows that should not be; an error is a finding, too."""
    import odd_bags

    with tempfile.TemporaryDirectory(prefix="odd-") as folder:
        try:
            return odd_bags.finding(Path(folder), seed)
        except Exception as error:
            return f"seed {seed}: {type(error).__name__}: {error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the first bag")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    begun_s, findings, done = time.process_time(), 0, 0
    try:
        for seed in range(asked.seed, asked.seed + asked.count):
            found = finding(seed)
            done += 1
            if found:
                findings += 1
                print(found, flush=True)
            if done % EVERY == 0:
                cost_s = (time.process_time() - begun_s) / done
                print(f"{done} of {asked.count} bags, {findings} findings, {cost_s:.2f} CPU s each", flush=True)
    except KeyboardInterrupt:
        print(f"stopped; go on with --seed {asked.seed + done} --count {asked.count - done}")
    print(f"{done} bags (seeds {asked.seed} to {asked.seed + done - 1}), {findings} findings")
    sys.exit(findings > 0 or done < asked.count)


if __name__ == "__main__":
    main()
