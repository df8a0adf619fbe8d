"""The Open Inference Protocol (KServe v2): the `/v2` endpoints."""
