"""Networks with a fixed list of classes, of transformers: Mask2Former, OneFormer, SegFormer, EoMT.

One pass an image instead of one per prompt. The network's own classes become ours by `closed_set_table`: probabilities
of labels that are one class of ours add up, and a pixel takes the class with the largest sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from occ_core.errors import need
from occ_core.frame import Frame
from occ_core.taxonomy import UNLABELED, Taxonomy
from occ_core.teachers.base import ClassMap, ClassTeacher
from occ_core.teachers.closed_set_table import classes_of
from occ_core.teachers.networks import (
    Batches,
    by_size,
    from_pretrained,
    model_from_pretrained,
    pick_device,
    require_numbers,
    weights_digest,
)

MODELS = {
    "mask2former": "Mask2FormerForUniversalSegmentation",
    "oneformer": "OneFormerForUniversalSegmentation",
    "segformer": "SegformerForSemanticSegmentation",
    "eomt": "EomtForUniversalSegmentation",
}
THIN = (
    "barrier", "bicycle", "motorcycle", "pedestrian", "traffic_cone", "person", "bicyclist", "motorcyclist", "trunk",
    "pole", "traffic_sign",
)  # fmt: skip
"""Classes that one pass at a network's own resolution loses, of both taxonomies."""


class ClosedSet:
    """Class maps of all cameras by one network.

    Args:
        model: of `MODELS`. processor: its image processor. tokenizer: OneFormer's, which reads its task.

    Raises:
        InvalidInput: the model's classes are of no data set that the table knows.
    """

    def __init__(self, model: Any, processor: Any, taxonomy: Taxonomy, device: Any, tokenizer: Any = None) -> None:
        self.model, self.processor, self.tokenizer = model.to(device).eval(), processor, tokenizer
        self.kind, self.device, self.taxonomy = model.config.model_type, device, taxonomy
        names = model.config.id2label
        self.class_of = classes_of([names[i] for i in range(len(names))], taxonomy)
        self.batches = Batches(device)
        if self.kind == "eomt":  # it cuts an image into parts, which are a batch
            self.batches.at_once = 1
        self.version = f"{self.kind}-1 {weights_digest(model)} {taxonomy.name}"

    @property
    def known(self) -> frozenset[int]:
        """Classes of the taxonomy that the network can name."""
        return frozenset(c for c in self.class_of if c is not None)

    def classes(self, frame: Frame) -> dict[str, ClassMap]:
        maps: dict[str, ClassMap] = {}
        for names in by_size(frame.images):
            found = self.batches.run([frame.images[name] for name in names], self._maps)
            maps.update(zip(names, found, strict=True))
        return {name: maps[name] for name in frame.images}

    def _maps(self, images: Sequence[np.ndarray]) -> list[ClassMap]:
        import torch

        size = images[0].shape[:2]
        with torch.inference_mode():  # float32: none of the four is published in half precision
            found = []
            for probability in self._probabilities(images):
                large = torch.nn.functional.interpolate(probability[None], size, mode="bilinear", align_corners=False)[
                    0
                ]
                score, index = large.max(dim=0)
                found.append((index.cpu().numpy(), score.cpu().numpy()))
        return [self._map(*each) for each in found]

    def _map(self, index: np.ndarray, score: np.ndarray) -> ClassMap:
        require_numbers(score, f"{self.kind}'s answer")
        says = index < len(self.taxonomy)
        class_id = np.where(says, index, UNLABELED).astype(np.uint8)
        return ClassMap(class_id, np.where(says, score, 0).clip(0, 1).astype(np.float32))

    def _probabilities(self, images: Sequence[np.ndarray]) -> Any:
        """Sums of probabilities, (images, taxonomy's classes and one for what it has no class for, any h, any w)."""
        import torch

        inputs = self._inputs(list(images))
        patches = inputs.pop("patch_offsets", None)
        out = self.model(**inputs.to(self.device))
        group = torch.zeros(len(self.taxonomy) + 1, len(self.class_of), device=self.device)
        for label, class_id in enumerate(self.class_of):
            group[len(self.taxonomy) if class_id is None else class_id, label] = 1
        if self.kind == "segformer":
            return torch.einsum("kl,blhw->bkhw", group, out.logits.softmax(dim=1))
        of_query = torch.einsum("kl,bql->bqk", group, out.class_queries_logits.softmax(dim=-1)[..., :-1])
        if self.kind != "eomt":
            return torch.einsum("bqk,bqhw->bkhw", of_query, out.masks_queries_logits.sigmoid())
        return self._eomt(of_query, out.masks_queries_logits, patches, images[0].shape[:2])

    def _eomt(self, of_query: Any, masks: Any, patches: Any, size: tuple[int, ...]) -> Any:
        """EoMT's parts of one image put together, or its padding cut off."""
        import torch

        within = self.processor.size
        height, width = within["shortest_edge"], within["longest_edge"] or within["shortest_edge"]
        masks = torch.nn.functional.interpolate(masks, (height, width), mode="bilinear")
        probability = torch.einsum("bqk,bqhw->bkhw", of_query, masks.sigmoid())
        if patches:
            return self.processor.merge_image_patches(probability, patches, [size], within)
        return self.processor.unpad_image(probability, [size], within) if self.processor.do_pad else probability

    def _inputs(self, images: list[np.ndarray]) -> Any:
        if self.kind != "oneformer":
            return self.processor(images=images, return_tensors="pt")
        inputs = self.processor(images, ["semantic"] * len(images), return_tensors="pt")
        length = self.model.config.task_seq_len
        task = self.tokenizer("the task is semantic", padding="max_length", max_length=length, return_tensors="pt")
        inputs["task_inputs"] = (task["input_ids"] * task["attention_mask"]).expand(len(images), -1)
        return inputs


