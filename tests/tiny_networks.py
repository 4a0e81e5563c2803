"""The real code of the foundation models with a few thousand random weights; not a test."""

from __future__ import annotations

from pathlib import Path

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    ".",
    "car",
    "van",
    "road",
    "sky",
    "tree",
    "bus",
    "wall",
    "person",
    "traffic",
    "cone",
]


def grounding_dino(folder: Path) -> Path:
    """A Grounding DINO of 0.3 M parameters, saved as transformers saves it."""
    import torch
    from transformers import (
        BertConfig,
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    torch.manual_seed(0)
    swin = SwinConfig(
        image_size=64, patch_size=4, embed_dim=12, depths=[1, 1, 1, 1], num_heads=[1, 2, 3, 4], window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    bert = BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    config = GroundingDinoConfig(
        backbone_config=swin, text_config=bert, d_model=32, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=64,
        decoder_ffn_dim=64, encoder_attention_heads=2, decoder_attention_heads=2, num_queries=30,
    )  # fmt: skip
    model = GroundingDinoForObjectDetection(config).eval()
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)})
    images = GroundingDinoImageProcessor(size={"shortest_edge": 128, "longest_edge": 256})
    model.save_pretrained(folder)
    GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def sam(folder: Path) -> Path:
    """A SAM for images of 64 px."""
    import torch
    from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

    torch.manual_seed(1)
    vision = SamVisionConfig(
        hidden_size=32, output_channels=32, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=8,
        window_size=4, global_attn_indexes=[1], num_pos_feats=16, mlp_dim=64,
    )  # fmt: skip
    prompts = SamPromptEncoderConfig(hidden_size=32, image_size=64, patch_size=8, mask_input_channels=4)
    decoder = SamMaskDecoderConfig(
        hidden_size=32, mlp_dim=64, num_hidden_layers=2, num_attention_heads=2, iou_head_hidden_dim=32
    )
    SamModel(
        SamConfig(
            vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder, initializer_range=0.5
        )
    ).eval().save_pretrained(folder)
    return folder


def sam2(folder: Path) -> Path:
    """A SAM 2 for images of 64 px."""
    import torch
    from transformers import (
        Sam2Config,
        Sam2HieraDetConfig,
        Sam2MaskDecoderConfig,
        Sam2Model,
        Sam2PromptEncoderConfig,
        Sam2VisionConfig,
    )

    torch.manual_seed(2)
    hiera = Sam2HieraDetConfig(
        hidden_size=16, num_attention_heads=1, image_size=[64, 64], blocks_per_stage=[1, 2, 2, 1],
        embed_dim_per_stage=[16, 32, 64, 128], num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[4, 4, 2, 2], global_attention_blocks=[4],
        window_positional_embedding_background_size=[4, 4],
    )  # fmt: skip
    vision = Sam2VisionConfig(
        backbone_config=hiera, backbone_channel_list=[128, 64, 32, 16], fpn_hidden_size=32,
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
    )  # fmt: skip
    prompts = Sam2PromptEncoderConfig(hidden_size=32, image_size=64, patch_size=16, mask_input_channels=4)
    decoder = Sam2MaskDecoderConfig(
        hidden_size=32, mlp_dim=64, num_hidden_layers=2, num_attention_heads=2, iou_head_hidden_dim=32
    )
    Sam2Model(
        Sam2Config(
            vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder, initializer_range=0.5
        )
    ).eval().save_pretrained(folder)
    return folder


def depth_anything(folder: Path, kind: str = "metric") -> Path:
    """A Depth Anything of the V2 form for images of about 56 px."""
    import torch
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    torch.manual_seed(3)
    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=16, neck_hidden_sizes=[8, 16, 16, 16], fusion_hidden_size=8,
        head_hidden_size=8, patch_size=14, depth_estimation_type=kind, max_depth=80 if kind == "metric" else 1,
    )  # fmt: skip
    model = DepthAnythingForDepthEstimation(config).eval()
    for weight in model.parameters():  # as it starts, it says 40 m to every pixel
        torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    DPTImageProcessor(
        size={"height": 56, "width": 56}, keep_aspect_ratio=True, ensure_multiple_of=14,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)  # fmt: skip
    return folder


CITYSCAPES = [
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
]  # fmt: skip


def loud(model, std: float = 0.3):
    """Weights large enough for answers that differ from pixel to pixel."""
    import torch

    torch.manual_seed(4)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=std)
    return model.eval()


def segformer(folder: Path, labels: list[str] = CITYSCAPES) -> Path:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    config = SegformerConfig(
        num_encoder_blocks=4, depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16, id2label=dict(enumerate(labels)),
    )  # fmt: skip
    loud(SegformerForSemanticSegmentation(config)).save_pretrained(folder)
    SegformerImageProcessor(size={"height": 64, "width": 96}).save_pretrained(folder)
    return folder


