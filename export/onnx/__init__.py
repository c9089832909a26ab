"""Write ONNX files, and read which precision they have."""
