"""How good an exported model is."""
