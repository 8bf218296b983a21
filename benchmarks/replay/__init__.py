"""A day of many functions, replayed through the tuner in simulated time: `make replay`."""
