"""The simulated city's exact truth as a teacher: what labels would be if class and depth were never wrong."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from occ_core.camera import Camera
from occ_core.errors import CorruptInput, InvalidInput, MissingInput
from occ_core.frame import Frame
from occ_core.geometry import inverse
from occ_core.rig_file import load_rig_file
from occ_core.taxonomy import OCC3D, UNLABELED, Taxonomy
from occ_core.teachers.base import ClassMap, DepthMap

_Truth = tuple[np.ndarray, np.ndarray]  # class_id and depth_m (h, w) as they are in the file
SAME_SURFACE = 0.1  # share of a distance: what lies farther apart between two pixels is not one surface


class Oracle:
    """Class and depth of every pixel, as rendered. Knows keyframes of a simulated city only.

    Asked for a pinhole view of a fisheye (`network_input.pinhole`), it looks the view's pixels up in the fisheye's
    truth. That has no depth 90 degrees off its axis and more; there, and where the lens shows nothing, depth is NaN.

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
        rig = self.truth.with_name("rig.yaml")
        lenses = [entry.camera for entry in load_rig_file(rig)] if rig.is_file() else []
        self._fisheyes = {lens.name: lens for lens in lenses if lens.distortion_model == "equidistant"}
        self._views: dict[str, _View] = {}
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
        files = {self._lens_of(frame, name) for name in frame.images}
        return [self.truth / frame.scene / frame.token / f"{name}.npz" for name in sorted(files)]

    def read(self, frame: Frame, camera: str) -> tuple[np.ndarray, np.ndarray]:
        """class_id uint8 (h, w) and depth_m float32 (h, w) of one image; the caller's own copies."""
        if not frame.token:
            raise InvalidInput(f"the oracle knows keyframes, not the sweep at {frame.stamp_ns} ns of {frame.scene}")
        folder = self.truth / frame.scene / frame.token
        if folder != self._last[0]:
            self._last = folder, {}
        lens = self._lens_of(frame, camera)
        known, path = self._last[1], folder / f"{lens}.npz"
        if lens not in known:
            known[lens] = _unpack(path)
        class_id, depth_m = known[lens]
        width, height = (frame.rig[camera] if lens == camera else self._fisheyes[lens]).size
        if class_id.shape != (height, width) or depth_m.shape != (height, width):
            raise CorruptInput(
                f"{path}: truth is {class_id.shape} and {depth_m.shape}, the image is {height} x {width} px"
            )
        if lens != camera:
            return self._view(frame.rig[camera], self._fisheyes[lens]).of(class_id, depth_m)
        return class_id.astype(np.uint8), depth_m.astype(np.float32)

    def _lens_of(self, frame: Frame, name: str) -> str:
        """The camera that has the truth: itself, or the fisheye that `name` is a view of."""
        lens = name.rpartition(".")[0]
        whole = (self.truth / frame.scene / frame.token / f"{name}.npz").is_file()
        return lens if lens in self._fisheyes and not whole else name

    def _view(self, view: Camera, lens: Camera) -> _View:
        known = self._views.get(view.name)
        if known is None or known.camera is not view:
            known = self._views[view.name] = _View(view, lens)
        return known


class _View:
    """Where in a fisheye's image the pixels of a pinhole view lie."""

    def __init__(self, camera: Camera, lens: Camera) -> None:
        self.camera, (w, h) = camera, camera.size
        along, _ = lens.directions(lens.pixel_grid())
        with np.errstate(divide="ignore"):
            stretch = np.where(along[:, 2] > 0, 1 / along[:, 2], np.nan)
        self._range_of_depth = stretch.reshape(lens.size[::-1])
        rays, _ = camera.directions(camera.pixel_grid())
        pixels, self._seen = lens.project(rays @ (inverse(lens.ego_from_cam) @ camera.ego_from_cam)[:3, :3].T)
        self._pixels = np.nan_to_num(pixels, nan=-1.0).astype(np.float32).reshape(h, w, 2)
        self._seen = self._seen.reshape(h, w)
        self._depth_of_range = rays[:, 2].reshape(h, w)

    def of(self, class_id: np.ndarray, depth_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """class_id uint8 and depth_m float32 (h, w) of the view from those of the lens.

        Each pixel has the class of the nearest one. So it has its distance, but on a surface that goes on, between
        pixels: 1 / distance of a plane is all but linear there.
        """
        nearness = (1 / (depth_m * self._range_of_depth)).astype(np.float32)  # 0 in the sky
        near, between = (self._sampled(nearness, how) for how in (cv2.INTER_NEAREST, cv2.INTER_LINEAR))
        near = np.where(np.abs(between - near) < SAME_SURFACE * near, between, near)
        with np.errstate(divide="ignore"):
            depth = np.where(self._seen, self._depth_of_range / near, np.nan)
        found = np.where(self._seen, self._sampled(class_id, cv2.INTER_NEAREST), np.uint8(UNLABELED))
        return found.astype(np.uint8), depth.astype(np.float32)

    def _sampled(self, image: np.ndarray, how: int) -> np.ndarray:
        nothing: Any = None  # the second map; cv2's types do not know that there may be none
        return cv2.remap(image, self._pixels, nothing, how, borderMode=cv2.BORDER_REPLICATE)


def _unpack(path: Path) -> _Truth:
    if not path.is_file():
        raise MissingInput(f"{path}: no truth of {path.stem} for keyframe '{path.parent.name}'")
    try:
        with np.load(path, allow_pickle=False) as record:
            return record["class_id"], record["depth_m"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CorruptInput(f"{path}: not the truth of an image ({error})") from error
