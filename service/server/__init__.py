"""uvicorn as this service runs it: sockets, protocol, shutdown, processes."""
