"""The occupancy node: its parameters and its life cycle. What it does between topics is in `pipeline.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rcl_interfaces.msg import SetParametersResult
from rclpy._rclpy_pybind11 import RCLError
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from occ_core.errors import InvalidInput, OccError
from occ_ros.diagnostics import Diagnostics
from occ_ros.parameters import DYNAMIC, OCCUPANCY_PARAMETERS, check_occupancy
from occ_ros.pipeline import Pipeline
from occ_ros.runtime import Guard, declare, interruptible, one_line

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class OccupancyNode(LifecycleNode):
    """See docs/node.md for states, topics, parameters and diagnostics.

    configure loads and warms up the model, activate listens and answers, deactivate stops that, cleanup frees the
    model. A step that fails says why in one line and leaves the node where it was.
    """

    exit_code = 0
    done = False

    def __init__(self) -> None:
        super().__init__("occupancy_node")
        self._guard = Guard(self)
        self._values = declare(self, OCCUPANCY_PARAMETERS, managed=True)
        self.add_on_set_parameters_callback(self._on_parameters)
        self._diagnostics = Diagnostics(self, self._guard, self._values)
        self._pipeline: Pipeline | None = None
        self._starting = False
        change_state = self._service_change_state
        change_state.callback = self._refusing(change_state.callback)

    def start(self) -> None:
        """Configure and activate, if `autostart` is set.

        Raises:
            OccError: why that failed.
        """
        if not self._values["autostart"]:
            self.get_logger().info("unconfigured: waiting to be configured and activated")
            return
        self._starting = True
        for step in (self.trigger_configure, self.trigger_activate):
            if step() != SUCCESS:
                raise OccError(self._diagnostics.failure)
        self._starting = False

    def _refusing(self, change_state: Callable[..., Any]) -> Callable[..., Any]:
        """Refuse a transition that is not possible in the present state; in Jazzy's rclpy it would end the process."""

        def answer(request: Any, response: Any) -> Any:
            try:
                return change_state(request, response)
            except RCLError as error:
                self.get_logger().error(f"{self._diagnostics.state}: no such transition from here ({one_line(error)})")
                response.success = False
                return response

        return answer

    # --- transitions --------------------------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._step("inactive", self._configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._step("active", self._activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._step("inactive", self._deactivate)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._step("unconfigured", self._clean_up)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._step("finalized", self._clean_up)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._step("unconfigured", self._clean_up)

    def _step(self, to: str, work: Callable[[], None]) -> TransitionCallbackReturn:
        try:
            work()
        except Exception as error:
            known = isinstance(error, OccError)
            why = one_line(error) if known else f"{type(error).__name__}: {one_line(error)}"
            self._diagnostics.failure = why
            if not self._starting:  # then `start` raises it
                self.get_logger().error(f"still {self._diagnostics.state}: {why}")
            return FAILURE
        self._diagnostics.state, self._diagnostics.failure = to, ""
        return SUCCESS

    def _configure(self) -> None:
        check_occupancy(self._values, self._values)
        with interruptible():
            pipeline = Pipeline(self, self._guard, self._values)
        self._pipeline = self._diagnostics.pipeline = pipeline
        names = ", ".join(pipeline.names)
        self.get_logger().info(f"configured: {self._values['model']}, backend {pipeline.backend}, cameras {names}")

    def _activate(self) -> None:
        assert self._pipeline is not None
        self._pipeline.start()
        self.get_logger().info("active")

    def _deactivate(self) -> None:
        if self._pipeline is None or self._diagnostics.state != "active":
            return
        ended = self._pipeline.stop()
        self._guard("diagnostics", self._diagnostics.publish)()
        self.get_logger().info(self._pipeline.summary())
        if not ended:
            raise InvalidInput("the inference thread does not end: restart the process")

    def _clean_up(self) -> None:
        self._deactivate()
        if self._pipeline is not None:
            self._pipeline.outputs.destroy()
        self._pipeline = self._diagnostics.pipeline = None

    def close(self) -> None:
        """End: write the last counts, one line, and times."""
        pipeline = self._pipeline
        self._step("inactive", self._deactivate)
        path = self._values["timings_file"]
        if pipeline is not None and path:
            try:
                pipeline.write_times(Path(path), self._guard.errors)
            except OSError as error:
                self.get_logger().error(f"timings_file: {error}")

    # --- parameters ---------------------------------------------------------------------------------------------

    def _on_parameters(self, parameters: list[Any]) -> SetParametersResult:
        """Set all parameters of one call, or none."""
        asked = {p.name: p.value for p in parameters if p.name in self._values}
        changed = {name: list(v) if isinstance(self._values[name], list) else v for name, v in asked.items()}
        state = self._diagnostics.state
        fixed = [name for name, value in changed.items() if name not in DYNAMIC and value != self._values[name]]
        if fixed and state != "unconfigured":
            name = self.get_fully_qualified_name()
            down = "deactivate it, " if state == "active" else ""
            why = (
                f"parameter '{fixed[0]}' is fixed while the node is {state}: {down}clean up, set it and configure "
                f"again (ros2 lifecycle set {name} ...), or restart the node with it"
            )
            return SetParametersResult(successful=False, reason=why)
        try:
            check_occupancy({**self._values, **changed}, changed)
        except InvalidInput as error:
            return SetParametersResult(successful=False, reason=str(error))
        self._values.update(changed)
        return SetParametersResult(successful=True)
