"""Bags of valid messages with odd values by the thousand (fixtures/odd_bags.py): named, or the answer is as it was.

python benchmarks/odd_bags.py --count 3000 --seed 0
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/fixtures")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    import odd_bags

    findings = 0
    for seed in range(asked.seed, asked.seed + asked.count):
        with tempfile.TemporaryDirectory(prefix="odd-") as folder:
            try:
                found = odd_bags.finding(Path(folder), seed)
            except Exception as error:
                found = f"seed {seed}: {type(error).__name__}: {error}"
        if found:
            findings += 1
            print(found, flush=True)
    print(f"{asked.count} bags, {findings} findings")
    sys.exit(findings > 0)


if __name__ == "__main__":
    main()
