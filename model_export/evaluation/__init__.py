"""Measure the quality of an exported model."""
