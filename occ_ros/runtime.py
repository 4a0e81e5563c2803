"""What all three nodes share: start and clean end, parameters from a table, callbacks that survive."""

from __future__ import annotations

import functools
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import rclpy
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy._rclpy_pybind11 import RCLError, UnknownROSArgsError
from rclpy.exceptions import (
    InvalidParameterException,
    InvalidParameterTypeException,
    InvalidParameterValueException,
    ParameterException,
)
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from occ_core.errors import InvalidInput, OccError

STARTUP_ERRORS = (
    OccError,
    ParameterException,
    InvalidParameterException,
    InvalidParameterTypeException,
    InvalidParameterValueException,
    RCLError,
    UnknownROSArgsError,
)


@dataclass(frozen=True)
class Parameter:
    """One declared parameter; its type is that of `default`.

    Attributes:
        choices: the allowed texts, for a text.
        minimum, maximum: the allowed range, for a number.
        dynamic: may be changed while the node runs.
    """

    name: str
    default: Any
    text: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    dynamic: bool = False

    def descriptor(self) -> ParameterDescriptor:
        descriptor = ParameterDescriptor(name=self.name, description=self.text, read_only=not self.dynamic)
        if self.choices:
            descriptor.additional_constraints = "one of: " + ", ".join(self.choices)
        if self.minimum is not None and self.maximum is not None:
            if isinstance(self.default, float):
                limits = FloatingPointRange(from_value=float(self.minimum), to_value=float(self.maximum), step=0.0)
                descriptor.floating_point_range = [limits]
            else:
                whole = IntegerRange(from_value=int(self.minimum), to_value=int(self.maximum), step=1)
                descriptor.integer_range = [whole]
        return descriptor


def declare(node: Node, table: tuple[Parameter, ...]) -> dict[str, Any]:
    """Declare all parameters; returns their values.

    Raises:
        InvalidInput: a text that is not one of its choices.
        rclpy's parameter exceptions: wrong type or out of range.
    """
    values = {}
    for parameter in table:
        value = node.declare_parameter(parameter.name, parameter.default, parameter.descriptor()).value
        if parameter.choices and value not in parameter.choices:
            raise InvalidInput(f"parameter '{parameter.name}' must be {' or '.join(parameter.choices)}, got '{value}'")
        values[parameter.name] = list(value) if isinstance(parameter.default, list) else value
    return values


class Guard:
    """Wraps callbacks so that none of them can end the node: an exception is counted and logged, at most every 5 s."""

    def __init__(self, node: Node) -> None:
        self._logger = node.get_logger()
        self.errors: Counter[str] = Counter()

    def __call__(self, name: str, callback: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(callback)
        def guarded(*arguments: Any) -> Any:
            try:
                return callback(*arguments)
            except Exception as error:
                self.errors[name] += 1
                self._logger.error(
                    f"{name}: {type(error).__name__}: {error} ({self.errors[name]} so far)", throttle_duration_sec=5.0
                )
                return None

        return guarded


def run(make_node: Callable[[], Any], arguments: list[str] | None = None) -> int:
    """Start a node, spin it in one thread until it says `done`, SIGINT or SIGTERM; returns the exit code.

    A node has `done` (bool), `exit_code` (int) and `close()`. What stops it at the start is printed in one line.
    """
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: stop.append(received))
    node = None
    try:
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
        node = make_node()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while not stop and not node.done and rclpy.ok():
            executor.spin_once(timeout_sec=0.2)
        node.close()
        return int(node.exit_code)
    except STARTUP_ERRORS as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        print(f"error: {first_line}", file=sys.stderr)
        return 2
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
