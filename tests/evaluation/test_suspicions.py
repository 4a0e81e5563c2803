"""Predictions and truths as other codes write them, and what looks wrong with them; nothing is scored unnoticed."""

import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from occ_core.cli.main import app
from occ_core.errors import CorruptInput, MissingInput
from occ_core.evaluation.predictions import prediction_files, read_observed, read_prediction
from occ_core.evaluation.report import evaluate_folders
from occ_core.evaluation.ssc import evaluate_voxels, holds_voxels
from occ_core.evaluation.suspicions import FreeCells, other_axes
from occ_core.evaluation.voxel_iou import confusion_matrix
from occ_core.grid import OCC3D_GRID, SEMANTIC_KITTI_GRID
from occ_core.occupancy import load_occ3d, save_occ3d
from occ_core.taxonomy import OCC3D, SEMANTIC_KITTI
from occ_core.teachers.lidar import RAW_KITTI_IDS

FREE = OCC3D.free_id


def street(seed: int) -> np.ndarray:
    """uint8 (200, 200, 16), like no mirror image of itself: road below, a wall to the left, cars ahead."""
    rng = np.random.default_rng(seed)
    labels = np.full(OCC3D_GRID.shape, FREE, dtype=np.uint8)
    labels[:, 60:120, 2] = OCC3D.id_of("driveable_surface")
    labels[20:150, 150 : 160 + seed, 2:12] = OCC3D.id_of("manmade")
    for x in rng.integers(110, 190, 6):
        labels[x : x + 8, 70:76, 3:5] = OCC3D.id_of("car")
    return labels


@pytest.fixture
def truths(tmp_path):
    """Truth folder of three samples, `save_truth` with masks of its own."""
    masks = np.random.default_rng(3).random((2, *OCC3D_GRID.shape)) < 0.6
    for seed in range(3):
        save_truth(tmp_path, seed, mask_camera=masks[0].astype(np.uint8), mask_lidar=masks[1].astype(np.uint8))
    return tmp_path


def save_truth(folder, seed, labels=None, **masks):
    path = folder / "gts" / "scene-1" / f"token{seed}" / "labels.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, semantics=street(seed) if labels is None else labels, **masks)


def save_predictions(folder, change=lambda labels: labels, name="pred"):
    (folder / name).mkdir(exist_ok=True)
    for seed in range(3):
        np.savez_compressed(folder / name / f"token{seed}.npz", pred=change(street(seed)))
    return folder / name


# --- forms ------------------------------------------------------------------------------------------------------------


def as_flashocc(folder, token, labels):
    (folder / "scene-1" / token).mkdir(parents=True)
    np.savez_compressed(folder / "scene-1" / token / "pred.npz", pred=labels, sample_token=token)


