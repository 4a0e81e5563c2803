"""A few hundred of the cases of `benchmarks/fuzz.py`, in processes of their own with bounded memory."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import fuzz
import fuzz_targets

LIGHT = (
    "jpeg", "png", "image message", "camera info", "lidar sweep", "mcap bag, packed", "label npz", "label store",
    "map file",
)  # fmt: skip
HEAVY = tuple(sorted(set(fuzz_targets.MAKERS) - set(LIGHT)))


@pytest.mark.parametrize("name", LIGHT)
def test_damaged_input_is_read_or_refused(name):
    pytest.importorskip("rosbags")
    row = fuzz.fuzz(name, 60, seed=1)
    assert row["findings"] == []
    assert row["read"] + row["refused"] + row["refused below"] == 60
    assert row["refused"] > 0
    assert row["peak_growth_mib"] < 400


@pytest.mark.slow
@pytest.mark.parametrize("name", HEAVY)
def test_damaged_models_and_bags_are_read_or_refused(name):
    for module in ("rosbags", "torch", "onnx", "onnxruntime"):
        pytest.importorskip(module)
    row = fuzz.fuzz(name, 60, seed=1)
    assert row["findings"] == []
    assert row["refused"] > 0


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("import os; os.kill(os.getpid(), 11)", "ended with code -11"),
        ("bytes(4 << 30)", "MemoryError"),
        ("raise ValueError('no error of ours')", "ValueError: no error of ours"),
        ("import time; time.sleep(60)", "no end within 2.0 s"),
    ],
)
def test_the_fuzzer_finds_what_it_looks_for(monkeypatch, tmp_path, what, words):
    """Crash, memory, foreign exception, hang: a target that does each at its third case."""
    script = tmp_path / "worker.py"
    script.write_text(
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "import fuzz, fuzz_targets\n"
        "cases = iter(range(-1, 99))\n"
        f"def read(data):\n    if next(cases) == 2:\n        exec({what!r})\n"
        "target = fuzz_targets.Target([b'whole'], read, fuzz_targets.damage)\n"
        "fuzz_targets.MAKERS['bad'] = lambda folder: target\n"
        "sys.exit(fuzz.main())\n"
    )
    monkeypatch.setattr(fuzz, "__file__", str(script))
    monkeypatch.setattr(fuzz, "LIMIT_S", 2.0)
    row = fuzz.fuzz("bad", 4, seed=0)
    assert row["finding"] == 1
    assert row["read"] == 3
    assert row["findings"][0].startswith("case 2: ")
    assert words in row["findings"][0]


def test_a_case_is_the_same_again():
    again = [fuzz_targets.damage(bytes(range(256)), random.Random("x 0 7")) for _ in range(2)]
    assert again[0] == again[1] != bytes(range(256))
