"""Occupancy from one image of one's own camera: calibration is an input, so any rig will do.

python examples/own_rig.py front.jpg
"""

import sys

import cv2
import numpy as np

from occ_core import Camera, Predictor, Rig

image = cv2.cvtColor(cv2.imread(sys.argv[1]), cv2.COLOR_BGR2RGB)
height, width = image.shape[:2]
focal_px = 0.8 * width  # of your calibration
intrinsics = np.array([[focal_px, 0, width / 2 - 0.5], [0, focal_px, height / 2 - 0.5], [0, 0, 1]])
ego_from_cam = np.array([[0.0, 0, 1, 1.7], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]])  # looks ahead, 1.5 m high
rig = Rig((Camera("front", intrinsics, (width, height), ego_from_cam),))

answer = Predictor.load("nano", backend="torch").predict({"front": image}, rig)
centers_m = answer.grid.centers_m()[answer.occupied]  # (N, 3): x forward, y left, z up
nearest_m = np.linalg.norm(centers_m[:, :2], axis=1).min(initial=np.inf)
print(f"{len(centers_m)} occupied cells; the nearest {nearest_m:.1f} m away")
