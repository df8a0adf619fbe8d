"""Datasets, noise and corruptions."""
