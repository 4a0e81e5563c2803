"""Grounded-SAM and Depth Anything: their real code with tiny random weights, against transformers' own steps."""

from __future__ import annotations

import os
import shutil

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import tiny_networks
from teacher_fixtures import make_frame

from occ_core.errors import CorruptInput, InvalidInput, MissingInput, MissingPackage, OccError
from occ_core.taxonomy import OCC3D, UNLABELED, Taxonomy
from occ_core.teachers import grounded_sam
from occ_core.teachers.grounded_sam import Boxes, GroundingDino, load_grounded_sam, paint, survivors
from occ_core.teachers.load import load_teachers
from occ_core.teachers.networks import Batches

CITY = Taxonomy(
    name="city", names=("car", "road", "other", "free"), colors=((0, 0, 0),) * 4, free_id=3,
    prompts=(("car", "van"), ("road",), (), ("sky",)),
)  # fmt: skip


def images(count: int, size: tuple[int, int] = (48, 64), seed: int = 0) -> list[np.ndarray]:
    """Blocks of colour, (h, w, 3)."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
    return [np.kron(block, np.ones((8, 8, 1), dtype=np.uint8)) for block in blocks]


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip(
        "transformers", reason="the extra 'teachers' (transformers, Python >= 3.11) is not there"
    )


@pytest.fixture(scope="module")
def folder(transformers, tmp_path_factory):
    """Weights as `load_grounded_sam` wants them."""
    root = tmp_path_factory.mktemp("weights")
    tiny_networks.grounding_dino(root / "grounding-dino")
    tiny_networks.sam(root / "sam")
    tiny_networks.depth_anything(root / "tiny-depth")
    return root


@pytest.fixture(scope="module")
def dino(transformers, folder) -> GroundingDino:
    return load_grounded_sam(CITY, folder, "cpu").detector


def by_hand(dino: GroundingDino, image: np.ndarray, text: str):
    """Probability of each vocabulary word at each query, and boxes, from the network asked directly."""
    import torch

    inputs = dino.processor(images=[image], text=[text], return_tensors="pt")
    with torch.no_grad():
        out = dino.model(**inputs)
    words = dino.processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    probability = out.logits[0].sigmoid().numpy()[:, : len(words)]
    size = torch.tensor([image.shape[:2]])
    boxes = dino.processor.post_process_grounded_object_detection(out, inputs.input_ids, -1.0, 2.0, size)[0]["boxes"]
    return words, probability, boxes.numpy()


def test_boxes_are_those_whose_best_word_passes_the_threshold(dino, monkeypatch):
    image = images(1)[0]
    words, probability, boxes = by_hand(dino, image, "car . van . ")
    best = probability[:, [words.index("car"), words.index("van")]].max(axis=1)
    threshold = float(np.median(best))  # random weights know no 0.20
    monkeypatch.setattr(grounded_sam, "BOX_THRESHOLD", threshold)
    found = dino.boxes([image], ("car", "van"))[0]
    keep = best > threshold
    assert 5 < keep.sum() < 25
    np.testing.assert_allclose(found.score, best[keep], atol=1e-5)
    np.testing.assert_allclose(found.box_px, boxes[keep].clip(0, (64, 48, 64, 48)), atol=1e-3)


def test_a_word_counts_only_where_all_of_its_tokens_pass(dino, monkeypatch):
    """So do published label scripts: they keep a box whose passing tokens spell a known word."""
    image = images(1)[0]
    words, probability, _ = by_hand(dino, image, "traffic cone . car . ")
    cone = probability[:, [words.index("traffic"), words.index("cone")]]
    car = probability[:, words.index("car")]
    threshold = float(np.median(cone))
    monkeypatch.setattr(grounded_sam, "TEXT_THRESHOLD", threshold)
    monkeypatch.setattr(grounded_sam, "BOX_THRESHOLD", threshold)
    whole = (cone > threshold).all(axis=1)
    keep = whole | (car > threshold)
    assert whole.sum() < (cone > threshold).any(axis=1).sum()
    score = np.maximum(np.where(whole, cone.max(axis=1), 0), np.where(car > threshold, car, 0))
    found = dino.boxes([image], ("traffic cone", "car"))[0]
    np.testing.assert_allclose(found.score, score[keep], atol=1e-5)


def test_text_threshold_counts_too(dino, monkeypatch):
    monkeypatch.setattr(grounded_sam, "TEXT_THRESHOLD", 1.0)
    assert not len(dino.boxes(images(1), ("car",))[0].score)


def test_a_box_that_fits_the_sky_better_is_dropped(dino):
    image = images(1)[0]
    words, probability, _ = by_hand(dino, image, "car . sky . ")
    car, sky = probability[:, words.index("car")], probability[:, words.index("sky")]
    keep = (car > 0.2) & (car >= sky)
    assert 0 < keep.sum() < (car > 0.2).sum()
    np.testing.assert_allclose(dino.boxes([image], ("car",), ("sky",))[0].score, car[keep], atol=1e-5)


def test_a_batch_gives_what_single_images_give(dino):
    pair = images(2)
    dino.batches.at_once = 2
    together = dino.boxes(pair, ("road",))
    dino.batches.at_once = 1
    for image, found in zip(pair, together, strict=True):
        alone = dino.boxes([image], ("road",))[0]
        np.testing.assert_allclose(found.score, alone.score, atol=1e-5)
        np.testing.assert_allclose(found.box_px, alone.box_px, atol=1e-3)


def test_a_batch_that_does_not_fit_is_halved_until_it_does(dino):
    import torch

    asked = []

    def ask(part):
        asked.append(len(part))
        if len(part) > 2:
            raise torch.OutOfMemoryError
        return [image[0, 0, 0] for image in part]

    batches = Batches("cuda")
    some = images(11)
    assert batches.run(some, ask) == [image[0, 0, 0] for image in some]
    assert asked == [11, 5, 2, 2, 2, 2, 2, 1] and Batches("cpu").at_once == 1

    def never(part):
        raise torch.OutOfMemoryError

    with pytest.raises(OccError, match="64 x 48 px does not fit into the memory of cuda"):
        batches.run(some, never)


def test_boxes_that_survive_are_the_best_of_their_class(monkeypatch):
    """Against the same rule written out pair by pair."""
    rng = np.random.default_rng(0)
    low = rng.integers(0, 6, (120, 2))
    box = np.concatenate([low, low + rng.integers(6, 12, (120, 2))], axis=1).astype(np.float32)
    score, ids = rng.random(120).astype(np.float32), rng.integers(0, 3, 120)

    def iou(a, b):
        w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        shared = max(w, 0) * max(h, 0)
        return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)

    kept: list[int] = []
    for i in sorted(range(120), key=lambda i: -score[i]):
        if all(ids[k] != ids[i] or iou(box[k], box[i]) <= grounded_sam.SAME_IOU for k in kept):
            kept.append(i)
    assert 40 < len(kept) < 115
    np.testing.assert_array_equal(survivors(ids, Boxes(box, score)), kept)
    monkeypatch.setattr(grounded_sam, "MOST_BOXES", 7)
    np.testing.assert_array_equal(survivors(ids, Boxes(box, score)), kept[:7])
    assert survivors(ids[:0], Boxes(box[:0], score[:0])).shape == (0,)


def test_paint_gives_each_pixel_the_best_mask():
    rng = np.random.default_rng(0)
    masks, ids = rng.random((12, 9, 11)) < 0.2, rng.integers(0, 5, 12)
    scores = np.sort(rng.random(12).astype(np.float32))[::-1]
    found = paint([masks[:5], masks[5:]], ids, scores, (9, 11))
    for v in range(9):
        for u in range(11):
            over = [n for n in range(12) if masks[n, v, u]]
            best = max(over, key=lambda n: scores[n]) if over else None
            assert found.class_id[v, u] == (UNLABELED if best is None else ids[best])
            assert found.score[v, u] == (0 if best is None else scores[best])
    nothing = paint([], ids[:0], scores[:0], (9, 11))
    assert (nothing.class_id == UNLABELED).all()


def test_sam_gives_the_masks_of_its_own_processor(transformers, folder):
    import torch

    segmenter = load_grounded_sam(CITY, folder, "cpu").segmenter
    image = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)  # made smaller on the way
    image[40:90, 50:120] //= 4
    boxes = np.array([[12, 19, 94, 125], [62, 6, 188, 138], [0, 0, 200, 150]], dtype=np.float32)
    found = np.concatenate(list(segmenter.masks(image, boxes)))

    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    processor = SamImageProcessorPil(
        size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}, mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    )  # fmt: skip
    inputs = processor(images=[image], return_tensors="pt")
    with torch.no_grad():
        out = segmenter.model(
            pixel_values=torch.as_tensor(np.array(inputs["pixel_values"])),
            input_boxes=torch.from_numpy(boxes * np.float32(64 / 200))[None],
            multimask_output=False,
        )
    sizes = [tuple(int(n) for n in np.array(inputs[key])[0]) for key in ("original_sizes", "reshaped_input_sizes")]
    theirs = processor.post_process_masks(out.pred_masks, [sizes[0]], [sizes[1]])[0][:, 0].numpy()
    assert found.shape == (3, 150, 200) and found.dtype == np.bool_
    assert 0.05 < theirs.mean() < 0.95
    assert (found & theirs).sum() / (found | theirs).sum() > 0.9999
    assert not list(segmenter.masks(image, np.zeros((0, 4), np.float32)))


def test_sam2_stretches_the_image_and_its_boxes(transformers, tmp_path):
    """A stretched image with stretched boxes has the same masks, stretched."""
    from occ_core.teachers.networks import model_from_pretrained, pick_device
    from occ_core.teachers.sam import TransformersSam

    model = model_from_pretrained(transformers.Sam2Model, tiny_networks.sam2(tmp_path / "sam2"), ("sam2",))
    segmenter = TransformersSam(model, pick_device("cpu"))
    square = images(1, (64, 64))[0]
    wide = np.repeat(square, 2, axis=1)[:, 0:128]
    boxes = np.array([[8, 8, 40, 56], [0, 0, 64, 64]], dtype=np.float32)
    narrow, broad = (
        np.concatenate(list(segmenter.masks(*asked))) for asked in ((square, boxes), (wide, boxes * (2, 1, 2, 1)))
    )
    assert broad.shape == (2, 64, 128) and 0.02 < narrow.mean() < 0.98
    assert (broad[:, :, ::2] == narrow).mean() > 0.97


def test_grounded_sam_labels_every_camera(folder):
    teacher = load_grounded_sam(CITY, folder, "cpu")
    first, second = images(2)
    frame = make_frame({"A": first, "B": images(1, (40, 56))[0], "C": second})
    maps = teacher.classes(frame)
    assert list(maps) == ["A", "B", "C"] and maps["B"].size == (56, 40)
    alone = teacher.classes(make_frame({"C": second}))["C"]
    assert (maps["C"].class_id == alone.class_id).mean() > 0.999
    seen = set(np.unique(maps["A"].class_id))
    assert seen and seen <= {0, 1, 3, UNLABELED}  # class 2 has no prompt
    assert ((maps["A"].score > 0.2) == (maps["A"].class_id != UNLABELED)).all()


def test_version_tells_weights_apart(folder, tmp_path):
    first = load_grounded_sam(CITY, folder, "cpu")
    assert first.version == load_grounded_sam(CITY, folder, "cpu").version
    import torch

    with torch.no_grad():
        next(first.detector.model.parameters()).add_(1e-3)
    assert GroundingDino(first.detector.model, None, "cpu").version != first.detector.version


def test_depth_anything_gives_the_networks_depth(transformers, folder, tmp_path):
    import torch

    teachers = load_teachers("lidar+tiny-depth", tmp_path, OCC3D, folder, "cpu")
    image = images(1, (56, 112))[0]
    found = teachers.depth.depth(make_frame({"A": image}))["A"]
    inputs = transformers.AutoImageProcessor.from_pretrained(folder / "tiny-depth")(images=image, return_tensors="pt")
    with torch.no_grad():
        expected = teachers.depth.teacher.model(**inputs).predicted_depth[0].numpy()
    np.testing.assert_allclose(found.depth_m, expected, rtol=1e-4)
    assert found.size == (112, 56) and expected.std() > 0.1 and expected.min() >= 0 and expected.max() <= 80


def test_relative_depth_is_refused(transformers, tmp_path):
    from occ_core.teachers.transformers_depth import load_transformers_depth

    tiny_networks.depth_anything(tmp_path / "relative", "relative")
    with pytest.raises(InvalidInput, match="must be 'metric', this one is 'relative'"):
        load_transformers_depth("relative", tmp_path, "cpu")


def test_absent_and_broken_weights_are_named(transformers, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(MissingInput, match="hf download IDEA-Research/grounding-dino-base"):
        load_grounded_sam(CITY, None, "cpu")
    with pytest.raises(MissingInput, match="no folder 'grounding-dino'"):
        load_grounded_sam(CITY, tmp_path, "cpu")
    (tmp_path / "grounding-dino").symlink_to(folder / "grounding-dino")
    with pytest.raises(MissingInput, match="neither sam_vit"):
        load_grounded_sam(CITY, tmp_path, "cpu")
    (tmp_path / "sam").mkdir()
    (tmp_path / "sam" / "config.json").write_text((folder / "sam" / "config.json").read_text())
    (tmp_path / "sam" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(CorruptInput, match="sam"):
        load_grounded_sam(CITY, tmp_path, "cpu")
    with pytest.raises(InvalidInput, match="device"):
        load_grounded_sam(CITY, folder, "cuda:99")


@pytest.mark.parametrize(
    ("part", "lost"),
    [("grounding-dino", "model.decoder.layers.1.fc1.weight"), ("sam", "mask_decoder.iou_token.weight")],
)
def test_a_model_that_lacks_a_tensor_is_refused(folder, tmp_path, part, lost):
    """transformers would fill it with random numbers."""
    from safetensors.torch import load_file, save_file

    for name in ("grounding-dino", "sam"):
        shutil.copytree(folder / name, tmp_path / name)
    state = load_file(tmp_path / part / "model.safetensors")
    del state[lost]
    save_file(state, tmp_path / part / "model.safetensors", {"format": "pt"})
    with pytest.raises(CorruptInput, match=f"{part}: lacks 1 tensors of its {part}, such as {lost}"):
        load_grounded_sam(CITY, tmp_path, "cpu")


def test_a_model_of_another_type_is_refused(folder, tmp_path):
    for name in ("grounding-dino", "sam"):
        shutil.copytree(folder / "sam", tmp_path / name)
    with pytest.raises(InvalidInput, match="must be a model of type grounding-dino, this is 'sam'"):
        load_grounded_sam(CITY, tmp_path, "cpu")


def test_numbers_that_are_none_are_an_error(folder):
    import torch

    detector = load_grounded_sam(CITY, folder, "cpu").detector
    with torch.no_grad():
        for weight in detector.model.parameters():
            weight.fill_(float("nan"))
    with pytest.raises(CorruptInput, match="answer to 'car . ' is NaN everywhere"):
        detector.boxes(images(1), ("car",))


def test_without_transformers_the_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingPackage, match=r"occ_ros\[teachers\]"):
        load_grounded_sam(CITY, None, "cpu")
