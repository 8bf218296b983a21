"""Turns what Python's archive readers raise for bad bytes into one error of NanoGrid.

The rule: errors of reading an archive pass through here, errors of writing the result never do, so a full disk is never
mistaken for a broken archive.
"""

from __future__ import annotations

import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from nanogrid.errors import CodeCorruptError

# RuntimeError covers RecursionError and unsupported methods, ValueError covers UnicodeDecodeError, LookupError covers KeyError and IndexError.
READ_ERRORS = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    ValueError,
    LookupError,
    OverflowError,
    RuntimeError,
)


@contextmanager
def damage_is_corrupt(what: str) -> Iterator[None]:
    """Turn the standard library's errors about bad bytes into CodeCorruptError; `what` names the part being read."""
    try:
        yield
    except READ_ERRORS as error:
        raise _damaged(what, error) from error
    except OSError as error:
        # gzip and bz2 report bad data as an OSError without a number; one with a number is a problem of this host.
        if error.errno is not None:
            raise
        raise _damaged(what, error) from error


def _damaged(what: str, error: Exception) -> CodeCorruptError:
    said = str(error) or type(error).__name__
    return CodeCorruptError(f"{what} is damaged or cut off ({said}): pack and upload it again")
