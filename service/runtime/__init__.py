"""The model on its device: the only package that imports onnxruntime."""
