"""From a frame to the input of a network: resized images, pinhole views, calibration, tensors, projection."""
