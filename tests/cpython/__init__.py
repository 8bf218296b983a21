"""CPython's own test suite as a judge: each of its modules as a warm run of NanoGrid and in plain docker. `make test-cpython`."""
