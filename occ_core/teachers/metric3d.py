"""Metric3D v2 (Hu et al., TPAMI 2024, arXiv 2404.15506): metric depth for a camera of known focal length.

The network sees every image as if taken with a focal length of 1000 px; its answer times the true one / 1000 is metric.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from occ_core.errors import CorruptInput, InvalidInput, MissingInput, OccError, need
from occ_core.frame import Frame
from occ_core.teachers.base import DepthMap
from occ_core.teachers.networks import half_precision, pick_device, weights_digest

INPUT_SIZE = (1064, 616)  # width, height that the ViT models were trained for
CANONICAL_FOCAL_PX = 1000.0
MAX_DEPTH_M = 300.0
MEAN = np.array((123.675, 116.28, 103.53), dtype=np.float32)
STD = np.array((58.395, 57.12, 57.375), dtype=np.float32)

Network = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]
"""RGB float32 (1, 3, h, w), 0..255 -> canonical depth float32 (h, w) and raw confidence (h, w) or None."""


class Metric3D:
    """Metric depth of all cameras, at the network's resolution without its padding.

    Args:
        network: what `HubNetwork` or `OnnxNetwork` is.
        version: of it.
        input_size: (width, height) in pixels.
    """

    def __init__(self, network: Network, version: str, input_size: tuple[int, int] = INPUT_SIZE) -> None:
        self.network, self.input_size = network, input_size
        self.version = f"metric3d-1 {version} {input_size[0]}x{input_size[1]}"

    def depth(self, frame: Frame) -> dict[str, DepthMap]:
        # One image after the other: the published code keeps a buffer of the first batch's size and fails on a larger.
        return {name: self._map(image, float(frame.rig[name].intrinsics[0, 0])) for name, image in frame.images.items()}

    def _map(self, image: np.ndarray, focal_px: float) -> DepthMap:
        padded, scale, (left, top, width, height) = fit(image, self.input_size)
        canonical, raw = self.network(np.ascontiguousarray(padded.transpose(2, 0, 1)[None], dtype=np.float32))
        if canonical.shape != padded.shape[:2]:
            raise InvalidInput(f"Metric3D must answer {padded.shape[:2]} for its input, got {canonical.shape}")
        inside = np.s_[top : top + height, left : left + width]
        depth_m = canonical[inside] * np.float32(focal_px * scale / CANONICAL_FOCAL_PX)
        # The network's confidence is the output of a convolution, of no fixed range; the logistic keeps its order.
        confidence = np.ones(depth_m.shape) if raw is None else 1 / (1 + np.exp(-raw[inside].astype(np.float64)))
        return DepthMap(depth_m.clip(0, MAX_DEPTH_M).astype(np.float32), confidence.astype(np.float32))


def fit(image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, float, tuple[int, int, int, int]]:
    """An image resized with its aspect kept and padded with the mean colour on all sides.

    Args:
        image: RGB uint8 (h, w, 3).
        size: (width, height) to fill.

    Returns:
        RGB float32 (height, width, 3); factor of the resize; left, top, width, height of the image in it.
    """
    h, w = image.shape[:2]
    scale = min(size[0] / w, size[1] / h)
    width, height = int(w * scale), int(h * scale)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    padded = np.broadcast_to(MEAN, (size[1], size[0], 3)).copy()
    padded[top : top + height, left : left + width] = cv2.resize(image, (width, height))
    return padded, scale, (left, top, width, height)


class HubNetwork:
    """Metric3D's own torch code, as torch.hub loads it.

    Args:
        model: with `inference({"input": tensor})` -> depth, confidence, more.
    """

    def __init__(self, model: Any, device: Any) -> None:
        self.model, self.device = model.to(device).eval(), device

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        import torch

        normal = (image - MEAN[:, None, None]) / STD[:, None, None]
        with torch.inference_mode(), half_precision(self.device):
            depth, confidence, _ = self.model.inference({"input": torch.from_numpy(normal).to(self.device)})
        raw = None if confidence is None else confidence.float().reshape(image.shape[2:]).cpu().numpy()
        return depth.float().reshape(image.shape[2:]).cpu().numpy(), raw


class OnnxNetwork:
    """An ONNX file written by Metric3D's own export: it takes colours 0..255 and gives the depth alone."""

    def __init__(self, path: Path, device: Any) -> None:
        ort = need("onnxruntime", "onnx")
        wanted = ["CUDAExecutionProvider"] if device.type == "cuda" else []
        providers = [p for p in wanted if p in ort.get_available_providers()] + ["CPUExecutionProvider"]
        try:
            self.session = ort.InferenceSession(str(path), providers=providers)
        except Exception as error:  # onnxruntime's own, of many kinds
            raise CorruptInput(f"{path}: cannot be loaded ({str(error).splitlines()[0]})") from error
        first = self.session.get_inputs()[0]
        self.name, shape = first.name, first.shape
        fixed = len(shape) == 4 and all(isinstance(n, int) for n in shape[2:])
        self.input_size: tuple[int, int] = (shape[3], shape[2]) if fixed else INPUT_SIZE

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        depth = self.session.run(None, {self.name: image})[0]
        return depth.reshape(depth.shape[-2:]).astype(np.float32), None


def load_metric3d(weights: Path | None = None, device: str | None = None) -> Metric3D:
    """`<weights>/metric3d*.onnx`, else the code in `<weights>/metric3d` with `<weights>/metric_depth_vit_*.pth`.

    Raises:
        MissingInput, CorruptInput, MissingPackage: naming what is absent or broken.
    """
    if weights is None or not weights.is_dir():
        raise MissingInput(f"metric3d needs a folder of weights (docs/teachers.md says what it holds), got {weights}")
    target = pick_device(device)
    files = sorted(weights.glob("metric3d*.onnx"))
    if files:
        network = OnnxNetwork(files[0], target)
        return Metric3D(network, f"{files[0].name} {_file_digest(files[0])}", network.input_size)
    checkpoints = sorted(weights.glob("metric_depth_vit_*.pth"))
    if not checkpoints or not (weights / "metric3d" / "hubconf.py").is_file():
        raise MissingInput(
            f"{weights}: holds neither metric3d*.onnx nor both metric3d/hubconf.py (the repository YvanYin/Metric3D) "
            "and metric_depth_vit_small|large|giant2*.pth"
        )
    model = _load_hub(weights / "metric3d", checkpoints[0])
    return Metric3D(HubNetwork(model, target), weights_digest(model))


def _load_hub(code: Path, checkpoint: Path) -> Any:
    """The model whose size the checkpoint's name says; only tensors are read from the checkpoint."""
    torch = need("torch", "teachers")
    size = checkpoint.stem.split("_")[3]
    try:
        model = torch.hub.load(str(code), f"metric3d_vit_{size}", source="local", pretrain=False)
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)["model_state_dict"]
        missing = model.load_state_dict(state, strict=False).missing_keys
    except ImportError as error:
        raise MissingInput(f"{code}: its code needs a package that is not here ({error})") from error
    except OccError:
        raise
    except Exception as error:  # the repository's code may raise anything
        raise CorruptInput(f"{checkpoint}: cannot be loaded with {code} ({str(error).splitlines()[0]})") from error
    if missing:
        raise CorruptInput(f"{checkpoint}: lacks {len(missing)} tensors of metric3d_vit_{size}, such as {missing[0]}")
    return model


def _file_digest(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:8]
