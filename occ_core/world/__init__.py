"""A simulated city, rendered into a nuScenes v1.0 data set."""
