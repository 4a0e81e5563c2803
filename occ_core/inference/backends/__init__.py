"""The backends that execute a network: torch, onnxruntime, OpenVINO and TensorRT. Each is imported only where it is
used."""
