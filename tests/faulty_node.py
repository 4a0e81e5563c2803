"""The occupancy node, the whole of it, with a backend that fails on demand: a file says how (see `FAILURES`)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from occ_core.inference.predictor import Predictor
from occ_ros.occupancy_node import main

ORDER = Path(os.environ["OCC_BACKEND_ORDER"])
FAILURES = {"raise": RuntimeError("the accelerator has left the bus"), "memory": MemoryError("no 4 GiB for a tensor")}


class FailingSession:
    def __init__(self, session):
        self._session = session
        self.config, self.cameras = session.config, session.cameras

    def run(self, images, rig, missing):
        answer = self._session.run(images, rig, missing)
        order = ORDER.read_text() if ORDER.is_file() else ""
        if order in FAILURES:
            raise FAILURES[order]
        labels, confidence, observed = answer
        return (labels, np.full(labels.shape, np.nan, dtype=np.float32), observed) if order == "nan" else answer


load = Predictor.load
Predictor.load = staticmethod(lambda *about, **how: Predictor(FailingSession(load(*about, **how).session)))

if __name__ == "__main__":
    main()
