"""The users that a container knows: the image's own users and groups, and the user that functions run as.

The rule: no entry of the image is lost, and the functions' user always has a name, a group, a home that exists and a shell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

USERS = "/etc/passwd"
GROUPS = "/etc/group"
FILES = (USERS, GROUPS)

NAME = "function"
"""The name of the functions' user if the image has none for its number."""

SHELL = "/bin/sh"


def lay_out(folder: Path, image_files: Mapping[str, str], uid: int, home: str) -> None:
    """Write a container's user files into `folder`, under their names, readable for everybody.

    `image_files` are the image's own files by path, without those that it lacks. `uid` is also the group's number.
    """
    texts = {
        USERS: with_user(image_files.get(USERS, ""), uid, home),
        GROUPS: with_group(image_files.get(GROUPS, ""), uid),
    }
    for path, text in texts.items():
        file = folder / Path(path).name
        file.write_text(text, encoding="utf-8", errors="surrogateescape")
        file.chmod(0o444)


def with_user(passwd: str, uid: int, home: str) -> str:
    """The text of /etc/passwd with this user in it. The user keeps the name that the image has for the number."""
    entries = _entries(passwd)
    own = next((entry for entry in entries if len(entry) == 7 and entry[2] == str(uid)), None)
    if own is None:
        own = [_free_name(entries, uid), "x", str(uid), "", "", "", ""]
        entries.append(own)
    own[3:] = [str(uid), own[4], home, SHELL]
    return _text(entries)


def with_group(group: str, gid: int) -> str:
    """The text of /etc/group with this group in it."""
    entries = _entries(group)
    if not any(len(entry) == 4 and entry[2] == str(gid) for entry in entries):
        entries.append([_free_name(entries, gid), "x", str(gid), ""])
    return _text(entries)


def _entries(text: str) -> list[list[str]]:
    return [line.split(":") for line in text.splitlines()]


def _text(entries: Sequence[Sequence[str]]) -> str:
    return "".join(":".join(entry) + "\n" for entry in entries)


def _free_name(entries: Sequence[Sequence[str]], number: int) -> str:
    return f"{NAME}{number}" if any(entry[0] == NAME for entry in entries) else NAME
