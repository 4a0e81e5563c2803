"""Makes masks of boxes with Segment Anything, from a `segment-anything` checkpoint or transformers' SAM and SAM 2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from occ_core.errors import CorruptInput, InvalidInput, MissingInput, need
from occ_core.teachers import networks
from occ_core.teachers.networks import (
    from_pretrained,
    half_precision,
    model_from_pretrained,
    pick_device,
    weights_digest,
)

BOXES_AT_ONCE = 32  # through the mask decoder; bounds memory in crowded streets
MEAN, STD = np.array((0.485, 0.456, 0.406), np.float32), np.array((0.229, 0.224, 0.225), np.float32)  # ImageNet's


SEGMENTER = "facebook/sam-vit-huge"


class Segmenter(Protocol):
    """Masks of what is in boxes."""

    version: str

    def masks(self, image: np.ndarray, boxes_px: np.ndarray) -> Iterator[np.ndarray]:
        """One mask a box, in parts of bool (n, h, w).

        Args:
            image: RGB uint8 (h, w, 3).
            boxes_px: float32 (N, 4): left, top, right, bottom.
        """


class TransformersSam:
    """SAM (Kirillov et al., ICCV 2023) or SAM 2 (Ravi et al., 2024) of transformers.

    Their own image processors are not used: that of SAM 2 insists on torchvision.
    """

    def __init__(self, model: Any, device: Any) -> None:
        self.kind = model.config.model_type
        if self.kind not in ("sam", "sam2"):
            raise InvalidInput(f"the segmenter must be a 'sam' or 'sam2' model, this is '{self.kind}'")
        self.model, self.device = model.to(device).eval(), device
        size = model.config.prompt_encoder_config.image_size
        self.side_px = int(size if isinstance(size, int) else size[0])
        self.version = f"{self.kind}-2 {weights_digest(model)}"

    def masks(self, image: np.ndarray, boxes_px: np.ndarray) -> Iterator[np.ndarray]:
        import torch

        h, w = image.shape[:2]
        if not len(boxes_px):
            return
        pixels, scale = self._prepare(image)
        used = (round(h * scale[1]), round(w * scale[0]))
        with torch.inference_mode(), half_precision(self.device):
            embedding = self.model.get_image_embeddings(torch.from_numpy(pixels).to(self.device))
        for part in torch.from_numpy((boxes_px * scale).astype(np.float32)).to(self.device).split(BOXES_AT_ONCE):
            with torch.inference_mode(), half_precision(self.device):
                out = self.model(input_boxes=part[None], image_embeddings=embedding, multimask_output=False)
                logits = _resize(out.pred_masks[0].float(), (self.side_px, self.side_px))[..., : used[0], : used[1]]
                masks = (_resize(logits, (h, w))[:, 0] > 0).cpu().numpy()
            yield masks

    def _prepare(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Normalised float32 (1, 3, side, side), and what box coordinates are multiplied by, float32 (4,).

        SAM keeps the aspect and pads right and below, SAM 2 stretches.
        """
        from PIL import Image  # SAM was trained with its antialiased resize

        h, w = image.shape[:2]
        size = (self.side_px, self.side_px)
        if self.kind == "sam":
            size = int(w * self.side_px / max(h, w) + 0.5), int(h * self.side_px / max(h, w) + 0.5)
        small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        sx, sy = size[0] / w, size[1] / h
        pixels = np.zeros((1, 3, self.side_px, self.side_px), dtype=np.float32)
        pixels[0, :, : small.shape[0], : small.shape[1]] = ((small / np.float32(255) - MEAN) / STD).transpose(2, 0, 1)
        return pixels, np.array((sx, sy, sx, sy), dtype=np.float32)


class SegmentAnything:
    """SAM of the `segment-anything` package, for its published checkpoints.

    Args:
        sam: a `segment_anything.modeling.Sam`.
    """

    def __init__(self, sam: Any, device: Any) -> None:
        predictor = need("segment_anything", "teachers").SamPredictor
        self.predictor, self.device = predictor(sam.to(device).eval()), device
        self.version = f"segment-anything {weights_digest(sam)}"

    def masks(self, image: np.ndarray, boxes_px: np.ndarray) -> Iterator[np.ndarray]:
        import torch

        size = image.shape[:2]
        if not len(boxes_px):
            return
        with torch.inference_mode(), half_precision(self.device):
            self.predictor.set_image(image)
        boxes = self.predictor.transform.apply_boxes_torch(torch.from_numpy(boxes_px).to(self.device), size)
        for part in boxes.split(BOXES_AT_ONCE):
            with torch.inference_mode(), half_precision(self.device):
                masks, _, _ = self.predictor.predict_torch(None, None, boxes=part, multimask_output=False)
                found = masks[:, 0].cpu().numpy()
            yield found


def lacking(weights: Path | None) -> list[str]:
    """List what is missing for `load_segmenter`; nothing is loaded."""
    if weights is None:
        return networks.lacking(SEGMENTER)
    if any(weights.glob("sam_vit_*.pth")) or (weights / "sam").is_dir():
        return []
    return [f"{weights}: holds neither sam_vit_h|l|b*.pth nor a folder 'sam' of a transformers model"]


def load_segmenter(weights: Path | None, device: str | None = None) -> Segmenter:
    """`<weights>/sam_vit_*.pth` (segment-anything), else the transformers folder `<weights>/sam`, else the hub's cache.

    Raises:
        MissingInput, CorruptInput, MissingPackage: naming what is absent or broken.
    """
    target = pick_device(device)
    checkpoints = sorted(weights.glob("sam_vit_*.pth")) if weights is not None else []
    if checkpoints:
        return SegmentAnything(_read_checkpoint(checkpoints[0]), target)
    if absent := lacking(weights):
        raise MissingInput(absent[0])
    transformers = need("transformers", "teachers")
    source = SEGMENTER if weights is None else weights / "sam"
    kind = from_pretrained(transformers.AutoConfig, source).model_type
    model_class = transformers.SamModel if kind == "sam" else transformers.Sam2Model
    return TransformersSam(model_from_pretrained(model_class, source, ("sam", "sam2", "sam2_video")), target)


def _read_checkpoint(path: Path) -> Any:
    """A Sam of the size that the file's name says, such as sam_vit_h_4b8939.pth; only tensors are read from it."""
    torch, package = need("torch", "teachers"), need("segment_anything", "teachers")
    size = "_".join(path.stem.split("_")[1:3])
    if size not in package.sam_model_registry:
        raise InvalidInput(f"{path}: the name must begin with sam_vit_h, sam_vit_l or sam_vit_b")
    sam = package.sam_model_registry[size](checkpoint=None)
    try:
        sam.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises pickle, zip, runtime and key errors here
        raise CorruptInput(f"{path}: not a checkpoint of {size} ({str(error).splitlines()[0]})") from error
    return sam


def _resize(logits: Any, size: tuple[int, int]) -> Any:
    import torch

    return torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)
