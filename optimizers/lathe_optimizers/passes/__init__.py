"""One module per pass. Only here are torch, onnx and onnxruntime imported."""
