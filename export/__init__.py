"""Turn checkpoints into a model repository for tritonserver: graphs, ONNX files, TensorRT engines, model configs."""
