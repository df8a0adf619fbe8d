"""Train Idempotent Generative Networks and export them for serving."""
