"""What an IGN request is, free of HTTP, ONNX and image files: numpy and the standard library
only.
"""
