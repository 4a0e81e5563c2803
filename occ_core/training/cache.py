"""Training data, decoded once: one folder of memory-mapped arrays a scene.

A step of training reads 0.8 MB of images and 0.6 MB of labels; decoding JPEG and labels each time would cost as much as
the network.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from occ_core.camera import Rig
from occ_core.ego_mask import scene_masks
from occ_core.models.easyocc.config import STRIDE, EasyOccConfig
from occ_core.models.easyocc.table import build_table
from occ_core.network_input.preprocess import Preprocess
from occ_core.sources.nuscenes_tables import root_of
from occ_core.sources.open import frame_files, frame_key
from occ_core.taxonomy import UNLABELED
from occ_core.training.file_check import require_files
from occ_core.training.keyframes import Keyframe, KeyframeSource
from occ_core.training.label_files import LabelFiles
from occ_core.training.ranks import Ranks
from occ_core.training.rays import ray_targets

log = logging.getLogger(__name__)

VERSION = 7  # of the arrays' meaning
ARRAYS = (
    "images", "present", "stamp_ns", "world_from_ego", "labels", "depth", "pixel_class", "rig", "voxel_index",
    "pillar_index", "rays", "origins_ego_m", "own",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class SceneCache:
    """One scene of S samples, R rigs (mostly one) and N cameras. `scene["images"]` gives an array:

    images: uint8 (S, N, H, W, 3). present: bool (S, N).
    stamp_ns: int64 (S,). world_from_ego: float64 (S, 4, 4), at these stamps, NaN where nobody knows. Samples are in
    the order of time.
    labels: uint8 (S, X, Y, Z), UNLABELED where the cameras did not look.
    depth, pixel_class: uint8 (S, N, h, w), see training.rays.
    rig: int64 (S,), which of the R rigs. voxel_index, pillar_index, rays: (R, ...), see models.easyocc.table.
    origins_ego_m: float64 (R, N, 3), where the cameras are. own: bool (R, N, h, w), see `own_pixels`.

    Arrays are mapped when asked for and not kept: a map holds a file open, and there may be thousands.
    """

    name: str
    tokens: list[str]
    read: Callable[[str], np.ndarray]

    def __getitem__(self, array: str) -> np.ndarray:
        return self.read(array)


def open_scenes(
    sources: Sequence[KeyframeSource],
    config: EasyOccConfig,
    cache: Path,
    ranks: Ranks,
    on_progress: Callable[[str], None],
) -> list[SceneCache]:
    """Open each scene from the cache, or build it now; an interrupted build goes on. Each process builds its share.

    Raises:
        MissingInput, CorruptInput: of the files that a scene is built from.
    """

    def opened(source: KeyframeSource, scene: str, keyframes: list[Keyframe]) -> SceneCache:
        on_progress(scene)
        at = cache / f"{scene}-{_key(source, scene, keyframes, config)}"
        return _open(at, scene) if at.is_dir() else _build(source, keyframes, config, at, scene)

    wanted = [(source, *of) for source in sources for of in source.scenes.items()]
    mine = {index: opened(*wanted[index]) for index in range(ranks.rank, len(wanted), ranks.world)}
    ranks.any(False)  # when all are here, the others' share is there, too
    return [mine[index] if index in mine else opened(*of) for index, of in enumerate(wanted)]


def _key(source: KeyframeSource, scene: str, keyframes: list[Keyframe], config: EasyOccConfig) -> str:
    """Hash everything that decides the arrays; labels count by size and time, since reading them is what the cache
    avoids."""
    root, labels = root_of(source.root), cast(LabelFiles, source.labels)
    digest = hashlib.sha256(f"{VERSION} {root.resolve()}".encode())
    fields = {"grid_origin_m", "voxel_size_m", "grid_shape", "taxonomy", "input_width", "input_height", "depth_bins"}
    fields |= {"depth_m", "pillar_cells", "pillar_heights"}
    digest.update(config.model_dump_json(include=fields).encode())
    files = {keyframe.token: labels.path(scene, keyframe.token) for keyframe in keyframes}
    files |= {path.stem: path for path in scene_masks(root, scene)}
    for name, path in sorted(files.items()):
        stat = path.stat()
        digest.update(f"{name} {stat.st_size} {stat.st_mtime_ns}".encode())
    if not frame_files(source.frames, keyframes[0].frame_index):  # of a recording
        digest.update(f"{source.choice} {frame_key(source.root, source.frames, keyframes[0].frame_index)}".encode())
    return digest.hexdigest()[:12]


def _open(at: Path, scene: str) -> SceneCache:
    tokens = json.loads((at / "tokens.json").read_text())
    return SceneCache(scene, tokens, lambda name: np.load(at / f"{name}.npy", mmap_mode="r"))


def _build(
    source: KeyframeSource, keyframes: list[Keyframe], config: EasyOccConfig, at: Path, scene: str
) -> SceneCache:
    """Make the arrays of a scene and keep them at `at`; they stay in memory where nothing can be written there."""
    frames, files = source.frames, cast(LabelFiles, source.labels)
    read = ((*frame_files(frames, k.frame_index), *files.files(scene, k.token)) for k in keyframes)
    require_files(path for paths in read for path in paths)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in ARRAYS}
    tables: dict[str, int] = {}
    preprocess = Preprocess(config.input_width, config.input_height)
    for keyframe in keyframes:
        frame = frames[keyframe.frame_index]
        if frame.rig.fingerprint not in tables:
            tables[frame.rig.fingerprint] = len(tables)
            table = build_table(frame.rig, config)
            for name in ("voxel_index", "pillar_index", "rays"):
                rows[name].append(getattr(table, name))
            rows["origins_ego_m"].append(np.stack([camera.ego_from_cam[:3, 3] for camera in frame.rig]))
            rows["own"].append(own_pixels(frame.rig, config))
        rows["rig"].append(np.array(tables[frame.rig.fingerprint]))
        for name, array in zip(("images", "present"), preprocess.rig(frame.images, frame.rig.names), strict=True):
            rows[name].append(array)
        rows["stamp_ns"].append(np.array(frame.stamp_ns))
        rows["world_from_ego"].append(frame.world_from_ego if frame.has_pose else np.full((4, 4), np.nan))
        labels = files.read(scene, keyframe.token, config)
        rows["labels"].append(labels)
        own = rows["own"][tables[frame.rig.fingerprint]]
        for name, array in zip(("depth", "pixel_class"), ray_targets(labels, frame.rig, config), strict=True):
            rows[name].append(np.where(own, np.uint8(UNLABELED), array))
    tokens = [keyframe.token for keyframe in keyframes]
    arrays = {name: np.stack(parts) for name, parts in _evened(rows, config).items()}
    try:
        _write(arrays, tokens, at)
    except OSError as error:
        if at.is_dir():  # another process was faster
            return _open(at, scene)
        log.warning("%s: cannot be written (%s); %s is kept in memory, to be read again next time", at, error, scene)
        return SceneCache(scene, tokens, arrays.__getitem__)
    return _open(at, scene)


def own_pixels(rig: Rig, config: EasyOccConfig) -> np.ndarray:
    """Mark the feature pixels on which a camera sees mostly the robot itself, bool (N, h, w): the image does not show
    the cells behind them."""
    preprocess, (w, h) = Preprocess(config.input_width, config.input_height), config.feature_size
    own = np.zeros((len(rig), h, w), dtype=np.bool_)
    for i, camera in enumerate(rig):
        blind = preprocess.camera(camera).blind
        if blind is not None:
            own[i] = blind.reshape(h, STRIDE, w, STRIDE).mean(axis=(1, 3)) > 0.5
    return own


ABSENT = {
    "images": 0, "present": False, "depth": UNLABELED, "pixel_class": UNLABELED, "rays": 0, "origins_ego_m": 0.0,
    "own": False,
}  # fmt: skip
"""What stands for a camera that a keyframe's rig lacks, in the arrays that have a row for each."""


def _evened(rows: dict[str, list[np.ndarray]], config: EasyOccConfig) -> dict[str, list[np.ndarray]]:
    """Pad the rows to as many cameras as the scene's largest rig has; no cell is seen by a camera that is not there."""
    (w, h), most = config.feature_size, max(map(len, rows["present"]))
    out = dict(rows)
    for name, per_pixel in (("voxel_index", config.depth_bins), ("pillar_index", 1)):
        unseen = [len(rays) * h * w * per_pixel for rays in rows["rays"]]
        tables = zip(rows[name], unseen, strict=True)
        out[name] = [np.where(t == end, most * h * w * per_pixel, t).astype(np.int32) for t, end in tables]
    for name, value in ABSENT.items():
        out[name] = [
            np.concatenate([a, np.full((most - len(a), *a.shape[1:]), value, dtype=a.dtype)]) for a in rows[name]
        ]
    return out


def _write(arrays: dict[str, np.ndarray], tokens: list[str], at: Path) -> None:
    temporary = at.with_name(f".{at.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array)
        (temporary / "tokens.json").write_text(json.dumps(tokens))
        os.replace(temporary, at)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
