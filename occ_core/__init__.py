"""Self-taught 3D semantic occupancy for robots with cameras: a plain Python library, free of ROS."""

import os as _os
from pathlib import Path as _Path

from occ_core.numba_cache import provide_numba_cache as _provide_numba_cache

__version__ = "0.1.0"

_provide_numba_cache(_Path(__file__).parent, _os.environ)
