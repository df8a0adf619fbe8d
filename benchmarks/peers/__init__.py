"""Other serving systems with the same model file, and the code to measure them beside this service.

Each `*_server.py` runs in its own environment and imports only its system, numpy, onnxruntime, Pillow and `common`. The
other modules run in the environment of the benchmark.
"""
