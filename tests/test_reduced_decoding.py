"""JPEGs decoded at a part of their size: what comes out, and that the network's answer stays."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from occ_core.images import compressed_info, decode_compressed, reduction
from occ_core.inference.predictor import Predictor

NANO = Path(__file__).parents[1] / "occ_core" / "assets" / "easyocc_nano.safetensors"


@pytest.mark.parametrize(
    "at_least, times", [((800, 450), 2), ((801, 450), 1), ((400, 225), 4), ((200, 100), 8), ((1, 1), 8), ((2000, 1), 1)]
)
def test_largest_reduction_that_still_has_the_wanted_size(at_least, times):
    assert reduction((1600, 900), at_least) == times


@pytest.mark.parametrize("size", [(64, 48), (61, 45)])
@pytest.mark.parametrize("times", [2, 4, 8])
def test_a_reduced_jpeg_is_about_the_mean_of_its_pixels(size, times):
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    rgb = cv2.resize(small, size, interpolation=cv2.INTER_CUBIC)
    data = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    reduced = decode_compressed(data, at_least=(size[0] // times, size[1] // times))
    assert reduced.shape == (-(-size[1] // times), -(-size[0] // times), 3)
    whole = decode_compressed(data)[: size[1] // times * times, : size[0] // times * times].astype(float)
    means = whole.reshape(size[1] // times, times, size[0] // times, times, 3).mean(axis=(1, 3))
    inner = reduced[: means.shape[0], : means.shape[1]]
    assert np.abs(inner - means).mean() < 4
    png = cv2.imencode(".png", rgb)[1].tobytes()
    assert decode_compressed(png, at_least=(1, 1)).shape[:2] == size[::-1]  # PNG always comes whole


def test_answer_on_real_images_stays(shared_data):
    """Needs 99 % of the cells; measured 99.7 %."""
    pytest.importorskip("torch")
    from occ_core.sources.nuscenes import NuScenesSource

    source = NuScenesSource(shared_data("nuscenes_scene0103_4kf"))
    predictor = Predictor.load(NANO, "torch", 1)
    frame = source[0]
    coded = {
        name: cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
        for name, image in frame.images.items()
    }
    useful = {name: predictor.useful_size(compressed_info(data)[1:]) for name, data in coded.items()}
    reduced = {name: decode_compressed(data, at_least=useful[name]) for name, data in coded.items()}
    assert {image.shape for image in reduced.values()} == {(450, 800, 3)}
    whole = {name: decode_compressed(data) for name, data in coded.items()}
    equal = predictor.predict(reduced, frame.rig).labels == predictor.predict(whole, frame.rig).labels
    assert equal.mean() > 0.99
