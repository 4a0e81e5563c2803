"""Making a simulated data set: scenes in parallel, resumable, then the tables."""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import signal
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from occ_core.errors import CorruptInput, InvalidInput
from occ_core.files import write_atomically
from occ_core.world.nuscenes_tables import VERSION, merge
from occ_core.world.scene import Settings, manifest_path, scene_name, write_scene

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class Stopped(Exception):
    """Raised inside a worker when the user pressed Ctrl-C."""


def make_world(out: Path, settings: Settings, workers: int = 1, show_progress: bool = True) -> None:
    """Write (or finish) a simulated data set; scenes that are complete are kept.

    Raises:
        InvalidInput: `out` holds a data set of other settings, or other files.
    """
    _claim(out, settings)
    todo = [i for i in range(settings.scenes) if not is_complete(out, settings, i)]
    with _progress(show_progress) as progress:
        total = settings.scenes * settings.keyframes
        task = progress.add_task("keyframes", total=total, completed=total - len(todo) * settings.keyframes)
        try:
            if workers == 1 or len(todo) <= 1:
                for i in todo:
                    write_scene(out, settings, i, lambda: progress.advance(task))
            else:
                _run_parallel(out, settings, todo, min(workers, len(todo)), lambda: progress.advance(task))
        except KeyboardInterrupt:
            progress.console.print(f"[yellow]stopped; the same command goes on where {out} stands[/yellow]")
            raise
    finish(out, settings)


def finish(out: Path, settings: Settings) -> None:
    """Join the scenes' rows into the tables."""
    manifests = [json.loads(manifest_path(out, i).read_text()) for i in range(settings.scenes)]
    merge([m["tables"] for m in manifests], out / VERSION)


def _progress(show: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(elapsed_when_finished=False),
        disable=not show,
    )


def _claim(out: Path, settings: Settings) -> None:
    """Mark the folder as a data set of these settings, or refuse it."""
    record = out / "world.json"
    if record.is_file():
        found = read_settings(out)
        other = [
            f"{k} {found.fixed()[k]} (asked for {v})" for k, v in settings.fixed().items() if found.fixed()[k] != v
        ]
        if other:
            raise InvalidInput(f"{out} already holds a data set made with {', '.join(other)}; choose another folder")
    elif out.is_dir() and any(out.iterdir()):
        raise InvalidInput(f"{out} is not empty and holds no simulated data set (no world.json); choose another folder")
    write_atomically(record, json.dumps(settings.fixed() | {"scenes": settings.scenes}, indent=1).encode())


def read_settings(out: Path) -> Settings:
    """Settings of the data set in `out`.

    Raises:
        CorruptInput: world.json cannot be understood.
    """
    path = out / "world.json"
    try:
        return Settings(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CorruptInput(f"{path}: not the settings of a simulated data set ({error})") from error


def is_complete(out: Path, settings: Settings, index: int) -> bool:
    """The scene was finished with these settings."""
    path = manifest_path(out, index)
    if not path.is_file():
        return False
    try:
        return json.loads(path.read_text())["settings"] == settings.fixed()
    except (ValueError, KeyError):
        return False


_steps: Any = None  # the worker's queue of finished keyframes
_stop: Any = None  # set when the user wants to stop


def _start_worker(steps, stop) -> None:
    global _steps, _stop
    _steps, _stop = steps, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells workers to stop, between two keyframes


def _work(out: Path, settings: Settings, index: int) -> str:
    def step() -> None:
        if _stop.is_set():
            raise Stopped
        _steps.put(1)

    write_scene(out, settings, index, step)
    return scene_name(index)


def _run_parallel(out: Path, settings: Settings, todo: list[int], workers: int, advance: Callable[[], None]) -> None:
    context = multiprocessing.get_context("spawn")  # embree and numba do not survive a fork
    steps, stop = context.Queue(), context.Event()
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))  # read by the children when they import numpy
    try:
        with ProcessPoolExecutor(workers, context, _start_worker, (steps, stop)) as pool:
            pending: set[Future] = {pool.submit(_work, out, replace(settings), i) for i in todo}
            try:
                while pending:
                    done, pending = wait(pending, timeout=0.3, return_when=FIRST_COMPLETED)
                    _drain(steps, advance)
                    for future in done:
                        future.result()
            except BaseException:
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        _drain(steps, advance)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _drain(steps, advance: Callable[[], None]) -> None:
    while True:
        try:
            steps.get_nowait()
        except queue.Empty:
            return
        advance()
