"""ZoeDepth and Depth Pro: their real code with tiny random weights, against transformers' own steps."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import cv2
import numpy as np
import pytest
import tiny_networks
from teacher_fixtures import make_frame

from occ_core.errors import CorruptInput, InvalidInput
from occ_core.teachers.transformers_depth import load_transformers_depth

torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")
pytest.importorskip("transformers", reason="the extra 'teachers' (transformers, Python >= 3.11) is not there")
IMAGE = np.kron(np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))


def test_depth_pro_is_metric_by_the_true_focal_length(tmp_path):
    """Its own step with the field of view that the calibration says, instead of the one that it guesses."""
    tiny_networks.depth_pro(tmp_path / "pro")
    teacher = load_transformers_depth("pro", tmp_path, "cpu")
    found = teacher.depth(make_frame({"A": IMAGE}, focal_px=120.0))["A"]
    wider = teacher.depth(make_frame({"A": IMAGE}, focal_px=60.0))["A"]
    h, w = IMAGE.shape[:2]
    colours = torch.from_numpy(IMAGE.copy()).permute(2, 0, 1)[None] / 255 * 2 - 1
    pixels = torch.nn.functional.interpolate(colours, (64, 64), mode="bilinear", align_corners=False)
    with torch.no_grad():
        inverse = teacher.model(pixel_values=pixels).predicted_depth[0].numpy()
    field_of_view = 2 * np.arctan(0.5 * w / 120.0)
    focal = 0.5 * w / np.tan(0.5 * field_of_view)  # as in their post-processing
    expected = 1 / (inverse * w / focal).clip(1e-4, 1e4)
    np.testing.assert_allclose(1 / found.depth_m, 1 / expected, rtol=1e-3, atol=3e-3)
    assert expected.std() > 0
    near = (found.depth_m > 2e-4) & (found.depth_m < 5e3)  # not at a limit
    assert near.any()
    np.testing.assert_allclose(wider.depth_m[near], found.depth_m[near] / 2, rtol=1e-4)


def test_zoedepth_is_given_without_its_margin(tmp_path):
    from transformers import AutoImageProcessor

    tiny_networks.zoedepth(tmp_path / "zoe")
    teacher = load_transformers_depth("zoe", tmp_path, "cpu")
    found = teacher.depth(make_frame({"A": IMAGE}))["A"]
    assert found.size == (160, 96)
    inputs = AutoImageProcessor.from_pretrained(tmp_path / "zoe")(images=IMAGE, return_tensors="pt")
    with torch.no_grad():
        small = teacher.model(**inputs).predicted_depth[0].numpy()
    top, left = int(np.sqrt(96 / 2) * 3), int(np.sqrt(160 / 2) * 3)
    padded = cv2.resize(small, (160 + 2 * left, 96 + 2 * top), interpolation=cv2.INTER_CUBIC)
    expected = padded[top:-top, left:-left]
    assert expected.std() > 0
    np.testing.assert_allclose(found.depth_m, expected, atol=1e-3 * np.ptp(expected))


def test_depth_of_numbers_that_are_none_is_an_error(tmp_path):
    tiny_networks.zoedepth(tmp_path / "zoe")
    teacher = load_transformers_depth("zoe", tmp_path, "cpu")
    with torch.no_grad():
        for weight in teacher.model.parameters():
            weight.fill_(float("nan"))
    with pytest.raises(CorruptInput, match="zoedepth's depth of A is NaN everywhere"):
        teacher.depth(make_frame({"A": IMAGE}))


def test_models_that_give_no_metric_depth_are_refused(tmp_path):
    tiny_networks.segformer(tmp_path / "street")
    with pytest.raises(InvalidInput, match="depth_anything or depth_pro or zoedepth, this is 'segformer'"):
        load_transformers_depth("street", tmp_path, "cpu")
