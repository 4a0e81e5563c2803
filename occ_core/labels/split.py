"""Takes a seeded part of a folder of labels, as a folder of the same layout, for runs with few labels."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from occ_core.errors import CannotWrite, InvalidInput, MissingInput
from occ_core.evaluation.predictions import visible
from occ_core.files import write_atomically
from occ_core.labels.store import SPLIT_FILE, STORE_FILE, LabelStore

UNITS = ("frames", "scenes")


class LabelEntry(NamedTuple):
    """One label: its scene, its token, and its files."""

    scene: str
    token: str
    files: tuple[Path, ...]


def split_labels(
    folder: Path | str, out: Path | str, percent: float, by: str = "frames", seed: int = 0
) -> dict[str, Any]:
    """Fill `out` with a part of the labels of `folder`, as hard links where the disk allows them.

    Every frame (or scene) has a place of its own in an order that only the seed decides, and the first ones are taken:
    so the 1 % are a part of the 10 % of the same seed, and one frame at least is always there.

    Args:
        folder: <scene>/<token>/labels.npz as Occ3D has them, a label store included; or SemanticKITTI, a folder that
            holds sequences/<scene>/voxels/<frame>.label.
        out: new, or empty.
        percent: of the frames, or scenes; of scenes, all labels are taken.

    Returns:
        What `out`/split.json says: percent, by, seed, the number of labels here and in `folder`, tokens by scene.

    Raises:
        MissingInput: no label. InvalidInput: percent, by, or an `out` that is not empty. CannotWrite.
    """
    folder, out = Path(folder), Path(out)
    if not 0 < percent <= 100:
        raise InvalidInput(f"percent must be above 0 and at most 100, got {percent:g}")
    if by not in UNITS:
        raise InvalidInput(f"labels are split by {' or '.join(UNITS)}, got '{by}'")
    samples = find_labels(folder)
    if out.resolve().is_relative_to(folder.resolve()):
        raise InvalidInput(f"{out} lies within {folder}, whose labels it would add to; choose another folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidInput(f"{out} is not an empty folder; choose another")
    taken = _taken(samples, percent, by, seed)
    scenes: dict[str, list[str]] = {}
    for sample in taken:
        scenes.setdefault(sample.scene, []).append(sample.token)
    if (folder / STORE_FILE).is_file():
        LabelStore(out).claim(LabelStore(folder).record["made_with"], scenes)
    for sample in taken:
        for path in sample.files:
            _link(path, out / path.relative_to(folder))
    counts = {"labels": len(taken), "of_labels": len(samples)}
    record = {"of": folder.resolve().name, "percent": percent, "by": by, "seed": seed, **counts, "scenes": scenes}
    write_atomically(out / SPLIT_FILE, (json.dumps(record, indent=1) + "\n").encode())  # last: it vouches for the rest
    return record


def find_labels(folder: Path) -> list[LabelEntry]:
    """Find every label of a folder, by scene and token.

    Raises:
        MissingInput: there is none.
    """
    samples = []
    for path in sorted(visible(folder, "*/*/labels.npz")):
        beside = [other for other in (path, path.with_suffix(".json")) if other.is_file()]
        samples.append(LabelEntry(path.parts[-3], path.parts[-2], tuple(beside)))
    for path in sorted(visible(folder, "sequences/*/voxels/*.label")):
        masks = (path, path.with_suffix(".invalid"), path.with_suffix(".occluded"))
        samples.append(LabelEntry(path.parts[-3], path.stem, tuple(other for other in masks if other.is_file())))
    if not samples:
        raise MissingInput(
            f"{folder}: no labels: neither <scene>/<token>/labels.npz nor sequences/<scene>/voxels/<frame>.label in it"
        )
    return samples


def _taken(samples: list[LabelEntry], percent: float, by: str, seed: int) -> list[LabelEntry]:
    def unit(sample: LabelEntry) -> tuple[str, ...]:
        return (sample.scene,) if by == "scenes" else (sample.scene, sample.token)

    def rank(name: tuple[str, ...]) -> bytes:
        return hashlib.sha256("\n".join((str(seed), *name)).encode()).digest()

    units = sorted({unit(sample) for sample in samples}, key=rank)
    chosen = set(units[: max(1, round(len(units) * percent / 100))])
    return [sample for sample in samples if unit(sample) in chosen]


def _link(path: Path, to: Path) -> None:
    """Make a hard link, or a copy where the disk does not allow one."""
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, to)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                raise
            shutil.copyfile(path, to)
    except OSError as error:
        raise CannotWrite(f"{to}: cannot link or copy {path} ({error.strerror or error})") from error
