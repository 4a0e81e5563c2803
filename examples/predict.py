"""Occupancy of every frame of a data set or recording, by the network that ships.

python examples/predict.py DATA        nuScenes layout, ROS 2 bag or SemanticKITTI
"""

import sys

import numpy as np

from occ_core import Predictor, open_source

predictor = Predictor.load("nano")
for frame in open_source(sys.argv[1]):
    answer = predictor.predict_frame(frame)
    classes, cells = np.unique(answer.labels[answer.occupied], return_counts=True)
    found = {answer.taxonomy.names[i]: int(n) for i, n in zip(classes, cells, strict=True)}
    print(frame.token, f"{answer.observed.mean():.0%} of the grid observed; occupied cells:", found)
