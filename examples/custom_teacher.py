"""Labels by one's own teacher, who says: flat ground, all road. Usage: python examples/custom_teacher.py DATA LABELS"""

import sys

import numpy as np

from occ_core import make_labels
from occ_core.taxonomy import OCC3D
from occ_core.teachers.base import ClassMap, DepthMap, Teachers


class FlatGround:
    version = "flat-ground-1"  # to be changed with whatever changes the maps

    def depth(self, frame):
        return {c.name: DepthMap(ground_m(c), np.ones(c.size[::-1], np.float32)) for c in frame.rig}

    def classes(self, frame):
        road, sky = OCC3D.id_of("driveable_surface"), OCC3D.free_id
        maps = {c.name: np.where(np.isfinite(ground_m(c)), road, sky).astype(np.uint8) for c in frame.rig}
        return {name: ClassMap(ids, np.ones(ids.shape, np.float32)) for name, ids in maps.items()}


def ground_m(camera):  # depth of the plane z = 0 of the ego frame, (h, w); inf above the horizon and beyond 60 m
    down = -(camera.rays(camera.pixel_grid()) @ camera.ego_from_cam[2, :3]).reshape(camera.size[::-1])
    depth_m = camera.ego_from_cam[2, 3] / np.maximum(down, 1e-6)
    return np.where(depth_m < 60, depth_m, np.inf).astype(np.float32)


print(make_labels(sys.argv[1], sys.argv[2], "single", Teachers(FlatGround(), FlatGround())))