class OnTop:
    """One class teacher's answers, and over them another's, wherever that one says something.

    Args:
        base, top: maps of one size.
    """

    def __init__(self, base: ClassTeacher, top: ClassTeacher) -> None:
        self.base, self.top = base, top
        self.version = f"{base.version} under {top.version}"

    def classes(self, frame: Frame) -> dict[str, ClassMap]:
        below, above = self.base.classes(frame), self.top.classes(frame)
        maps = {}
        for name, low in below.items():
            high = above[name]
            says = high.class_id != UNLABELED
            maps[name] = ClassMap(np.where(says, high.class_id, low.class_id), np.where(says, high.score, low.score))
        return maps


def load_closed_set(name: str, taxonomy: Taxonomy, weights: Path | None = None, device: str | None = None) -> ClosedSet:
    """The model `<weights>/<name>`, or `name` as a folder or in the hub's cache.

    Raises:
        MissingInput, CorruptInput, InvalidInput, MissingPackage: naming what is absent, broken or of another kind.
    """
    transformers = need("transformers", "teachers")
    inside = None if weights is None else weights / name
    source: str | Path = inside if inside is not None and inside.is_dir() else name
    kind = from_pretrained(transformers.AutoConfig, source).model_type
    model_class = getattr(transformers, MODELS.get(kind, "AutoModelForUniversalSegmentation"))
    model = model_from_pretrained(model_class, source, tuple(MODELS))
    if kind != "oneformer":
        processor, tokenizer = from_pretrained(transformers.AutoImageProcessor, source), None
    else:  # its processor would fetch names of classes from the hub, which the model has
        processor = from_pretrained(transformers.AutoImageProcessor, source, class_info_file=None)
        tokenizer = from_pretrained(transformers.AutoTokenizer, source)
    return ClosedSet(model, processor, taxonomy, pick_device(device), tokenizer)


def load_with_thin(name: str, taxonomy: Taxonomy, weights: Path | None = None, device: str | None = None) -> OnTop:
    """`load_closed_set`, over it Grounded-SAM's masks of `THIN` classes and of those that the network cannot name."""
    from occ_core.teachers.grounded_sam import load_grounded_sam

    base = load_closed_set(name, taxonomy, weights, device)
    thin = frozenset(i for i in taxonomy.occupied_ids if taxonomy.names[i] in THIN or i not in base.known)
    return OnTop(base, load_grounded_sam(taxonomy, weights, device, thin))
