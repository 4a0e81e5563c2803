"""EasyOcc: images to voxels by plain convolutions and one gather through a per-rig table."""
