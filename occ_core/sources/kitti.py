"""Reads frames of SemanticKITTI: one camera, LiDAR, poses, and labels of single points."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from occ_core.camera import Camera, Rig
from occ_core.ego_mask import with_masks
from occ_core.errors import CorruptInput, InvalidInput, MissingInput, OccError
from occ_core.files import is_there
from occ_core.frame import Frame, LidarSweep, Shot, file_in
from occ_core.geometry import inverse, require_rigid
from occ_core.images import decode_compressed
from occ_core.sources.clouds import rows_of_file

CAMERA = "image_2"  # the left colour camera
LIDAR_ROW = 4  # float32 x, y, z, reflectance 0..1
GROUND_Z_M = (
    -1.73
)  # level ground in the ego frame: where the car carries its LiDAR (Geiger et al., IJRR 2013, figure 1)


@dataclass(frozen=True, eq=False)
class _Sequence:
    """What all frames of one sequence share."""

    folder: Path
    intrinsics: np.ndarray
    lidar_from_cam: np.ndarray
    world_from_lidar: np.ndarray  # (frames, 4, 4); the world is the first frame's LiDAR frame, so z is up
    stamps_ns: np.ndarray


class SemanticKittiSource:
    """The frames of SemanticKITTI, sequence by sequence in time order: `len(source)`, `source[i]`, or iterate.

    The ego frame is the LiDAR's, x forward and z up, as the data set's own voxels have it; the ground is at GROUND_Z_M.
    The scene is the sequence's name ("08"), the token the number of the frame ("000003"), unique in
    its scene only. Image and sweep carry the frame's one stamp and pose: the data set knows no others. Beams are not
    given: `ring` is 0.

    Layout (Behley et al., "SemanticKITTI", ICCV 2019): sequences/<scene>/{calib,poses,times}.txt and
    {image_2/<token>.png, velodyne/<token>.bin, labels/<token>.label}.

    Args:
        dataroot: folder that holds `sequences/`.
        scenes: names of sequences; None: all that have poses.

    Raises:
        MissingInput, CorruptInput: at construction for calibration, poses and times, when a frame is read for its
            files.
    """

    def __init__(self, dataroot: Path | str, scenes: list[str] | None = None) -> None:
        self.dataroot = Path(dataroot)
        there = sorted(path.parent.name for path in self.dataroot.glob("sequences/*/poses.txt"))
        if not there:
            raise MissingInput(f"{self.dataroot}: no sequences/*/poses.txt; is it SemanticKITTI?")
        if scenes is not None and (absent := [name for name in scenes if name not in there]):
            raise MissingInput(f"{self.dataroot}: no sequence '{absent[0]}' with poses, only: {', '.join(there)}")
        self.scenes = there if scenes is None else list(scenes)
        self._sequences = {name: _open(self.dataroot / "sequences" / name) for name in self.scenes}
        self._entries = [
            (name, number) for name in self.scenes for number in range(len(self._sequences[name].stamps_ns))
        ]
        self._rigs: dict[tuple[str, tuple[int, int]], Rig] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Frame]:
        return (self[index] for index in range(len(self)))

    @property
    def tokens(self) -> list[str]:
        """The number of each frame in its sequence, six digits."""
        return [f"{number:06d}" for _, number in self._entries]

    @property
    def samples(self) -> list[tuple[str, str]]:
        """(scene, token) of each frame."""
        return [(name, f"{number:06d}") for name, number in self._entries]

    @property
    def names(self) -> list[str]:
        """The name of each frame's prediction: <scene>_<token>, because each sequence counts from 0."""
        return [f"{name}_{number:06d}" for name, number in self._entries]

    def files(self, index: int, lidar: bool = False) -> list[Path]:
        """The file of a frame's image, and with `lidar` that of its sweep."""
        name, number = self._entries[index]
        return list(_files(self._sequences[name].folder, number)[: 1 + lidar])

    def shots(self, index: int) -> dict[str, Shot]:
        """The image of a frame, by camera name. Nothing is read."""
        name, number = self._entries[index]
        file = file_in(self.dataroot, self.files(index)[0])
        return {CAMERA: Shot(int(self._sequences[name].stamps_ns[number]), file)}

    def stamp_and_pose(self, index: int) -> tuple[int, np.ndarray]:
        """The frame's stamp_ns and the ego's pose then, world_from_ego (4, 4). No file is read."""
        name, number = self._entries[index]
        return int(self._sequences[name].stamps_ns[number]), self._sequences[name].world_from_lidar[number]

    def check(self, lidar: bool = True) -> list[Path]:
        """All images and sweeps of the chosen frames that are missing or empty."""
        return [path for index in range(len(self)) for path in self.files(index, lidar) if not is_there(path)]

    def labels_path(self, index: int) -> Path:
        """The file of a frame's point labels, if it has any; `teachers.lidar.read_kitti_labels` reads it."""
        name, number = self._entries[index]
        return _files(self._sequences[name].folder, number)[2]

    def places_m(self, scene: str) -> np.ndarray:
        """The LiDAR's position in the world at each frame of a sequence, float64 (frames, 3)."""
        return self._sequences[scene].world_from_lidar[:, :3, 3]

    def __getitem__(self, index: int) -> Frame:
        name, number = self._entries[index]
        sequence = self._sequences[name]
        image = _read_image(_files(sequence.folder, number)[0])
        stamp_ns, world_from_ego = int(sequence.stamps_ns[number]), sequence.world_from_lidar[number]
        return Frame(
            stamp_ns=stamp_ns,
            world_from_ego=world_from_ego,
            rig=self._rig(name, (image.shape[1], image.shape[0])),
            images={CAMERA: image},
            camera_stamp_ns={CAMERA: stamp_ns},
            camera_world_from_ego={CAMERA: world_from_ego},
            lidar=partial(self._sweep, name, number),
            token=f"{number:06d}",
            scene=name,
            image_files={CAMERA: self.shots(index)[CAMERA].file},
        )

    def sweeps_before(self, index: int, count: int) -> list[LidarSweep]:
        """At most `count` sweeps of the sequence, newest first, starting with the frame's own. No image is decoded.

        Raises:
            MissingInput, CorruptInput: naming the file.
        """
        name, number = self._entries[index]
        return [self._sweep(name, earlier) for earlier in range(number, max(number - count, -1), -1)]

    def _sweep(self, name: str, number: int) -> LidarSweep:
        sequence = self._sequences[name]
        path = _files(sequence.folder, number)[1]
        return _read_lidar(path, int(sequence.stamps_ns[number]), sequence.world_from_lidar[number])

    def _rig(self, name: str, size: tuple[int, int]) -> Rig:
        if (name, size) not in self._rigs:
            sequence = self._sequences[name]
            rig = Rig((Camera(CAMERA, sequence.intrinsics, size, sequence.lidar_from_cam),))
            self._rigs[name, size] = with_masks(rig, self.dataroot, name)
        return self._rigs[name, size]


