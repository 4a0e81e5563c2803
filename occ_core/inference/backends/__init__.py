"""What executes the network: torch, onnxruntime, OpenVINO or TensorRT, each imported only where it is used."""
