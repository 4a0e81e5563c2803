"""Does the same work on many items, one process each; Ctrl-C or a killed process costs only what was under way."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from occ_core.errors import OccError

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
POLL_S = 0.2

Item = TypeVar("Item")
Result = TypeVar("Result")
Step = Callable[[], None]


def progress_bar(show: bool) -> Progress:
    """A bar with counts and the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(elapsed_when_finished=False),
        disable=not show,
    )


def run_in_processes(
    work: Callable[[Item, Step], Result],
    items: Sequence[Item],
    workers: int,
    step: Step = lambda: None,
    restarts: int = 0,
) -> Generator[Result, None, None]:
    """Yield results of `work(item, step)` as they are done, in any order.

    Work must leave files whole at any time (see `files.write_atomically`): processes are ended without notice when
    the caller stops. One worker, or one item, runs in this process.

    Args:
        work: a function that can be pickled; it calls `step` after each part, which `step` here hears of.
        restarts: how often items are begun again after a process was killed from outside (out of memory, ...).

    Raises:
        OccError: processes were killed more often than that.
    """
    left = dict(enumerate(items))
    if workers <= 1 or len(left) <= 1:
        yield from (work(item, step) for item in items)
        return
    while left:
        try:
            for number, result in _round(work, left, min(workers, len(left)), step):
                del left[number]
                yield result
        except BrokenProcessPool:
            restarts -= 1
            if restarts < 0:
                raise OccError(
                    f"a worker process was killed (out of memory?) and {len(left)} of {len(items)} scenes are left; "
                    "the same command goes on from here, with fewer --workers if memory is short"
                ) from None


def _round(work, left: dict[int, Any], workers: int, step: Step) -> Iterator[tuple[int, Any]]:
    """Run one pool of processes; it is gone when this generator ends, however it ends."""
    context = multiprocessing.get_context("spawn")  # embree, numba and torch do not survive a fork
    # Pipes, not a Queue and an Event: those have locks, which a killed process takes with it.
    steps, tell_step = context.Pipe(duplex=False)
    parent_lives, keep_alive = context.Pipe(duplex=False)
    with _environment(dict.fromkeys(ONE_THREAD, "1")):  # read by the children when they import numpy
        with ProcessPoolExecutor(workers, context, _start_worker, (tell_step, parent_lives)) as pool:
            pending: dict[Future, int] = {pool.submit(_work, work, item): n for n, item in left.items()}
            try:
                while pending:
                    done, _ = wait(pending, timeout=POLL_S, return_when=FIRST_COMPLETED)
                    _drain(steps, step)
                    for future in done:
                        yield pending.pop(future), future.result()
            except BaseException:
                keep_alive.close()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        _drain(steps, step)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _drain(steps: Connection, step: Step) -> None:
    while steps.poll():
        steps.recv_bytes()
        step()


_tell_step: Connection  # of the worker: each message is a finished part


def _start_worker(tell_step: Connection, parent_lives: Connection) -> None:
    global _tell_step
    _tell_step = tell_step
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent, which closes the pipe
    threading.Thread(target=_end_with_parent, args=(parent_lives,), daemon=True).start()


def _end_with_parent(parent_lives: Connection) -> None:
    """End a worker whose parent was killed: its end of the pipe closes, and it would otherwise wait for ever."""
    parent_lives.poll(None)
    os._exit(1)


def _work(work, item) -> Any:
    return work(item, lambda: _tell_step.send_bytes(b"."))
