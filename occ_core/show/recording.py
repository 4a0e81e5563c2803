"""An interactive recording (rerun .rrd): cameras, predicted and true voxels on one time line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from occ_core.errors import need
from occ_core.grid import VoxelGrid
from occ_core.occupancy import Occupancy

JPEG_QUALITY = 85


class Recording:
    """Writes `path` when the `with` block ends well; nothing is left of an interrupted one.

    Open the file with `rerun PATH`.

    Raises:
        MissingPackage: rerun is not installed.
    """

    def __init__(self, path: Path, title: str) -> None:
        self._rerun = need("rerun", "viz")
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self._rerun.RecordingStream(title)
        self._stream.save(str(self._temporary))

    def __enter__(self) -> Recording:
        self._stream.log("world", self._rerun.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.flush()
        self._stream.disconnect()
        if kind is None:
            os.replace(self._temporary, self._path)
        else:
            self._temporary.unlink(missing_ok=True)

    def log(
        self,
        stamp_ns: int,
        images: Mapping[str, np.ndarray],  # RGB uint8 [h, w, 3]
        predicted: Occupancy | None = None,
        truth: Occupancy | None = None,
    ) -> None:
        """Add one moment."""
        self.log_images(stamp_ns, "cameras", images)
        for name, occupancy in (("predicted", predicted), ("true", truth)):
            if occupancy is not None:
                self._stream.log(f"world/{name}", self._voxels(occupancy))

    def log_images(self, stamp_ns: int, folder: str, images: Mapping[str, np.ndarray]) -> None:
        """Add images, RGB uint8 (h, w, 3), of one moment under `folder`."""
        self._stream.set_time("stamp", timestamp=stamp_ns * 1e-9)
        for name, image in images.items():
            _, jpeg = cv2.imencode(
                ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
            )
            encoded = self._rerun.EncodedImage(contents=jpeg.tobytes(), media_type="image/jpeg")
            self._stream.log(f"{folder}/{name}", encoded)

    def log_cells(self, stamp_ns: int, name: str, grid: VoxelGrid, cells: np.ndarray) -> None:
        """Add the middles of some cells, bool (X, Y, Z), of one moment as grey points."""
        self._stream.set_time("stamp", timestamp=stamp_ns * 1e-9)
        middles_m = np.array(grid.origin_m) + (np.argwhere(cells) + 0.5) * grid.voxel_size_m
        self._stream.log(f"world/{name}", self._rerun.Points3D(middles_m, colors=(128, 128, 128)))

    def _voxels(self, occupancy: Occupancy):
        index = np.argwhere(occupancy.occupied)
        labels = occupancy.labels[tuple(index.T)]
        half_m = occupancy.grid.voxel_size_m / 2
        return self._rerun.Boxes3D(
            centers=np.array(occupancy.grid.origin_m) + (index + 0.5) * occupancy.grid.voxel_size_m,
            half_sizes=np.full((len(index), 3), half_m),
            colors=occupancy.taxonomy.palette[labels],
            class_ids=labels,
            fill_mode="solid",
        )
