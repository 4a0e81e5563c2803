"""Self-taught 3D semantic occupancy for robots with cameras: a plain Python library, free of ROS."""

__version__ = "0.1.0"
