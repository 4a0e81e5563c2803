"""The simulated city's exact truth as a teacher: what labels would be if class and depth were never wrong."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from occ_core.errors import CorruptInput, InvalidInput, MissingInput
from occ_core.frame import Frame
from occ_core.taxonomy import OCC3D, Taxonomy
from occ_core.teachers.base import ClassMap, DepthMap

_Truth = tuple[np.ndarray, np.ndarray]  # class_id and depth_m (h, w) as they are in the file


class Oracle:
    """Class and depth of every pixel, as rendered. Knows keyframes of a simulated city only.

    Classes and depth are asked one after the other and lie in one file: the truth of the last frame asked is kept, 3
    bytes a pixel, so that each file is unpacked once.

    Args:
        dataroot: folder that `occ world make` wrote.
        taxonomy: must be Occ3D's, which the city's truth is written in.

    Raises:
        InvalidInput: another taxonomy; or, when asked, a frame that is no keyframe.
        MissingInput, CorruptInput: naming the file.
    """

    version = "oracle-1"

    def __init__(self, dataroot: Path, taxonomy: Taxonomy = OCC3D) -> None:
        if taxonomy.name != OCC3D.name:
            raise InvalidInput(f"the oracle speaks taxonomy '{OCC3D.name}', asked for '{taxonomy.name}'")
        self.truth = Path(dataroot) / "truth"
        if not self.truth.is_dir():
            raise MissingInput(f"{self.truth}: no truth here; the oracle needs a data set made by 'occ world make'")
        self._last: tuple[Path, dict[str, _Truth]] = (self.truth, {})  # folder of the last frame, and what was read

    def classes(self, frame: Frame) -> dict[str, ClassMap]:
        maps = {}
        for name in frame.images:
            class_id, _ = self.read(frame, name)
            maps[name] = ClassMap(class_id, np.ones(class_id.shape, dtype=np.float32))
        return maps

    def depth(self, frame: Frame) -> dict[str, DepthMap]:
        maps = {}
        for name in frame.images:
            _, depth_m = self.read(frame, name)
            maps[name] = DepthMap(depth_m, np.ones(depth_m.shape, dtype=np.float32))
        return maps

    def reads(self, frame: Frame) -> list[Path]:
        """See `base.seen_key`: the truth of the frame's images."""
        return [self.truth / frame.scene / frame.token / f"{name}.npz" for name in sorted(frame.images)]

    def read(self, frame: Frame, camera: str) -> tuple[np.ndarray, np.ndarray]:
        """class_id uint8 (h, w) and depth_m float32 (h, w) of one image; the caller's own copies."""
        if not frame.token:
            raise InvalidInput(f"the oracle knows keyframes, not the sweep at {frame.stamp_ns} ns of {frame.scene}")
        folder = self.truth / frame.scene / frame.token
        if folder != self._last[0]:
            self._last = folder, {}
        known, path = self._last[1], folder / f"{camera}.npz"
        if camera not in known:
            known[camera] = _unpack(path)
        class_id, depth_m = known[camera]
        width, height = frame.rig[camera].size
        if class_id.shape != (height, width) or depth_m.shape != (height, width):
            raise CorruptInput(
                f"{path}: truth is {class_id.shape} and {depth_m.shape}, the image is {height} x {width} px"
            )
        return class_id.astype(np.uint8), depth_m.astype(np.float32)


def _unpack(path: Path) -> _Truth:
    if not path.is_file():
        raise MissingInput(f"{path}: no truth of {path.stem} for keyframe '{path.parent.name}'")
    try:
        with np.load(path, allow_pickle=False) as record:
            return record["class_id"], record["depth_m"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CorruptInput(f"{path}: not the truth of an image ({error})") from error
