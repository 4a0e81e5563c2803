"""Voxel labels of a folder without a human: teachers look at every frame, time makes what they say dense.

python examples/make_labels.py DATA LABELS [TEACHER]        DATA in nuScenes layout; teachers: docs/teachers.md
"""

import sys

from occ_core import make_labels

teacher = sys.argv[3] if len(sys.argv) > 3 else "grounded-sam+metric3d"
for scene in make_labels(sys.argv[1], sys.argv[2], recipe="best", teacher=teacher):
    print(f"{scene.scene}: {scene.written} labels", scene.error, *scene.skipped, sep="\n  ")
