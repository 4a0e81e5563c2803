"""The one family of errors that this library raises for bad input; each message names the value and the limit."""

from __future__ import annotations


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


def need(module: str, extra: str):
    """Import `module` or say which extra brings it.

    Raises:
        MissingPackage: if the module cannot be imported.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackage(
            f"this needs the Python package '{module}' ({error}); install it with: pip install 'occ_ros[{extra}]'"
        ) from error
