"""Networks with a fixed list of classes: their real code with tiny random weights, against transformers' own steps."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import cv2
import numpy as np
import pytest
import tiny_networks
from teacher_fixtures import make_frame

from occ_core.errors import CorruptInput, InvalidInput, MissingInput
from occ_core.taxonomy import OCC3D, SEMANTIC_KITTI, UNLABELED, Taxonomy
from occ_core.teachers.base import ClassMap
from occ_core.teachers.closed_set import THIN, OnTop, load_closed_set
from occ_core.teachers.closed_set_table import ADE20K, CITYSCAPES, MAPILLARY, classes_of
from occ_core.teachers.load import load_teachers

pytest.importorskip("transformers", reason="the extra 'teachers' (transformers, Python >= 3.11) is not there")


def image(size: tuple[int, int] = (96, 160), seed: int = 0) -> np.ndarray:
    """Blocks of colour, (h, w, 3)."""
    blocks = np.random.default_rng(seed).integers(0, 256, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
    return np.kron(blocks, np.ones((8, 8, 1), dtype=np.uint8))


def sums(scores: np.ndarray, class_of: list[int | None], taxonomy: Taxonomy) -> np.ndarray:
    """Scores of our classes and of none of them (classes + 1, h, w), from those of labels, label by label."""
    found = np.zeros((len(taxonomy) + 1, *scores.shape[1:]))
    for label, class_id in enumerate(class_of):
        found[len(taxonomy) if class_id is None else class_id] += scores[label]
    return found


def scores_of_labels(teacher, picture: np.ndarray) -> np.ndarray:
    """What transformers' own code says of each label at each pixel, (labels, h, w)."""
    import torch

    h, w = picture.shape[:2]
    inputs = teacher._inputs([picture])
    patches = inputs.pop("patch_offsets", None)
    with torch.no_grad():
        out = teacher.model(**inputs)
    if teacher.kind == "segformer":
        small = out.logits[0].softmax(dim=0).numpy()
        return np.stack([cv2.resize(label, (w, h)) for label in small])
    if teacher.kind == "mask2former":  # theirs goes through 384 x 384 px
        probability, masks = out.class_queries_logits[0].softmax(-1).numpy()[:, :-1], out.masks_queries_logits[0]
        small = np.tensordot(probability.T, masks.sigmoid().numpy(), axes=1)
        return np.stack([cv2.resize(label, (w, h)) for label in small])
    out.patch_offsets = patches
    found = teacher.processor.post_process_semantic_segmentation(out, [(h, w)], return_segmentation_scores=True)
    return found[0].segmentation_scores.numpy()


