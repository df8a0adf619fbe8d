"""What benchmarks share: options, processes, tables, machine."""
