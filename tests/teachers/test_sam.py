"""SAM of the segment-anything package: its real code with tiny random weights, against its own predictor."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from occ_core.errors import CorruptInput, InvalidInput
from occ_core.teachers.sam import SegmentAnything, load_segmenter


@pytest.fixture(scope="module")
def package():
    torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")
    vision, segment = (importlib.util.find_spec(name) for name in ("torchvision", "segment_anything"))
    if vision is None or segment is None:
        pytest.skip("segment-anything or torchvision is not installed")
    try:
        torch.ops.load_library(str(next(Path(vision.origin).parent.glob("_C*.so"))))
    except OSError:  # the torchvision for CUDA beside a torch for CPU: declare the operators that it asks for on import
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("segment_anything")


def tiny_sam():
    import torch
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    torch.manual_seed(0)
    encoder = ImageEncoderViT(
        depth=2, embed_dim=32, img_size=128, num_heads=2, patch_size=16, window_size=4, global_attn_indexes=(1,),
        out_chans=32, use_rel_pos=True,
    )  # fmt: skip
    prompts = PromptEncoder(32, image_embedding_size=(8, 8), input_image_size=(128, 128), mask_in_chans=4)
    transformer = TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=64, num_heads=2)
    sam = Sam(encoder, prompts, MaskDecoder(transformer_dim=32, transformer=transformer, iou_head_hidden_dim=32))
    for weight in sam.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return sam


def test_masks_are_those_of_its_predictor(package):
    import torch

    sam = tiny_sam()
    image = np.kron(
        np.random.default_rng(0).integers(0, 256, (9, 16, 3), dtype=np.uint8), np.ones((10, 10, 1), np.uint8)
    )
    rng = np.random.default_rng(1)
    low, size = rng.uniform(0, (100, 50), (40, 2)), rng.uniform(10, (60, 40), (40, 2))
    boxes = np.concatenate([low, low + size], axis=1).astype(np.float32)  # more than fit through at once
    found = np.concatenate(list(SegmentAnything(sam, torch.device("cpu")).masks(image, boxes)))
    predictor = package.SamPredictor(sam)
    predictor.set_image(image)
    expected = np.array([predictor.predict(box=box, multimask_output=False)[0][0] for box in boxes])
    assert found.shape == (40, 90, 160) and found.dtype == np.bool_
    assert 0.02 < expected.mean() < 0.98
    assert (found == expected).mean() > 0.999
    assert not list(SegmentAnything(sam, torch.device("cpu")).masks(image, boxes[:0]))


def test_checkpoints_that_are_none_are_named(package, tmp_path):
    import torch

    torch.save({"wrong": torch.zeros(1)}, tmp_path / "sam_vit_b_01ec64.pth")
    with pytest.raises(CorruptInput, match="not a checkpoint of vit_b"):
        load_segmenter(tmp_path, "cpu")
    (tmp_path / "sam_vit_b_01ec64.pth").rename(tmp_path / "sam_vit_x_1.pth")
    with pytest.raises(InvalidInput, match="sam_vit_h, sam_vit_l or sam_vit_b"):
        load_segmenter(tmp_path, "cpu")
