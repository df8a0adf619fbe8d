"""What only an author of the shipped models needs."""
