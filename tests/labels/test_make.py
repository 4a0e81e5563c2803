"""Labelling a data set: stopped, killed, damaged, out of space, on Ray; the end is always the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba", reason="ray casting needs numba: pip install 'occ_ros[world]'")

from label_fixtures import hashes, make_city

from occ_core.errors import CannotWrite, InvalidInput, MissingInput, MissingPackage
from occ_core.labels import make as making
from occ_core.labels.make import TeacherChoice, make_labels
from occ_core.labels.recipes import Recipe
from occ_core.labels.store import LabelStore
from occ_core.parallel import run_in_processes
from occ_core.sources.nuscenes import NuScenesSource
from occ_core.taxonomy import OCC3D
from occ_core.teachers.base import Teachers
from occ_core.teachers.guarded import GuardedClasses
from occ_core.teachers.load import load_teachers

RECIPE = Recipe(past=1, future=1)
ORACLE = TeacherChoice("oracle")
ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 600  # for a machine that is busy with other things


@pytest.fixture(scope="module")
def city(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("city")
    make_city(root)
    return root


@pytest.fixture(scope="module")
def undisturbed(city, tmp_path_factory) -> Path:
    """The store of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("undisturbed") / "labels"
    done = make_labels(city, out, RECIPE, ORACLE, show_progress=False)
    assert [(scene.written, scene.error) for scene in done] == [(3, "")] * 3
    return out


def test_a_store_is_complete_sound_and_not_empty(undisturbed):
    store = LabelStore(undisturbed)
    assert list(store.check()) == []
    assert len(store.samples) == 9
    for scene, token in store.samples:
        label = store.read(scene, token).occupancy
        assert {11, 14 + (int(scene[-1]) - 1) % 3} <= set(np.unique(label.labels[label.observed]))


def test_finished_labels_are_kept(city, undisturbed, monkeypatch):
    monkeypatch.setattr(making, "label_scene", lambda *a: pytest.fail("a finished scene was labelled again"))
    before = hashes(undisturbed)
    assert make_labels(city, undisturbed, RECIPE, ORACLE, show_progress=False) == []
    assert hashes(undisturbed) == before


def command(city: Path, out: Path, recipe: Path, *more: str) -> list[str]:
    start = [sys.executable, "-m", "occ_core.cli.main", "labels", "make", str(city), str(out)]
    return [*start, "--recipe", str(recipe), "--teacher", "oracle", *more]


@pytest.fixture
def recipe_file(tmp_path) -> Path:
    (tmp_path / "recipe.yaml").write_text("past: 1\nfuture: 1\n")
    return tmp_path / "recipe.yaml"


def wait_for_labels(out: Path, count: int, process: subprocess.Popen) -> None:
    """Until the running command has made so many labels."""
    deadline = time.monotonic() + PATIENCE_S
    while len(list(out.glob("*/*/labels.json"))) < count:
        assert process.poll() is None, "the command ended before it could be killed"
        assert time.monotonic() < deadline, f"fewer than {count} labels after {PATIENCE_S} s"
        time.sleep(0.002)


