"""One HTTP load generator for this service and its peers."""
