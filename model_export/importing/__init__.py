"""Import networks that were trained elsewhere."""
