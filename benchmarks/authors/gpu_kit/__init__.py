"""The GPU kit: all that the first hour on a GPU needs, for a machine with Python and NVIDIA's
driver only.
"""
