"""The mean of two checkpoints of one network (Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022).

python benchmarks/nano/mean.py runs/upwards/model runs/others_again/model runs/mean
python benchmarks/nano/mean.py runs/foot_cells/model runs/foot_mean_cells/model runs/foot_mean_whole --keep-images

Names without .safetensors. With `--keep-images` the image network stays as the second one has it. What is fitted after
training has to be fitted again (benchmarks/nano/mean.yaml).
"""

import argparse
import shutil

from safetensors.torch import load_file, save_file

IMAGE_NETWORK = ("backbone.", "neck.", "to_hazard.", "to_ground.", "foot.", "to_pixel_class.")

parser = argparse.ArgumentParser()
for name in ("first", "second", "out"):
    parser.add_argument(name)
parser.add_argument("--keep-images", action="store_true")
given = parser.parse_args()
a, b = (load_file(f"{name}.safetensors") for name in (given.first, given.second))
kept = IMAGE_NETWORK if given.keep_images else ()
mean = {k: b[k] if k.startswith(kept) or not b[k].is_floating_point() else (a[k] + b[k]) / 2 for k in b}
save_file(mean, f"{given.out}.safetensors")
shutil.copy(f"{given.second}.json", f"{given.out}.json")
