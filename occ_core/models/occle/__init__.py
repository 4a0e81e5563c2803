"""OccLE: images and LiDAR to voxels, from few voxel labels."""
