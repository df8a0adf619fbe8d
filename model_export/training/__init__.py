"""Training of f: network, losses, objective, loop and checkpoints."""
