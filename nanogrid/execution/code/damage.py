"""What Python's archive readers raise on bad bytes, and how that becomes one error of ours.

The one rule: errors of reading an archive pass through here, errors of writing the result never do; so a full disk is
never taken for a broken archive.
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

# RuntimeError covers RecursionError and what the library says of methods that it lacks, ValueError UnicodeDecodeError, LookupError Key- and IndexError.
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
    """Turn what the standard library says about bad bytes into CodeCorruptError; `what` names the part being read."""
    try:
        yield
    except READ_ERRORS as error:
        raise _damaged(what, error) from error
    except OSError as error:
        # gzip and bz2 report bad data as an OSError without a number; one with a number is this host's own trouble.
        if error.errno is not None:
            raise
        raise _damaged(what, error) from error


def _damaged(what: str, error: Exception) -> CodeCorruptError:
    said = str(error) or type(error).__name__
    return CodeCorruptError(f"{what} is damaged or cut off ({said}): pack and upload it again")
