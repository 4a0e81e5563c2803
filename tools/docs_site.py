"""MkDocs hook: the site is the repository. Pages keep their places, so one link serves both, and each is checked.

MkDocs alone takes one folder, beyond which no link may lead; pages here lead to benchmarks, code and settings.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = ("*.md", "docs/**/*.md", "benchmarks/**/*.md", "examples/*.md")
LINKED = ("docs/*.png", "docs/*.jpg", "docs/*.webp", "benchmarks/*.json", "pyproject.toml", "config/*", "examples/*.py",
          "occ_core/**/*.py", "occ_core/presets/*.yaml", "occ_ros/**/*.py")  # fmt: skip


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The theme's files, and those of the repository in place of the folder's."""
    kept = [file for file in files if file.src_dir != config.docs_dir]
    found = {path.relative_to(ROOT) for pattern in (*PAGES, *LINKED) for path in ROOT.glob(pattern) if path.is_file()}
    own = [File(path.as_posix(), str(ROOT), config.site_dir, config.use_directory_urls) for path in sorted(found)]
    return Files([*kept, *own])
