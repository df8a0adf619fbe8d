"""Serve Idempotent Generative Networks over HTTP."""

__version__ = "0.1.0"
