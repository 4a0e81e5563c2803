"""A robot's own bags become a trained, judged network that runs: `occ adapt`. `line.py` is the line, the rest its stages."""
