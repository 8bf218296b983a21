"""Measures NanoGrid beside what it is compared with, on this machine: `python -m benchmarks`, or `make bench`."""
