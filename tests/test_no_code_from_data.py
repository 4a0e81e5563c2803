"""Nothing in the packages turns data into code, runs a shell, or unpacks an archive to where the archive says."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(
    path for package in ("occ_core", "occ_ros", "launch", "tools") for path in (ROOT / package).rglob("*.py")
)
IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "tarfile"}
CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = {"extractall", "extract", "unpack_archive", "system", "popen", "load_module"}


def offences(source: str) -> list[str]:
    """'<line>: <what>' of each."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"{node.lineno}: import of {name}" for name in names if name.split(".")[0] in IMPORTS]
        elif isinstance(node, ast.Call):
            found += [f"{node.lineno}: {what}" for what in _offences_of_call(node)]
    return found


def _offences_of_call(node: ast.Call) -> list[str]:
    called = ast.unparse(node.func)
    options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    last = called.rpartition(".")[2]
    wrong = {
        called in CALLS: called,
        "." in called and last in METHODS: called,
        called in ("np.load", "numpy.load") and options.get("allow_pickle", "False") != "False": "np.load with pickle",
        called == "torch.load" and options.get("weights_only") != "True": "torch.load without weights_only",
        called in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"): called,
        options.get("shell", "False") != "False": f"{called} with a shell",
        options.get("trust_remote_code", "False") != "False": f"{called} with code from a hub",
    }
    return [what for is_so, what in wrong.items() if is_so]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_from_data(path):
    assert offences(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from pickle import loads", "import os, marshal", "import tarfile", "eval(text)", "exec(text)",
        "np.load(path, allow_pickle=True)", "np.load(path, allow_pickle=x)", "torch.load(path)",
        "torch.load(path, weights_only=False)", "yaml.load(text, Loader=yaml.Loader)", "archive.extractall(folder)",
        "zipfile.ZipFile(p).extract(name, folder)", "os.system(line)", "subprocess.run(line, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)  # fmt: skip
def test_each_of_them_would_be_found(line):
    assert len(offences(line)) == 1


def test_what_is_allowed_is_not_found():
    assert (
        offences("np.load(p, allow_pickle=False)\nmodel.eval()\ntorch.load(p, weights_only=True)\nre.compile(x)") == []
    )
