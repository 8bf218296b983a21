"""Limits on an archive: unpacked bytes, entries, and the compression ratio.

The rule: limits apply to what actually comes out of the archive, never to what its headers claim.
"""

from __future__ import annotations

from dataclasses import dataclass

from nanogrid.errors import CodeCorruptError
from nanogrid.execution.code.entries import corrupt
from nanogrid.settings import Settings

MIB = 1024 * 1024

RATIO_FREE_BYTES = MIB
"""Up to this unpacked size any compression ratio is accepted: a small text file may shrink a thousandfold."""


@dataclass(frozen=True)
class ArchiveLimits:
    """Limits of one archive."""

    unpacked_bytes: int
    entries: int
    ratio: int

    @classmethod
    def of(cls, settings: Settings) -> ArchiveLimits:
        """The limits of a deployment."""
        return cls(
            unpacked_bytes=settings.unpacked_limit_mb * MIB,
            entries=settings.unpacked_files_limit,
            ratio=settings.compression_ratio_limit,
        )


class Meter:
    """Counts what comes out of one archive and stops at the first limit. Not thread-safe: use one per unpacking."""

    def __init__(self, limits: ArchiveLimits, packed_bytes: int) -> None:
        self.limits = limits
        self.packed_bytes = packed_bytes
        self.unpacked_bytes = 0

    def add_bytes(self, count: int, name: str) -> None:
        """Count bytes that came out while `name` was read. Raises CodeCorruptError at the limit of size or ratio."""
        self.unpacked_bytes += count
        if self.unpacked_bytes > self.limits.unpacked_bytes:
            raise corrupt(
                name,
                f"brings the unpacked size over the limit of {self.limits.unpacked_bytes // MIB} MiB: make it smaller",
            )
        allowed = max(RATIO_FREE_BYTES, self.packed_bytes * self.limits.ratio)
        if self.unpacked_bytes > allowed:
            raise corrupt(
                name,
                f"brings the unpacked size over {self.limits.ratio} times the packed size of {self.packed_bytes} bytes: "
                "archives that are compressed more than that are refused as bombs",
            )

    def check_entries(self, count: int, name: str) -> None:
        """Raise CodeCorruptError if the archive creates more files and folders than allowed."""
        if count > self.limits.entries:
            raise corrupt(
                name,
                f"is one more than the limit of {self.limits.entries} files and folders: leave out what is not needed",
            )

    def directory_too_large(self, allowed_bytes: int) -> CodeCorruptError:
        """The error for headers alone that are larger than `allowed_bytes`."""
        return CodeCorruptError(
            f"the archive's headers take more than {allowed_bytes} bytes, too many for the limit of "
            f"{self.limits.entries} files and folders: leave out what is not needed"
        )
