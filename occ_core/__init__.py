"""Self-taught 3D semantic occupancy for robots with cameras: a plain Python library, free of ROS.

What most programs need is here, imported when it is first asked for:

    VoxelGrid, Taxonomy, Camera, Rig, Frame, Occupancy    the nouns
    open_source(path)                                     frames of a data set or recording
    make_labels(data, out)                                3D pseudo-labels of it
    train("easyocc_nano", data=..., out=...)              a checkpoint
    Predictor.load("nano")                                occupancy from images
    evaluate(predictions, truths)                         the scores
"""

import importlib as _importlib
import os as _os
from pathlib import Path as _Path

from occ_core.numba_cache import provide_numba_cache as _provide_numba_cache
from occ_core.version import __version__ as __version__

TYPE_CHECKING = False  # as typing's, whose import would double the time of this one
if TYPE_CHECKING:
    from occ_core.camera import Camera, Rig
    from occ_core.evaluation.evaluate import evaluate
    from occ_core.frame import Frame
    from occ_core.grid import VoxelGrid
    from occ_core.inference.predictor import Predictor
    from occ_core.labels.make import make_labels
    from occ_core.occupancy import Occupancy
    from occ_core.sources.open import open_source
    from occ_core.taxonomy import Taxonomy
    from occ_core.training.run import train

__all__ = [
    "Camera",
    "Frame",
    "Occupancy",
    "Predictor",
    "Rig",
    "Taxonomy",
    "VoxelGrid",
    "evaluate",
    "make_labels",
    "open_source",
    "train",
]
_HOMES = {
    "Camera": "camera",
    "Frame": "frame",
    "Occupancy": "occupancy",
    "Predictor": "inference.predictor",
    "Rig": "camera",
    "Taxonomy": "taxonomy",
    "VoxelGrid": "grid",
    "evaluate": "evaluation.evaluate",
    "make_labels": "labels.make",
    "open_source": "sources.open",
    "train": "training.run",
}

_provide_numba_cache(_Path(__file__).parent, _os.environ)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'occ_core' has no attribute '{name}'")
    from occ_core.errors import naming_extras

    with naming_extras():
        value = getattr(_importlib.import_module(f"occ_core.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
