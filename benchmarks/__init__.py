"""How fast the parts that take the time are: `python -m benchmarks`."""
