"""What all three nodes share: start and clean end, parameters from a table, callbacks that survive errors."""

from __future__ import annotations

import contextlib
import functools
import math
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
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
        dynamic: may be changed while the node runs (a managed node: in every state; its others while unconfigured).
    """

    name: str
    default: Any
    text: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    dynamic: bool = False

    def descriptor(self, managed: bool = False) -> ParameterDescriptor:
        descriptor = ParameterDescriptor(name=self.name, description=self.text)
        descriptor.read_only = not self.dynamic and not managed
        constraints = ["one of: " + ", ".join(self.choices)] if self.choices else []
        if managed and not self.dynamic:
            constraints.append("fixed once the node is configured")
        descriptor.additional_constraints = "; ".join(constraints)
        if self.minimum is not None and self.maximum is not None:
            if isinstance(self.default, float):
                limits = FloatingPointRange(from_value=float(self.minimum), to_value=float(self.maximum), step=0.0)
                descriptor.floating_point_range = [limits]
            else:
                whole = IntegerRange(from_value=int(self.minimum), to_value=int(self.maximum), step=1)
                descriptor.integer_range = [whole]
        return descriptor


def declare(node: Node, table: tuple[Parameter, ...], managed: bool = False) -> dict[str, Any]:
    """Declare all parameters; returns their values.

    Args:
        managed: a node with a life cycle; its values are to be checked when it is configured, others are checked here.

    Raises:
        InvalidInput: as `check_values`.
        rclpy's parameter exceptions: wrong type or out of range.
    """
    values = {}
    for parameter in table:
        value = node.declare_parameter(parameter.name, parameter.default, parameter.descriptor(managed)).value
        values[parameter.name] = list(value) if isinstance(parameter.default, list) else value
    if not managed:
        check_values(table, values)
    return values


def check_values(table: Iterable[Parameter], values: Mapping[str, Any]) -> None:
    """Check what rclpy does not check.

    Raises:
        InvalidInput: a text that is not one of its choices, or a number that is none.
    """
    for parameter in table:
        value = values[parameter.name]
        if parameter.choices and value not in parameter.choices:
            raise InvalidInput(f"parameter '{parameter.name}' must be {' or '.join(parameter.choices)}, got '{value}'")
        numbers = value if isinstance(value, list) else [value]
        if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
            raise InvalidInput(f"parameter '{parameter.name}' must be finite, got {value}")


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


class Stopped(BaseException):
    """SIGINT or SIGTERM came during work that would take long to finish."""


class _Signals:
    """Remembers that the process shall end; raises `Stopped` where that was asked for."""

    def __init__(self) -> None:
        self.received = False
        self.interrupts = False

    def __call__(self, number: int, frame: Any) -> None:
        self.received = True
        if self.interrupts:
            self.interrupts = False
            raise Stopped


SIGNALS = _Signals()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let a signal end work in the main thread at once, such as loading a model.

    Raises:
        Stopped: a signal came, now or before.
    """
    if SIGNALS.received:
        raise Stopped
    SIGNALS.interrupts = True
    try:
        yield
    finally:
        SIGNALS.interrupts = False


def run(
    make_node: Callable[[], Any], start: Callable[[Any], None] | None = None, arguments: list[str] | None = None
) -> int:
    """Start a node, spin it in one thread until it says `done`, SIGINT or SIGTERM; returns the exit code.

    A node has `done` (bool), `exit_code` (int) and `close()`. What stops it at the start is printed in one line.

    Args:
        make_node: takes no time that matters.
        start: what may take long and is ended by a signal.
    """
    SIGNALS.received = False
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, SIGNALS)
    node = None
    try:
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
        node = make_node()
        with contextlib.suppress(Stopped):
            if start is not None:
                start(node)
            executor = SingleThreadedExecutor()
            executor.add_node(node)
            while not SIGNALS.received and not node.done and rclpy.ok():
                executor.spin_once(timeout_sec=0.2)
        node.close()
        return int(node.exit_code)
    except STARTUP_ERRORS as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()


def one_line(error: BaseException) -> str:
    """The first line of an error's text, or its type if it has no text."""
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
