"""Runs the same work on a Ray cluster, one task an item; Ray restarts a task whose worker or node is lost."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

from occ_core.errors import OccError, need
from occ_core.parallel import Item, Result, Step

RETRIES = 3
POLL_S = 0.5  # Ctrl-C is heard this often


def run_on_ray(
    work: Callable[[Item, Step], Result],
    items: Sequence[Item],
    workers: int,
    step: Step = lambda: None,
    gpus: float = 0.0,
) -> Generator[Result, None, None]:
    """Yield results of `work(item, step)` as they are done, in any order; see `parallel.run_in_processes`.

    Joins the cluster that RAY_ADDRESS names or that runs on this machine; without one, starts one here, which ends with
    this process. `step` is called when an item is done, as often as its work did.

    Args:
        workers: items at the same time; 0 = as many as the cluster has room for.
        gpus: share of a GPU that one item takes; Ray puts 1 / gpus of them on each. 0: items see no GPU.

    Raises:
        MissingPackage: ray is not installed.
        OccError: workers were lost more than RETRIES times while at one item.
    """
    ray = need("ray", "ray")
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level="warning")
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES, retry_exceptions=False)(_call)
    shared_work = ray.put(work)
    waiting = list(items)
    pending: list[Any] = []
    try:
        while waiting or pending:
            while waiting and (workers <= 0 or len(pending) < workers):
                pending.append(task.remote(shared_work, waiting.pop(0)))
            done, pending = ray.wait(pending, timeout=POLL_S)
            for reference in done:
                result, steps = _get(ray, reference)
                for _ in range(steps):
                    step()
                yield result
    finally:
        for reference in pending:  # none, unless the caller stopped or an item failed
            ray.cancel(reference, force=True)


def _call(work, item) -> tuple[Any, int]:
    """Return the result and the number of steps it took; it runs on a worker."""
    steps: list[None] = []
    return work(item, lambda: steps.append(None)), len(steps)


def _get(ray, reference) -> tuple[Any, int]:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError:
        raise  # what the work itself raised
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines()
        raise OccError(
            f"Ray lost the work on a scene {1 + RETRIES} times, last: {lines[0] if lines else error}"
        ) from error