def _files(folder: Path, number: int) -> tuple[Path, Path, Path]:
    """The files of a frame: image, sweep and labels."""
    token = f"{number:06d}"
    return folder / CAMERA / f"{token}.png", folder / "velodyne" / f"{token}.bin", folder / "labels" / f"{token}.label"


def _open(folder: Path) -> _Sequence:
    calibration = _read_calibration(folder / "calib.txt")
    projection, cam0_from_lidar = calibration["P2"], _rigid(folder / "calib.txt: Tr", calibration["Tr"])
    intrinsics = projection[:, :3]
    # P2 = K [1 | t]: the colour camera is beside camera 0, with the same axes (the images are rectified).
    cam_from_cam0 = np.eye(4)
    try:
        cam_from_cam0[:3, 3] = np.linalg.solve(intrinsics, projection[:, 3])
    except np.linalg.LinAlgError:
        raise CorruptInput(f"{folder / 'calib.txt'}: P2 is no projection: {projection.tolist()}") from None
    path = folder / "poses.txt"
    poses = [_rigid(f"{path}, line {n + 1}", row.reshape(3, 4)) for n, row in enumerate(_read_rows(path, 12))]
    stamps_s = _read_rows(folder / "times.txt", 1)[:, 0]
    if len(stamps_s) != len(poses):
        raise CorruptInput(f"{folder / 'times.txt'}: {len(stamps_s)} times for {len(poses)} poses")
    # Poses are camera 0's, to its own first place.
    lidar_from_cam0 = inverse(cam0_from_lidar)
    world_from_lidar = np.array([lidar_from_cam0 @ pose @ cam0_from_lidar for pose in poses])
    lidar_from_cam = inverse(cam_from_cam0 @ cam0_from_lidar)
    return _Sequence(folder, intrinsics, lidar_from_cam, world_from_lidar, np.rint(stamps_s * 1e9).astype(np.int64))


