"""From checkpoints to what tritonserver is started on: graphs, ONNX files, model configs."""
