"""Measures NanoGrid and its baselines on this machine: `python -m benchmarks`, or `make bench`."""
