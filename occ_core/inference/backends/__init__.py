"""What executes the network: torch or onnxruntime, each imported only where it is used."""
