"""What turns a frame into what a network is given: resized images, pinhole views, calibration, tensors, projection."""
