"""Grounded-SAM (Ren et al., arXiv 2401.14159): Grounding DINO finds boxes for words, SAM turns boxes into masks.

As in the label making of OccNeRF and GaussianFlowOcc: one class at a time, thresholds 0.20 and 0.20, and a pixel takes
the class of the mask with the highest box score. Sky grounding is ShelfOcc's: "sky" stands in every prompt, and a box
that fits it better than the class is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from occ_core.errors import InvalidInput, MissingInput, need
from occ_core.frame import Frame
from occ_core.taxonomy import Taxonomy
from occ_core.teachers.base import UNKNOWN, ClassMap
from occ_core.teachers.networks import by_size, from_pretrained, half_precision, pick_device, weights_digest
from occ_core.teachers.sam import Segmenter, load_segmenter

BOX_THRESHOLD = 0.20
TEXT_THRESHOLD = 0.20
DETECTOR = "IDEA-Research/grounding-dino-base"


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of one image: `box_px` float32 (N, 4) left, top, right, bottom; `score` float32 (N,), 0..1."""

    box_px: np.ndarray
    score: np.ndarray


class GroundingDino:
    """Grounding DINO (Liu et al., ECCV 2024) of transformers.

    Args:
        model: a GroundingDinoForObjectDetection. processor: its GroundingDinoProcessor.
    """

    def __init__(self, model: Any, processor: Any, device: Any) -> None:
        self.model, self.processor, self.device = model.to(device).eval(), processor, device
        self.version = f"grounding-dino {weights_digest(model)}"

    def boxes(self, images: list[np.ndarray], words: tuple[str, ...], against: tuple[str, ...] = ()) -> list[Boxes]:
        """What the words name, in images of one size, in one batch.

        Args:
            images: RGB uint8 (h, w, 3).
            words: prompts of one class.
            against: prompts beside them; a box that fits one of these better is dropped.

        Returns:
            boxes of each image whose best word scores above both thresholds.
        """
        import torch

        text, is_word, is_against = self._prompt(words, against)
        inputs = self.processor(images=images, text=[text] * len(images), return_tensors="pt").to(self.device)
        with torch.inference_mode(), half_precision(self.device):
            out = self.model(**inputs)
        probability = out.logits.float().sigmoid().cpu().numpy()[..., : len(is_word)]
        score = probability[..., is_word].max(axis=-1)
        keep = (score > BOX_THRESHOLD) & (score > TEXT_THRESHOLD)
        if is_against.any():
            keep &= score >= probability[..., is_against].max(axis=-1)
        h, w = images[0].shape[:2]
        cx, cy, bw, bh = np.moveaxis(out.pred_boxes.float().cpu().numpy(), -1, 0)
        box = np.stack([cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2], axis=-1).clip(0, 1)
        box_px = (box * (w, h, w, h)).astype(np.float32)
        return [Boxes(box_px[i][keep[i]], score[i][keep[i]].astype(np.float32)) for i in range(len(images))]

    def _prompt(self, words: tuple[str, ...], against: tuple[str, ...]) -> tuple[str, np.ndarray, np.ndarray]:
        """Text in Grounding DINO's form, and which of its tokens are of the words and of what stands against them."""
        head = " . ".join(words) + " . "
        text = head + "".join(f"{word} . " for word in against)
        spans = self.processor.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        is_text = np.array([end > start and text[start:end] != "." for start, end in spans])
        is_head = np.array([start < len(head) for start, _ in spans])
        if not (is_text & is_head).any():
            raise InvalidInput(f"prompt '{text}' has no token")
        return text, is_text & is_head, is_text & ~is_head


class GroundedSam:
    """Class maps of all cameras by Grounding DINO and SAM.

    Args:
        detector, segmenter: the two networks.
        taxonomy: its prompts are what is asked for; those of the free class mean sky.
        sky_grounding: put the sky's prompts beside every other class's.
    """

    def __init__(
        self, detector: GroundingDino, segmenter: Segmenter, taxonomy: Taxonomy, sky_grounding: bool = True
    ) -> None:
        if not any(taxonomy.prompts):
            raise InvalidInput(f"taxonomy '{taxonomy.name}' has no prompts for an open-vocabulary teacher")
        self.detector, self.segmenter, self.taxonomy = detector, segmenter, taxonomy
        self.sky = taxonomy.prompts[taxonomy.free_id] if sky_grounding else ()
        asked = f"{taxonomy.name} {BOX_THRESHOLD:.2f} {TEXT_THRESHOLD:.2f}{' sky' if self.sky else ''}"
        self.version = f"grounded-sam-1 {detector.version} {segmenter.version} {asked}"

    def classes(self, frame: Frame) -> dict[str, ClassMap]:
        maps: dict[str, ClassMap] = {}
        for names in by_size(frame.images):
            images = [frame.images[name] for name in names]
            for name, image, found in zip(names, images, self._find(images), strict=True):
                ids, box_px, score = found
                maps[name] = paint(self.segmenter.masks(image, box_px), ids, score)
        return {name: maps[name] for name in frame.images}

    def _find(self, images: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of each image: class ids int (N,), boxes float32 (N, 4) and scores float32 (N,) of all classes."""
        ids: list[list[np.ndarray]] = [[] for _ in images]
        boxes: list[list[Boxes]] = [[] for _ in images]
        for class_id, words in enumerate(self.taxonomy.prompts):
            if not words:
                continue
            against = self.sky if class_id != self.taxonomy.free_id else ()
            for i, found in enumerate(self.detector.boxes(images, words, against)):
                ids[i].append(np.full(len(found.score), class_id))
                boxes[i].append(found)
        return [
            (np.concatenate(i), np.concatenate([each.box_px for each in b]), np.concatenate([each.score for each in b]))
            for i, b in zip(ids, boxes, strict=True)
        ]


def paint(masks: np.ndarray, class_ids: np.ndarray, scores: np.ndarray) -> ClassMap:
    """Each pixel takes the class of the mask with the highest score over it.

    Args:
        masks: bool (N, h, w). class_ids: int (N,). scores: float (N,).
    """
    class_id = np.full(masks.shape[1:], UNKNOWN, dtype=np.uint8)
    score = np.zeros(masks.shape[1:], dtype=np.float32)
    for i in np.argsort(scores, kind="stable"):  # better ones over worse ones
        class_id[masks[i]] = class_ids[i]
        score[masks[i]] = scores[i]
    return ClassMap(class_id, score)


def load_grounded_sam(taxonomy: Taxonomy, weights: Path | None = None, device: str | None = None) -> GroundedSam:
    """Both networks, from a folder or the hub's cache.

    Args:
        weights: folder with `grounding-dino/` (transformers) and what `load_segmenter` takes; None: the hub's cache.

    Raises:
        MissingInput, CorruptInput, MissingPackage: naming what is absent or broken.
    """
    transformers = need("transformers", "teachers")
    if weights is not None and not (weights / "grounding-dino").is_dir():
        raise MissingInput(f"{weights}: holds no folder 'grounding-dino'; get it with: hf download {DETECTOR}")
    source = DETECTOR if weights is None else weights / "grounding-dino"
    model = from_pretrained(transformers.GroundingDinoForObjectDetection, source)
    processor = from_pretrained(transformers.AutoProcessor, source)
    return GroundedSam(GroundingDino(model, processor, pick_device(device)), load_segmenter(weights, device), taxonomy)
