"""Depth Anything V2 with a metric head (Yang et al., NeurIPS 2024), from transformers: the lighter depth teacher.

Unlike Metric3D it is not told the focal length: its metres are right for cameras like those it was tuned on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from occ_core.errors import InvalidInput, need
from occ_core.frame import Frame
from occ_core.teachers.base import DepthMap
from occ_core.teachers.networks import by_size, from_pretrained, half_precision, pick_device, weights_digest


class TransformersDepth:
    """Metric depth of all cameras, at the network's own resolution.

    Args:
        model: a DepthAnythingForDepthEstimation whose `depth_estimation_type` is "metric".
        processor: its image processor.
    """

    def __init__(self, model: Any, processor: Any, device: Any) -> None:
        kind = f"{model.config.model_type} {getattr(model.config, 'depth_estimation_type', '')}".strip()
        if kind != "depth_anything metric":
            raise InvalidInput(f"the depth teacher must be a 'depth_anything metric' model, this is '{kind}'")
        self.model, self.processor, self.device = model.to(device).eval(), processor, device
        self.version = f"depth-anything-1 {weights_digest(model)}"

    def depth(self, frame: Frame) -> dict[str, DepthMap]:
        maps: dict[str, DepthMap] = {}
        for names in by_size(frame.images):
            depths_m = self._depths_m([frame.images[name] for name in names])
            for name, depth_m in zip(names, depths_m, strict=True):
                maps[name] = DepthMap(depth_m, np.ones(depth_m.shape, dtype=np.float32))
        return {name: maps[name] for name in frame.images}

    def _depths_m(self, images: list[np.ndarray]) -> np.ndarray:
        """float32 (images, h, w)."""
        import torch

        inputs = self.processor(images=images, return_tensors="pt").to(self.device)
        with torch.inference_mode(), half_precision(self.device):
            depth_m = self.model(**inputs).predicted_depth
        return depth_m.float().cpu().numpy()


def load_transformers_depth(name: str, weights: Path | None = None, device: str | None = None) -> TransformersDepth:
    """The model `<weights>/<name>`, or `name` as a folder or in the hub's cache.

    Raises:
        MissingInput, CorruptInput, MissingPackage: naming what is absent or broken.
    """
    transformers = need("transformers", "teachers")
    inside = None if weights is None else weights / name
    source: str | Path = inside if inside is not None and inside.is_dir() else name
    model = from_pretrained(transformers.AutoModelForDepthEstimation, source)
    return TransformersDepth(model, from_pretrained(transformers.AutoImageProcessor, source), pick_device(device))