def _read_text(path: Path) -> list[str]:
    if not path.is_file():
        raise MissingInput(f"{path}: no such file")
    try:
        return [line for line in path.read_text(encoding="ascii").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise CorruptInput(f"{path}: not a text file ({error})") from error


def _numbers(where: str, text: str, count: int) -> np.ndarray:
    try:
        values = np.array([float(word) for word in text.split()])
    except ValueError as error:
        raise CorruptInput(f"{where}: {error}") from error
    if len(values) != count or not np.isfinite(values).all():
        raise CorruptInput(f"{where}: must be {count} finite numbers, got {len(values)}: '{text.strip()[:60]}'")
    return values


def _read_rows(path: Path, count: int) -> np.ndarray:
    """Read rows of numbers, float64 (lines, count)."""
    lines = _read_text(path)
    if not lines:
        raise CorruptInput(f"{path}: the file is empty")
    return np.array([_numbers(f"{path}, line {n + 1}", line, count) for n, line in enumerate(lines)])


def _read_calibration(path: Path) -> dict[str, np.ndarray]:
    """Read the matrices (3, 4) of the lines P2 and Tr, by name."""
    lines = dict(line.split(":", 1) for line in _read_text(path) if ":" in line)
    for name in ("P2", "Tr"):
        if name not in lines:
            raise CorruptInput(f"{path}: no line '{name}:', only: {', '.join(lines) or 'none'}")
    return {name: _numbers(f"{path}: {name}", lines[name], 12).reshape(3, 4) for name in ("P2", "Tr")}


def _rigid(where: Path | str, matrix: np.ndarray) -> np.ndarray:
    """Make a rigid transform (4, 4) of (3, 4); the rotation is corrected, since the files have few digits."""
    out = np.vstack([matrix, (0, 0, 0, 1)])
    try:
        require_rigid("the pose", out)
    except InvalidInput as error:
        raise CorruptInput(f"{where}: {error}") from error
    u, _, vt = np.linalg.svd(out[:3, :3])
    out[:3, :3] = u @ vt
    return out


def _read_bytes(path: Path) -> bytes:
    if not path.is_file() or path.stat().st_size == 0:
        raise MissingInput(f"{path}: file is missing or empty")
    return path.read_bytes()


def _read_image(path: Path) -> np.ndarray:
    data = _read_bytes(path)
    try:
        return decode_compressed(data)
    except OccError as error:
        raise CorruptInput(f"{path}: {error}") from error


def _read_lidar(path: Path, stamp_ns: int, world_from_ego: np.ndarray) -> LidarSweep:
    rows = rows_of_file(_read_bytes(path), LIDAR_ROW, path)
    return LidarSweep(
        points_lidar_m=np.ascontiguousarray(rows[:, :3]),
        intensity=255 * rows[:, 3],
        ring=np.zeros(len(rows), dtype=np.int32),
        ego_from_lidar=np.eye(4),
        stamp_ns=stamp_ns,
        world_from_ego=world_from_ego,
    )
