"""Reads a `requirements.txt`: what it asks for, and whether the text alone says what will be installed.

The rule: pip never reads a file of the function. It gets a text that is written here, line by line, from what `lines.py`
understood; everything else is refused. If the text names no file of the code, all functions with the same text share a layer.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nanogrid.errors import LayerBuildError
from nanogrid.execution.layers.lines import RefusedError, RequirementLine, parse

NAME = "requirements.txt"
LARGEST_BYTES = 1024 * 1024
MOST_FILES = 20

COMMENT = re.compile(r"(?:^|(?<=\s))#.*")
"""As in pip, but without the blanks before it, which are stripped: matching them takes quadratic time."""
DECLARED = re.compile(rb"coding[:=]\s*([-\w.]+)")
"""As pip reads it, from the first two lines."""
UNUSUAL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x85\u2028\u2029]")
"""Control characters, and all characters that end a line for Python but not visibly for people."""


@dataclass(frozen=True)
class Requirements:
    """What a `requirements.txt` asks for.

    `lines` are in the order in which pip would read them; `constraints` are separate. Both include lines of included files.
    """

    lines: tuple[RequirementLine, ...]
    constraints: tuple[RequirementLine, ...] = ()

    @property
    def text(self) -> str:
        """The text for pip: ASCII, one requirement or option per line."""
        return _text(self.lines)

    @property
    def constraints_text(self) -> str:
        """The text of the constraints for pip, in the same form."""
        return _text(self.constraints)

    @property
    def alone(self) -> bool:
        """Whether it names no file of the code: then any other code with the same text gets the same packages."""
        return all(line.alone for line in (*self.lines, *self.constraints))

    @property
    def default_index(self) -> bool:
        """Whether it names no index and no address of its own."""
        return not any(line.elsewhere for line in (*self.lines, *self.constraints))


def read(code: Path, *, wheels_only: bool) -> Requirements | None:
    """The requirements of a function; None if it has none. Raises LayerBuildError if they are refused."""
    found = list(_RequirementsReader(code, wheels_only=wheels_only).lines(NAME, (), constraints=False))
    if not found:
        return None
    # Options apply wherever they are, also among constraints.
    return Requirements(
        tuple(line for constraint, line in found if line.option or not constraint),
        tuple(line for constraint, line in found if constraint and not line.option),
    )


class _RequirementsReader:
    """One walk through a requirements file and what it includes."""

    def __init__(self, code: Path, *, wheels_only: bool) -> None:
        self._code = code
        self._wheels_only = wheels_only
        self._files = 0

    def lines(self, name: str, above: tuple[str, ...], *, constraints: bool) -> Iterator[tuple[bool, RequirementLine]]:
        """Each line and whether it is a constraint. Lines of included files come where the file is included."""
        if name in above:
            raise LayerBuildError(f"{above[-1]} includes {name}, which includes it in turn: include it once")
        self._files += 1
        if self._files > MOST_FILES:
            raise LayerBuildError(f"{NAME} includes more than {MOST_FILES} files: put the requirements into one")
        folder = PurePosixPath(name).parent
        for written in _logical_lines(self._code / name, name):
            try:
                line = parse(written, self._code, folder, wheels_only=self._wheels_only)
            except RefusedError as refused:
                raise LayerBuildError(f"{name} has the line {written[:200]!r}{refused}") from None
            if line.includes is None:
                yield constraints, line
            else:
                # A file included as requirements contains requirements, whatever includes it, as in pip.
                yield from self.lines(line.includes.path, (*above, name), constraints=line.includes.constraints)


def _text(lines: tuple[RequirementLine, ...]) -> str:
    return "".join(f"{line.text}\n" for line in lines)


def _logical_lines(path: Path, name: str) -> Iterator[str]:
    """The logical lines of a requirements file: continued ones joined, comments and blank ones left out."""
    try:
        data = path.read_bytes() if path.stat().st_size <= LARGEST_BYTES else None
    except OSError as error:
        raise LayerBuildError(f"{name} cannot be read ({error.strerror}): add it to the code as a file") from error
    if data is None:
        raise LayerBuildError(f"{name} has more than {LARGEST_BYTES} bytes: name fewer requirements")
    for line in _joined(_decoded(data, name)):
        if stripped := COMMENT.sub("", line).strip():
            yield stripped


def _decoded(data: bytes, name: str) -> str:
    data = data.removeprefix(codecs.BOM_UTF8)
    for line in data.split(b"\n")[:2]:
        declared = DECLARED.search(line) if line.startswith(b"#") else None
        if declared is not None and not _is_utf8(declared[1].decode("ascii", "replace")):
            raise LayerBuildError(
                f"{name} declares the encoding {declared[1].decode('ascii', 'replace')!r}: save it as UTF-8"
            )
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise LayerBuildError(f"{name} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    if unusual := UNUSUAL.search(text):
        line_number = text.count("\n", 0, unusual.start()) + 1
        raise LayerBuildError(f"{name} has the control character {unusual[0]!r} in line {line_number}: remove it")
    return text


def _is_utf8(encoding: str) -> bool:
    try:
        return codecs.lookup(encoding).name in ("utf-8", "ascii")
    except (LookupError, ValueError):
        return False


def _joined(text: str) -> Iterator[str]:
    """Join what a backslash continues, as pip does."""
    started: list[str] = []
    for line in text.splitlines():
        comment = line.lstrip().startswith("#")
        if line.endswith("\\") and not comment:
            started.append(line.strip("\\"))
        else:
            # A comment inside a continued line ends it; the blank makes it recognizable as a comment.
            yield "".join((*started, f" {line}" if comment else line))
            started = []
    if started:
        yield "".join(started)
