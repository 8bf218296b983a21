"""Reads a `requirements.txt`: what it asks for, and whether the text alone says what will be installed.

The one rule: what cannot be recognised as a plain requirement by name is taken to depend on the code around it, and where
only wheels are installed it must be one. So two functions share packages only where nothing but the index decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nanogrid.errors import LayerBuildError

NAME = "requirements.txt"
LARGEST_BYTES = 1024 * 1024
MOST_FILES = 20

COMMENT = re.compile(r"(^|\s+)#.*$")  # as pip reads it
VARIABLE = re.compile(r"\$\{[A-Z0-9_]+\}")
BY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\s*(\[[^\]]*\])?\s*($|[<>=!~;(])")
DIRECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\s*(?:\[[^\]]*\])?\s*@\s*(?P<target>.+)")
ARCHIVES = (".whl", ".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tar.xz", ".txz")
HARMLESS_OPTIONS = ("--pre", "--prefer-binary", "--require-hashes", "--no-index", "--hash", "--only-binary")
INDEX_OPTIONS = ("-i", "--index-url", "--extra-index-url", "--trusted-host", "-f", "--find-links")
FILE_OPTIONS = ("-r", "--requirement", "-c", "--constraint")


@dataclass(frozen=True)
class Requirements:
    """What a `requirements.txt` asks for.

    `text` is without comments and blank lines, one line per requirement. `alone`: it names no file, so that any other
    code with the same text gets the same packages. `default_index`: it names no index or address of its own.
    """

    text: str
    alone: bool
    default_index: bool


def read(code: Path, *, wheels_only: bool) -> Requirements | None:
    """The requirements of a function; None where it has none. Raises LayerBuildError where they are refused."""
    lines = list(_lines(code / NAME, NAME))
    if not lines:
        return None
    traits = [_traits(line) for line in lines]
    if wheels_only:
        _refuse_all_but_wheels(code)
    return Requirements(
        "".join(f"{line}\n" for line in lines),
        alone=all(trait.alone for trait in traits),
        default_index=all(trait.default_index for trait in traits),
    )


@dataclass(frozen=True)
class _Traits:
    """What one line is. `includes`: the requirements file that it names. `wheel`: it installs nothing but wheels."""

    alone: bool = True
    default_index: bool = True
    wheel: bool = True
    includes: str | None = None


def _traits(line: str) -> _Traits:
    if line.startswith("-"):
        return _option_traits(line)
    requirement = re.split(r"\s--", line, maxsplit=1)[0].strip()
    options_known = all(_option_name(word) in HARMLESS_OPTIONS for word in re.findall(r"\s(--\S+)", line))
    if BY_NAME.match(requirement) and not requirement.lower().endswith(ARCHIVES):
        return _Traits(wheel=options_known)
    direct = DIRECT.match(requirement)
    target = re.split(r"\s*[;#?]", direct["target"] if direct else requirement)[0]
    remote = re.match(r"https?://", target) is not None
    return _Traits(alone=remote, default_index=False, wheel=options_known and target.lower().endswith(".whl"))


def _option_traits(line: str) -> _Traits:
    words = line.split()
    name = _option_name(words[0])
    value = words[0].partition("=")[2] or " ".join(words[1:])
    lonely = not any(word.startswith("-") for word in words[1:])
    if name in HARMLESS_OPTIONS:
        return _Traits(wheel=lonely and ":none:" not in value)
    if name in INDEX_OPTIONS:
        return _Traits(
            alone=re.match(r"https?://", value) is not None or "host" in name, default_index=False, wheel=lonely
        )
    if name in FILE_OPTIONS and lonely and "://" not in value:
        return _Traits(alone=False, includes=value)
    return _Traits(alone=False, default_index=False, wheel=False)


def _option_name(word: str) -> str:
    return word.partition("=")[0]


def _refuse_all_but_wheels(code: Path) -> None:
    """Raise LayerBuildError for a line that could bring in anything else, in the file or in one that it includes."""
    waiting, seen = [NAME], set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if len(seen) > MOST_FILES:
            raise LayerBuildError(f"{NAME} includes more than {MOST_FILES} files: put the requirements into one")
        for line in _lines(code / _inside(name), name):
            trait = _traits(line)
            if VARIABLE.search(line):
                # pip would put its own environment there, with whatever the deployment has in it.
                raise LayerBuildError(f"{name} has the line {line[:200]!r} with a variable: write the value itself")
            if not trait.wheel:
                raise LayerBuildError(
                    f"{name} has the line {line[:200]!r}, and here only wheels are installed: name a package that comes "
                    "as a wheel, or have the deployment set NANOGRID_BUILD_WHEELS_ONLY=false"
                )
            if trait.includes is not None:
                waiting.append(str(Path(name).parent / trait.includes))


def _inside(name: str) -> str:
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts:
        raise LayerBuildError(f"{NAME} includes {name!r}, which lies outside of the code: add it there")
    return name


def _lines(path: Path, name: str) -> Iterator[str]:
    """The logical lines of a requirements file: continued ones joined, comments and blank ones left out."""
    try:
        data = path.read_bytes() if path.stat().st_size <= LARGEST_BYTES else None
    except OSError as error:
        raise LayerBuildError(f"{name} cannot be read ({error.strerror}): add it to the code as a file") from error
    if data is None:
        raise LayerBuildError(f"{name} has more than {LARGEST_BYTES} bytes: name fewer requirements")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LayerBuildError(f"{name} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    for line in _joined(text):
        if stripped := COMMENT.sub("", line).strip():
            yield stripped


def _joined(text: str) -> Iterator[str]:
    started = ""
    for line in text.splitlines():
        comment = COMMENT.match(line) is not None
        if line.endswith("\\") and not comment:
            started += line[:-1]
        else:
            # A comment inside a continued line ends it; its blank in front makes it be seen as a comment.
            yield started + (f" {line}" if comment and started else line)
            started = ""
    if started:
        yield started
