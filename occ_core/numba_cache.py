"""Chooses where numba keeps compiled code. Numba refuses to import a cached function if it finds no folder for it, as
in a container whose package and home cannot be written."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path


def provide_numba_cache(package: Path, environ: MutableMapping[str, str]) -> None:
    """Give numba a folder of this process' own if it would find none, neither beside the code of `package` nor in the
    user's cache. Every process then compiles functions for itself, which takes some seconds each."""
    if "NUMBA_CACHE_DIR" in environ or os.access(package, os.W_OK):
        return
    import atexit  # these here, for `import occ_core` is to be quick
    import shutil
    import tempfile

    users = Path(environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    try:
        users.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=users).close()
    except OSError:
        environ["NUMBA_CACHE_DIR"] = own = tempfile.mkdtemp(prefix="numba-")
        atexit.register(shutil.rmtree, own, ignore_errors=True)
