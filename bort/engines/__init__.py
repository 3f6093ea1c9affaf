"""Forward passes without gradients: MXNet's compiled graph and int8, ONNX Runtime, and what they need."""
