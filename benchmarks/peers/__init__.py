"""Other serving systems with the same model file, and what it takes to measure them beside this service.

`*_server.py` run in environments of their own and import nothing but their system, numpy, onnxruntime, Pillow and
`alike`; all else runs in the environment of the benchmark.
"""