def _swin():
    from transformers import SwinConfig

    return SwinConfig(
        image_size=64, patch_size=4, embed_dim=12, depths=[1, 1, 1, 1], num_heads=[1, 2, 3, 4], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip


def mask2former(folder: Path, labels: list[str] = CITYSCAPES) -> Path:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

    config = Mask2FormerConfig(
        backbone_config=_swin(), feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=32, num_queries=12,
        id2label=dict(enumerate(labels)),
    )  # fmt: skip
    loud(Mask2FormerForUniversalSegmentation(config)).save_pretrained(folder)
    Mask2FormerImageProcessor(size={"height": 64, "width": 96}, ignore_index=255).save_pretrained(folder)
    return folder


def oneformer(folder: Path, labels: list[str] = CITYSCAPES) -> Path:
    from transformers import OneFormerConfig, OneFormerForUniversalSegmentation, OneFormerImageProcessor

    config = OneFormerConfig(
        backbone_config=_swin(), hidden_dim=32, mask_dim=32, conv_dim=32, encoder_feedforward_dim=32, encoder_layers=1,
        decoder_layers=3, num_attention_heads=2, dim_feedforward=32, num_queries=12, text_encoder_width=32,
        text_encoder_context_length=8, text_encoder_num_layers=1, text_encoder_vocab_size=32, task_seq_len=8,
        query_dec_layers=1, is_training=False, id2label=dict(enumerate(labels)),
    )  # fmt: skip
    loud(OneFormerForUniversalSegmentation(config)).save_pretrained(folder)
    processor = OneFormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}, num_text=4)
    processor.class_info_file = "cityscapes_panoptic.json"  # as published: it would be fetched from the hub
    processor.save_pretrained(folder)
    word_tokenizer(folder, ["the", "task", "is", "semantic"])
    return folder


def word_tokenizer(folder: Path, words: list[str]) -> Path:
    from transformers import BertTokenizer

    BertTokenizer(vocab={word: number for number, word in enumerate(WORDS[:5] + words)}).save_pretrained(folder)
    return folder


def eomt(folder: Path, labels: list[str] = CITYSCAPES, split: bool = True) -> Path:
    """With images cut into parts, as its semantic models do, or padded, as its panoptic ones."""
    from transformers import EomtConfig, EomtForUniversalSegmentation, EomtImageProcessor

    config = EomtConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=64, patch_size=16, num_register_tokens=1,
        num_blocks=1, num_queries=12, num_upscale_blocks=1, id2label=dict(enumerate(labels)),
    )  # fmt: skip
    loud(EomtForUniversalSegmentation(config)).save_pretrained(folder)
    edges = {"shortest_edge": 64, "longest_edge": None if split else 64}
    EomtImageProcessor(size=edges, do_split_image=split, do_pad=not split).save_pretrained(folder)
    return folder


def zoedepth(folder: Path) -> Path:
    from transformers import BeitConfig, ZoeDepthConfig, ZoeDepthForDepthEstimation, ZoeDepthImageProcessor

    backbone = BeitConfig(
        image_size=64, patch_size=16, num_hidden_layers=4, hidden_size=16, intermediate_size=32, num_attention_heads=2,
        use_relative_position_bias=True, reshape_hidden_states=False,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = ZoeDepthConfig(
        backbone_config=backbone, neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=8, bottleneck_features=8,
        num_relative_features=8, num_attractors=[4, 2, 2, 1], bin_embedding_dim=8,
        bin_configurations=[{"n_bins": 8, "min_depth": 0.001, "max_depth": 80.0}],
    )  # fmt: skip
    loud(ZoeDepthForDepthEstimation(config)).save_pretrained(folder)
    ZoeDepthImageProcessor(size={"height": 64, "width": 96}).save_pretrained(folder)
    return folder


def depth_pro(folder: Path) -> Path:
    import json

    from transformers import DepthProConfig, DepthProForDepthEstimation

    encoder = {
        "model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
        "patch_size": 8,
    }  # fmt: skip
    config = DepthProConfig(
        fusion_hidden_size=8, patch_size=16, intermediate_hook_ids=[1, 0], intermediate_feature_dims=[8, 8],
        scaled_images_feature_dims=[8, 8, 8], image_model_config=encoder, patch_model_config=encoder,
        fov_model_config=encoder, use_fov_model=True, num_fov_head_layers=1,
    )  # fmt: skip
    loud(DepthProForDepthEstimation(config)).save_pretrained(folder)
    settings = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 64, "width": 64}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder
