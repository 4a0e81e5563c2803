"""`occ adapt`: a robot's own bags become a trained, judged network that runs. `line.py` has the stages in a row."""
