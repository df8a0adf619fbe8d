"""Serve Idempotent Generative Networks over HTTP."""