@pytest.mark.parametrize("kind", ["segformer", "mask2former", "oneformer", "eomt"])
def test_a_pixel_takes_the_class_whose_labels_add_up_to_most(tmp_path, kind):
    import torch

    getattr(tiny_networks, kind)(tmp_path / kind)
    teacher = load_closed_set(kind, OCC3D, tmp_path, "cpu")
    picture = image()
    expected = sums(scores_of_labels(teacher, picture), teacher.class_of, OCC3D)
    assert (expected.std(axis=(1, 2)) > 1e-4).sum() > 5
    probability = torch.as_tensor(teacher._probabilities([picture])[0])[None].detach()
    large = torch.nn.functional.interpolate(probability, (96, 160), mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(large, expected, atol=1e-4)
    found = teacher.classes(make_frame({"A": picture}))["A"]
    assert found.size == (160, 96)
    assert (found.class_id == large.argmax(dim=0).numpy()).mean() > 0.999
    np.testing.assert_allclose(found.score, expected.max(axis=0).clip(0, 1), atol=1e-4)


def test_labels_that_mean_nothing_here_leave_a_pixel_unknown(tmp_path):
    """Of Mapillary's 65 labels, one that our taxonomy does not have wins."""
    import torch

    tiny_networks.segformer(tmp_path / "street", list(MAPILLARY))
    teacher = load_closed_set("street", OCC3D, tmp_path, "cpu")
    with torch.no_grad():
        teacher.model.decode_head.classifier.bias[list(MAPILLARY).index("ego vehicle")] = 1e4
    found = teacher.classes(make_frame({"A": image()}))["A"]
    assert (found.class_id == UNLABELED).all() and (found.score == 0).all()


def test_cameras_of_two_sizes_and_both_taxonomies(tmp_path):
    tiny_networks.segformer(tmp_path / "street")
    first, second, third = image(seed=1), image((64, 96), 2), image(seed=3)
    for taxonomy in (OCC3D, SEMANTIC_KITTI):
        teacher = load_teachers("street+lidar", tmp_path, taxonomy, tmp_path, "cpu").classes
        maps = teacher.classes(make_frame({"A": first, "B": second, "C": third}))
        assert list(maps) == ["A", "B", "C"] and maps["B"].size == (96, 64)
        alone = teacher.classes(make_frame({"C": third}))["C"]
        np.testing.assert_array_equal(maps["C"].class_id, alone.class_id)
        assert taxonomy.name in teacher.version


def test_an_eomt_without_parts_is_unpadded(tmp_path):
    """Its panoptic models see the whole image in the corner of a square: the right side must not be the padding."""
    import torch

    tiny_networks.eomt(tmp_path / "eomt", split=False)
    teacher = load_closed_set("eomt", OCC3D, tmp_path, "cpu")
    with torch.inference_mode():
        probability = teacher._probabilities([image((96, 192))])
    assert probability[0].shape[1:] == (96, 192)
    masks = teacher.model(**teacher._inputs([image((96, 192))])).masks_queries_logits
    queries = torch.nn.functional.interpolate(masks, (64, 64), mode="bilinear").sigmoid()[0]
    seen = queries[:, :32].detach().numpy()  # twice as wide as high: the upper half of the square
    wide = np.stack([cv2.resize(query, (192, 96)) for query in seen])
    whole = teacher.model(**teacher._inputs([image((96, 192))])).class_queries_logits.softmax(-1)[0, :, :-1]
    expected = np.tensordot(whole.detach().numpy().T, wide, axes=1).sum(axis=0)
    np.testing.assert_allclose(probability[0].sum(dim=0).numpy(), expected, atol=1e-3)


def test_each_label_of_the_three_data_sets_is_a_class_of_both_taxonomies_or_none():
    for table, count in ((CITYSCAPES, 19), (MAPILLARY, 65)):
        assert len(table) == count
    for table in (CITYSCAPES, MAPILLARY, ADE20K):
        for column, taxonomy in enumerate((OCC3D, SEMANTIC_KITTI)):
            assert {pair[column] for pair in table.values()} <= {*taxonomy.names, None}
        sky = classes_of(list(table), OCC3D)[list(table).index("sky")]
        assert sky == OCC3D.free_id
    named = dict(zip(CITYSCAPES, classes_of(list(CITYSCAPES), SEMANTIC_KITTI), strict=True))
    assert [named[n] for n in ("road", "fence", "rider", "sky", "traffic light")] == [9, 14, 7, 0, None]
    ade = ["wall", "building, edifice", "sky", "tree", "road, route", "bed ", "sidewalk, pavement", "person", "car"]
    assert classes_of(ade, OCC3D) == [15, 15, 17, 16, 11, None, 13, 7, 4]


def test_networks_without_names_have_those_of_their_data_set():
    assert classes_of([f"LABEL_{i}" for i in range(65)], OCC3D) == classes_of(list(MAPILLARY), OCC3D)


def test_networks_of_other_data_are_refused(tmp_path):
    with pytest.raises(InvalidInput, match=r"150 classes .* cannot name driveable_surface, sidewalk"):
        classes_of([f"LABEL_{i}" for i in range(150)], OCC3D)
    with pytest.raises(InvalidInput, match="to 'mine'"):
        classes_of(list(CITYSCAPES), Taxonomy("mine", ("a", "b"), ((0, 0, 0),) * 2, 0))
    tiny_networks.segformer(tmp_path / "pets", ["cat", "dog"])
    with pytest.raises(InvalidInput, match=r"2 classes \(cat, dog, ...\)"):
        load_closed_set("pets", OCC3D, tmp_path, "cpu")


def test_what_cannot_be_loaded_is_named(tmp_path):
    from safetensors.torch import load_file, save_file

    tiny_networks.depth_anything(tmp_path / "depth")
    with pytest.raises(InvalidInput, match="mask2former or oneformer or segformer or eomt, this is 'depth_anything'"):
        load_closed_set("depth", OCC3D, tmp_path, "cpu")
    with pytest.raises(MissingInput, match="hf download some/where"):
        load_teachers("some/where+lidar", tmp_path, OCC3D, tmp_path, "cpu")
    with pytest.raises(InvalidInput, match="is no class teacher"):
        load_teachers("street+lidar", tmp_path, OCC3D, tmp_path, "cpu")
    path = tiny_networks.segformer(tmp_path / "street") / "model.safetensors"
    state = load_file(path)
    del state["decode_head.classifier.weight"]
    save_file(state, path, {"format": "pt"})
    with pytest.raises(CorruptInput, match="lacks 1 tensors of its segformer, such as decode_head.classifier.weight"):
        load_closed_set("street", OCC3D, tmp_path, "cpu")


def test_where_there_are_no_safetensors_only_tensors_are_read(tmp_path):
    """Some models are published as `pytorch_model.bin` alone, a pickle."""
    import torch
    from safetensors.torch import load_file

    folder = tiny_networks.segformer(tmp_path / "street")
    version = load_closed_set("street", OCC3D, tmp_path, "cpu").version
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert load_closed_set("street", OCC3D, tmp_path, "cpu").version == version
    torch.save({"decode_head.classifier.weight": ClassMap}, folder / "pytorch_model.bin")  # would import and call
    with pytest.raises(CorruptInput, match="street: cannot be loaded"):
        load_closed_set("street", OCC3D, tmp_path, "cpu")


def test_thin_classes_come_on_top_if_asked(tmp_path):
    tiny_networks.segformer(tmp_path / "street")
    tiny_networks.grounding_dino(tmp_path / "grounding-dino")
    tiny_networks.sam(tmp_path / "sam")
    teacher = load_teachers("thin:street+lidar", tmp_path, OCC3D, tmp_path, "cpu").classes.teacher
    assert isinstance(teacher, OnTop)
    asked = {OCC3D.names[i] for i, _ in teacher.top.asked}
    unknown_to_cityscapes = {"construction_vehicle", "trailer", "traffic_cone", "barrier", "other_flat"}
    assert asked == unknown_to_cityscapes | (set(THIN) & set(OCC3D.names))
    assert " only 1,2,5,6,7,8,9,12 " in teacher.version


def test_on_top_stands_what_the_upper_teacher_says():
    class Says:
        def __init__(self, class_id, score):
            self.version, self.map = "v", ClassMap(np.uint8([class_id]), np.float32([score]))

        def classes(self, frame):
            return {"A": self.map}

    teacher = OnTop(Says([1, 2, UNLABELED], [0.9, 0.8, 0]), Says([5, UNLABELED, UNLABELED], [0.3, 0, 0]))
    found = teacher.classes(make_frame({"A": image()}))["A"]
    np.testing.assert_array_equal(found.class_id, [[5, 2, UNLABELED]])
    np.testing.assert_allclose(found.score, [[0.3, 0.8, 0]])
