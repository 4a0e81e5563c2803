"""The report page: what it holds is read back from the file and compared with the arrays it was made from."""

from __future__ import annotations

import base64
import json
import re
import zlib
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
import small_nuscenes
from model_fixtures import camera
from typer.testing import CliRunner

from occ_core.camera import Rig
from occ_core.cli.main import app
from occ_core.errors import CorruptInput, InvalidInput
from occ_core.frame import Frame
from occ_core.grid import OCC3D_GRID, VoxelGrid
from occ_core.inference.predictions import save_prediction
from occ_core.occupancy import Occupancy, load_occ3d
from occ_core.problems import Problem
from occ_core.show.page import page_frames, write_page
from occ_core.show.page_data import PageFrame
from occ_core.show.page_figures import Figures, PageTable, curve_of, doctor_table
from occ_core.show.predicted_frames import PredictedFrames
from occ_core.sources.bag_report import CameraRow
from occ_core.taxonomy import OCC3D


class Page(HTMLParser):
    """The data of a page, and which addresses it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.data = ""
        self.feed(text)
        self.data = json.loads(self.data)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, text):
        if self.elements and self.elements[-1][1].get("id") == "data" and not self.data:
            self.data = text


def unpacked(packed: str, kind: str) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(packed)), dtype=kind)


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    root = tmp_path_factory.mktemp("page") / "city"
    return root, small_nuscenes.make(root, keyframes=3)


@pytest.fixture(scope="module")
def predictions(city):
    """Of all three keyframes, a tenth of the cells not observed."""
    folder, rng = city[0].parent / "predictions", np.random.default_rng(3)
    for token in city[1]:
        occupied = rng.random(OCC3D_GRID.shape) < 0.01
        labels = np.where(occupied, rng.integers(0, 17, OCC3D_GRID.shape), 17).astype(np.uint8)
        observed, confidence = rng.random(OCC3D_GRID.shape) < 0.9, rng.random(OCC3D_GRID.shape)
        save_prediction(folder / f"{token}.npz", labels, observed, confidence=confidence)
    return folder


@pytest.fixture(scope="module")
def page(city, predictions):
    """What `occ eval --html` writes."""
    out = city[0].parent / "report.html"
    result = CliRunner().invoke(app, ["eval", str(predictions), str(city[0] / "gts"), "--html", str(out)])
    assert result.exit_code == 0, result.output
    assert "report.html" in result.output
    return Page(out.read_text())


def test_the_voxels_are_those_of_the_files(city, predictions, page):
    root, tokens = city
    assert len(page.data["scene"]["frames"]) == len(tokens) and page.data["scene"]["volumes"] == ["predicted", "true"]
    assert page.data["scene"]["grid"] == {"origin_m": [-40, -40, -1], "voxel_size_m": 0.4, "shape": [200, 200, 16]}
    for token, page_frame in zip(tokens, page.data["scene"]["frames"], strict=True):
        truth = load_occ3d(next(root.glob(f"gts/*/{token}/labels.npz")))
        with np.load(predictions / f"{token}.npz") as file:
            made = {"predicted": (file["pred"], file["observed"]), "true": (truth.labels, truth.observed)}
        for name, (labels, observed) in made.items():
            packed = page_frame["volumes"][name]
            cells = np.cumsum(unpacked(packed["steps"], "<u4"))
            expected = np.where(observed, labels, 17).ravel()
            assert len(cells) > 0
            np.testing.assert_array_equal(cells, np.flatnonzero(expected != 17))
            np.testing.assert_array_equal(unpacked(packed["label"], "u1"), expected[cells])
            if name == "predicted":
                with np.load(predictions / f"{token}.npz") as file:
                    said = file["confidence"].ravel()[cells]
                np.testing.assert_array_equal(unpacked(packed["confidence"], "u1"), said)


def test_views_are_the_cells_that_project_into_an_image(city, predictions, page):
    frame = PredictedFrames(predictions, city[0])[1].frame
    packed = page.data["scene"]["frames"][1]["volumes"]["predicted"]
    cells = np.cumsum(unpacked(packed["steps"], "<u4"))
    views = unpacked(packed["views"], "<u4")
    places = np.stack(np.unravel_index(cells, OCC3D_GRID.shape), axis=1)
    centers = np.column_stack([(places + 0.5) * 0.4 + (-40, -40, -1), np.ones(len(cells))])
    assert page.data["scene"]["cameras"] == ["CAM_FRONT", "CAM_BACK"]
    for bit, name in enumerate(page.data["scene"]["cameras"]):
        camera = frame.rig[name]
        in_cam = centers @ np.linalg.inv(frame.ego_from_camera_at_its_stamp(name)).T
        with np.errstate(divide="ignore", invalid="ignore"):
            u, v = (in_cam[:, :3] @ camera.intrinsics.T)[:, :2].T / in_cam[:, 2]
        w, h = camera.size
        expected = (in_cam[:, 2] > 1e-3) & (u > -0.5) & (u < w - 0.5) & (v > -0.5) & (v < h - 0.5)
        assert 0 < expected.sum() < len(cells)
        np.testing.assert_array_equal((views >> bit & 1).astype(bool), expected)


def test_images_are_those_of_the_cameras(city, predictions, page):
    frame = PredictedFrames(predictions, city[0])[2].frame
    for name, packed in page.data["scene"]["frames"][2]["images"].items():
        image = cv2.imdecode(np.frombuffer(base64.b64decode(packed), np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
        assert image.shape == frame.images[name].shape  # small already: not enlarged
        assert abs(image.mean() - frame.images[name].mean()) < 3


def test_scores_are_those_of_the_report(city, predictions, page, tmp_path):
    arguments = ["eval", str(predictions), str(city[0] / "gts"), "--json", str(tmp_path / "scores.json")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    report = json.loads((tmp_path / "scores.json").read_text())
    table = page.data["tables"][0]
    column = table["header"].index("camera")
    shown = {row[0]: row[column] for row in table["rows"]}
    assert shown["IoU"] == f"{report['camera']['iou']:.1f}"
    assert shown["mIoU, 17 classes"] == f"{report['camera']['miou_17']:.1f}"
    assert shown["car"] == f"{report['camera']['per_class']['car']:.1f}"


def test_confusion_and_reliability_are_those_of_the_files(city, predictions, page):
    """Of cells that a camera observes; confusion by scikit-learn, reliability bin by bin."""
    metrics = pytest.importorskip("sklearn.metrics")
    true, called, said, speaks = [], [], [], []
    for token in city[1]:
        truth = load_occ3d(next(city[0].glob(f"gts/*/{token}/labels.npz")))
        with np.load(predictions / f"{token}.npz") as file:
            parts = (truth.labels, file["pred"], file["confidence"], file["observed"])
        for found, part in zip((true, called, said, speaks), parts, strict=True):
            found.append(part[truth.observed])
    true, called, said, speaks = (np.concatenate(part) for part in (true, called, said, speaks))
    (confusion,) = page.data["confusion"]
    assert confusion["protocol"] == "camera" and confusion["classes"] == list(OCC3D.names)
    assert confusion["cells"] == metrics.confusion_matrix(true, called, labels=range(18)).tolist()
    (table,) = page.data["reliability"]
    right, share = (true == 17) == (called == 17), said / 255
    for place in range(10):
        of_bin = speaks & (called != 17) & (share >= place / 10) & ((share < (place + 1) / 10) | (place == 9))
        expected = {
            "cells": of_bin.sum(),
            "confidence": 100 * share[of_bin].mean(),
            "right": 100 * right[of_bin].mean(),
        }
        assert table["occupied"][place] == pytest.approx(expected)


def test_nothing_is_loaded_from_elsewhere(page):
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object"), tag
        assert not {"src", "href", "srcset"} & set(attributes), (tag, attributes)
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "http" not in policy


def test_texts_of_data_stay_texts(city, predictions, tmp_path):
    hostile = '</script><script>alert(1)</script>{{data}}<b title="'
    frames = list(page_frames(PredictedFrames(predictions, city[0]), count=1))
    figures = Figures([PageTable(hostile, [hostile], [[hostile]])], [hostile])
    write_page(tmp_path / "p.html", hostile, frames, figures)
    text = (tmp_path / "p.html").read_text()
    found = Page(text)
    assert found.data["title"] == found.data["notes"][0] == found.data["tables"][0]["rows"][0][0] == hostile
    assert len(re.findall("<script", text)) == 2 and "<b title" not in text


def test_confidence_and_further_volumes(city, predictions, tmp_path):
    frame = PredictedFrames(predictions, city[0])[0].frame
    labels, confidence = np.full(OCC3D_GRID.shape, 17, np.uint8), np.zeros(OCC3D_GRID.shape, np.float32)
    labels[5, 6, 7], labels[5, 6, 9] = 4, 11
    confidence[5, 6, 7], confidence[5, 6, 9] = 0.5, 1.0
    sure = Occupancy(OCC3D_GRID, OCC3D, labels, np.ones(OCC3D_GRID.shape, bool), confidence)
    write_page(tmp_path / "p.html", "x", [PageFrame(frame, {"before": None, "after": sure, "labels": sure})])
    data = Page((tmp_path / "p.html").read_text()).data
    assert data["scene"]["volumes"] == ["after", "labels"]  # nothing has a `before`
    packed = data["scene"]["frames"][0]["volumes"]["labels"]
    assert unpacked(packed["steps"], "<u4").tolist() == [(5 * 200 + 6) * 16 + 7, 2]
    assert unpacked(packed["confidence"], "u1").tolist() == [128, 255]


def test_pages_that_make_no_sense_are_refused(city, predictions, tmp_path):
    frame = PredictedFrames(predictions, city[0])[0].frame
    with pytest.raises(InvalidInput, match="needs frames or figures"):
        write_page(tmp_path / "p.html", "x", [])
    with pytest.raises(InvalidInput, match="none of 1 frames has any"):
        write_page(tmp_path / "p.html", "x", [PageFrame(frame, {"true": None})])
    one, other = (
        Occupancy(VoxelGrid((0, 0, 0), 1.0, (n, 2, 2)), OCC3D, np.zeros((n, 2, 2), np.uint8), np.ones((n, 2, 2), bool))
        for n in (2, 3)
    )
    with pytest.raises(InvalidInput, match="one grid"):
        write_page(tmp_path / "p.html", "x", [PageFrame(frame, {"predicted": one, "true": other})])
    assert not list(tmp_path.iterdir())


def test_sixteen_frames_of_six_cameras_are_not_too_large(tmp_path):
    """A quarter of them, made of what packs least: noise; two volumes with one cell in fifty, as streets have."""
    rng, size = np.random.default_rng(0), (480, 270)
    rig = Rig(tuple(camera(f"c{i}", 60 * i, size) for i in range(6)))
    stay = {c.name: np.eye(4) for c in rig}

    def volume() -> Occupancy:
        labels = np.where(rng.random(OCC3D_GRID.shape) < 0.02, rng.integers(0, 17, OCC3D_GRID.shape), 17)
        shares = rng.random(OCC3D_GRID.shape, dtype=np.float32)
        return Occupancy(OCC3D_GRID, OCC3D, labels.astype(np.uint8), np.ones(OCC3D_GRID.shape, bool), shares)

    def frames():
        for number in range(4):
            images = {c.name: rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8) for c in rig}
            frame = Frame(number, np.eye(4), rig, images, dict.fromkeys(images, number), stay)
            yield PageFrame(frame, {"predicted": volume(), "true": volume()})

    write_page(tmp_path / "p.html", "x", frames())
    assert (tmp_path / "p.html").stat().st_size < 15e6 / 4


def test_a_page_of_figures_alone(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("step,total\n1,2.5\n")
    write_page(tmp_path / "p.html", "x", [], Figures(logs={"mine": log}))
    data = Page((tmp_path / "p.html").read_text()).data
    assert data["scene"] is None and [curve["name"] for curve in data["curves"]] == ["mine"]


def test_the_doctors_words_on_a_page():
    lost = Problem("few images", "/left/image", "3 images of 50")
    front = CameraRow("front", "/front/image", rate_hz="12.0", used=True)
    table = doctor_table("cameras", [front, CameraRow("left", "/left/image", problems=((lost, 1),))])
    cells = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    assert [(row["camera"], row["verdict"]) for row in cells] == [("front", "ok"), ("left", "left out")]
    assert cells[0]["found"] == "" and "3 images of 50" in cells[1]["found"] and lost.cure in cells[1]["found"]


def test_the_curve_of_a_training(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("step,total,depth\n1,2.5,\n2,nan,0.25\n")
    assert curve_of(log) == {"x": {"name": "step", "values": [1, 2]},
                             "lines": {"total": [2.5, None], "depth": [None, 0.25]}}  # fmt: skip
    log.write_text("step,total\n" + "".join(f"{i},{i}\n" for i in range(5000)))
    assert [len(curve_of(log)["x"]["values"]), curve_of(log)["lines"]["total"][-1]] == [1000, 4999]
    for text in ("", "step,total\n", "name,total\na,1\n", "\x00\xff"):
        log.write_text(text)
        with pytest.raises(CorruptInput, match=r"log\.csv: not the log\.csv of a training"):
            curve_of(log)


def test_a_page_without_images_is_asked_for_them_before_scoring(predictions, tmp_path):
    result = CliRunner().invoke(app, ["eval", str(predictions), "--html", str(tmp_path / "p.html")])
    assert "--html shows images" in str(result.exception) and not (tmp_path / "p.html").exists()