FORMS = {
    "FlashOcc": as_flashocc,
    "unnamed, packed": lambda folder, token, labels: np.savez_compressed(folder / f"{token}.npz", labels),
    "unnamed, int64": lambda folder, token, labels: np.savez(folder / f"{token}.npz", labels.astype(np.int64)),
    "npy": lambda folder, token, labels: np.save(folder / f"{token}.npy", labels),
    "npy, Fortran order": lambda folder, token, labels: np.save(folder / f"{token}.npy", np.asfortranarray(labels)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_scores_the_same_beside_what_a_mac_leaves(truths, form):
    (truths / "p").mkdir()
    for seed in range(3):
        FORMS[form](truths / "p", f"token{seed}", np.roll(street(seed), 1, axis=0))
        for suffix in (".npz", ".npy"):
            (truths / "p" / f"._token{seed}{suffix}").write_bytes(b"Mac OS X")
    (truths / "gts/._scene-1").mkdir()
    (truths / "p/.DS_Store").write_bytes(b"")
    expected, _ = evaluate_folders(save_predictions(truths, lambda a: np.roll(a, 1, axis=0)), truths / "gts")
    report, samples = evaluate_folders(truths / "p", truths / "gts")
    assert samples == 3 and report == expected and 0 < report["full"]["miou_17"] < 100


def test_strange_keys_and_shapes_are_named(tmp_path):
    path = tmp_path / "token.npz"
    np.savez(path, occ=street(0), flow=np.zeros(3))
    with pytest.raises(CorruptInput, match="neither 'pred' nor 'semantics' in it, but 'occ', 'flow'"):
        read_prediction(path, OCC3D_GRID)
    np.savez(path, street(0), street(1))
    with pytest.raises(CorruptInput, match="but 'arr_0', 'arr_1'"):  # which of them?
        read_prediction(path, OCC3D_GRID)
    np.save(tmp_path / "token.npy", street(0)[None])
    with pytest.raises(CorruptInput, match=r"'arr_0' must be integers .*is uint8 \(1, 200, 200, 16\)"):
        read_prediction(tmp_path / "token.npy", OCC3D_GRID)
    np.save(tmp_path / "token.npy", street(0).astype(np.float32))
    with pytest.raises(CorruptInput, match="must be integers"):
        read_prediction(tmp_path / "token.npy", OCC3D_GRID)


def test_a_damaged_npy_is_named_and_a_huge_one_is_not_loaded(tmp_path):
    path = tmp_path / "token.npy"
    np.save(path, street(0))
    data = path.read_bytes()
    path.write_bytes(data[:1000])
    with pytest.raises(CorruptInput, match=r"'arr_0' is said to be uint8 .*, 640000 bytes, and holds 1000"):
        read_prediction(path, OCC3D_GRID)
    path.write_bytes(b"no array")
    with pytest.raises(CorruptInput, match="not a readable npy file"):
        read_prediction(path, OCC3D_GRID)
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(CorruptInput):
        read_prediction(path, OCC3D_GRID)
    with open(path, "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(CorruptInput, match="1073741824 bytes, limit"):
        read_prediction(path, OCC3D_GRID)


def test_a_folder_of_hidden_files_holds_no_prediction(tmp_path):
    (tmp_path / "._token.npz").write_bytes(b"Mac OS X")
    with pytest.raises(MissingInput, match=r"no prediction in it: none of <token>\.npz, "):
        prediction_files(tmp_path)


# --- masks ------------------------------------------------------------------------------------------------------------


def test_protocols_without_masks_have_no_numbers_and_one_line_says_so(tmp_path):
    seen = np.zeros(OCC3D_GRID.shape, dtype=np.uint8)
    seen[100:] = 1
    save_truth(tmp_path, 0)
    save_truth(tmp_path, 1, mask_lidar=seen)
    save_truth(tmp_path, 2, mask_camera=seen)
    pred = save_predictions(tmp_path, lambda labels: np.where(np.arange(200)[:, None, None] < 100, FREE, labels))
    result = CliRunner().invoke(app, ["eval", str(pred), str(tmp_path / "gts"), "--json", str(tmp_path / "out.json")])
    assert result.exit_code == 0, result.output
    assert result.output.count("warning") == 1
    line = "the truth lacks masks: 'camera' leaves out 2 of 3 samples, 'camera and lidar' leaves out 3 of 3 samples"
    assert line in " ".join(result.output.split())
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["camera_and_lidar"]["iou"] is None and report["camera_and_lidar"]["miou_17"] is None
    assert report["camera"]["iou"] == 100 and report["full"]["iou"] < 90  # the one sample with mask counts in `camera`


@pytest.mark.parametrize("value", [0.1, 2, 255, -1, np.nan])
def test_masks_other_than_0_and_1_are_refused(tmp_path, value):
    mask = np.zeros(OCC3D_GRID.shape, dtype=np.float32)
    mask[0, 0, 0], mask[1, 1, 1] = 1, value
    save_truth(tmp_path, 0, mask_camera=mask)
    with pytest.raises(CorruptInput, match=r"labels.npz: 'mask_camera' holds .*, a mask is 0 or 1"):
        load_occ3d(tmp_path / "gts/scene-1/token0/labels.npz")
    save_truth(tmp_path, 1, mask_lidar=(mask == 1))  # of type bool
    assert load_occ3d(tmp_path / "gts/scene-1/token1/labels.npz").mask_lidar.sum() == 1


# --- ids and axes -----------------------------------------------------------------------------------------------------


def test_right_predictions_raise_no_suspicion(truths):
    report, _ = evaluate_folders(save_predictions(truths, lambda a: np.roll(a, 2, axis=1)), truths / "gts")
    assert "warnings" not in report


def test_a_set_without_a_free_cell_is_named_with_what_fills_it(truths):
    """OpenOccupancy's ids: 0 is free and the classes begin at 1."""
    shifted = np.r_[np.arange(1, 17), 16, 0].astype(np.uint8)
    report, _ = evaluate_folders(save_predictions(truths, lambda a: shifted[a]), truths / "gts")
    (line,) = (line for line in report["warnings"] if "free" in line)
    assert "(id 17) in the prediction of 3 of 3 samples" in line and "others (0)" in line
    for seed in range(2):  # truth as well, but not all of it
        save_truth(truths, seed, shifted[street(seed)])
    report, _ = evaluate_folders(truths / "pred", truths / "gts")
    assert any("in the truth of 2 of 3 samples" in line for line in report["warnings"])


def test_free_cells_merge_as_one_pass_counts():
    one, two, both = (FreeCells(OCC3D) for _ in range(3))
    everywhere = np.ones(OCC3D_GRID.shape, dtype=bool)
    for seed, part in ((0, one), (1, two)):
        matrix = confusion_matrix(street(seed), np.zeros_like(street(seed)), everywhere, 18)
        part.add(matrix), both.add(matrix)
    one.merge(two)
    assert one.warnings() == both.warnings() and "2 of 2" in one.warnings()[0]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda a: a[::-1], "mirrored in x,"),
        (lambda a: a[:, ::-1], "mirrored in y,"),
        (lambda a: a[:, :, ::-1], "mirrored in z,"),
        (lambda a: a.transpose(1, 0, 2), "with x and y swapped,"),
        (lambda a: a[::-1, ::-1], "mirrored in x and y,"),
        (np.rot90, "with x and y swapped, mirrored in"),
    ],
)
def test_other_axes_are_named(truths, change, named):
    report, _ = evaluate_folders(save_predictions(truths, change), truths / "gts")
    (line,) = report["warnings"]
    assert line.startswith(named) and "100.0 instead of" in line


