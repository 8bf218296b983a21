#!/bin/bash
# The runtime cpp starts this file: compile, then become the program. /workspace is in memory and may be written.
set -euo pipefail
g++ -O2 -std=c++17 -o primes primes.cpp
exec ./primes
