"""The nodes' console scripts. Importing a node needs ROS; where that is missing, one line says what to do."""

from __future__ import annotations

import importlib
import sys

from occ_core.errors import MissingPackage, naming_extras


def occupancy_node() -> None:
    run("occupancy_node")


def player_node() -> None:
    run("player_node")


def evaluator_node() -> None:
    run("evaluator_node")


def run(node: str) -> None:
    """Call `main` of occ_ros.<node>; if a package of an extra is missing, print one line on stderr and return 2."""
    try:
        with naming_extras():
            importlib.import_module(f"occ_ros.{node}").main()
    except MissingPackage as error:
        sys.exit(_report_missing(error))


def _report_missing(error: MissingPackage) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2
