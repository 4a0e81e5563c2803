"""Metric depth of transformers' networks: Depth Anything V2 with a metric head, ZoeDepth, Depth Pro.

Depth Pro (Bochkovskii et al., ICLR 2025) answers for a camera of unknown focal length and is given the true one here;
Depth Anything (Yang et al., NeurIPS 2024) and ZoeDepth (Bhat et al., 2023) cannot be told it: their metres are right
for cameras like those that they were tuned on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from occ_core.errors import InvalidInput, need
from occ_core.frame import Frame
from occ_core.teachers.base import DepthMap
from occ_core.teachers.networks import (
    Batches,
    by_size,
    from_pretrained,
    half_precision,
    model_from_pretrained,
    pick_device,
    require_numbers,
    weights_digest,
)

KINDS = ("depth_anything", "depth_pro", "zoedepth")
INVERSE = (1e-4, 1e4)  # 1 / m, what Depth Pro's answer is kept within

Prepare = Callable[[Sequence[np.ndarray]], Any]
"""RGB uint8 (h, w, 3) images of one size -> float32 tensor (images, 3, h, w)."""


class TransformersDepth:
    """Metric depth of all cameras, at the network's own resolution; ZoeDepth's at the image's.

    Args:
        model: of one of `KINDS`; a DepthAnythingForDepthEstimation must have `depth_estimation_type` "metric".
        prepare: what makes its input.
    """

    def __init__(self, model: Any, prepare: Prepare, device: Any) -> None:
        self.kind = model.config.model_type
        if self.kind == "depth_anything" and model.config.depth_estimation_type != "metric":
            raise InvalidInput(f"a depth_anything must be 'metric', this one is '{model.config.depth_estimation_type}'")
        if self.kind == "depth_pro":
            model.use_fov_model = False  # it guesses what the camera's calibration says
        self.model, self.prepare, self.device = model.to(device).eval(), prepare, device
        self.batches = Batches(device)
        self.version = f"{self.kind.replace('_', '-')}-1 {weights_digest(model)}"

    def depth(self, frame: Frame) -> dict[str, DepthMap]:
        maps: dict[str, DepthMap] = {}
        for names in by_size(frame.images):
            answers = self.batches.run([frame.images[name] for name in names], self._ask)
            for name, answer in zip(names, answers, strict=True):
                require_numbers(answer, f"{self.kind}'s depth of {name}")
                depth_m = answer
                if self.kind == "depth_pro":  # inverse depth of a camera whose focal length is its image's width
                    camera = frame.rig[name]
                    focal = camera.intrinsics[0, 0] / frame.images[name].shape[1]
                    depth_m = (1 / (answer / focal).clip(*INVERSE)).astype(np.float32)
                maps[name] = DepthMap(depth_m, np.ones(depth_m.shape, dtype=np.float32))
        return {name: maps[name] for name in frame.images}

    def _ask(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The network's answers, float32 (h, w)."""
        import torch

        pixels = self.prepare(images).to(self.device)
        with torch.inference_mode(), half_precision(self.device):
            answer = self.model(pixel_values=pixels).predicted_depth.float()
            if self.kind == "zoedepth":
                answer = _without_margin(answer, images[0].shape[:2])
        return list(answer.cpu().numpy())


def _without_margin(depth_m: Any, size: tuple[int, ...]) -> Any:
    """ZoeDepth sees an image within a mirrored margin of 3 sqrt(side / 2); here it is cut off again."""
    import torch

    (h, w), (top, left) = size, (int(np.sqrt(side / 2) * 3) for side in size)
    whole = (h + 2 * top, w + 2 * left)
    large = torch.nn.functional.interpolate(depth_m[:, None], whole, mode="bicubic", align_corners=False)[:, 0]
    return large[:, top : top + h, left : left + w]


def _squash(settings: dict[str, Any]) -> Prepare:
    """Depth Pro's input by its `preprocessor_config.json`; its own processor insists on torchvision."""
    import torch

    size = (settings["size"]["height"], settings["size"]["width"])
    mean, std = (torch.tensor(settings[key]).reshape(1, 3, 1, 1) for key in ("image_mean", "image_std"))

    def prepare(images: Sequence[np.ndarray]) -> Any:
        colours = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
        return torch.nn.functional.interpolate((colours - mean) / std, size, mode="bilinear", align_corners=False)

    return prepare


def load_transformers_depth(name: str, weights: Path | None = None, device: str | None = None) -> TransformersDepth:
    """The model `<weights>/<name>`, or `name` as a folder or in the hub's cache.

    Raises:
        MissingInput, CorruptInput, InvalidInput, MissingPackage: naming what is absent, broken or of another kind.
    """
    transformers = need("transformers", "teachers")
    inside = None if weights is None else weights / name
    source: str | Path = inside if inside is not None and inside.is_dir() else name
    model = model_from_pretrained(transformers.AutoModelForDepthEstimation, source, KINDS)
    if model.config.model_type == "depth_pro":
        from transformers.image_processing_base import ImageProcessingMixin

        settings, _ = ImageProcessingMixin.get_image_processor_dict(str(source), local_files_only=True)
        return TransformersDepth(model, _squash(settings), pick_device(device))
    processor = from_pretrained(transformers.AutoImageProcessor, source)
    return TransformersDepth(
        model, lambda images: processor(images=list(images), return_tensors="pt")["pixel_values"], pick_device(device)
    )