def test_axes_of_other_grids_are_not_swapped():
    labels = np.full((6, 4, 3), FREE, dtype=np.uint8)
    labels[0, 0, 0], labels[1, 3, 1] = 4, 11
    assert other_axes([(labels, labels)], OCC3D) is None
    assert other_axes([(labels, labels[::-1])], OCC3D).startswith("mirrored in x,")
    assert other_axes([], OCC3D) is None


# --- SemanticKITTI's submissions --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kitti(tmp_path_factory):
    """Two frames: voxels, and labels of raw ids that are right in all but a slab."""
    root, rng = tmp_path_factory.mktemp("kitti"), np.random.default_rng(5)
    voxels = root / "truth/sequences/08/voxels"
    predictions = root / "submission/sequences/08/predictions"
    voxels.mkdir(parents=True), predictions.mkdir(parents=True)
    ids = np.array([0, *RAW_KITTI_IDS], dtype="<u2")
    for frame in ("000000", "000005"):
        raw = np.where(rng.random(SEMANTIC_KITTI_GRID.shape) < 0.9, 0, rng.choice(ids, SEMANTIC_KITTI_GRID.shape))
        raw.astype("<u2").tofile(voxels / f"{frame}.label")
        np.zeros(SEMANTIC_KITTI_GRID.cells // 8, np.uint8).tofile(voxels / f"{frame}.invalid")
        raw[:20] = 52  # other structure: of no class
        raw.astype("<u2").tofile(predictions / f"{frame}.label")
        (predictions / f"._{frame}.label").write_bytes(b"Mac OS X")
    return root


def test_a_submission_scores_as_the_same_classes_in_npz(kitti, tmp_path):
    voxels, ids = kitti / "truth/sequences/08/voxels", {0: 0, 52: 0}
    ids |= {raw: SEMANTIC_KITTI.id_of(name) for raw, name in RAW_KITTI_IDS.items()}
    to_class = np.array([ids.get(raw, 255) for raw in range(300)], dtype=np.uint8)
    below = kitti / "submission/sequences/08/predictions"
    for path in below.glob("0*.label"):
        labels = to_class[np.fromfile(path, "<u2")].reshape(SEMANTIC_KITTI_GRID.shape)
        np.savez_compressed(tmp_path / f"08_{path.stem}.npz", pred=labels)
    expected, samples = evaluate_voxels(tmp_path, voxels)
    assert samples == 2 and 50 < expected["51.2m"]["iou"] < 100 and expected["51.2m"]["precision"] == 100
    for folder in (below, kitti / "submission"):
        assert evaluate_voxels(folder, voxels) == (expected, 2)


def test_a_submission_holds_every_scene_and_one_is_scored(kitti, tmp_path):
    shutil.copytree(kitti / "submission", tmp_path / "all")
    shutil.copytree(tmp_path / "all/sequences/08", tmp_path / "all/sequences/11")
    names = prediction_files(tmp_path / "all")
    assert set(names) == {f"{scene}_{frame}" for scene in ("08", "11") for frame in ("000000", "000005")}
    assert read_observed(names["11_000005"], SEMANTIC_KITTI_GRID).all()
    voxels = kitti / "truth/sequences/08/voxels"
    assert evaluate_voxels(tmp_path / "all", voxels) == evaluate_voxels(kitti / "submission", voxels)
    shutil.rmtree(tmp_path / "all/sequences/08")
    with pytest.raises(MissingInput, match="no prediction of scene '08'"):
        evaluate_voxels(tmp_path / "all", voxels)


def test_numbers_of_classes_in_a_submission_are_refused(kitti, tmp_path):
    path = tmp_path / "000000.label"
    np.resize(np.arange(20, dtype="<u2"), SEMANTIC_KITTI_GRID.cells).tofile(path)
    with pytest.raises(CorruptInput, match=r"000000.label: holds 2, none of SemanticKITTI's ids"):
        evaluate_voxels(tmp_path, kitti / "truth/sequences/08/voxels")
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(CorruptInput, match=r"000000.label: 4194302 bytes"):
        evaluate_voxels(tmp_path, kitti / "truth/sequences/08/voxels")


def test_a_completion_without_an_empty_cell_is_suspicious(kitti, tmp_path):
    np.savez_compressed(tmp_path / "000000.npz", pred=np.full(SEMANTIC_KITTI_GRID.shape, 15, np.uint8))
    report, _ = evaluate_voxels(tmp_path, kitti / "truth/sequences/08/voxels")
    assert "in the prediction of 1 of 1 samples, 100 % are" in report["warnings"][0]


def test_hidden_files_make_no_folder_of_voxels(tmp_path):
    (tmp_path / "._000000.label").write_bytes(b"Mac OS X")
    assert not holds_voxels(tmp_path)


def test_our_labels_have_their_masks(truths):
    label = load_occ3d(truths / "gts/scene-1/token0/labels.npz")
    save_occ3d(truths / "own" / "labels.npz", label)
    again = load_occ3d(truths / "own" / "labels.npz")
    assert again.is_masked and np.array_equal(again.mask_lidar, label.mask_lidar)
