"""The process of the occupancy node, which is in `occupancy_lifecycle.py`."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    # Importing takes a second or two; a signal meanwhile finds nothing to be tidied up.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
    from occ_ros.occupancy_lifecycle import OccupancyNode
    from occ_ros.runtime import run

    sys.exit(run(OccupancyNode, OccupancyNode.start))


if __name__ == "__main__":
    main()
