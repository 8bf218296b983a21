"""The facts that a finished compile depended on, from the list of headers that the compiler wrote.

The rule: if the compiler's list or the text of a source leaves a doubt, `UnclearError` is raised and nothing is kept. Only misses come
here, so this module may import slow modules. Python >= 3.9.
"""

# pathlib and contextlib take longer to import than a whole hit may take.
# ruff: noqa: PTH118, PTH120

from __future__ import annotations

import os
import re

from .compiler_command import Command
from .compiler_inputs import Fact, Root, UnclearError, read_regular

# Texts whose result depends on more than the text: the clock, files that the assembler reads, the age of a file.
_NOT_KEPT = re.compile(rb"__DATE__|__TIME__|__TIMESTAMP__|__has_embed|pragma\s+GCC\s+(?:dependency|pch_preprocess)")
_ASSEMBLER = re.compile(rb"\basm\b|\b__asm\b|\b__asm__\b|\.incbin")
_INCLUDE = re.compile(rb'^[ \t]*#[ \t]*(?:include|include_next|import|embed)\b[^<"\n]*["<]([^">\n]+)', re.MULTILINE)
_HAS_INCLUDE = re.compile(rb"__has_include(?:_next)?[ \t]*\(([^)\n]*)")
_LITERAL = re.compile(rb'[ \t]*["<]([^">\n]+)[">]')
_HEADERS_LIMIT = 20_000


def headers(listed: str, sources: int) -> list[str]:
    """Return the files in the compiler's lists (make's syntax, one list per source, each after its target)."""
    found: dict[str, None] = {}
    lines = [line for line in listed.replace("\\\n", " ").splitlines() if line]
    if len(lines) != sources:
        raise UnclearError
    for line in lines:
        words = re.findall(r"(?:\\.|[^ \\])+", line.partition(": ")[2])
        for word in words:
            found[re.sub(r"\\([ #:\\])", r"\1", word).replace("$$", "$")] = None
    if len(found) > _HEADERS_LIMIT:
        raise UnclearError
    return list(found)


def facts(command: Command, root: Root, listed: list[str], environment: dict[str, str]) -> tuple[Fact, ...]:
    """Return all facts of a compile whose sources included the `listed` headers."""
    names = _spelled(command.sources, listed, root)
    read = [path for path in dict.fromkeys(command.sources + listed) if not root.holds(path)]
    found: list[Fact] = [("file", path, ()) for path in read]
    found += [("file", path, ()) for path in command.objects if not root.holds(path)]
    if command.sources:
        folders = _searched(command.include_folders + [os.path.dirname(path) or "." for path in read], environment)
        found += _shadows([path for path in _with_parents(folders, names) if not root.holds(path)], names)
    libraries = command.library_folders + environment.get("LD_LIBRARY_PATH", "").split(":")
    found += [("libraries", path, ()) for path in dict.fromkeys(libraries) if path and not root.holds(path)]
    _check_objects(command, root)
    return tuple(found)


def _spelled(sources: list[str], listed: list[str], root: Root) -> set[str]:
    """Return every part of every name that the compiler has searched for as a header, or might have."""
    spelled = {part for path in listed for part in path.split("/")}
    for path in sources + listed:
        text = read_regular(path)
        if _NOT_KEPT.search(text) or (not root.holds(path) and _ASSEMBLER.search(text)):
            raise UnclearError
        for name in _INCLUDE.findall(text) + _asked_for(text):
            spelled.update(os.fsdecode(name).split("/"))
            if name.count(b"../") > 1:
                raise UnclearError
    return spelled - {"", "."}


def _asked_for(text: bytes) -> list[bytes]:
    found = []
    for operand in _HAS_INCLUDE.findall(text):
        literal = _LITERAL.match(operand)
        # In `#define has(x) __has_include(x)` the name is elsewhere.
        if literal is None:
            raise UnclearError
        found.append(literal.group(1))
    return found


def _searched(folders: list[str], environment: dict[str, str]) -> list[str]:
    lists = [environment.get(name, "") for name in ("CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH")]
    return list(dict.fromkeys([".", *folders, *(path for paths in lists for path in paths.split(":") if path)]))


def _with_parents(folders: list[str], names: set[str]) -> list[str]:
    if ".." not in names:
        return folders
    return list(dict.fromkeys(folders + [os.path.join(folder, "..") for folder in folders]))


def _shadows(folders: list[str], names: set[str]) -> list[Fact]:
    wanted = tuple(sorted(names - {".."}))
    return [("names", folder, wanted) for folder in folders]


def _check_objects(command: Command, root: Root) -> None:
    for path in command.objects:
        if not root.holds(path) and not read_regular(path).startswith((b"\x7fELF", b"!<arch>\n")):
            raise UnclearError
