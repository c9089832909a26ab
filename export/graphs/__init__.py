"""The graphs that are exported: the networks in PyTorch, image preparation and cropping in ONNX Script."""
