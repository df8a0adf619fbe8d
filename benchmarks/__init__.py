"""Measurements of the service; each prints JSON. Run from the root of the repository."""
