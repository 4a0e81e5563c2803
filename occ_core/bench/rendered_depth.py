"""Scores the depth that a network renders, against the simulated city's exact depth or a real LiDAR."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from occ_core.errors import InvalidInput
from occ_core.evaluation.depth import SELFOCC, DepthScores, RenderedView, lidar_depth, read_depth
from occ_core.frame import Frame
from occ_core.inference.backends.torch_backend import load_model
from occ_core.network_input.preprocess import Preprocess
from occ_core.network_input.rig_inputs import rig_inputs
from occ_core.sources.nuscenes import NuScenesSource
from occ_core.taxonomy import OCC3D
from occ_core.teachers.load import load_teachers

CPU = torch.device("cpu")
TRUTHS = ("oracle", "lidar")
PIXEL_STEP = 2  # of exact depth: every second pixel along both axes counts
RAYS = 0.25  # rendered rays for each pixel of the network's input, as OccNeRF renders


def score_rendered_depth(
    checkpoint: Path,
    dataroot: Path,
    truth: str = "oracle",
    seen: Callable[[Frame, list[RenderedView]], None] = lambda frame, views: None,
) -> dict[str, Any]:
    """Errors of the rendered depth over all keyframes, by SelfOcc's protocol, within the network's crop of each image.

    Args:
        truth: oracle, the exact depth of a simulated city; or lidar, a frame's sweep.
        seen: is given each keyframe's views, to draw them.

    Returns:
        as `DepthScores.report`.

    Raises:
        InvalidInput: a network that renders no depth, another truth, or a frame without LiDAR.
        MissingInput, CorruptInput.
    """
    if truth not in TRUTHS:
        raise InvalidInput(f"truth '{truth}' is not one of {', '.join(TRUTHS)}")
    device = torch.device("cuda") if torch.cuda.is_available() else CPU
    model = load_model(checkpoint).to(device)
    if not hasattr(model, "rendered_depth"):
        raise InvalidInput(f"{checkpoint}: a network of kind '{cast(Any, model).config.kind}' renders no depth")
    scores, true_depth = DepthScores(SELFOCC), _truth_of(truth, dataroot)
    for frame in NuScenesSource(dataroot):
        views = rendered_views(model, frame, true_depth, device)
        for view in views:
            scores.add(view.camera, _at_pixels(view), view.truth_m)
        seen(frame, views)
    return scores.report()


Truth = Callable[[Frame, str, Preprocess], tuple[np.ndarray, np.ndarray]]


def rendered_views(model: Any, frame: Frame, truth: Truth, device: torch.device = CPU) -> list[RenderedView]:
    """Render the depth of each camera that has an image, and find the truth at pixels of its input."""
    config = model.config
    preprocess = Preprocess(config.input_width, config.input_height)
    images, present = preprocess.rig(frame.images, frame.rig.names)
    batch = rig_inputs(images, present, frame.rig_at_stamps, preprocess).batch().to(device)
    size = int(config.input_width * RAYS**0.5), int(config.input_height * RAYS**0.5)
    with torch.inference_mode():
        depth_m = model.rendered_depth(batch, size)[0].float().cpu().numpy()
    rows = zip(frame.rig.names, images, depth_m, present, strict=True)
    return [RenderedView(name, i, depth, *truth(frame, name, preprocess)) for name, i, depth, there in rows if there]


def _at_pixels(view: RenderedView) -> np.ndarray:
    return read_depth(view.depth_m, view.pixels, (view.image.shape[1], view.image.shape[0]))


def _truth_of(truth: str, dataroot: Path) -> Truth:
    if truth == "lidar":
        return _lidar_truth
    teacher = load_teachers("oracle", dataroot, OCC3D).depth
    return lambda frame, name, preprocess: _exact_truth(teacher.depth(frame)[name].depth_m, frame, name, preprocess)


def _exact_truth(depth_m: np.ndarray, frame: Frame, name: str, preprocess: Preprocess) -> tuple[np.ndarray, np.ndarray]:
    """Every PIXEL_STEP-th pixel of the input that shows a surface."""
    depth_m = preprocess.nearest(depth_m, frame.rig[name].size)[::PIXEL_STEP, ::PIXEL_STEP]
    y, x = np.nonzero(np.isfinite(depth_m))
    return np.stack([x, y], axis=1) * PIXEL_STEP, depth_m[y, x]


def _lidar_truth(frame: Frame, name: str, preprocess: Preprocess) -> tuple[np.ndarray, np.ndarray]:
    """LiDAR points that fall into the input."""
    pixels, depth_m = lidar_depth(frame, name)
    (width, height), left, top = preprocess.plan(frame.rig[name].size)
    scale = np.array([width, height]) / frame.rig[name].size
    pixels = (pixels + 0.5) * scale - 0.5 - (left, top)
    inside = ((pixels >= -0.5) & (pixels < (preprocess.width - 0.5, preprocess.height - 0.5))).all(axis=1)
    return pixels[inside], depth_m[inside]
