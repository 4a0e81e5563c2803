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
from occ_core.teachers.networks import file_digest, pick_device, require_numbers, weights_digest

INPUT_SIZE = (1064, 616)  # width, height that the ViT models were trained for
CANONICAL_FOCAL_PX = 1000.0
MAX_DEPTH_M = 300.0
MEAN = np.array((123.675, 116.28, 103.53), dtype=np.float32)
STD = np.array((58.395, 57.12, 57.375), dtype=np.float32)
PAD = np.array((124, 116, 104), dtype=np.uint8)  # the mean, rounded: the published code pads 8-bit images
HUB_NAMES = tuple(f"onnx-community/metric3d-vit-{size}" for size in ("large", "giant2", "small"))
UNUSED = "depth_model.encoder.mask_token"  # of DINOv2's training; the published checkpoints lack it

Network = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]
"""RGB uint8 (1, 3, h, w) -> canonical depth float32 (h, w) and raw confidence (h, w) or None."""


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
        maps = {}
        for name, image in frame.images.items():
            maps[name] = self._map(image, float(frame.rig[name].intrinsics[0, 0]))
            require_numbers(maps[name].depth_m, f"Metric3D's depth of {name}")
        return maps

    def _map(self, image: np.ndarray, focal_px: float) -> DepthMap:
        padded, scale, (left, top, width, height) = fit(image, self.input_size)
        canonical, raw = self.network(np.ascontiguousarray(padded.transpose(2, 0, 1)[None]))
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
        RGB uint8 (height, width, 3); factor of the resize; left, top, width, height of the image in it.
    """
    h, w = image.shape[:2]
    scale = min(size[0] / w, size[1] / h)
    width, height = int(w * scale), int(h * scale)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    padded = np.broadcast_to(PAD, (size[1], size[0], 3)).copy()
    padded[top : top + height, left : left + width] = cv2.resize(image, (width, height))
    return padded, scale, (left, top, width, height)


class HubNetwork:
    """Metric3D's own torch code, as torch.hub loads it; in float32, as it is published (float16 overflows in it).

    Args:
        model: with `inference({"input": tensor})` -> depth, confidence, more.
    """

    def __init__(self, model: Any, device: Any) -> None:
        self.model, self.device = model.to(device).eval(), device

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        import torch

        normal = (image.astype(np.float32) - MEAN[:, None, None]) / STD[:, None, None]
        with torch.inference_mode():
            depth, confidence, _ = self.model.inference({"input": torch.from_numpy(normal).to(self.device)})
        raw = None if confidence is None else confidence.float().reshape(image.shape[2:]).cpu().numpy()
        return depth.float().reshape(image.shape[2:]).cpu().numpy(), raw


class OnnxNetwork:
    """An ONNX file of Metric3D, of its own export or of the hub's: takes colours 0..255 and normalises them itself."""

    def __init__(self, path: Path, device: Any) -> None:
        ort = need("onnxruntime", "onnx")
        wanted = ["CUDAExecutionProvider"] if device.type == "cuda" else []
        providers = [p for p in wanted if p in ort.get_available_providers()] + ["CPUExecutionProvider"]
        try:
            self.session = ort.InferenceSession(str(path), providers=providers)
        except Exception as error:  # onnxruntime's own, of many kinds
            raise CorruptInput(f"{path}: cannot be loaded ({str(error).splitlines()[0]})") from error
        inputs = self.session.get_inputs()
        types: dict[str, type] = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
        if len(inputs) != 1 or inputs[0].type not in types:
            has = ", ".join(f"{each.name} {each.type}" for each in inputs)
            raise InvalidInput(f"{path}: Metric3D has one input of {', '.join(types)}; this network has {has}")
        self.name, self.dtype, shape = inputs[0].name, types[inputs[0].type], inputs[0].shape
        self.output = _depth_output([each.name for each in self.session.get_outputs()], path)
        fixed = len(shape) == 4 and all(isinstance(n, int) for n in shape[2:])
        self.input_size: tuple[int, int] = (shape[3], shape[2]) if fixed else INPUT_SIZE

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        depth = self.session.run([self.output], {self.name: image.astype(self.dtype)})[0]
        return depth.reshape(depth.shape[-2:]).astype(np.float32), None


def _depth_output(names: list[str], path: Path) -> str:
    """The output that is the depth: exports put normals and confidences beside it, in any order."""
    known = [name for name in ("predicted_depth", "pred_depth", "depth") if name in names]
    if known or len(names) == 1:
        return (known or names)[0]
    raise InvalidInput(
        f"{path}: none of its outputs ({', '.join(names)}) is named predicted_depth, pred_depth or depth"
    )


