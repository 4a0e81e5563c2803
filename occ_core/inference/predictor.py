"""From camera images to occupancy: evaluation, command line and ROS node all run a trained model this way."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from occ_core.camera import Camera, Rig
from occ_core.errors import CannotWrite, InvalidInput, need
from occ_core.files import default_cache, require_writable
from occ_core.frame import Frame, LidarSweep
from occ_core.images import REDUCED
from occ_core.lidar_points import COLUMNS, lidar_points, require_finite
from occ_core.models.build import ModelConfig, kind_of
from occ_core.models.easyocc.config import EasyOccConfig
from occ_core.models.easyocc.past import Memory, Past, StampedPose
from occ_core.network_input.pinhole import PINHOLE, ViewImages, expanded, views_of
from occ_core.network_input.preprocess import Preprocess
from occ_core.occupancy import Occupancy
from occ_core.shipped import require_network

log = logging.getLogger(__name__)

BACKENDS = ("auto", "torch", "torch-compiled", "onnxruntime", "openvino", "tensorrt")
FASTEST_FIRST = ("openvino", "onnxruntime")  # on processors, for an exported network; see docs/backends.md


class Session(Protocol):
    """What every backend offers."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def cameras(self) -> int | None:
        """The number of cameras of the rig that it was trained on; None if unknown."""

    def run(self, images: np.ndarray, rig: Rig, missing: frozenset[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels, confidence and observed, uint8 (X, Y, Z), from images uint8 (N, H, W, 3) of the rig's cameras. Images
        of `missing` cameras are black and must not be read."""


class LidarSession(Session, Protocol):
    """What a backend offers that also runs networks with LiDAR; only torch does."""

    def run(
        self, images: np.ndarray, rig: Rig, missing: frozenset[str], lidar: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `Session.run`, with `lidar`, float32 (P, 5), P > 0, as `lidar_points` makes it."""


class MemorySession(Session, Protocol):
    """What a backend offers that also runs networks with memory."""

    def run_after(
        self, images: np.ndarray, rig: Rig, missing: frozenset[str], past: Past
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """As `Session.run`, with a past; the fourth result is the state for the next frame."""


class Predictor:
    """A loaded model. It is not thread-safe, except for `preprocess_one`.

    A model with memory answers frames of one robot, in order: each with what it remembers of those before.

    Attributes:
        config, grid, taxonomy: what the model is and what its answers mean.
        moving_rig: calibration is an input like images, so cameras may be given where they were at their own stamps.
        lidar: what it is to be given of a LiDAR; None: nothing.
        memory: what it remembers, and whether that was of use; None: each frame is answered alone.
    """

    def __init__(self, session: Session):
        self.session = session
        self.config = session.config
        self.grid, self.taxonomy = self.config.grid, self.config.classes
        self.moving_rig = not self.config.by_table
        self.lidar = self.config.lidar_input
        self.memory: Memory | None = None
        if self.config.remembers:
            self.memory = Memory(cast(EasyOccConfig, self.config))
        self._preprocess = Preprocess(self.config.input_width, self.config.input_height)
        self._stack = np.zeros((0, self.config.input_height, self.config.input_width, 3), dtype=np.uint8)

    @staticmethod
    def load(path: Path | str, backend: str = "auto", threads: int = 2) -> Predictor:
        """Load `.safetensors` (with its json beside it), `.onnx` of any precision, or `.engine` of TensorRT.

        Args:
            path: of the file; or `nano`, the checkpoint that ships.
            backend: one of BACKENDS. auto: `.engine` runs in TensorRT; `.onnx` in the fastest runtime that is
                installed, openvino before onnxruntime; `.safetensors` likewise on an export kept in the user's cache
                if the packages are there, the kind of network can be exported and the cache can be written, else in
                torch.
            threads: of the CPU, for the network.

        Raises:
            MissingInput, CorruptInput, InvalidInput, MissingPackage.
        """
        if backend not in BACKENDS:
            raise InvalidInput(f"backend '{backend}' is not one of {', '.join(BACKENDS)}")
        return Predictor(_session(require_network(path), backend, threads))

    def prepare(self, rig: Rig) -> None:
        """Run once, so that the first real answer is not late: this builds and keeps the tables, which takes about a
        second."""
        blanks = {c.name: self.preprocess_one(np.zeros((c.size[1], c.size[0], 3), dtype=np.uint8), c) for c in rig}
        cloud = None if self.lidar is None else np.array([[10, 0, 0, 0, 0]], dtype=np.float32)
        if self.memory is None:
            self.predict_preprocessed(blanks, rig, cloud)
        else:  # nothing is to be remembered of it
            stack, past = self.images_of(cast(dict[str, np.ndarray], blanks), rig), self.memory.empty
            cast(MemorySession, self.session).run_after(stack, rig, frozenset(), past)

    def preprocess_one(self, image: np.ndarray, camera: Camera) -> np.ndarray | ViewImages:
        """Make the network's input, uint8 (H, W, 3), from an RGB image uint8 (h, w, 3) of the camera's size. For a
        camera network and a lens that is not a pinhole, it makes one for each pinhole view.

        It may also be a 2, 4 or 8 times smaller version, as `decode_compressed` makes with `useful_size`.
        """
        w, h = camera.size
        if image.shape[:2] not in [(-(-h // times), -(-w // times)) for times in (1, *REDUCED)]:
            raise InvalidInput(
                f"image of '{camera.name}' is {image.shape[1]} x {image.shape[0]} px, its calibration says {w} x {h}"
            )
        if not self.moving_rig or camera.distortion_model in PINHOLE:
            return self._preprocess.image(image, camera.size)
        views = views_of(camera, (self._preprocess.width, self._preprocess.height))
        return ViewImages(np.stack([self._preprocess.image(view.image(image)) for view in views]), views)

    def useful_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The (width, height) below which a smaller version of an image of `size` would lose detail.

        Twice what it is scaled to: from there the answer is the whole image's in 99.7 % of the cells (real frames of
        1600 x 900 px), from just above that size in 98.6 %.
        """
        width, height = self._preprocess.plan(size)[0]
        return 2 * width, 2 * height

    def predict(
        self,
        images: dict[str, np.ndarray],
        rig: Rig,
        lidar: np.ndarray | None = None,
        pose: StampedPose | None = None,
    ) -> Occupancy:
        """Predict occupancy from RGB images uint8 (h, w, 3) by camera name; missing cameras are left out of the dict.

        Args:
            lidar: for a model with LiDAR, float32 (P, 5) as of `lidar_points`.
            pose: for a model with memory, as of `predict_preprocessed`.
        """
        ready = {name: self.preprocess_one(image, rig[name]) for name, image in images.items()}
        return self.predict_preprocessed(ready, rig, lidar, pose)

    def predict_frame(self, frame: Frame, sweeps: Sequence[LidarSweep] | None = None) -> Occupancy:
        """Predict occupancy of a source's frame, which knows where each camera was at its own stamp.

        Camera networks are told; EasyOcc nano is not, for a table for every frame would cost more than the network.

        Args:
            sweeps: for a model with LiDAR, what the source's `sweeps_before` gives. None: the frame's own.
        """
        cloud = None
        if self.lidar is not None:  # else its file is not even read
            if sweeps is None:
                sweeps = [] if frame.lidar is None else [frame.lidar]
            if sweeps:
                cloud = lidar_points(sweeps, frame.stamp_ns, frame.world_from_ego, self.lidar.points)
        rig = frame.rig_at_stamps if self.moving_rig else frame.rig
        ready = {name: self.preprocess_one(image, frame.rig[name]) for name, image in frame.images.items()}
        return self.predict_preprocessed(ready, rig, cloud, StampedPose.of(frame) if self.memory else None)

    def predict_preprocessed(
        self,
        images: Mapping[str, np.ndarray | ViewImages],
        rig: Rig,
        lidar: np.ndarray | None = None,
        pose: StampedPose | None = None,
    ) -> Occupancy:
        """Predict occupancy from results of `preprocess_one`; cells that are probably hidden are not observed.

        Args:
            lidar: for a model with LiDAR, float32 (P, 5) as of `lidar_points`.
            pose: for a model with memory: when, and where the robot was; its `rig` need not be told. None: nobody
                knows, so nothing is remembered, and the answer is of these images alone.

        Raises:
            InvalidInput: no image, or one that does not fit; no LiDAR point where the model cannot do without, a cloud
                of another shape, or one for a model of cameras.
        """
        has_points = self._require_lidar(lidar)
        inputs, rig = expanded(images, rig) if self.moving_rig else (cast(Mapping[str, np.ndarray], images), rig)
        stack = self.images_of(inputs, rig)
        missing = frozenset(rig.names) - frozenset(inputs)
        if self.memory is not None:
            return self._remembering(self.memory, stack, rig, missing, pose)
        if has_points:
            answer = cast(LidarSession, self.session).run(stack, rig, missing, lidar)
        else:
            answer = self.session.run(stack, rig, missing)
        return self._occupancy(*answer)

    def _remembering(
        self, memory: Memory, stack: np.ndarray, rig: Rig, missing: frozenset[str], pose: StampedPose | None
    ) -> Occupancy:
        here = None if pose is None else pose._replace(rig=rig.fingerprint)
        past = memory.before(here)
        *answer, state = cast(MemorySession, self.session).run_after(stack, rig, missing, past)
        occupancy = self._occupancy(*answer)
        memory.keep(state, here)
        return occupancy

    def _occupancy(self, labels: np.ndarray, confidence: np.ndarray, observed: np.ndarray) -> Occupancy:
        return Occupancy(self.grid, self.taxonomy, labels, observed.astype(bool), confidence.astype(np.float32) / 255)

    def images_of(self, images: Mapping[str, np.ndarray], rig: Rig) -> np.ndarray:
        """The images of the rig's cameras, uint8 (N, H, W, 3), black where one is missing; the next call overwrites
        them.

        Raises:
            InvalidInput: no image, or one that does not fit.
        """
        shape = self.config.input_height, self.config.input_width, 3
        for name, image in images.items():
            if name not in rig.names:
                raise InvalidInput(f"image of '{name}', which the rig does not have: {', '.join(rig.names)}")
            if image.shape != shape or image.dtype != np.uint8:
                raise InvalidInput(f"input of '{name}' must be uint8 {shape}, got {image.dtype} {image.shape}")
        if not images:
            raise InvalidInput("no image at all: at least one camera is needed")
        if len(self._stack) != len(rig):
            self._stack = np.zeros((len(rig), *shape), dtype=np.uint8)
        for i, name in enumerate(rig.names):
            self._stack[i] = images.get(name, 0)
        return self._stack

    def caution(self, rig: Rig) -> str:
        """What a user should know before trusting answers for a rig; empty if there is nothing.

        Networks answer rigs of any number of cameras: one that a rig lacks is to them as one without an image.
        """
        trained = self.session.cameras
        if trained is None or len(rig) >= trained:
            return ""
        return (
            f"the model was trained on {trained} cameras, this rig has {len(rig)} ({', '.join(rig.names)}): what only "
            "others would see is not observed"
        )

    def _require_lidar(self, lidar: np.ndarray | None) -> bool:
        """Return whether there is a point; refuse clouds that the model cannot take."""
        name = f"model '{self.config.name}'"
        if self.lidar is None:
            if lidar is not None:
                raise InvalidInput(f"{name} takes no LiDAR, got a cloud of {len(lidar)} points")
            return False
        if lidar is not None:
            if lidar.ndim != 2 or lidar.shape[1] != len(COLUMNS) or lidar.dtype != np.float32:
                columns = ", ".join(COLUMNS)
                raise InvalidInput(f"LiDAR cloud must be float32 (P, 5) of {columns}, got {lidar.dtype} {lidar.shape}")
            require_finite(lidar, "LiDAR cloud")
            if len(lidar):
                return True
        if not self.lidar.dropout:
            got = "no LiDAR cloud" if lidar is None else "a LiDAR cloud of 0 points"
            raise InvalidInput(f"{name} needs LiDAR, got {got}; one trained with lidar.dropout > 0 can do without")
        return False


def _session(path: Path, backend: str, threads: int) -> Session:
    exported, engine = path.suffix == ".onnx", path.suffix == ".engine"
    if backend == "tensorrt" or engine:
        if backend not in ("tensorrt", "auto") or not (exported or engine):
            wanted = "with backend tensorrt" if engine else "as .onnx or .engine: run `occ export`, `occ engine build`"
            raise InvalidInput(f"{path}: runs {wanted}, not {backend if engine else 'as a checkpoint'}")
        from occ_core.inference.backends.tensorrt_backend import TensorRtSession

        return TensorRtSession(path)
    if backend.startswith("torch"):
        if exported:
            raise InvalidInput(f"{path}: an .onnx model runs with backend openvino or onnxruntime, not {backend}")
        return _torch_session(path, backend, threads)
    if backend == "auto":
        installed = [name for name in FASTEST_FIRST if importlib.util.find_spec(name)]
        if not exported and not (installed and _can_export(path)):
            return _torch_session(path, "torch", threads)
        backend = installed[0] if installed else FASTEST_FIRST[-1]
        if not exported:
            try:
                return _exported_session(cached_export(path), backend, threads)
            except CannotWrite as error:
                log.warning(
                    "an export that runs faster is not kept, the model runs in torch: %s; XDG_CACHE_HOME names another "
                    "folder, `occ export` writes a file to run instead",
                    error,
                )
                return _torch_session(path, "torch", threads)
    return _exported_session(path if exported else cached_export(path), backend, threads)


def _can_export(checkpoint: Path) -> bool:
    from occ_core.inference.export import EXPORTED
    from occ_core.models.checkpoint import load_record

    there = all(importlib.util.find_spec(name) for name in ("torch", "onnx"))
    return there and kind_of(load_record(checkpoint)["model"]) == EXPORTED


def _torch_session(path: Path, backend: str, threads: int) -> Session:
    need("torch", "torch")
    from occ_core.inference.backends.torch_backend import TorchSession

    return TorchSession(path, threads, compiled=backend == "torch-compiled")


def _exported_session(path: Path, backend: str, threads: int) -> Session:
    if backend == "openvino":
        from occ_core.inference.backends.openvino_backend import OpenVinoSession

        return OpenVinoSession(path, threads)
    from occ_core.inference.backends.onnxruntime_backend import OnnxSession

    return OnnxSession(path, threads)


def cached_export(checkpoint: Path) -> Path:
    """Export a checkpoint to ONNX in the user's cache on first use; the file's name depends on weights, json and code.

    Raises:
        CannotWrite: there is none yet, and the cache cannot be written.
    """
    from occ_core.inference.export import export_onnx
    from occ_core.models.checkpoint import load_record

    load_record(checkpoint)  # refuses what is no checkpoint before anything is hashed or traced
    digest = hashlib.sha256(checkpoint.read_bytes())
    digest.update(checkpoint.with_suffix(".json").read_bytes())
    package = Path(__file__).parents[1]
    rooms = ("models", "network_input", "inference")
    for code in sorted(path for room in rooms for path in (package / room).rglob("*.py")):
        digest.update(code.read_bytes())
    out = default_cache() / "onnx" / f"{digest.hexdigest()[:16]}.onnx"
    if out.is_file():
        return out
    require_writable(out.parent)  # before a minute of tracing
    return export_onnx(checkpoint, out)
