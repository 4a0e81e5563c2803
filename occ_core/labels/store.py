"""Stores labels on disk: Occ3D's files, each beside the hash of its bytes and a record of what it was made with.

<store>/store.json                          what the labels are made with, and which there shall be
<store>/<scene>/<token>/labels.npz          Occ3D's arrays, and ours: confidence, votes
<store>/<scene>/<token>/labels.json         written last; without it, or with another hash in it, the label is not there
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from occ_core.errors import CorruptInput, InvalidInput, MissingInput, OccError
from occ_core.files import read_json, remove, write_atomically
from occ_core.grid import OCC3D_GRID, VoxelGrid
from occ_core.limits import shown
from occ_core.occupancy import Occupancy, load_occ3d, pack_occ3d, read_npz
from occ_core.taxonomy import OCC3D, TAXONOMIES, Taxonomy

if TYPE_CHECKING:
    from occ_core.labels.scene import SceneLabel

FORMAT = 1
STORE_FILE, SPLIT_FILE = "store.json", "split.json"  # what made the labels; which part of others they are
ARRAYS = ("semantics", "mask_lidar", "mask_camera", "confidence", "votes")


@dataclass(frozen=True, eq=False)
class StoredLabel:
    """A label that was read from a store.

    Attributes:
        occupancy: labels, observed, confidence.
        votes: uint8 or uint16 (X, Y, Z), points behind the winning class; None in files of others.
    """

    occupancy: Occupancy
    votes: np.ndarray | None


class LabelStore:
    """A folder of labels. Nothing is read or written at construction.

    Args:
        folder: of the store.
        grid, taxonomy: what its arrays mean.
    """

    def __init__(self, folder: Path | str, grid: VoxelGrid = OCC3D_GRID, taxonomy: Taxonomy = OCC3D) -> None:
        self.folder, self.grid, self.taxonomy = Path(folder), grid, taxonomy

    @classmethod
    def open(cls, folder: Path | str) -> LabelStore:
        """Open the store in a folder, with the grid and taxonomy that it names.

        Raises:
            MissingInput, CorruptInput.
        """
        made_with = cls(folder).record["made_with"]
        try:
            grid, taxonomy = made_with.get("grid"), TAXONOMIES[made_with.get("taxonomy", OCC3D.name)]
            return cls(folder, OCC3D_GRID if grid is None else VoxelGrid(**grid), taxonomy)
        except (KeyError, TypeError, OccError) as error:
            raise CorruptInput(f"{Path(folder) / STORE_FILE}: grid or taxonomy make no sense ({error})") from error

    def claim(self, made_with: Mapping[str, Any], scenes: Mapping[str, Sequence[str]]) -> None:
        """Make the folder a store of labels `made_with` these settings, or add scenes to such a store.

        Args:
            made_with: all that decides a label's bytes, in JSON's types.
            scenes: scene name -> tokens of the samples that there shall be.

        Raises:
            InvalidInput: the folder holds labels made with something else or of other data, or other files.
            CorruptInput, CannotWrite.
        """
        listed = {scene: list(tokens) for scene, tokens in scenes.items()}
        if self._record_path.is_file():
            found = self.record["made_with"]
            if differing := _differences(found, _as_json(made_with)):
                raise InvalidInput(
                    f"{self.folder} already holds labels made with {', '.join(differing[:3])}; choose another folder"
                )
            there = self.record["scenes"]
            if other := [scene for scene in listed if there.get(scene, listed[scene]) != listed[scene]]:
                raise InvalidInput(f"{self.folder} holds another data set's {other[0]}; choose another folder")
            listed = {**there, **listed}
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise InvalidInput(f"{self.folder} is not empty and holds no labels (no store.json); choose another folder")
        record = {"format": FORMAT, "made_with": made_with, "scenes": dict(sorted(listed.items()))}
        write_atomically(self._record_path, _dumps(record))
        self.__dict__.pop("record", None)

    @property
    def _record_path(self) -> Path:
        return self.folder / STORE_FILE

    @cached_property
    def record(self) -> dict[str, Any]:
        """The content of store.json: `format`, `made_with`, `scenes` (name -> tokens).

        Raises:
            MissingInput, CorruptInput.
        """
        if not self._record_path.is_file():
            raise MissingInput(f"{self._record_path}: no such file; is {self.folder} a store of labels?")
        record = read_json(self._record_path)
        scenes, made_with = record.get("scenes"), record.get("made_with")
        if not isinstance(scenes, dict) or not isinstance(made_with, dict) or record.get("format") != FORMAT:
            raise CorruptInput(f"{self._record_path}: not the record of a label store of format {FORMAT}")
        for scene, tokens in scenes.items():
            if not isinstance(tokens, list) or not all(map(_is_name, (scene, *tokens))):
                raise CorruptInput(f"{self._record_path}: scene '{shown(scene)}' and its samples must be plain names")
        return record

    @cached_property
    def fingerprint(self) -> str:
        """The hash of what the labels are made with."""
        return hashlib.sha256(_dumps(self.record["made_with"])).hexdigest()[:16]

    @property
    def samples(self) -> list[tuple[str, str]]:
        """(scene, token) of every label that the store should hold."""
        return [(scene, token) for scene, tokens in self.record["scenes"].items() for token in tokens]

    def path(self, scene: str, token: str) -> Path:
        """Where the label of a sample is, or would be."""
        return self.folder / scene / token / "labels.npz"

    def write(self, scene: str, token: str, label: SceneLabel, made_of: str = "") -> None:
        """Write one label; it is complete once the hash of its bytes is written, which happens last.

        Args:
            made_of: hash of the files that its own frame was read from.

        Raises:
            CannotWrite: no half-written label is left.
        """
        path = self.path(scene, token)
        for stale in path.parent.glob(".*.tmp"):  # of a killed run
            remove(stale)
        data = pack_occ3d(label.occupancy, votes=label.votes)
        occupied, observed = int(label.occupancy.occupied.sum()), int(label.occupancy.observed.sum())
        record = {
            "sha256": hashlib.sha256(data).hexdigest(),
            "made_with": self.fingerprint,
            **{key: self.record["made_with"].get(key) for key in ("recipe", "teacher", "package")},
            "cells": {
                "occupied": occupied,
                "free": observed - occupied,
                "unobserved": self.grid.cells - observed,
            },
            "skipped": list(label.skipped),
            **({"made_of": made_of} if made_of else {}),
        }
        remove(path.with_suffix(".json"))  # or it would vouch for the bytes that were there before
        write_atomically(path, data)
        write_atomically(path.with_suffix(".json"), _dumps(record))

    def made_of(self, scene: str, token: str) -> str:
        """The hash that was given to `write`; empty if there is no label, or it does not say."""
        try:
            return str(read_json(self.path(scene, token).with_suffix(".json")).get("made_of", ""))
        except (OSError, CorruptInput):
            return ""

    def is_complete(self, scene: str, token: str) -> bool:
        """Whether the label is there, undamaged, and made with the store's settings."""
        return self._fault(scene, token) is None

    def _fault(self, scene: str, token: str) -> str | None:
        path = self.path(scene, token)
        try:
            record = read_json(path.with_suffix(".json"))
            data = path.read_bytes()
        except FileNotFoundError as error:
            return f"{error.filename}: no such file"
        except (OSError, CorruptInput) as error:
            return str(error)
        if record.get("made_with") != self.fingerprint:
            return f"{path}: made with other settings than the store's ({record.get('made_with')})"
        if record.get("sha256") != hashlib.sha256(data).hexdigest():
            return f"{path}: its {len(data)} bytes do not have the hash in labels.json"
        return None

    def read(self, scene: str, token: str) -> StoredLabel:
        """Read one label; only its shape, type and range are checked.

        Raises:
            MissingInput, CorruptInput.
        """
        path = self.path(scene, token)
        occupancy = load_occ3d(path, self.grid, self.taxonomy)
        votes = read_npz(path, self.grid).get("votes")
        if votes is not None and (votes.shape != self.grid.shape or votes.dtype not in (np.uint8, np.uint16)):
            raise CorruptInput(
                f"{path}: 'votes' must be uint8 or uint16 {self.grid.shape}, is {votes.dtype} {votes.shape}"
            )
        return StoredLabel(occupancy, votes)

    def skipped(self, scene: str, token: str) -> list[str]:
        """Why images or frames were left out of a label."""
        return read_json(self.path(scene, token).with_suffix(".json")).get("skipped", [])

    def check(self) -> Iterator[str]:
        """Everything that is wrong with the store, one line each, path first; empty if it is complete and undamaged.

        Raises:
            MissingInput, CorruptInput: store.json is absent or broken, so that nothing can be said.
        """
        for scene, token in self.samples:
            if fault := self._fault(scene, token) or self._content_fault(scene, token):
                yield fault
        known = {self._record_path, self.folder / SPLIT_FILE}
        for scene, token in self.samples:
            known |= {self.path(scene, token), self.path(scene, token).with_suffix(".json")}
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and path not in known:
                yield f"{path}: {'left by a killed run' if path.suffix == '.tmp' else 'not of this store'}"

    def _content_fault(self, scene: str, token: str) -> str | None:
        path = self.path(scene, token)
        try:
            occupancy = self.read(scene, token).occupancy
            lacking = set(ARRAYS) - set(read_npz(path, self.grid))
        except OccError as error:
            return str(error)
        if lacking:
            return f"{path}: no array '{sorted(lacking)[0]}'"
        if ((occupancy.labels != self.taxonomy.free_id) & ~occupancy.observed).any():
            return f"{path}: a cell has a class but is not observed"
        confidence = np.zeros(1) if occupancy.confidence is None else occupancy.confidence
        if not ((confidence >= 0) & (confidence <= 1)).all():
            return f"{path}: confidence must be 0..1, is {confidence.min()}..{confidence.max()}"
        return None


