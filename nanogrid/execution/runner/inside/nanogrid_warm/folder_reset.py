"""Empties a folder without learning the names of what was in it.

The rule: the process that empties a folder becomes the next run, which can read all of its memory. So names of files and of attributes
stay in one buffer, which the kernel writes and reads and which is wiped. The walk changes the working directory into folders, so no folder
is too deep and no path too long, and it follows no link.
"""

# Every import here costs time and memory in every run: no pathlib, no contextlib.
# ruff: noqa: PTH101, PTH109
# The programs import each other, and private parts of Python, in a way that mypy cannot see.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import os

from nanogrid_warm import kernel

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# struct linux_dirent64: two numbers of 8 bytes, the entry's length, a type, a name that ends with 0.
LENGTH_AT, TYPE_AT, NAME_AT = 16, 18, 19
IS_FOLDER = 4
DOT = ord(".")


def reset(folder: str, *, own: bool) -> None:
    """Remove everything in a folder, and set the folder's times to now. Raises OSError if something cannot be removed.

    `own`: the folder belongs to the function's user, who may have changed its mode, attributes and flags.
    """
    if own:
        os.chmod(folder, 0o700)
    try:
        file = os.open(folder, FOLDER)
    except FileNotFoundError:
        return
    try:
        if own:
            clear_attributes(file, folder)
        _empty(file)
        os.utime(file)
    finally:
        os.close(file)


def _empty(top: int) -> None:
    """Remove everything in the folder `top`. The working directory follows the walk and returns to `top`."""
    depth, entered = 0, False
    while True:
        into, found = _remove_in(top) if not depth else _remove_here()
        if entered and not found:  # the folder is empty and still could not be removed
            raise OSError(f"{os.getcwd()} could not be removed")
        entered = into >= 0
        if entered:
            os.fchdir(into)
            os.close(into)
            depth += 1
        elif depth:
            os.chdir("..")
            depth -= 1
        else:
            return


def _remove_here() -> tuple[int, bool]:
    here = os.open(".", FOLDER)
    try:
        return _remove_in(here)
    finally:
        os.close(here)


def _remove_in(here: int) -> tuple[int, bool]:
    """Remove everything in a folder, up to the first folder that is not empty.

    Returns a descriptor of that folder, -1 if everything is removed; and whether there was anything.
    """
    found = False
    removed = True
    while removed:  # until a whole pass finds nothing
        removed = False
        os.lseek(here, 0, os.SEEK_SET)
        while size := kernel.read_folder(here):
            into = -1
            for at in _entries(size):
                removed = found = True
                if kernel.unlink(here, at + NAME_AT, folder=kernel.BYTES[at + TYPE_AT] == IS_FOLDER):
                    continue
                into = kernel.open_folder(here, at + NAME_AT, FOLDER)
                if into < 0:
                    raise OSError(f"{kernel.text_at(at + NAME_AT)} in {os.getcwd()} could not be removed")
                break
            kernel.wipe(size)
            if into >= 0:
                return into, found
    return -1, found


def _entries(size: int) -> list[int]:
    """Return the positions of the entries in the buffer, except the folder itself and its parent."""
    data = kernel.BYTES
    found, at = [], 0
    while at < size:
        name = at + NAME_AT
        if data[name] != DOT or (data[name + 1] and (data[name + 1] != DOT or data[name + 2])):
            found.append(at)
        at += data[at + LENGTH_AT] | data[at + LENGTH_AT + 1] << 8
    return found


def clear_attributes(file: int, folder: str) -> None:
    """Remove all extended attributes of a folder, including access lists. Raises OSError if one cannot be removed."""
    while size := kernel.list_attributes(file):
        at = 0
        while at < size:
            if not kernel.remove_attribute(file, at):
                raise OSError(f"the attribute {kernel.text_at(at)} of {folder} could not be removed")
            while kernel.BYTES[at]:
                at += 1
            at += 1
        kernel.wipe(size)
    kernel.clear_flags(file)
