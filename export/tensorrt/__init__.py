"""Build TensorRT engines, and check ONNX files for what TensorRT does not support."""