def require_same_meaning(folder: Path, grid: VoxelGrid, taxonomy: Taxonomy) -> None:
    """Refuse a store whose arrays have another meaning; a folder without store.json is Occ3D's own and is not judged.

    Raises:
        InvalidInput: the store's grid or taxonomy is another; names both.
        CorruptInput.
    """
    if not (Path(folder) / STORE_FILE).is_file():
        return
    made_with = LabelStore(folder).record["made_with"]
    asked = {"origin_m": grid.origin_m, "voxel_size_m": grid.voxel_size_m, "shape": grid.shape}
    if (found := made_with.get("grid")) is not None and found != _as_json(asked):
        raise InvalidInput(f"{folder}: its labels are of grid {_one_line(found)}, the model's is {_one_line(asked)}")
    if (named := made_with.get("taxonomy")) is not None and named != taxonomy.name:
        raise InvalidInput(f"{folder}: its labels are of taxonomy '{named}', the model's is '{taxonomy.name}'")


def provenance(folder: Path) -> dict[str, Any]:
    """What is known about how a folder of labels was made, for the record of what is made from it."""
    known: dict[str, Any] = {"folder": Path(folder).name, **split_of(folder)}
    if not (Path(folder) / STORE_FILE).is_file():
        return known
    store = LabelStore(folder)
    made_with = store.record["made_with"]
    return {**known, "made_with": store.fingerprint, **{key: made_with.get(key) for key in ("recipe", "teacher")}}


def split_of(folder: Path) -> dict[str, Any]:
    """Which part of other labels a folder holds, {"split": {of, percent, by, seed}}; empty if it is not a part.

    Raises:
        CorruptInput.
    """
    path = Path(folder) / SPLIT_FILE
    if not path.is_file():
        return {}
    record = read_json(path)
    return {"split": {key: record.get(key) for key in ("of", "percent", "by", "seed")}}


def _is_name(part: Any) -> bool:
    """Whether a text can be the name of a folder, and not a path to another place."""
    return isinstance(part, str) and part not in ("", ".", "..") and not set(part) & set("/\\\0")


def _one_line(grid: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_as_json(value)}" for key, value in sorted(grid.items()))


def _dumps(record: Any) -> bytes:
    return (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()


def _as_json(value: Any) -> Any:
    """Convert a value to what it would be when read from a file: tuples become lists and so on."""
    return json.loads(_dumps(value))


def _differences(found: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> list[str]:
    """List '<name> <found> (asked for <value>)' for each entry that differs; nested entries have dotted names."""
    out = []
    for key in sorted({*found, *asked}):
        old, new = found.get(key), asked.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            out += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            out.append(f"{prefix}{key} {old} (asked for {new})")
    return out
