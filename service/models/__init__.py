"""Which models serve: the directory, the registry of served models, and their instances."""
