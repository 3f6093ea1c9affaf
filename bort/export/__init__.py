"""Export of a model to ONNX, quantized if asked."""
