"""Export a checkpoint as a verified ONNX file that contains its own description."""
