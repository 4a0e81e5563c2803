"""The mean of two checkpoints of one network (Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022).

python benchmarks/nano/mean.py runs/upwards/model runs/others_again/model runs/mean

Names without .safetensors. What is fitted after training has to be fitted again (benchmarks/nano/mean.yaml).
"""

import shutil
import sys

from safetensors.torch import load_file, save_file

first, second, out = sys.argv[1:]
a, b = (load_file(f"{name}.safetensors") for name in (first, second))
save_file({k: (a[k] + b[k]) / 2 if b[k].is_floating_point() else b[k] for k in b}, f"{out}.safetensors")
shutil.copy(f"{second}.json", f"{out}.json")
