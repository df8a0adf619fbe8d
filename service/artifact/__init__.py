"""What an exported model is: its card, its golden rows, its file names and its pixel range.

`model_export` writes it and `service` reads it; both import this package.
"""
