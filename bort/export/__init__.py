"""Models for other machines: ONNX files, and folders that run without MXNet and without this project."""
