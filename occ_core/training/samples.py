"""Samples for camera networks, read from data sets: images, calibration and targets.

Nothing is kept decoded: a sample is read when it is asked for, by as many worker processes as the run has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from occ_core.camera import Camera
from occ_core.errors import InvalidInput
from occ_core.frame import Frame, LidarSweep
from occ_core.geometry import inverse
from occ_core.lidar_points import absent_points, lidar_points
from occ_core.models.config import CameraModelConfig, LidarInput
from occ_core.network_input.pinhole import PINHOLE, pinhole_frame, views_of
from occ_core.network_input.preprocess import Preprocess
from occ_core.network_input.rig_images import RigImages, Targets
from occ_core.network_input.rig_inputs import rig_inputs
from occ_core.sources.open import frame_files
from occ_core.taxonomy import UNLABELED
from occ_core.teachers.base import Teachers
from occ_core.training.augment import recolour
from occ_core.training.keyframes import Keyframe, KeyframeSource, names_of
from occ_core.training.neighbours import neighbours_of

NEEDS = frozenset({"labels", "pseudo_labels", "class_map", "depth_m", "neighbours", "lidar_origin_m"})
"""What a network's losses can be taught with, by fields of `Targets`."""


class Sample(NamedTuple):
    """The inputs of a network and the targets that it learns from: of one sample, or of a batch, whose tensors have one
    axis more in front."""

    rig_images: Any  # RigImages; of a network by table, TableImages or a SampleSequence
    targets: Any  # Targets or TableTargets

    def to(self, device: torch.device) -> Sample:
        return Sample(self.rig_images.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Augmentation:
    """How inputs are changed at random; a sample with the same serial number in the same run is always changed
    alike."""

    color_jitter: float = 0.0
    camera_dropout: float = 0.0
    lidar_dropout: float = 0.0
    seed: int = 0


class SampleDataset(Dataset):
    """Map-style data set over `sources`: `samples[serial, index]` reads keyframe `index`.

    `serial` is the sample's number in the list of the sampler; it seeds what is changed at random.

    Args:
        needs: fields of Targets to read, of NEEDS.
        augmentation: None: samples are given as they are.
    """

    counted_cells, counted_pixels = 400, 100
    """Over how many, evenly chosen, classes are counted: reading labels is cheap, maps are not."""
    order_stream = 2  # number of a random stream

    def __init__(
        self,
        sources: Sequence[KeyframeSource],
        config: CameraModelConfig,
        needs: frozenset[str],
        augmentation: Augmentation | None = None,
        batch_size: int = 1,
    ) -> None:
        self.batch_size = batch_size
        self.sources, self.config, self.needs, self.augmentation = list(sources), config, needs, augmentation
        self._keys = [(source, keyframe) for source in self.sources for keyframe in source.keyframes]
        self._preprocess = Preprocess(config.input_width, config.input_height)
        self._neighbours = {
            source: neighbours_of(source.frames, {keyframe.scene for keyframe in source.keyframes})
            for source in (self.sources if "neighbours" in needs else [])
        }

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def names(self) -> list[str]:
        """Names of the keyframes, unique within a data set."""
        return names_of(self.sources)

    @property
    def labelled(self) -> list[int]:
        """Indices of the keyframes that have labels."""
        return [i for i in range(len(self)) if self._has_label(i)]

    def keyframe(self, index: int) -> tuple[KeyframeSource, Keyframe]:
        """Which sample of which data set."""
        return self._keys[index]

    def scene_of(self, index: int) -> tuple[int, str]:
        """The scene of a keyframe."""
        source, keyframe = self._keys[index]
        return self.sources.index(source), keyframe.scene

    def fewest_cameras(self) -> int:
        """The smallest number of cameras in any scene, read from each scene's first keyframe."""
        firsts = [(source, of[0].frame_index) for source in self.sources for of in source.scenes.values()]
        return min(len(source.frames[frame_index].rig) for source, frame_index in firsts)

    def files(self) -> Iterator[Path]:
        """The files that are read for the keyframes themselves."""
        for source, (scene, token, frame_index, labelled) in self._keys:
            yield from frame_files(source.frames, frame_index, self.config.lidar is not None)
            if source.labels is not None and labelled:
                yield from source.labels.files(scene, token)

    def of(self, kind: str) -> SampleDataset:
        """The samples of a phase.

        Raises:
            InvalidInput: there are none of this kind.
        """
        if kind != "samples":
            raise InvalidInput(f"'{self.config.name}' asks for a phase on {kind}, which only networks by table have")
        return self

    def batch(self, keys: Sequence[tuple[int, int]]) -> Sample:
        """Read samples by (serial number, index) and put them into one batch."""
        return collate([self[key] for key in keys])

    def neighbour_gap_s(self) -> float | None:
        """The median time from an image of each source's first keyframe to its neighbours; None if there are none.

        Sweeps are about 0.08 s away, keyframes 0.5 s.
        """
        gaps_ns = []
        for source, neighbours in self._neighbours.items():
            frame_index = source.keyframes[0].frame_index
            frame = source.frames[frame_index]
            gaps_ns += [neighbour.gap_ns(frame) for neighbour in neighbours.around(frame, frame_index)]
        return float(np.median(gaps_ns)) / 1e9 if gaps_ns else None

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        serial, index = key
        source, keyframe = self._keys[index]
        whole = source.frames[keyframe.frame_index]
        frame = pinhole_frame(whole, self._size)
        images, present = self._preprocess.rig(frame.images, frame.rig.names)
        arrays: dict[str, np.ndarray] = {}
        if "labels" in self.needs:
            arrays["labels"] = self.labels(index)
        if source.pseudo_labels is not None:
            arrays["pseudo_labels"] = self._pseudo_labels(index)
        if source.teachers is not None and "class_map" in self.needs:
            arrays["class_map"] = self._class_map(frame, source.teachers)
        if source.teachers is not None and "depth_m" in self.needs:
            arrays["depth_m"] = self._depth(frame, source.teachers)
        if "neighbours" in self.needs:
            arrays |= self._neighbour_arrays(source, whole, keyframe.frame_index)
        lidar = None
        if self.config.lidar is not None:
            lidar, origin_m = self._lidar(self.config.lidar, source, frame, keyframe.frame_index)
            if "lidar_origin_m" in self.needs:
                arrays["lidar_origin_m"] = origin_m
        if self.augmentation is not None:
            rng = np.random.default_rng([self.augmentation.seed, 1, serial])
            _recolour(images, arrays.get("neighbours"), self.augmentation.color_jitter, rng)
            _drop_cameras(images, present, arrays, self.augmentation.camera_dropout, rng)
            images[~present] = 0  # recoloured black is not black
            if lidar is not None and rng.random() < self.augmentation.lidar_dropout:
                lidar = absent_points()
        rig_images = rig_inputs(images, present, frame.rig_at_stamps, self._preprocess, lidar)
        return Sample(rig_images, Targets(**{name: torch.from_numpy(array) for name, array in arrays.items()}))

    def labels(self, index: int) -> np.ndarray:
        """The labels of a keyframe, uint8 (X, Y, Z), UNLABELED where the cameras did not look or nobody labelled.

        Raises:
            MissingInput, CorruptInput; InvalidInput: the data was opened without labels.
        """
        source, keyframe = self._keys[index]
        if source.labels is None:
            raise InvalidInput(f"keyframe {keyframe.token} was opened without labels")
        if not keyframe.labelled:
            return self._unknown()
        return source.labels.read(keyframe.scene, keyframe.token, self.config)

    def _pseudo_labels(self, index: int) -> np.ndarray:
        """The pseudo-labels of a keyframe; UNLABELED throughout if its own label is read, or if the teachers could make
        none."""
        source, keyframe = self._keys[index]
        files = source.pseudo_labels
        assert files is not None
        if self._has_label(index) or not files.path(keyframe.scene, keyframe.token).is_file():
            return self._unknown()
        return files.read(keyframe.scene, keyframe.token, self.config)

    def _has_label(self, index: int) -> bool:
        source, keyframe = self._keys[index]
        return source.labels is not None and keyframe.labelled

    def _unknown(self) -> np.ndarray:
        return np.full(self.config.grid_shape, UNLABELED, dtype=np.uint8)

    def class_map(self, index: int) -> np.ndarray:
        """The class teacher's map of a keyframe's pixels, uint8 (N, H, W)."""
        source, keyframe = self._keys[index]
        if source.teachers is None:
            raise InvalidInput(f"keyframe {keyframe.token} was opened without teachers")
        return self._class_map(pinhole_frame(source.frames[keyframe.frame_index], self._size), source.teachers)

    @property
    def _size(self) -> tuple[int, int]:
        return self.config.input_width, self.config.input_height

    @property
    def _shape(self) -> tuple[int, int]:
        return self.config.input_height, self.config.input_width

    def _class_map(self, frame: Frame, teachers: Teachers) -> np.ndarray:
        out = np.full((len(frame.rig), *self._shape), UNLABELED, dtype=np.uint8)
        maps = teachers.classes.classes(frame)
        for i, camera in enumerate(frame.rig):
            if camera.name in maps:
                out[i] = self._preprocess.nearest(maps[camera.name].class_id, camera.size)
                out[i][self._blind(camera)] = UNLABELED
        return out

    def _depth(self, frame: Frame, teachers: Teachers) -> np.ndarray:
        out = np.full((len(frame.rig), *self._shape), np.nan, dtype=np.float32)
        maps = teachers.depth.depth(frame)
        for i, camera in enumerate(frame.rig):
            if camera.name in maps:
                out[i] = self._preprocess.nearest(maps[camera.name].depth_m, camera.size)
                out[i][self._blind(camera)] = np.nan
        return out

    def _blind(self, camera: Camera) -> np.ndarray:
        """Pixels of the network's input at which no teacher is believed, bool (H, W), because they show the robot
        itself."""
        if camera.blind is None:
            return np.zeros(self._shape, dtype=np.bool_)
        return self._preprocess.nearest(camera.blind, camera.size)

    def _lidar(
        self, asked: LidarInput, source: KeyframeSource, frame: Frame, frame_index: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The cloud, float32 (P, 5), and where its newest sweep was taken, float32 (3,), both in the ego frame; without
        any point, the cloud that stands for none, and NaN.

        Raises:
            InvalidInput: no sweep or an empty one where the network cannot do without, naming the frame; and what the
                source raises.
        """
        sweeps = source.frames.sweeps_before(frame_index, asked.sweeps)
        points = lidar_points(sweeps, frame.stamp_ns, frame.world_from_ego, asked.points)
        if len(points):
            return points, _lidar_origin_m(frame, sweeps[0])
        if asked.dropout > 0:
            return absent_points(), np.full(3, np.nan, dtype=np.float32)
        what = "LiDAR sweep is empty" if sweeps else "it has no LiDAR sweep"
        name = f"{frame.scene}, frame '{source.frames.names[frame_index]}'"
        raise InvalidInput(
            f"{name}: {what}, but '{self.config.name}' takes LiDAR (lidar: null takes none, lidar.dropout > 0 does "
            "without where there is none)"
        )

    def _neighbour_arrays(self, source: KeyframeSource, frame: Frame, frame_index: int) -> dict[str, np.ndarray]:
        """The same cameras' images before and after, and the cameras' motion in between."""
        views = [views_of(c, self._size) if c.distortion_model not in PINHOLE else () for c in frame.rig]
        first = np.cumsum([0, *(len(of) or 1 for of in views)])  # row of each camera, or of its first view
        n = int(first[-1])
        images = np.zeros((n, 2, *self._shape, 3), dtype=np.uint8)
        moved = np.tile(np.eye(4, dtype=np.float32), (n, 2, 1, 1))
        present = np.zeros((n, 2), dtype=bool)
        for neighbour in self._neighbours[source].around(frame, frame_index):
            row, from_cam = first[neighbour.camera], neighbour.from_cam(frame)
            present[row : first[neighbour.camera + 1], neighbour.side] = True
            if not views[neighbour.camera]:
                images[row, neighbour.side] = self._preprocess.image(neighbour.image)
                moved[row, neighbour.side] = from_cam
            for i, view in enumerate(views[neighbour.camera], start=row):
                images[i, neighbour.side] = self._preprocess.image(view.image(neighbour.image))
                moved[i, neighbour.side] = inverse(view.lens_from_view) @ from_cam @ view.lens_from_view
        return {"neighbours": images, "neighbour_from_cam": moved, "neighbour_present": present}


def _lidar_origin_m(frame: Frame, sweep: LidarSweep) -> np.ndarray:
    """Where a sweep was taken, float32 (3,), in the ego frame of the frame."""
    ego_from_lidar = inverse(frame.world_from_ego) @ sweep.world_from_ego @ sweep.ego_from_lidar
    return ego_from_lidar[:3, 3].astype(np.float32)


def _recolour(images: np.ndarray, neighbours: np.ndarray | None, strength: float, rng: np.random.Generator) -> None:
    """Change colours in place. A camera's neighbouring images change as its image does, because their colours are
    compared."""
    if strength == 0:
        return
    if neighbours is None:
        images[:] = recolour(images, strength, rng)
        return
    n, h, w, _ = images.shape
    strips = recolour(np.concatenate([images[:, None], neighbours], axis=1).reshape(n, 3 * h, w, 3), strength, rng)
    images[:], neighbours[:] = strips[:, :h], strips[:, h:].reshape(neighbours.shape)


def _drop_cameras(
    images: np.ndarray, present: np.ndarray, arrays: dict[str, np.ndarray], share: float, rng: np.random.Generator
) -> None:
    """Remove cameras in place, together with their targets; at least one is left."""
    dropped = (rng.random(len(present)) < share) & present
    if dropped[present].all():
        dropped[:] = False
    present[dropped] = False
    images[dropped] = 0
    for name, nothing in (
        ("class_map", UNLABELED),
        ("depth_m", np.nan),
        ("neighbours", 0),
        ("neighbour_present", False),
    ):
        if name in arrays:
            arrays[name][dropped] = nothing


def collate(samples: list[Sample]) -> Sample:
    """Put samples into one batch. Rigs of fewer cameras are padded with absent ones that repeat the last calibration;
    shorter clouds are padded with rows of NaN.

    Raises:
        InvalidInput: an empty batch.
    """
    if not samples:
        raise InvalidInput("a batch needs at least one sample, got none")
    cameras = max(len(sample.rig_images.present) for sample in samples)
    rig_images: dict[str, Any] = {
        f.name: torch.stack([_padded(getattr(m.rig_images, f.name), cameras, f.name) for m in samples])
        for f in fields(RigImages)
        if f.name not in ("lidar", "sees")
    }
    rig_images["lidar"] = _clouds([sample.rig_images.lidar for sample in samples])
    rig_images["sees"] = _seeing([sample.rig_images for sample in samples], cameras)
    targets = {}
    for f in fields(Targets):
        parts = [getattr(m.targets, f.name) for m in samples]
        if any(part is None for part in parts):
            continue
        whole = f.name in OF_THE_MOMENT
        targets[f.name] = torch.stack([p if whole else _padded(p, cameras, f.name) for p in parts])
    return Sample(RigImages(**rig_images), Targets(**targets))


def _clouds(clouds: list[Tensor | None]) -> Tensor | None:
    """Stack clouds [P_b, 5] to [B, P, 5]; None if the network takes none."""
    given = [cloud for cloud in clouds if cloud is not None]
    return pad_sequence(given, batch_first=True, padding_value=float("nan")) if given else None


def _seeing(parts: list[RigImages], cameras: int) -> Tensor | None:
    """Stack `RigImages.sees`; None if all pixels of all samples show the world."""
    if all(part.sees is None for part in parts):
        return None
    whole = [torch.ones(part.images.shape[:3], dtype=torch.bool) if part.sees is None else part.sees for part in parts]
    return torch.stack([_padded(sees, cameras, "sees") for sees in whole])


OF_THE_MOMENT = ("labels", "pseudo_labels", "lidar_origin_m")  # all other targets have a row for each camera
FILLING = {"intrinsics": None, "ego_from_cam": None, "neighbour_from_cam": None, "class_map": UNLABELED,
           "depth_m": float("nan")}  # fmt: skip


def _padded(tensor: Tensor, cameras: int, name: str) -> Tensor:
    """Append rows of absent cameras to the tensor; None in FILLING repeats the last row."""
    lacking = cameras - len(tensor)
    if not lacking:
        return tensor
    value = FILLING.get(name, 0)
    rows = tensor[-1:].expand(lacking, *tensor.shape[1:])
    return torch.cat([tensor, rows if value is None else torch.full_like(rows, value)])
