"""Scores folders of predictions against the truth that there is: true voxels, a LiDAR, or other images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from occ_core.errors import MissingInput, MissingPackage, OccError, need
from occ_core.evaluation.image_consistency import score_images
from occ_core.evaluation.lidar_rays import score_lidar_rays
from occ_core.evaluation.predictions import prediction_files
from occ_core.evaluation.ray_iou import ray_origins
from occ_core.evaluation.report import evaluate_folders
from occ_core.evaluation.ssc import evaluate_voxels, holds_voxels

OnProgress = Callable[[int, int], None]
OnRemark = Callable[[str], None]


def evaluate(
    predictions: Path | str,
    truths: Path | str | None = None,
    *,
    lidar: Path | str | None = None,
    images: Path | str | None = None,
    data: Path | str | None = None,
    version: str | None = None,
    workers: int = 1,
    on_progress: OnProgress = lambda done, total: None,
    on_remark: OnRemark = lambda line: None,
) -> dict[str, Any]:
    """Score predictions, or anybody's labels, in every protocol that the truth allows, as `occ eval` does.

    Args:
        predictions: folder of <token>.npz or .npy, <scene>/<token>/labels.npz or pred.npz, or SemanticKITTI's .label.
        truths: folder of <scene>/<token>/labels.npz (Occ3D), or SemanticKITTI's voxels.
        lidar: what was predicted, with a LiDAR: nuScenes layout, ROS 2 bag or SemanticKITTI.
        images: what was predicted, by a robot without LiDAR: do images of other frames agree?
        data: data set in nuScenes layout that has the LiDAR's poses, for RayIoU; None: beside `truths`.
        version: its table folder.
        workers: processes.
        on_progress: hears of samples done, and of how many there are.
        on_remark: hears how many samples there were, and why there is no RayIoU where there is none.

    Returns:
        in percent: {protocol: {iou, miou_17, miou_15, per_class}} of `camera`, `camera_and_lidar`, `full`, and `ray`;
        or `ssc` against SemanticKITTI's voxels; `confusion`, cells by true and predicted class; `lidar` and `images`
        where they are given, and with `truths` the same of the true voxels, the ceiling: `lidar_of_truth`,
        `images_of_truth`; `warnings`, if there are any.

    Raises:
        MissingInput: nothing to score, or nothing to score against. InvalidInput, CorruptInput.
    """
    if truths is None and lidar is None and images is None:
        raise MissingInput(
            "nothing to score against: give GTS, a folder of true voxels, --lidar DATA, --images DATA, or several"
        )
    if truths is None and data is not None:
        raise MissingInput("--data is for RayIoU, which needs true voxels: give GTS, too")
    predictions, report = Path(predictions), dict[str, Any]()
    if truths is not None and holds_voxels(Path(truths)):
        report, samples = _scene_completion(predictions, Path(truths))
        on_remark(f"{samples} samples")
    elif truths is not None:
        origins = _ray_origins(predictions, Path(truths), data, version, on_remark)
        report, samples = evaluate_folders(
            predictions, Path(truths), progress=on_progress, origins_ego_m=origins, workers=workers
        )
        on_remark(f"{samples} samples")
    if lidar is not None:
        report["lidar"] = score_lidar_rays(predictions, Path(lidar), on_progress, workers, version)
    if lidar is not None and truths is not None:
        score = score_lidar_rays(Path(truths), Path(lidar), on_progress, workers, version, predictions)
        report["lidar_of_truth"] = score
    if images is not None:
        report["images"] = score_images(predictions, Path(images), on_progress, version)
    if images is not None and truths is not None:
        report["images_of_truth"] = score_images(Path(truths), Path(images), on_progress, version)
    return report


def _scene_completion(predictions: Path, truths: Path) -> tuple[dict[str, Any], int]:
    ssc, samples = evaluate_voxels(predictions, truths)
    beside: dict[str, Any] = {key: ssc.pop(key) for key in ("confusion", "warnings") if key in ssc}
    return {"ssc": ssc, **beside}, samples


def _ray_origins(
    predictions: Path, truths: Path, data: Path | str | None, version: str | None, on_remark: OnRemark
) -> dict[str, np.ndarray] | None:
    """The positions of the virtual LiDAR by token; None, with a remark, if nobody said where they are and none is
    found."""
    try:
        need("numba", "world")
        return ray_origins(Path(data or truths.resolve().parent), prediction_files(predictions), version)
    except OccError as error:
        if data is not None:
            raise
        hint = "" if isinstance(error, MissingPackage) else "; --data DATAROOT names a data set that has LiDAR poses"
        on_remark(f"no RayIoU: {error}{hint}")
        return None
