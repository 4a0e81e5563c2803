"""Training configs and trained networks that are part of the package, by name, wherever it is installed."""

from __future__ import annotations

from pathlib import Path

from occ_core.errors import MissingInput

PACKAGE = Path(__file__).parent
NETWORKS = {"nano": PACKAGE / "assets" / "easyocc_nano.safetensors"}


def presets() -> list[str]:
    """Names of the training configs of the package, such as `easyocc_nano`."""
    return sorted(path.stem for path in (PACKAGE / "presets").glob("*.yaml"))


def config_file(name: Path | str) -> Path:
    """The YAML file of a path, or of the name of a preset; a file of that name comes first.

    Raises:
        MissingInput: neither is there.
    """
    path = Path(name)
    if path.is_file():
        return path
    if str(name) in presets():
        return PACKAGE / "presets" / f"{name}.yaml"
    raise MissingInput(f"{path}: no such config file, nor the name of one that ships: {', '.join(presets())}")


def network_file(name: Path | str) -> Path:
    """The path itself, or the checkpoint that ships under this name; whether the file exists is not checked."""
    return NETWORKS.get(str(name), Path(name))


def require_network(name: Path | str) -> Path:
    """Like `network_file`, but the file must exist.

    Raises:
        MissingInput: no such file, nor such a name.
    """
    path = network_file(name)
    if not path.is_file():
        raise MissingInput(f"{path}: no such model, nor the name of one that ships: {', '.join(NETWORKS)}")
    return path
