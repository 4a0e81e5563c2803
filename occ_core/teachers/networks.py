"""What teachers that are networks share: where they run, where their weights are, which weights they are."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from occ_core.errors import CorruptInput, InvalidInput, MissingInput, need

if TYPE_CHECKING:
    import torch

SAMPLES = 64  # values of each tensor that enter the digest of a network's weights


def pick_device(name: str | None) -> torch.device:
    """The named device, or a GPU where there is one.

    Raises:
        InvalidInput: no such device, or one that is not there.
    """
    torch = need("torch", "teachers")
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidInput(f"'{name}' is no device: {str(error).splitlines()[0]}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InvalidInput(f"device '{name}' is not there; CUDA devices: {torch.cuda.device_count()}")
    return device


def half_precision(device: torch.device) -> AbstractContextManager:
    """Float16 where it is safe, on a GPU; nothing on a CPU, where it is slower."""
    torch = need("torch", "teachers")
    return torch.autocast("cuda", torch.float16, enabled=device.type == "cuda")


def from_pretrained(auto_class: Any, source: str | Path) -> Any:
    """A transformers object from a local folder or the hub's cache; nothing is downloaded, no pickle is read.

    Raises:
        MissingInput: it is in neither place, with the command that brings it.
        CorruptInput: it is there and cannot be loaded.
    """
    options = {"use_safetensors": True} if "Model" in auto_class.__name__ else {}
    try:
        return auto_class.from_pretrained(str(source), local_files_only=True, **options)
    except OSError as error:
        if Path(source).is_dir():
            raise CorruptInput(f"{source}: not a whole transformers model ({str(error).splitlines()[0]})") from error
        raise MissingInput(
            f"weights '{source}' are neither a folder nor in the hub's cache; get them with: hf download {source}"
        ) from error
    except Exception as error:  # its readers of json and safetensors raise errors of their own
        raise CorruptInput(f"{source}: cannot be loaded ({str(error).splitlines()[0]})") from error


def weights_digest(model: torch.nn.Module) -> str:
    """Eight digits that tell trained weights apart: names, shapes and a few values of every tensor."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        step = max(1, flat.numel() // SAMPLES)
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(flat[::step].double().cpu().numpy().tobytes())
    return digest.hexdigest()[:8]


def file_digest(*paths: Path) -> str:
    """Eight digits of what is in files."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:8]


def require_numbers(answer: np.ndarray, what: str) -> None:
    """Refuse an answer without one number: weights or arithmetic are broken, and nothing of it is an answer.

    Raises:
        CorruptInput: all of it is NaN.
    """
    if np.isnan(answer).all():
        raise CorruptInput(f"{what} is NaN everywhere: broken weights, or numbers beyond the network's precision")


def by_size(images: dict[str, np.ndarray]) -> list[list[str]]:
    """Names of images of one size, which go through a network as one batch."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, image in images.items():
        groups.setdefault(image.shape, []).append(name)
    return list(groups.values())
