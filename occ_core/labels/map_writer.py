"""Writes teachers' maps as files that `files:DIR` reads, so that maps and labels can be made on different machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from occ_core.errors import CannotWrite, InvalidInput, OccError
from occ_core.files import remove, write_atomically
from occ_core.frame import Frame, Shot
from occ_core.labels.make import TeacherChoice
from occ_core.labels.scene import read_frame, taught_frame
from occ_core.sources.scenes import Recording, SceneFrames
from occ_core.taxonomy import Taxonomy
from occ_core.teachers.base import ClassTeacher, DepthTeacher, NoMaps
from occ_core.teachers.cache import FAR_M, INF_CODE, NEAR_M, SHARE_STEPS, encode_classes, encode_depth
from occ_core.teachers.load import load_parts
from occ_core.teachers.map_files import PNG, SETTINGS, SUFFIXES, SURE, read_settings, stems
from occ_core.version import __version__


@dataclass
class MapsDone:
    """The result of a run: numbers of images, and one line for each thing that has no maps, with the reason."""

    written: int = 0
    there: int = 0
    left_out: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def write_maps(
    dataroot: Path,
    out: Path,
    teacher: TeacherChoice,
    scenes: list[str] | None = None,
    sweeps: bool = False,
    version: str | None = None,
    by_stamp: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> MapsDone:
    """Write the maps of all keyframes' images that `out` lacks; equal input gives equal bytes.

    A scene at which a teacher fails does not stop the others. Of several machines each may take some scenes.

    Args:
        dataroot: what `open_source` opens.
        teacher: as of `load_parts`: one that knows classes or depth only gives maps of one kind.
        sweeps: also of what lies between keyframes.
        by_stamp: every map is called `<camera>/<stamp_ns>`, as a bag's images are; else as the image's file, if any.
        progress: called with images, done and in all.

    Raises:
        InvalidInput: `out` holds maps made otherwise, or other files. MissingInput: all that the teachers lack.
        CannotWrite: full disk and the like.
    """
    recording = Recording(dataroot, version)
    todo = [recording.scene(name, sweeps) for name in recording.require_scenes(scenes)]
    parts = load_parts(teacher.name, Path(dataroot), recording.taxonomy, teacher.weights, teacher.device, teacher.seed)
    _claim(out, _settings(teacher, recording.taxonomy, parts))
    total = sum(len(frames.shots(index)) for frames in todo for index in range(len(frames)))
    done, images = MapsDone(left_out=recording.left_out), 0
    for name, frames in zip(recording.require_scenes(scenes), todo, strict=True):
        try:
            for index in range(len(frames)):
                for _ in _write_frame(out, frames, index, parts, by_stamp, done):
                    images += 1
                    progress(images, total)
        except CannotWrite:
            raise
        except OccError as error:
            done.failed.append(f"{name}: {error}")
    return done


Parts = tuple[ClassTeacher | None, DepthTeacher | None]


def _write_frame(
    out: Path, frames: SceneFrames, index: int, parts: Parts, by_stamp: bool, done: MapsDone
) -> Iterator[None]:
    """Write the missing maps of one frame; yields once for each of its images (a fisheye is one, however many views).

    The teacher is shown all images of the frame, however few lack maps: a network's answer may depend on its batch.
    """
    shots = _called(frames.shots(index), by_stamp)
    kinds = [kind for kind, part in zip(("classes", "depth"), parts, strict=True) if part is not None]
    if all(_there(out, kind, name, shot) for name, shot in shots.items() for kind in kinds):
        done.there += len(shots)
        yield from (None for _ in shots)
        return
    frame = read_frame(frames, index, frames.tokens[index])  # type: ignore[arg-type]
    if isinstance(frame, str):
        done.left_out.append(frame)
        return
    frame = taught_frame(frame)
    shots = _called(frame.shots, by_stamp)
    lacking = [name for name, shot in shots.items() if not all(_there(out, k, name, shot) for k in kinds)]
    done.there += len(frame.images) - len(lacking)
    try:
        pictures = _pictures(frame, parts) if lacking else {}
    except NoMaps as error:
        done.left_out.append(str(error))
        return
    for name, shot in shots.items():
        if name in lacking:
            for kind in kinds:
                _write(out, kind, name, shot, pictures[kind].get(name), done)
            done.written += 1
    yield from (None for _ in frames.shots(index))


def _called(shots: dict[str, Shot], by_stamp: bool) -> dict[str, Shot]:
    return {name: Shot(shot.stamp_ns) for name, shot in shots.items()} if by_stamp else shots


def _pictures(frame: Frame, parts: Parts) -> dict[str, dict[str, tuple[bytes, bytes]]]:
    """For each kind, each camera's map and its confidence, as pictures."""
    classes, depth = parts
    found: dict[str, dict[str, tuple[bytes, bytes]]] = {}
    if classes is not None:
        found["classes"] = {name: encode_classes(given) for name, given in classes.classes(frame).items()}
    if depth is not None:
        found["depth"] = {name: encode_depth(given) for name, given in depth.depth(frame).items()}
    return found


def _write(out: Path, kind: str, name: str, shot: Shot, pictures: tuple[bytes, bytes] | None, done: MapsDone) -> None:
    """Write a map's files, the map last, so that where it is, everything is."""
    if pictures is None:
        done.left_out.append(f"{name} {shot.stamp_ns}: no {kind} map")
        return
    stem = out / kind / next(stems(name, shot))
    suffix = ".png" if pictures[0].startswith(PNG) else ".jp2"
    for path, data in (
        (stem.with_name(f"{stem.name}.{SURE[kind]}.png"), pictures[1]),
        (stem.with_name(f"{stem.name}{suffix}"), pictures[0]),
    ):
        for stale in path.parent.glob(f".{path.name}.*.tmp"):  # of a killed run
            remove(stale)
        write_atomically(path, data)


def _there(out: Path, kind: str, name: str, shot: Shot) -> bool:
    stem = out / kind / next(stems(name, shot))
    return any(stem.with_name(f"{stem.name}{suffix}").is_file() for suffix in SUFFIXES[kind][:2])


def _settings(teacher: TeacherChoice, taxonomy: Taxonomy, parts: Parts) -> dict[str, Any]:
    """The content of `maps.yaml`."""
    names = {number: "sky" if number == taxonomy.free_id else name for number, name in enumerate(taxonomy.names)}
    versions = {kind: part.version for kind, part in zip(("classes", "depth"), parts, strict=True) if part is not None}
    return {
        "classes": names,
        "depth": {"log_m": [NEAR_M, FAR_M], "sky": INF_CODE},
        "full": SHARE_STEPS,
        "made_with": {
            "package": __version__,
            "teacher": teacher.name,
            "versions": versions,
            "seed": teacher.seed,
            "taxonomy": taxonomy.name,
        },
    }


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Make the folder one of maps made with these settings, or check that it is one."""
    path = out / SETTINGS
    if path.is_file():
        found = read_settings(path).made_with
        for key, value in settings["made_with"].items():
            if found.get(key) != value:
                raise InvalidInput(
                    f"{path}: its maps were made with {key} {found.get(key)}, asked for {value}; choose another folder"
                )
        return
    if out.is_dir() and any(entry for entry in out.iterdir() if not entry.name.startswith(f".{SETTINGS}.")):
        raise InvalidInput(f"{out} is not empty and holds no {SETTINGS}; choose another folder")
    for stale in out.glob(f".{SETTINGS}.*.tmp"):
        remove(stale)
    write_atomically(path, yaml.safe_dump(settings, sort_keys=False).encode())
