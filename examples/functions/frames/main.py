"""Keeps as many MiB in memory as its payload says, as if they were frames of a video."""

import sys

mib = int(sys.stdin.read())
frames = bytearray(mib << 20)
print(f"{len(frames) >> 20} MiB of frames")
