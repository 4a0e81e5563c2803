"""`occ teachers run`: its files say what the teacher says, labels of them are its labels, and a kill costs nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba", reason="ray casting needs numba: pip install 'occ_ros[world]'")

from killed import run_killed
from label_fixtures import hashes, make_city
from small_kitti import make_kitti
from typer.testing import CliRunner

from occ_core.cli.main import app
from occ_core.errors import InvalidInput, MissingInput
from occ_core.labels.make import TeacherChoice, make_labels
from occ_core.labels.map_writer import write_maps
from occ_core.labels.recipes import Recipe
from occ_core.labels.store import LabelStore
from occ_core.sources.scenes import Recording
from occ_core.taxonomy import OCC3D
from occ_core.teachers.files import FileClasses
from occ_core.teachers.load import load_teachers

ORACLE = TeacherChoice("oracle")


@pytest.fixture(scope="module")
def city(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("city")
    make_city(root, scenes=2)
    return root


@pytest.fixture(scope="module")
def maps(city, tmp_path_factory) -> Path:
    """Of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("maps") / "maps"
    calls: list[tuple[int, int]] = []
    done = write_maps(city, out, ORACLE, progress=lambda images, total: calls.append((images, total)))
    assert (done.written, done.there, done.left_out, done.failed) == (12, 0, [], [])
    assert calls == [(number, 12) for number in range(1, 13)]
    return out


def test_the_files_say_what_the_teacher_says(city, maps):
    frame = Recording(city).scene("scene-0002")[1]
    oracle, files = (load_teachers(name, city, OCC3D) for name in ("oracle", f"files:{maps}"))
    for camera, given in oracle.classes.classes(frame).items():
        found = files.classes.classes(frame)[camera]
        np.testing.assert_array_equal(found.class_id, given.class_id)
        np.testing.assert_array_equal(found.score, given.score)
    for camera, expected in oracle.depth.depth(frame).items():
        depth = files.depth.depth(frame)[camera]
        np.testing.assert_allclose(depth.depth_m, expected.depth_m, rtol=0.0018)
        np.testing.assert_array_equal(depth.confidence, expected.confidence)


def test_labels_of_the_files_are_those_of_the_teacher_with_a_cache(city, maps, tmp_path):
    recipe = Recipe(past=1, future=1)
    make_labels(city, tmp_path / "a", recipe, TeacherChoice("oracle", cache=tmp_path / "c"), show_progress=False)
    make_labels(city, tmp_path / "b", recipe, TeacherChoice(f"files:{maps}"), show_progress=False)
    a, b = LabelStore(tmp_path / "a"), LabelStore(tmp_path / "b")
    assert len(a.samples) == 6
    for scene, token in a.samples:
        assert a.path(scene, token).read_bytes() == b.path(scene, token).read_bytes()


def test_maps_called_by_stamp_are_found_by_images_that_have_no_file(city, maps, tmp_path):
    write_maps(city, tmp_path / "maps", ORACLE, by_stamp=True)
    frames = Recording(city).scene("scene-0002")
    by_file, by_stamp = FileClasses(maps, OCC3D), FileClasses(tmp_path / "maps", OCC3D)
    for name, shot in frames.shots(1).items():
        assert (tmp_path / "maps" / "classes" / name / f"{shot.stamp_ns}.png").is_file() and shot.file
    without = replace(frames[1], image_files={})
    for name, given in by_file.classes(frames[1]).items():
        np.testing.assert_array_equal(by_stamp.classes(without)[name].class_id, given.class_id)
    again = write_maps(city, tmp_path / "maps", ORACLE, by_stamp=True)
    assert (again.written, again.there) == (0, 12)


def test_labels_of_other_maps_are_told_apart(city, maps, tmp_path):
    """A store of some maps is refused where a map of one of its keyframes is another now."""
    import shutil

    shutil.copytree(maps, tmp_path / "maps")
    choice = TeacherChoice(f"files:{tmp_path / 'maps'}")
    make_labels(city, tmp_path / "labels", Recipe(), choice, scenes=["scene-0001"], show_progress=False)
    first, second = sorted((tmp_path / "maps" / "classes").rglob("CAM_FRONT/*.png"))[:3:2]  # beside each its scores
    first.write_bytes(second.read_bytes())
    with pytest.raises(InvalidInput, match="was made of other files"):
        make_labels(city, tmp_path / "labels", Recipe(), choice, scenes=["scene-0001"], show_progress=False)


