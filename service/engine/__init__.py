"""The engine as a process of its own: rows in shared memory, everything rare over a socket."""
