"""Training f: network, losses, objective, loop, checkpoints."""