def test_killed_three_times_ends_with_the_same_bytes(city, maps, tmp_path):
    out = tmp_path / "maps"
    setup = f"""
from pathlib import Path
from occ_core.labels.make import TeacherChoice
from occ_core.labels import map_writer
city, out, choice = Path({str(city)!r}), Path({str(out)!r}), TeacherChoice("oracle")
"""
    call = "old = map_writer.write_atomically; map_writer.write_atomically = lambda *a: (step(), old(*a))"
    killed = run_killed(setup, f"{call}; map_writer.write_maps(city, out, choice)", (6, 14, 21, 0))
    assert killed == [True, True, True, False]
    assert hashes(out) == hashes(maps)


def test_a_half_frame_is_finished_and_a_broken_temporary_file_removed(city, maps, tmp_path):
    import shutil

    shutil.copytree(maps, tmp_path / "maps")
    gone = sorted((tmp_path / "maps" / "depth").rglob("*.confidence.png"))[3]
    main = gone.with_name(gone.name.replace(".confidence.png", ".jp2"))
    main.unlink()
    gone.unlink()
    gone.with_name(f".{gone.name}.123.tmp").write_bytes(b"half")
    done = write_maps(city, tmp_path / "maps", ORACLE)
    assert (done.written, done.there) == (1, 11)
    assert hashes(tmp_path / "maps") == hashes(maps)


def test_maps_made_otherwise_and_strange_folders_are_refused(city, maps, tmp_path):
    with pytest.raises(InvalidInput, match="maps were made with teacher oracle, asked for realistic"):
        write_maps(city, maps, TeacherChoice("realistic"))
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "file").write_text("x")
    with pytest.raises(InvalidInput, match="not empty and holds no maps.yaml"):
        write_maps(city, tmp_path / "strange", ORACLE)
    with pytest.raises(InvalidInput, match="'nobody' is no class teacher.*'nobody' is no depth teacher"):
        write_maps(city, tmp_path / "none", TeacherChoice("nobody"))
    with pytest.raises(MissingInput, match="no scene 'x', only: scene-0001, scene-0002"):
        write_maps(city, tmp_path / "none", ORACLE, ["x"])
    assert not (tmp_path / "none").exists()


def test_all_weights_that_are_missing_are_named_at_once_before_anything_is_written(city, tmp_path):
    pytest.importorskip("transformers", reason="networks need transformers: pip install 'occ_ros[teachers]'")
    (tmp_path / "weights").mkdir()
    choice = TeacherChoice("grounded-sam+metric3d", weights=tmp_path / "weights")
    with pytest.raises(MissingInput, match="'grounding-dino'.*neither sam_vit_.*no Metric3D in "):
        write_maps(city, tmp_path / "maps", choice)
    assert not (tmp_path / "maps").exists()


def test_a_scene_that_a_teacher_fails_at_is_named_and_the_others_are_made(city, tmp_path):
    import shutil

    shutil.copytree(city, tmp_path / "city")
    shutil.rmtree(tmp_path / "city" / "truth" / "scene-0001")
    run = CliRunner().invoke(
        app, ["teachers", "run", str(tmp_path / "city"), str(tmp_path / "maps"), "--teacher", "oracle"]
    )
    assert run.exit_code == 2, run.output
    assert "maps of 6 images written" in run.output and "error: scene-0001: " in run.output


def test_semantic_kittis_lidar_as_files(tmp_path):
    """Depth alone, of sparse returns; each image by its own path in the data set."""
    make_kitti(tmp_path / "kitti", frames=6)
    done = write_maps(tmp_path / "kitti", tmp_path / "maps", TeacherChoice("lidar"))
    assert done.written == 2
    names = {str(path.relative_to(tmp_path / "maps")) for path in (tmp_path / "maps" / "depth").rglob("00000?.*")}
    stem = "depth/sequences/03/image_2"
    assert names == {f"{stem}/{n}{s}" for n in ("000000", "000005") for s in (".png", ".confidence.png")}
    frame = Recording(tmp_path / "kitti").scene("03")[1]
    teachers = load_teachers(f"files:{tmp_path / 'maps'}", tmp_path, OCC3D)
    lidar = load_teachers("lidar", tmp_path, OCC3D)
    found, expected = (each.depth.depth(frame)["image_2"].depth_m for each in (teachers, lidar))
    assert np.isfinite(expected).sum() > 0
    np.testing.assert_allclose(found, expected, rtol=0.0018)