def lacking(weights: Path | None) -> list[str]:
    """List what is missing for `load_metric3d`; nothing is loaded."""
    if _in_hub_cache() if weights is None else _onnx_files(weights):
        return []
    if (
        weights is not None
        and any(weights.glob("metric_depth_vit_*.pth"))
        and (weights / "metric3d/hubconf.py").is_file()
    ):
        return []
    return [
        f"no Metric3D in {weights or 'the hub cache'}; get it with: hf download {HUB_NAMES[0]} --local-dir "
        "WEIGHTS/metric3d-vit-large (docs/teachers.md has the sizes), or put metric3d*.onnx, or both "
        "metric3d/hubconf.py (the repository YvanYin/Metric3D) and metric_depth_vit_small|large|giant2*.pth, there"
    ]


def load_metric3d(weights: Path | None = None, device: str | None = None) -> Metric3D:
    """An ONNX file, else Metric3D's own code in `<weights>/metric3d` with `<weights>/metric_depth_vit_*.pth`.

    Args:
        weights: folder with `metric3d*.onnx`, or with a folder as the hub gives it (`onnx/model.onnx`, `config.json` of
            type metric3d), or that folder itself; None: the hub's cache.

    Raises:
        MissingInput, CorruptInput, InvalidInput, MissingPackage: naming what is absent, broken or does not fit.
    """
    target = pick_device(device)
    files = _in_hub_cache() if weights is None else _onnx_files(weights)
    if len(files) > 1:
        raise InvalidInput(
            f"{weights}: holds {len(files)} Metric3D networks ({', '.join(map(str, files))}), one is needed"
        )
    if files:
        network = OnnxNetwork(files[0], target)
        name = files[0].parent.parent.name if files[0].name == "model.onnx" and weights is not None else files[0].name
        return Metric3D(network, f"{name} {file_digest(files[0], *_external_data(files[0]))}", network.input_size)
    if absent := lacking(weights):
        raise MissingInput(absent[0])
    assert weights is not None
    checkpoints = sorted(weights.glob("metric_depth_vit_*.pth"))
    if target.type != "cuda":
        raise InvalidInput(
            f"{weights / 'metric3d'}: Metric3D's own code makes its tensors on CUDA and cannot run on '{target}'; "
            f"the ONNX files can: hf download {HUB_NAMES[0]} --local-dir WEIGHTS/metric3d-vit-large"
        )
    model = load_hub(weights / "metric3d", checkpoints[0])
    return Metric3D(HubNetwork(model, target), weights_digest(model))


def _onnx_files(weights: Path) -> list[Path]:
    hub = [path for path in (weights / "onnx/model.onnx", *weights.glob("*/onnx/model.onnx")) if path.is_file()]
    of_metric3d = [path for path in hub if "metric3d" in (_text(path.parent.parent / "config.json") or path.parts[-3])]
    return sorted({*weights.glob("metric3d*.onnx"), *of_metric3d})


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def _in_hub_cache() -> list[Path]:
    """The first of `HUB_NAMES` that was downloaded."""
    hub = need("huggingface_hub", "teachers")
    found = [hub.try_to_load_from_cache(name, "onnx/model.onnx") for name in HUB_NAMES]
    return [Path(path) for path in found if isinstance(path, str)][:1]


def _external_data(path: Path) -> list[Path]:
    """Files beside an ONNX file that its tensors lie in."""
    onnx = need("onnx", "onnx")
    tensors = onnx.load(str(path), load_external_data=False).graph.initializer
    places = (entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location")
    return [path.parent / place for place in sorted(set(places))]


def load_hub(code: Path, checkpoint: Path) -> Any:
    """The model whose size the checkpoint's name says; only tensors are read from the checkpoint.

    Raises:
        MissingInput: a package that the code needs. CorruptInput: tensors are missing, too many or of another shape;
            only `mask_token`, which inference does not read, may be absent, for the published checkpoints lack it.
    """
    torch = need("torch", "teachers")
    size = checkpoint.stem.split("_")[3]
    try:
        model = torch.hub.load(str(code), f"metric3d_vit_{size}", source="local", pretrain=False)
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)["model_state_dict"]
        missing, unexpected = model.load_state_dict(state, strict=False)
    except ImportError as error:
        raise MissingInput(f"{code}: its code needs a package that is not here ({error})") from error
    except OccError:
        raise
    except Exception as error:  # the repository's code may raise anything
        raise CorruptInput(f"{checkpoint}: cannot be loaded with {code} ({str(error).splitlines()[0]})") from error
    for what, names in (("lacks", [n for n in missing if n != UNUSED]), ("has besides", unexpected)):
        if names:
            raise CorruptInput(f"{checkpoint}: {what} {len(names)} tensors of metric3d_vit_{size}, such as {names[0]}")
    return model
