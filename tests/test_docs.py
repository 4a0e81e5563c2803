"""The map of the code says what the code is."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
ARCHITECTURE = (DOCS / "architecture.md").read_text()
CODE_LINK = re.compile(r"\]\((\.\./occ_(?:core|ros)/[\w/]+\.py)\)")
NAME = re.compile(r"`([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)?)`")
LINK_AND_NAMES = re.compile(CODE_LINK.pattern + rf" ({NAME.pattern}(?:, {NAME.pattern})*)")


def names_in(path: Path) -> set[str]:
    """What a file defines: functions, classes, values, and `Class.method`."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            found |= {node.name, *(f"{node.name}.{m.name}" for m in node.body if isinstance(m, ast.FunctionDef))}
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_each_function_of_the_walks_is_in_the_file_beside_it():
    steps = [row for row in ARCHITECTURE.splitlines() if re.match(r"\| \d+ \| \[", row)]
    assert len(steps) > 40
    for step in steps:
        _, _, files, functions, _ = step.split("|", 4)
        there = set[str]().union(*(names_in(DOCS / link) for link in CODE_LINK.findall(files)))
        named = NAME.findall(functions)
        assert named and set(named) <= there, step


@pytest.mark.parametrize("page", ["architecture.md", "glossary.md"])
def test_each_name_that_follows_a_file_is_in_it(page):
    places = LINK_AND_NAMES.findall((DOCS / page).read_text())
    assert len(places) > 8
    for link, names, *_ in places:
        assert set(NAME.findall(names)) <= names_in(DOCS / link), link


def test_the_table_of_rooms_is_the_contract_of_the_linter():
    contract = (ROOT / "pyproject.toml").read_text().split('containers = ["occ_core"]')[1].split("\n]")[0]
    lines = [re.findall(r"\w+", text) for text in re.findall(r'^    "([^"]+)",', contract, re.MULTILINE)]
    table = re.findall(r"^\| \d+ \| (`.*?) \|", ARCHITECTURE.split("## Walk 1")[0], re.MULTILINE)
    assert lines and [re.findall(r"\w+", rooms) for rooms in table] == lines


def test_paths_that_are_named_are_there():
    pages = [*ROOT.glob("*.md"), *DOCS.glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
    rooms = "occ_core|occ_ros|tests|config|benchmarks|tools|launch|examples"
    named = {
        (page.name, path)
        for page in pages
        if page.name != "CHANGELOG.md"  # it tells of files that were
        for path in re.findall(rf"`((?:{rooms})/[\w./]+)`", page.read_text())
    }
    assert len(named) > 30
    assert not [(page, path) for page, path in named if not (ROOT / path).exists()]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 700


def test_the_drive_that_the_readme_opens_with_is_light_and_moves():
    image = pytest.importorskip("PIL.Image")
    path = DOCS / "drive.webp"
    assert "](docs/drive.webp)" in (ROOT / "README.md").read_text().split("##")[0]
    assert path.stat().st_size <= 3_000_000
    with image.open(path) as drive:
        assert drive.n_frames > 30
