"""Making a simulated data set: scenes in parallel, resumable, then the tables."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from occ_core.camera import Rig
from occ_core.errors import CorruptInput, InvalidInput
from occ_core.files import write_atomically
from occ_core.parallel import progress_bar, run_in_processes
from occ_core.world.nuscenes_tables import VERSION, merge
from occ_core.world.own_rig import read_rig, write_rig
from occ_core.world.robots import RIGS
from occ_core.world.scene import Settings, manifest_path, write_scene


def make_world(
    out: Path, settings: Settings, workers: int = 1, show_progress: bool = True, rig: Rig | None = None
) -> None:
    """Write (or finish) a simulated data set; scenes that are complete are kept.

    Args:
        rig: of one's own, as `own_rig.placed` gives it; then `settings.rig` is not looked at.

    Raises:
        InvalidInput: `out` holds a data set of other settings, or other files.
    """
    if rig is not None:
        settings = replace(settings, rig=rig.fingerprint)
    _claim(out, settings)
    if rig is not None:
        write_rig(out, rig)
    todo = [i for i in range(settings.scenes) if not is_complete(out, settings, i)]
    with progress_bar(show_progress) as progress:
        total = settings.scenes * settings.keyframes
        task = progress.add_task("keyframes", total=total, completed=total - len(todo) * settings.keyframes)
        try:
            work = partial(write_scene, out, settings)
            list(run_in_processes(work, todo, workers, lambda: progress.advance(task)))
        except KeyboardInterrupt:
            progress.console.print(f"[yellow]stopped; the same command goes on where {out} stands[/yellow]")
            raise
    finish(out, settings)


def finish(out: Path, settings: Settings) -> None:
    """Join the scenes' rows into the tables."""
    manifests = [json.loads(manifest_path(out, i).read_text()) for i in range(settings.scenes)]
    merge([m["tables"] for m in manifests], out / VERSION, () if settings.rig in RIGS else read_rig(out).names)


def _claim(out: Path, settings: Settings) -> None:
    """Mark the folder as a data set of these settings, or refuse it."""
    record = out / "world.json"
    if record.is_file():
        found, asked = asdict(read_settings(out)), asdict(settings)
        other = [f"{k} {found[k]} (asked for {v})" for k, v in asked.items() if k != "scenes" and found[k] != v]
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
