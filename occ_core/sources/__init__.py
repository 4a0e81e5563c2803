"""Sources: whatever yields `Frame`s. nuScenes data sets (real and simulated) and ROS 2 bags."""