def test_killed_three_times_ends_with_the_same_bytes(city, undisturbed, recipe_file, tmp_path):
    out = tmp_path / "labels"
    for count in (1, 3, 6):
        process = subprocess.Popen(
            command(city, out, recipe_file, "--workers", "1"), cwd=ROOT, stdout=subprocess.DEVNULL
        )
        wait_for_labels(out, count, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(list(out.glob("*/*/labels.json"))) < 9
    subprocess.run(command(city, out, recipe_file, "--workers", "1"), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert hashes(out) == hashes(undisturbed)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_worker(pid: int) -> bool:
    return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_killed_worker_costs_nothing_and_workers_end_with_their_parent(city, undisturbed, recipe_file, tmp_path):
    out = tmp_path / "labels"
    process = subprocess.Popen(command(city, out, recipe_file, "--workers", "2"), cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_for_labels(out, 1, process)
    os.kill(next(pid for pid in children(process.pid) if is_worker(pid)), signal.SIGKILL)
    wait_for_labels(out, 4, process)
    workers = [pid for pid in children(process.pid) if is_worker(pid)]
    assert workers
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + PATIENCE_S
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    make_labels(city, out, RECIPE, ORACLE, show_progress=False)
    assert hashes(out) == hashes(undisturbed)


def test_ctrl_c_stops_and_the_same_call_goes_on(city, undisturbed, tmp_path, monkeypatch):
    out, write = tmp_path / "labels", LabelStore.write
    written = []

    def write_and_stop(store, scene, token, label, *more):
        write(store, scene, token, label, *more)
        written.append(token)
        if len(written) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(LabelStore, "write", write_and_stop)
    with pytest.raises(KeyboardInterrupt):
        make_labels(city, out, RECIPE, ORACLE, show_progress=False)
    done = make_labels(city, out, RECIPE, ORACLE, show_progress=False)
    assert sum(scene.written for scene in done) == 5
    assert len(set(written)) == len(written) == 9
    assert hashes(out) == hashes(undisturbed)


def test_broken_and_half_labels_are_made_anew(city, undisturbed, tmp_path):
    out = tmp_path / "labels"
    make_labels(city, out, RECIPE, ORACLE, scenes=["scene-0002", "scene-0003"], show_progress=False)
    first, second = sorted(out.glob("scene-0002/*/labels.npz"))[:2]
    first.write_bytes(first.read_bytes()[:1000])
    second.with_suffix(".json").unlink()
    second.with_name(".labels.npz.4711.tmp").write_bytes(b"half")
    (done,) = make_labels(city, out, RECIPE, ORACLE, scenes=["scene-0002"], show_progress=False)
    assert done.written == 2
    make_labels(city, out, RECIPE, ORACLE, show_progress=False)
    assert hashes(out) == hashes(undisturbed)


def test_another_recipe_or_teacher_is_refused(city, undisturbed, tmp_path):
    with pytest.raises(InvalidInput, match=r"settings.past 1 \(asked for 2\)"):
        make_labels(city, undisturbed, Recipe(past=2, future=1), ORACLE, show_progress=False)
    with pytest.raises(InvalidInput, match=r"seed 0 \(asked for 5\)"):
        make_labels(city, undisturbed, RECIPE, TeacherChoice("oracle", seed=5), show_progress=False)
    with pytest.raises(InvalidInput, match="engine must be one of local, ray, got 'slurm'"):
        make_labels(city, tmp_path / "x", RECIPE, ORACLE, "slurm", show_progress=False)
    with pytest.raises(MissingInput, match="no scene 'scene-0099'"):
        make_labels(city, tmp_path / "x", RECIPE, ORACLE, scenes=["scene-0099"], show_progress=False)


def test_a_scene_that_fails_is_named_and_the_others_are_made(tmp_path):
    tokens = make_city(tmp_path / "city", scenes=2)
    (tmp_path / "city/truth/scene-0001" / tokens[1] / "CAM_BACK.npz").write_bytes(b"not an archive")
    bad, good = make_labels(tmp_path / "city", tmp_path / "labels", RECIPE, ORACLE, show_progress=False)
    assert "CAM_BACK.npz" in bad.error
    assert "\n" not in bad.error
    assert (good.written, good.error) == (3, "")


def test_a_teacher_that_raises_costs_its_scene_only(city, tmp_path, monkeypatch):
    """Whatever its library raises: the scene is named, the others are made."""
    oracle = load_teachers("oracle", city, OCC3D)
    first, second, third = NuScenesSource(city).scenes

    class Network:
        version = "network-1"

        def classes(self, frame):
            if frame.scene == second:
                raise RuntimeError("CUDA out of memory")
            return oracle.classes.classes(frame)

    monkeypatch.setattr(making, "load_teachers", lambda *_: Teachers(GuardedClasses(Network()), oracle.depth))
    done = {each.scene: each for each in make_labels(city, tmp_path / "out", RECIPE, ORACLE, show_progress=False)}
    assert [done[scene].written for scene in (first, second, third)] == [3, 0, 3]
    assert "the class teacher failed on" in done[second].error and "CUDA out of memory" in done[second].error
    assert done[first].error == done[third].error == ""


def test_a_broken_image_costs_its_own_label_only(tmp_path):
    make_city(tmp_path / "city", scenes=1)
    sorted(tmp_path.glob("city/samples/CAM_BACK/*.jpg"))[1].write_bytes(b"not an image")
    (done,) = make_labels(tmp_path / "city", tmp_path / "labels", RECIPE, ORACLE, show_progress=False)
    assert done.written == 2
    assert "1 of its keyframes" in done.error and "CAM_BACK" in done.error and "\n" not in done.error
    assert len(done.skipped) == 1 and "CAM_BACK" in done.skipped[0]


def test_a_full_disk_ends_the_run_with_one_clear_error(city, undisturbed, tmp_path):
    """The largest file that may be written ends in the middle of a label, in the workers too."""
    size = min(path.stat().st_size for path in undisturbed.rglob("labels.npz"))
    code = f"import resource, signal; resource.setrlimit(resource.RLIMIT_FSIZE, ({size - 100},) * 2)"
    code += "; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from occ_core.cli.main import main; main()"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("past: 1\nfuture: 1\n")
    out = tmp_path / "labels"
    arguments = command(city, out, recipe, "--workers", "2")[3:]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "labels.npz: cannot write" in line
    assert "Traceback" not in result.stderr
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["store.json"]
    make_labels(city, out, RECIPE, ORACLE, show_progress=False)
    assert hashes(out) == hashes(undisturbed)


def test_full_disk_leaves_the_labels_that_were_made(city, tmp_path, monkeypatch):
    write = LabelStore.write
    count = []

    def fails_at_the_third(store, scene, token, label, *more):
        count.append(token)
        if len(count) == 3:
            raise CannotWrite("no space left")
        write(store, scene, token, label, *more)

    monkeypatch.setattr(LabelStore, "write", fails_at_the_third)
    with pytest.raises(CannotWrite, match="no space left"):
        make_labels(city, tmp_path / "labels", RECIPE, ORACLE, show_progress=False)
    assert len(count) == 3
    assert len(list((tmp_path / "labels").rglob("labels.json"))) == 2


def kill_own_process(item: int, step) -> int:
    if item == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_a_worker_that_is_always_killed_is_a_clear_error():
    from occ_core.errors import OccError

    with pytest.raises(OccError, match="killed .out of memory"):
        list(run_in_processes(kill_own_process, [1, 2, 3], 2, restarts=1))


def test_ray_is_asked_for_by_name_where_it_is_absent(city, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackage, match=r"pip install 'occ_ros\[ray\]'"):
        make_labels(city, tmp_path / "labels", RECIPE, ORACLE, "ray", show_progress=False)


def descends_from_here(pid: int) -> bool:
    while pid > 1 and pid != os.getpid():
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid == os.getpid()


def ray_workers() -> list[int]:
    """Processes of ours that are at work on a scene."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::_call") and descends_from_here(int(path.parent.name)):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_ray_with_a_killed_worker_ends_with_the_same_bytes(city, undisturbed, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="the cluster engine needs ray: pip install 'occ_ros[ray]'")
    import threading

    out, killed = tmp_path / "labels", []

    def kill_one() -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and not list(out.glob("*/*/labels.json")):
            time.sleep(0.002)
        for pid in ray_workers()[:1]:
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    monkeypatch.setenv("RAY_agent_register_timeout_ms", str(1000 * PATIENCE_S))
    monkeypatch.setenv("RAY_worker_register_timeout_seconds", str(PATIENCE_S))
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    try:
        killer = threading.Thread(target=kill_one)
        killer.start()
        done = make_labels(city, out, RECIPE, ORACLE, "ray", workers=2, show_progress=False)
        killer.join()
    finally:
        ray.shutdown()
    assert killed, "no worker was at work when the first label was there"
    assert not any(scene.error for scene in done)
    assert hashes(out) == hashes(undisturbed)
    assert json.loads((out / "store.json").read_text())["made_with"]["teacher"] == "oracle"


def test_labels_of_another_data_set_with_the_same_names_are_refused(city, tmp_path):
    """Same tokens, same calibration: corrupted images, or other truth for the teacher that knows it."""
    one, out = ["scene-0001"], tmp_path / "labels"
    shutil.copytree(city, tmp_path / "copy", copy_function=shutil.copy)
    make_labels(city, out, RECIPE, ORACLE, scenes=one, show_progress=False)
    assert make_labels(tmp_path / "copy", out, RECIPE, ORACLE, scenes=one, show_progress=False) == []
    before = hashes(out)
    token = LabelStore(out).samples[0][1]
    source = NuScenesSource(tmp_path / "copy", scenes=one)
    for path in (source.files(0)[1], tmp_path / "copy/truth/scene-0001" / token / "CAM_FRONT.npz"):
        data = path.read_bytes()
        path.write_bytes(data + b"\0")
        with pytest.raises(InvalidInput, match=f"scene-0001, sample '{token}' was made of other files"):
            make_labels(tmp_path / "copy", out, RECIPE, ORACLE, scenes=one, show_progress=False)
        path.write_bytes(data)
    assert hashes(out) == before
