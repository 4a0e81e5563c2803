"""The version, where every room may read it: the package's own file imports rooms."""

__version__ = "0.1.0"
