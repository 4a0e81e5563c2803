"""An interactive recording (rerun .rrd): cameras in their places above predicted and true voxels, on one time line."""

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
from occ_core.show.pictures import camera_rows
from occ_core.show.solids import behind

JPEG_QUALITY = 85
TIME_LINE = "stamp"


class RerunRecording:
    """Writes `path` when the `with` block ends well; nothing is left of an interrupted one.

    Open the file with `rerun PATH`; it brings the layout of its views along.

    Raises:
        MissingPackage: rerun is not installed.
    """

    def __init__(self, path: Path, title: str) -> None:
        self._rerun = need("rerun", "viz")
        self._is_current = hasattr(self._rerun, "VoxelGridMap")  # numpy 1 and Python 3.10 get an older one: no layout
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._images: dict[str, list[str]] = {}  # folder -> names of its images
        self._voxels: dict[str, VoxelGrid] = {}  # name in the world -> its grid
        self._stream = self._rerun.RecordingStream(title)
        self._stream.save(str(self._temporary))

    def __enter__(self) -> RerunRecording:
        self._stream.log("world", self._rerun.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._is_current:
            self._stream.send_blueprint(self._layout())
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
        """Add one frame."""
        self.log_images(stamp_ns, "cameras", images)
        for name, occupancy in (("predicted", predicted), ("true", truth)):
            if occupancy is not None:
                self._voxels[name] = occupancy.grid
                self._stream.log(f"world/{name}", self._cells(occupancy))

    def log_images(self, stamp_ns: int, folder: str, images: Mapping[str, np.ndarray]) -> None:
        """Add images, RGB uint8 (h, w, 3), of one frame under `folder`."""
        self._stream.set_time(TIME_LINE, timestamp=np.datetime64(stamp_ns, "ns"))
        names = self._images.setdefault(folder, [])
        names += [name for name in images if name not in names]
        for name, image in images.items():
            _, jpeg = cv2.imencode(
                ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
            )
            encoded = self._rerun.EncodedImage(contents=jpeg.tobytes(), media_type="image/jpeg")
            self._stream.log(self._entity(folder, name), encoded)

    def log_cells(self, stamp_ns: int, name: str, grid: VoxelGrid, cells: np.ndarray) -> None:
        """Add the middles of some cells, bool (X, Y, Z), of one frame as grey points."""
        self._stream.set_time(TIME_LINE, timestamp=np.datetime64(stamp_ns, "ns"))
        self._voxels[name] = grid
        middles_m = np.array(grid.origin_m) + (np.argwhere(cells) + 0.5) * grid.voxel_size_m
        self._stream.log(f"world/{name}", self._rerun.Points3D(middles_m, colors=(128, 128, 128)))

    def _cells(self, occupancy: Occupancy):
        index = np.argwhere(occupancy.occupied).astype(np.int32)
        labels = occupancy.labels[tuple(index.T)]
        if not self._is_current:
            return self._rerun.Boxes3D(
                centers=np.array(occupancy.grid.origin_m) + (index + 0.5) * occupancy.grid.voxel_size_m,
                half_sizes=np.full((len(index), 3), occupancy.grid.voxel_size_m / 2),
                colors=occupancy.taxonomy.palette[labels],
                class_ids=labels,
                fill_mode="solid",
            )
        return self._rerun.VoxelGridMap(
            index,
            voxel_size=(occupancy.grid.voxel_size_m,) * 3,
            values=labels.astype(np.float32),  # shown beside a cell that is pointed at
            colors=occupancy.taxonomy.palette[labels],
            translation=occupancy.grid.origin_m,
        )

    def _entity(self, folder: str, name: str) -> str:
        return self._rerun.new_entity_path([folder, name])

    def _layout(self):
        """Images of each folder in rows, as cameras look; below them all voxels side by side, from one place."""
        rrb = need("rerun.blueprint", "viz")
        folders = [
            rrb.Vertical(
                *(
                    rrb.Horizontal(*(rrb.Spatial2DView(origin=self._entity(folder, name), name=name) for name in row))
                    for row in camera_rows(names)
                ),
                name=folder,
            )
            for folder, names in self._images.items()
        ]
        spaces = []
        for name, grid in self._voxels.items():
            at = behind(grid)
            eye = rrb.EyeControls3D(position=at.at_m, look_target=at.towards_m, eye_up=(0, 0, 1))
            spaces.append(rrb.Spatial3DView(origin="world", contents=[f"$origin/{name}"], name=name, eye_controls=eye))
        images = [rrb.Tabs(*folders)] if len(folders) > 1 else folders
        voxels = [rrb.Horizontal(*spaces)] if spaces else []
        return rrb.Blueprint(rrb.Vertical(*images, *voxels), rrb.TimePanel(timeline=TIME_LINE))
