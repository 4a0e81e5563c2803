"""Grounded-SAM (Ren et al., arXiv 2401.14159): Grounding DINO finds boxes for words, SAM turns boxes into masks.

As in the label making of OccNeRF and GaussianFlowOcc: one class at a time, thresholds 0.20 and 0.20, a word counts
where all of its tokens do, and a pixel takes the class of the mask with the highest box score. Sky grounding is
ShelfOcc's: "sky" stands in every prompt, and a box that fits it better than the class is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from occ_core.errors import InvalidInput, MissingInput, need
from occ_core.frame import Frame
from occ_core.taxonomy import UNLABELED, Taxonomy
from occ_core.teachers import networks, sam
from occ_core.teachers.base import ClassMap
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
from occ_core.teachers.sam import Segmenter, load_segmenter

BOX_THRESHOLD = 0.20
TEXT_THRESHOLD = 0.20
SAME_IOU = 0.8  # boxes of one class that overlap more are one thing
MOST_BOXES = 200  # of one image, all classes together; each costs a mask
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
        self.batches = Batches(device)
        self.version = f"grounding-dino-2 {weights_digest(model)}"

    def boxes(self, images: list[np.ndarray], words: tuple[str, ...], against: tuple[str, ...] = ()) -> list[Boxes]:
        """Find what the words name, in images of one size.

        Args:
            images: RGB uint8 (h, w, 3).
            words: prompts of one class.
            against: prompts beside them; a box that fits one of these better is dropped.

        Returns:
            boxes of each image, of which every token of some word passes TEXT_THRESHOLD and the best of these tokens,
            the score, BOX_THRESHOLD.
        """
        return self.batches.run(images, lambda part: self._boxes(part, words, against))

    def _boxes(self, images: Sequence[np.ndarray], words: tuple[str, ...], against: tuple[str, ...]) -> list[Boxes]:
        import torch

        text, tokens = self._prompt(words + against)
        inputs = self.processor(images=list(images), text=[text] * len(images), return_tensors="pt").to(self.device)
        with torch.inference_mode(), half_precision(self.device):
            out = self.model(**inputs)
        probability = out.logits.float().sigmoid().cpu().numpy()
        require_numbers(probability[..., tokens[0]], f"Grounding DINO's answer to '{text}'")
        # A word is meant where each of its tokens is: "traffic" alone does not make a traffic cone.
        of_word = [
            probability[..., t].max(axis=-1) * (probability[..., t].min(axis=-1) > TEXT_THRESHOLD) for t in tokens
        ]
        score = np.max(of_word[: len(words)], axis=0)
        keep = score > BOX_THRESHOLD
        if against:
            keep &= score >= np.max(of_word[len(words) :], axis=0)
        h, w = images[0].shape[:2]
        cx, cy, bw, bh = np.moveaxis(out.pred_boxes.float().cpu().numpy(), -1, 0)
        box = np.stack([cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2], axis=-1).clip(0, 1)
        box_px = (box * (w, h, w, h)).astype(np.float32)
        return [Boxes(box_px[i][keep[i]], score[i][keep[i]].astype(np.float32)) for i in range(len(images))]

    def _prompt(self, words: tuple[str, ...]) -> tuple[str, list[list[int]]]:
        """Text in Grounding DINO's form, and which of its tokens belong to each word."""
        text = " . ".join(words) + " . "
        spans = self.processor.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        ends = np.cumsum([len(word) + 3 for word in words])
        tokens = [
            [n for n, (a, b) in enumerate(spans) if end - len(word) - 3 <= a < b <= end - 3]
            for word, end in zip(words, ends, strict=True)
        ]
        if not all(tokens):
            raise InvalidInput(f"prompt '{text}' has a word without a token")
        return text, tokens


