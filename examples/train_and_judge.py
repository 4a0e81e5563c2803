"""Train a small network on labelled data, and score it on scenes that it has not seen.

python examples/train_and_judge.py DATA OUT [STEPS]        DATA in nuScenes layout, with gts/
"""

import sys
from pathlib import Path

from occ_core import evaluate, open_source, train
from occ_core.inference.predict_set import predict_set

data, out, steps = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1000

unseen = open_source(data).scenes[-1]
checkpoint = train("easyocc_small", data, out, steps=steps, validation_scenes=(unseen,), threads=1)
predict_set(checkpoint, data, out / "predictions", scenes=[unseen])
scores = evaluate(out / "predictions", data / "gts")
print(f"{unseen}: IoU {scores['camera']['iou']:.1f} %, mIoU of 15 classes {scores['camera']['miou_15']:.1f} %")
