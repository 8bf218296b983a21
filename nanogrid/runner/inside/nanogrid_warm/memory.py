"""Pages that a run is going to write to, copied for the spare before the run instead of during it; and those that it reads.

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
LARGE = 64 * PAGE
GAP = PAGE
"""Between two spans that are taken at once: copying that much costs no more than another call."""


def regions(*, writable: bool = True) -> list[tuple[int, int]]:
    """(start, end) of this process's own memory that is writable, or of files' that is not, in bytes."""
    found = []
    with open("/proc/self/maps", "rb") as maps:
        for line in maps:
            span, modes, _, _, inode, *_ = line.split()
            if modes.endswith(b"p") and (modes.startswith(b"rw") if writable else modes[1:2] == b"-" and inode != b"0"):
                start, _, end = span.partition(b"-")
                found.append((int(start, 16), int(end, 16)))
    return found[:REGIONS_LIMIT]


def read(spans: list[tuple[int, int]]) -> list[list[int]]:
    """The larger ones of `spans` of which this process has got most pages, as (start, bytes).

    The kernel maps sixteen pages around each one that is read: so what such a span lacks costs less than the faults.
    """
    found = []
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        for start, end in spans:
            if end - start < LARGE:
                continue
            entries = _entries(file.fileno(), start, end)
            if sum(1 for entry in entries if entry & PRESENT) * 2 > len(entries):
                found.append([start, end - start])
    return found


def _entries(pagemap: int, start: int, end: int) -> memoryview:
    return memoryview(os.pread(pagemap, (end - start) // PAGE * ENTRY_BYTES, start // PAGE * ENTRY_BYTES)).cast("Q")


def written(spans: list[tuple[int, int]]) -> list[list[int]]:
    """The pages in `spans` that this process does not share with its parent, as (start, bytes) of neighbours.

    Few pages between two that it shares are taken for neighbours.
    """
    runs: list[list[int]] = []
    file = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for start, end in spans:
            entries = _entries(file, start, end)
            absent = start
            for number, entry in enumerate(entries):
                address = start + number * PAGE
                if not entry & PRESENT:
                    absent = address + PAGE
                elif entry & EXCLUSIVE:
                    end_of_last = sum(runs[-1]) if runs else 0
                    if max(absent, address - GAP) <= end_of_last:
                        runs[-1][1] = address + PAGE - runs[-1][0]
                    else:
                        runs.append([address, PAGE])
    finally:
        os.close(file)
    return runs
