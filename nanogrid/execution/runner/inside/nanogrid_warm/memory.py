"""Pages that a run is going to write to, copied for the spare before the run instead of during it.

The rule: a page is taken, never changed, and only where the first process has one already. A forked child shares all
memory until it writes; each first write costs a fault and a copy, a thousand of them a millisecond. Which pages a run writes
to is learned from one: the kernel says which ones it no longer shares (`pagemap`, bit 56: exclusively mapped).
"""

# What is imported here takes time and memory of every run: so neither pathlib nor contextlib.
# ruff: noqa: PTH123
# The programs find each other, and private parts of Python, where mypy does not look.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import os

PAGE = os.sysconf("SC_PAGESIZE")
ENTRY_BYTES = 8
PRESENT = 1 << 63
EXCLUSIVE = 1 << 56
REGIONS_LIMIT = 4096


def regions() -> list[tuple[int, int]]:
    """(start, end) of this process's own writable memory, in bytes."""
    found = []
    with open("/proc/self/maps", "rb") as maps:
        for line in maps:
            span, modes, *_ = line.split()
            if modes.startswith(b"rw") and modes.endswith(b"p"):
                start, _, end = span.partition(b"-")
                found.append((int(start, 16), int(end, 16)))
    return found[:REGIONS_LIMIT]


def written(spans: list[tuple[int, int]]) -> list[list[int]]:
    """The pages in `spans` that this process has and does not share with its parent, as (start, bytes) of neighbours.

    A page between two that is shared is left out: copying it costs more than another call.
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
