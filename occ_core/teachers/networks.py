"""What teachers that are networks share: their device, where their weights are, and which weights they are."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from occ_core.errors import CorruptInput, InvalidInput, MissingInput, OccError, need

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

UNREAD = ("mask_token", "criterion.empty_weight")  # names of tensors that only training reads; files may lack them
SAMPLES = 64  # values of each tensor that enter the digest of a network's weights


def pick_device(name: str | None) -> torch.device:
    """The named device, or a GPU where there is one; of several, each worker process takes another.

    Raises:
        InvalidInput: no such device, or one that is not there.
    """
    torch = need("torch", "teachers")
    if name is None:
        if not torch.cuda.is_available():
            return torch.device("cpu")
        number = multiprocessing.current_process().name.rsplit("-", 1)[-1]  # of a worker: "SpawnProcess-3"
        worker = int(number) - 1 if number.isdigit() else 0
        return torch.device("cuda", worker % torch.cuda.device_count())
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidInput(f"'{name}' is no device: {str(error).splitlines()[0]}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InvalidInput(f"device '{name}' is not there; CUDA devices: {torch.cuda.device_count()}")
    return device


def half_precision(device: torch.device) -> AbstractContextManager:
    """Float16 on a GPU, for networks that were published to run so; nothing on a CPU, where it is slower."""
    torch = need("torch", "teachers")
    return torch.autocast("cuda", torch.float16, enabled=device.type == "cuda")


def from_pretrained(auto_class: Any, source: str | Path, **options: Any) -> Any:
    """A transformers configuration or processor from a local folder or the hub's cache; nothing is downloaded.

    Raises:
        MissingInput: it is in neither place, with the command that brings it.
        CorruptInput: it is there and cannot be loaded.
    """
    with _naming(source):
        return auto_class.from_pretrained(str(source), local_files_only=True, **options)


def lacking(source: str | Path) -> list[str]:
    """List what is missing for a transformers model that is neither a folder nor in the hub's cache; nothing is
    loaded."""
    try:
        from_pretrained(need("transformers", "teachers").AutoConfig, source)
    except MissingInput as error:
        return [str(error)]
    except CorruptInput:  # it is there; loading it will say more
        pass
    return []


def model_from_pretrained(model_class: Any, source: str | Path, kinds: tuple[str, ...]) -> Any:
    """A transformers model from a local folder or the hub's cache; nothing is downloaded.

    Of safetensors or, where there are none, of `pytorch_model.bin`, from which only tensors are read.

    Args:
        model_class: of transformers, an Auto class or not.
        kinds: `model_type`s that will do: transformers loads a stranger's weights with no more than a warning.

    Raises:
        MissingInput: it is in neither place, with the command that brings it.
        InvalidInput: it is of another type.
        CorruptInput: it is there and cannot be loaded, or lacks tensors, which would start from random numbers.
    """
    kind = from_pretrained(need("transformers", "teachers").AutoConfig, source).model_type
    if kind not in kinds:
        raise InvalidInput(f"{source}: must be a model of type {' or '.join(kinds)}, this is '{kind}'")
    with _naming(source):
        model, info = model_class.from_pretrained(
            str(source), local_files_only=True, weights_only=True, output_loading_info=True
        )
    missing = sorted(name for name in info["missing_keys"] if not name.endswith(UNREAD))
    if missing:
        raise CorruptInput(f"{source}: lacks {len(missing)} tensors of its {kind}, such as {missing[0]}")
    return model


@contextmanager
def _naming(source: str | Path) -> Iterator[None]:
    """Turn errors of transformers into those of this library."""
    try:
        yield
    except OSError as error:
        if Path(source).is_dir():
            raise CorruptInput(f"{source}: not a whole transformers model ({str(error).splitlines()[0]})") from error
        raise MissingInput(
            f"weights '{source}' are neither a folder nor in the hub's cache; get them with: hf download {source}"
        ) from error
    except Exception as error:  # its readers of json and safetensors raise errors of their own
        raise CorruptInput(f"{source}: cannot be loaded ({str(error).splitlines()[0]})") from error


class Batches:
    """Decides how many images go through a network at once: one on a CPU, all on a GPU, and half as many each time
    memory runs out."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = need("torch", "teachers").device(device)
        self.at_once = 1 if self.device.type == "cpu" else 64

    def run(self, images: Sequence[np.ndarray], ask: Callable[[Sequence[np.ndarray]], Sequence[T]]) -> list[T]:
        """Run the network on all images, in parts.

        Raises:
            OccError: not even one image fits.
        """
        torch = need("torch", "teachers")
        answers: list[T] = []
        while len(answers) < len(images):
            part = images[len(answers) : len(answers) + self.at_once]
            try:
                answers += ask(part)
                continue
            except torch.OutOfMemoryError as error:
                if len(part) == 1:
                    h, w = part[0].shape[:2]
                    raise OccError(
                        f"one image of {w} x {h} px does not fit into the memory of {self.device}"
                    ) from error
            self.at_once = len(part) // 2
            torch.cuda.empty_cache()
        return answers


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
