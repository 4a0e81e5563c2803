"""Label budgets: which labels are taken, files of each form, what training makes of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from label_fixtures import MADE_WITH, scene_label
from typer.testing import CliRunner

from occ_core.cli.main import app
from occ_core.errors import InvalidInput, MissingInput
from occ_core.labels.split import split_labels
from occ_core.labels.store import LabelStore, provenance


def folder_of(root: Path, scenes: int = 10, frames: int = 20) -> Path:
    """Names as Occ3D has them, a byte or two in each."""
    for scene in range(scenes):
        for frame in range(frames):
            path = root / f"scene-{scene:04d}" / f"token{scene}-{frame}" / "labels.npz"
            path.parent.mkdir(parents=True)
            path.write_bytes(f"{scene} {frame}".encode())
    return root


def taken(folder: Path) -> set[str]:
    return {str(path.relative_to(folder).parent) for path in folder.glob("*/*/labels.npz")}


def test_less_is_part_of_more_and_the_seed_decides(tmp_path):
    gts = folder_of(tmp_path / "gts")
    for seed in (0, 1):
        for percent in (0.1, 1, 10, 100):
            split_labels(gts, tmp_path / f"{seed}-{percent}", percent, seed=seed)
    sizes = {percent: taken(tmp_path / f"0-{percent}") for percent in (0.1, 1, 10, 100)}
    assert [len(part) for part in sizes.values()] == [1, 2, 20, 200]
    assert sizes[0.1] < sizes[1] < sizes[10] < sizes[100] == taken(gts)
    assert len({name.split("/")[0] for name in sizes[10]}) > 5  # frames of many scenes
    assert taken(tmp_path / "1-10") != sizes[10]
    again = split_labels(gts, tmp_path / "again", 10)
    assert taken(tmp_path / "again") == sizes[10]
    record = json.loads((tmp_path / "again/split.json").read_text())
    assert record == again and (record["percent"], record["by"], record["seed"]) == (10, "frames", 0)
    assert (record["of"], record["labels"], record["of_labels"]) == ("gts", 20, 200)
    assert {f"{scene}/{token}" for scene, tokens in record["scenes"].items() for token in tokens} == sizes[10]
    name = min(sizes[10])
    there, here = ((folder / name / "labels.npz").stat() for folder in (gts, tmp_path / "again"))
    assert there.st_ino == here.st_ino and provenance(tmp_path / "again")["split"]["percent"] == 10


def test_whole_scenes(tmp_path):
    gts = folder_of(tmp_path / "gts")
    for percent, scenes in ((1, 1), (10, 1), (30, 3)):
        split_labels(gts, tmp_path / str(percent), percent, by="scenes")
        assert len(taken(tmp_path / str(percent))) == 20 * scenes
    assert taken(tmp_path / "1") == taken(tmp_path / "10") < taken(tmp_path / "30")


def test_copies_where_the_disk_has_no_links(tmp_path, monkeypatch):
    import errno
    import os

    def no_link(source, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_link)
    gts = folder_of(tmp_path / "gts", 1, 3)
    split_labels(gts, tmp_path / "out", 100)
    path = next((tmp_path / "out").glob("*/*/labels.npz"))
    original = gts / path.relative_to(tmp_path / "out")
    assert path.read_bytes() == original.read_bytes() and path.stat().st_ino != original.stat().st_ino


def test_part_of_a_store_is_a_sound_store(tmp_path):
    store = LabelStore(tmp_path / "store")
    store.claim(MADE_WITH, {"scene-0001": ["a", "b", "c", "d"]})
    for token in "abcd":
        store.write("scene-0001", token, scene_label(token))
    result = CliRunner().invoke(
        app, ["labels", "split", str(tmp_path / "store"), str(tmp_path / "half"), "--percent", "50"]
    )
    assert result.exit_code == 0 and "2 of 4 labels, of 1 scenes" in result.output
    half = LabelStore(tmp_path / "half")
    assert list(half.check()) == [] and len(half.samples) == 2
    whole = provenance(tmp_path / "store")
    assert provenance(half.folder) == whole | {
        "folder": "half", "split": {"of": "store", "percent": 50, "by": "frames", "seed": 0}
    }  # fmt: skip


def test_voxels_of_kitti_are_split_and_taught_from(tmp_path):
    pytest.importorskip("torch")
    from small_kitti import make_kitti
    from tiny_camera_network import kitti_config

    from occ_core.sources.open import open_source
    from occ_core.training.label_files import open_labels

    kitti = make_kitti(tmp_path / "kitti", ("03", "04"))  # frames 0 and 2 of each are labelled
    record = split_labels(kitti, tmp_path / "part", 50, seed=3)
    files = {path.name for path in (tmp_path / "part").rglob("*.*")}
    tokens = {token for part in record["scenes"].values() for token in part}
    assert record["labels"] == 2 and files == {f"{t}.{kind}" for t in tokens for kind in ("label", "invalid")} | {
        "split.json"
    }
    labels = open_labels(kitti, open_source(kitti), str(tmp_path / "part"), kitti_config())
    scene = next(iter(record["scenes"]))
    found = labels.read(scene, record["scenes"][scene][0], kitti_config())
    assert (found[:128, :, :-1] == 9).all() and (found[..., -1] == 255).all()
    assert labels.provenance == {"folder": "voxels", "split": {"of": "kitti", "percent": 50, "by": "frames", "seed": 3}}
    lower = kitti_config(grid_origin_m=(0.0, -25.6, -2.2))
    assert np.array_equal(open_labels(kitti, open_source(kitti), "voxels", lower).read("03", "000000", lower), found)


def test_what_is_refused(tmp_path):
    gts = folder_of(tmp_path / "gts", 1, 2)
    for arguments, words in (
        ((gts, tmp_path / "out", 0), "percent must be above 0 and at most 100, got 0"),
        ((gts, tmp_path / "out", 101), "got 101"),
        ((gts, tmp_path / "out", 10, "days"), "split by frames or scenes, got 'days'"),
        ((gts, gts / "part", 10), "part lies within .*gts"),
        ((gts, tmp_path, 10), "is not an empty folder"),
    ):
        with pytest.raises(InvalidInput, match=words):
            split_labels(*arguments)
    (tmp_path / "none").mkdir()
    with pytest.raises(MissingInput, match="none: no labels: neither .*labels.npz nor sequences"):
        split_labels(tmp_path / "none", tmp_path / "out", 10)
    assert not (tmp_path / "out").exists()
