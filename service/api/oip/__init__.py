"""The Open Inference Protocol: the `/v2` endpoints."""
