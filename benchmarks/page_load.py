"""How large a report page is, and how long a browser takes until its first frame is drawn.

python benchmarks/page_load.py report.html --runs 5

Headless Chromium without a GPU, started anew for each run; time from the navigation's start to the first drawn frame
by the page's own clock (`loaded_ms`), and the processor time that the page's main thread took. The best of the
runs is what the page needs; the others tell what else the machine did.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "fixtures")]


def load(url: str, folder: Path) -> tuple[float, float, int]:
    """Seconds to the first drawn frame, processor seconds of the page, and how many frames it has."""
    import browser

    with browser.open_page(folder, url) as page:
        loaded_ms = float(page.until("document.body.dataset.loaded_ms"))
        work_s = page.work_s()
        frames = page.value("scene ? scene.frames.length : 0")
    return loaded_ms / 1e3, work_s, frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    asked = parser.parse_args()
    url, found = asked.page.resolve().as_uri(), []
    for run in range(asked.runs):
        with tempfile.TemporaryDirectory(prefix="page-", ignore_cleanup_errors=True) as folder:
            found.append(load(url, Path(folder)))
        print(f"run {run + 1}: drawn after {found[-1][0]:.2f} s, {found[-1][1]:.2f} s of work", flush=True)
    best_s, work_s, frames = min(found)
    print(
        f"{asked.page.stat().st_size / 1e6:.1f} MB, {frames} frames: drawn after {best_s:.2f} s, {work_s:.2f} s of work"
    )


if __name__ == "__main__":
    main()
