"""Empties a folder without learning the names of what was in it.

The rule: the process that empties a folder is the next run's, and its memory is that run's to look at. So names of files and of
attributes stay in one buffer, where the kernel puts them and takes them from, and which is wiped. Walks by changing into folders: no
depth is too deep, no path too long, no link is followed.
"""

# What is imported here takes time and memory of every run: so neither pathlib nor contextlib.
# ruff: noqa: PTH101, PTH109
# The programs find each other, and private parts of Python, where mypy does not look.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import os

from nanogrid_warm import kernel

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# struct linux_dirent64: two numbers of 8 bytes, its own length, a type, a name that ends with 0.
LENGTH_AT, TYPE_AT, NAME_AT = 16, 18, 19
IS_FOLDER = 4
DOT = ord(".")


def renew(folder: str, *, own: bool) -> None:
    """Remove what is in a folder, and give the folder the time of now. Raises OSError for what cannot be removed.

    `own`: it is the function's user's, who can have changed more of it.
    """
    if own:
        os.chmod(folder, 0o700)
    try:
        file = os.open(folder, FOLDER)
    except FileNotFoundError:
        return
    try:
        if own:
            _clear_attributes(file, folder)
        _empty(file)
        os.utime(file)
    finally:
        os.close(file)


def _empty(top: int) -> None:
    """Remove what is in the folder `top`. The working directory goes along, and comes back to it."""
    depth, entered = 0, False
    while True:
        into, found = _remove_in(top) if not depth else _remove_here()
        if entered and not found:  # there is nothing in it by which it could not be removed from outside
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
    """Remove what is in a folder, up to the first folder with something in it.

    A descriptor of that folder, -1 where all is gone; and whether there was anything.
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
    """Where the entries begin that were read, but for the folder itself and the one above it."""
    data = kernel.BYTES
    found, at = [], 0
    while at < size:
        name = at + NAME_AT
        if data[name] != DOT or (data[name + 1] and (data[name + 1] != DOT or data[name + 2])):
            found.append(at)
        at += data[at + LENGTH_AT] | data[at + LENGTH_AT + 1] << 8
    return found


def _clear_attributes(file: int, folder: str) -> None:
    """Take all extended attributes of a folder away, access lists among them. Raises OSError for what cannot be."""
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
