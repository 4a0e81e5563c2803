"""The limits of what files, bags and messages may ask for; they are checked before memory is taken, and named in
errors.

Each bound is far above what real robots and data sets have, and far below what takes a machine down.
"""

from __future__ import annotations

MAX_SIDE_PX = 16384
"""Side of an image."""
MAX_PIXELS = 1 << 25
"""Of an image, from its header: 8192 x 4096, 96 MiB as RGB."""
MAX_DEFLATION = 1032
"""Bytes that one byte of a PNG can unpack to, by deflate's own limit."""
MAX_JPEG_PX_PER_BYTE = 512
"""Pixels that one byte of a JPEG can hold: a block of 8 x 8 takes a bit at least."""
MAX_JPEG_SCANS = 100
"""Of a JPEG, its thumbnail's included. A progressive one has about ten; each costs a pass over all its pixels."""
MAX_CAMERAS = 64
"""Of a rig."""
MAX_COEFFICIENTS = 14
"""Of a distortion model: OpenCV's longest."""
MAX_CALIBRATION = 1e6
"""Absolute value of an entry of K and of a distortion coefficient; beyond it rays are no longer finite numbers."""
MIN_FOCAL_PX = 1e-3
MAX_SWEEP_POINTS = 1 << 20
"""Of a LiDAR sweep: four times what the densest spinning ones have."""
MAX_SWEEP_BYTES = 1 << 25
"""Of a LiDAR sweep's message: 32 a point."""
MAX_RETURN_M = 10_000.0
"""Of a LiDAR return along an axis, from the sensor; farther ones are none."""
MAX_NAME = 256
"""Characters of a frame's name in a message."""
MAX_CELLS = 1 << 28
"""Of a voxel grid."""
MAX_MODEL_CELLS = 1 << 24
"""Of the grid that a network answers in: 26 times Occ3D's."""
MAX_JSON_BYTES = 1 << 24
"""Of a JSON file or text; as Python objects it takes up to twenty times as much."""
MAX_HEADER_BYTES = 1 << 24
"""Of the header of a safetensors file."""
MAX_ARRAYS = 64
"""In an npz file."""
MAX_METADATA_BYTES = 1 << 22
"""Of a bag's metadata.yaml."""
MAX_UNPACKED_BYTES = 1 << 28
"""Of one compressed chunk or message of a bag, unpacked."""


def shown(text: str, length: int = 80) -> str:
    """Make a text from outside fit for an error message: printable, and cut if it is long."""
    cut = text if len(text) <= length else f"{text[:length]}... ({len(text)} characters)"
    return "".join(c if c.isprintable() else "?" for c in cut)
