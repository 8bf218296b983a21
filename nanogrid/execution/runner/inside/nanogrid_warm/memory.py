"""Pages that a run will write to, copied in the spare before the run instead of during it.

The rule: pages are only mapped, never changed, and only pages that the first process already has. A forked child shares all memory until
it writes. Each first write costs a fault and a copy, and a thousand of them take a millisecond. A rehearsal finds the pages that a run
writes to: the kernel reports which ones are no longer shared (`pagemap`, bit 56: exclusively mapped).
"""

# Every import here costs time and memory in every run: no pathlib, no contextlib.
# ruff: noqa: PTH123
# The programs import each other, and private parts of Python, in a way that mypy cannot see.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import os

PAGE = os.sysconf("SC_PAGESIZE")
ENTRY_BYTES = 8
PRESENT = 1 << 63
EXCLUSIVE = 1 << 56
REGIONS_LIMIT = 4096


def writable_regions() -> list[tuple[int, int]]:
    """Return (start, end) of this process's own writable memory, in bytes."""
    found = []
    with open("/proc/self/maps", "rb") as maps:
        for line in maps:
            span, modes, *_ = line.split()
            if modes.startswith(b"rw") and modes.endswith(b"p"):
                start, _, end = span.partition(b"-")
                found.append((int(start, 16), int(end, 16)))
    return found[:REGIONS_LIMIT]


def unshared_pages(spans: list[tuple[int, int]]) -> list[list[int]]:
    """Return the pages in `spans` that this process has and does not share with its parent, as (start, bytes) of adjacent pages.

    A shared page between two of them is left out: copying it costs more than another call.
    """
    runs: list[list[int]] = []
    file = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for start, end in spans:
            entries = memoryview(os.pread(file, (end - start) // PAGE * ENTRY_BYTES, start // PAGE * ENTRY_BYTES)).cast(
                "Q"
            )
            for number, entry in enumerate(entries):
                if not (entry & PRESENT and entry & EXCLUSIVE):
                    continue
                address = start + number * PAGE
                if runs and sum(runs[-1]) == address:
                    runs[-1][1] += PAGE
                else:
                    runs.append([address, PAGE])
    finally:
        os.close(file)
    return runs
