"""What only an author of the shipped models needs, here and in `benchmarks.scans_ocr`: each is run
by `python -m`.

benchmarks.authors.gpu_kit.run    tests and benchmarks on a machine with a GPU: `make gpu`, `make
gpu-kit` benchmarks.scans_ocr              what tesseract reads from damaged pages
"""