class GroundedSam:
    """Class maps of all cameras by Grounding DINO and SAM.

    Args:
        detector, segmenter: the two networks.
        taxonomy: its prompts are what is asked for; those of the free class mean sky.
        only: classes to ask for; None: all that have prompts.
        sky_grounding: put the sky's prompts beside every other class's.
    """

    def __init__(
        self,
        detector: GroundingDino,
        segmenter: Segmenter,
        taxonomy: Taxonomy,
        only: frozenset[int] | None = None,
        sky_grounding: bool = True,
    ) -> None:
        if not any(taxonomy.prompts):
            raise InvalidInput(f"taxonomy '{taxonomy.name}' has no prompts for an open-vocabulary teacher")
        self.detector, self.segmenter, self.taxonomy = detector, segmenter, taxonomy
        self.asked = [(i, words) for i, words in enumerate(taxonomy.prompts) if words and (only is None or i in only)]
        self.sky = taxonomy.prompts[taxonomy.free_id] if sky_grounding else ()
        part = "" if only is None else f" only {','.join(str(i) for i, _ in self.asked)}"
        asked = f"{taxonomy.name}{part} {BOX_THRESHOLD:.2f} {TEXT_THRESHOLD:.2f}{' sky' if self.sky else ''}"
        self.version = f"grounded-sam-2 {detector.version} {segmenter.version} {asked}"

    def classes(self, frame: Frame) -> dict[str, ClassMap]:
        maps: dict[str, ClassMap] = {}
        for names in by_size(frame.images):
            images = [frame.images[name] for name in names]
            for name, image, found in zip(names, images, self._find(images), strict=True):
                ids, boxes = found
                keep = survivors(ids, boxes)
                masks = self.segmenter.masks(image, boxes.box_px[keep])
                maps[name] = paint(masks, ids[keep], boxes.score[keep], image.shape[:2])
        return {name: maps[name] for name in frame.images}

    def _find(self, images: list[np.ndarray]) -> list[tuple[np.ndarray, Boxes]]:
        """For each image, the class ids (N,) and boxes of all classes."""
        answers = []  # of each class, of each image
        for class_id, words in self.asked:
            answers.append(self.detector.boxes(images, words, self.sky if class_id != self.taxonomy.free_id else ()))
        found = []
        for of_image in zip(*answers, strict=True):
            ids = np.concatenate([np.full(len(b.score), c) for (c, _), b in zip(self.asked, of_image, strict=True)])
            every = Boxes(np.concatenate([b.box_px for b in of_image]), np.concatenate([b.score for b in of_image]))
            found.append((ids, every))
        return found


def survivors(class_ids: np.ndarray, boxes: Boxes) -> np.ndarray:
    """Choose the boxes that are worth a mask, as indices (M,), best score first.

    Of boxes of one class that overlap by more than SAME_IOU the better one; at most MOST_BOXES.

    Args:
        class_ids: int (N,). boxes: N of them.
    """
    order = np.argsort(-boxes.score, kind="stable")
    low, high = boxes.box_px[:, :2], boxes.box_px[:, 2:]
    area = (high - low).clip(0).prod(axis=1)
    kept: list[int] = []
    for i in order:
        same = np.array([k for k in kept if class_ids[k] == class_ids[i]], dtype=int)
        shared = (np.minimum(high[same], high[i]) - np.maximum(low[same], low[i])).clip(0).prod(axis=1)
        if (shared <= SAME_IOU * (area[same] + area[i] - shared)).all():
            kept.append(int(i))
        if len(kept) == MOST_BOXES:
            break
    return np.array(kept, dtype=int)


def paint(parts: Iterable[np.ndarray], class_ids: np.ndarray, scores: np.ndarray, size: tuple[int, ...]) -> ClassMap:
    """Give each pixel the class of the mask with the highest score over it.

    Args:
        parts: masks bool (n, h, w), best score first, N in all; one part at a time is held.
        class_ids: int (N,). scores: float (N,), falling. size: (h, w).
    """
    class_id = np.full(size, UNLABELED, dtype=np.uint8)
    score = np.zeros(size, dtype=np.float32)
    masks = (mask for part in parts for mask in part)
    for mask, its_class, its_score in zip(masks, class_ids, scores, strict=True):
        new = mask & (class_id == UNLABELED)
        class_id[new], score[new] = its_class, its_score
    return ClassMap(class_id, score)


def lacking(weights: Path | None) -> list[str]:
    """List what is missing for `load_grounded_sam`; nothing is loaded."""
    if weights is None:
        absent = networks.lacking(DETECTOR)
    elif (weights / "grounding-dino").is_dir():
        absent = []
    else:
        absent = [f"{weights}: holds no folder 'grounding-dino'; get it with: hf download {DETECTOR}"]
    return absent + sam.lacking(weights)


def load_grounded_sam(
    taxonomy: Taxonomy, weights: Path | None = None, device: str | None = None, only: frozenset[int] | None = None
) -> GroundedSam:
    """Both networks, from a folder or the hub's cache.

    Args:
        weights: folder with `grounding-dino/` (transformers) and what `load_segmenter` takes; None: the hub's cache.
        only: classes to ask for; None: all that have prompts.

    Raises:
        MissingInput, CorruptInput, MissingPackage: naming what is absent or broken.
    """
    transformers = need("transformers", "teachers")
    if absent := lacking(weights):
        raise MissingInput("; ".join(absent))
    source = DETECTOR if weights is None else weights / "grounding-dino"
    model = model_from_pretrained(transformers.GroundingDinoForObjectDetection, source, ("grounding-dino",))
    processor = from_pretrained(transformers.AutoProcessor, source)
    detector = GroundingDino(model, processor, pick_device(device))
    return GroundedSam(detector, load_segmenter(weights, device), taxonomy, only)
