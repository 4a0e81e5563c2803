"""Maps that any network wrote, as teachers: `files:DIR`. docs/map_files.md says what DIR holds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from occ_core.errors import CorruptInput, InvalidInput
from occ_core.frame import Frame, Shot
from occ_core.taxonomy import UNLABELED, Taxonomy
from occ_core.teachers.base import ClassMap, DepthMap, NoMaps
from occ_core.teachers.map_files import SETTINGS, MapFolder, class_table, metres_of, open_folder
from occ_core.teachers.names import parts_of


class FileMaps:
    """Map files of one kind (classes | depth) in a folder, as `map_files.open_folder` finds them."""

    def __init__(self, folder: Path | str, kind: str) -> None:
        self.maps: MapFolder = open_folder(folder, kind)

    def files(self, scene: str, token: str, shots: Mapping[str, Shot]) -> list[Path]:
        """The map files of some images, as far as they are there."""
        return sorted(set(self.maps.find_all(scene, token, shots).values()))

    def reads(self, frame: Frame) -> list[Path | np.ndarray]:
        """See `base.seen_key`."""
        return list(self.files(frame.scene, frame.token, frame.shots))

    def _found(self, frame: Frame) -> dict[str, Path]:
        found = self.maps.find_all(frame.scene, frame.token, frame.shots)
        if not found:
            where = self.maps.looked_for(frame.scene, frame.token, frame.shots) if frame.images else "no image"
            raise NoMaps(f"no {self.maps.kind} map for any image of '{frame.token or frame.stamp_ns}': {where}")
        return found

    def _read(self, path: Path, name: str, frame: Frame) -> tuple[np.ndarray, np.ndarray | None]:
        try:
            return self.maps.read(path, name, frame.rig[name].size)
        except CorruptInput as error:
            raise NoMaps(str(error)) from error

    def _digest(self) -> str:
        said = self.maps.settings.model_dump_json(exclude={"made_with"})
        return hashlib.sha256(said.encode()).hexdigest()[:8]


def file_maps(teacher: str) -> list[FileMaps]:
    """The map files that a teacher's name, as of `load_teachers`, speaks of: of classes in its first part, of depth in
    its second, or in the first of a name that has no other.

    Raises:
        MissingInput, InvalidInput: as of `open_folder`.
    """
    first, *rest = parts_of(teacher)
    parts = (first, "classes"), ((rest and rest[0]) or first, "depth")
    return [FileMaps(name.removeprefix("files:"), kind) for name, kind in parts if name.startswith("files:")]


class FileClasses(FileMaps):
    """Class maps from files; images without one have none.

    Args:
        folder: holds `maps.yaml` and the maps.
        taxonomy: to speak in.

    Raises:
        MissingInput, InvalidInput: naming the folder, or the line of `maps.yaml`.
    """

    def __init__(self, folder: Path | str, taxonomy: Taxonomy) -> None:
        super().__init__(folder, "classes")
        self._table = class_table(self.maps.settings, Path(folder), taxonomy)
        self._named = list(self.maps.settings.named)
        self.version = f"file-classes-1 {taxonomy.name} {self._digest()}"

    def classes(self, frame: Frame) -> dict[str, ClassMap]:
        """Maps of the files' sizes.

        Raises:
            NoMaps: no image of the frame has one, or one is broken. InvalidInput: `maps.yaml` does not suit them.
        """
        return {name: self._map(path, name, frame) for name, path in self._found(frame).items()}

    def _map(self, path: Path, name: str, frame: Frame) -> ClassMap:
        ids, sure = self._read(path, name, frame)
        if ids.dtype.kind not in "iu":
            raise InvalidInput(f"{path}: a class map must hold whole numbers, is {ids.dtype}")
        within = (ids >= 0) & (ids < len(self._table))
        class_id = np.where(within, self._table[np.where(within, ids, 0)], np.uint8(UNLABELED))
        if len(there := np.unique(ids)) > 1 and not np.isin(there, self._named).any():
            raise InvalidInput(f"{path}: {SETTINGS} says what none of its ids is: {there[:8].tolist()}")
        score = np.ones(ids.shape, np.float32) if sure is None else sure
        return ClassMap(class_id, np.where(class_id == UNLABELED, np.float32(0), score))


class FileDepth(FileMaps):
    """Depth maps from files; images without one have none.

    Args:
        folder: holds the maps, and `maps.yaml` where they are not in metres.

    Raises:
        MissingInput, InvalidInput: naming the folder, or the line of `maps.yaml`.
    """

    def __init__(self, folder: Path | str) -> None:
        super().__init__(folder, "depth")
        self.version = f"file-depth-1 {self._digest()}"

    def depth(self, frame: Frame) -> dict[str, DepthMap]:
        """Maps of the files' sizes.

        Raises:
            NoMaps: no image of the frame has one, or one is broken. InvalidInput: `maps.yaml` does not suit them.
        """
        return {name: self._map(path, name, frame) for name, path in self._found(frame).items()}

    def _map(self, path: Path, name: str, frame: Frame) -> DepthMap:
        array, sure = self._read(path, name, frame)
        depth_m = metres_of(array, self.maps.settings.depth, path)
        return DepthMap(depth_m, np.ones(depth_m.shape, np.float32) if sure is None else sure)
