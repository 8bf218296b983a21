"""What one line of a `requirements.txt` may be, and how pip is given it.

The one rule: a line is taken apart completely, and pip gets what is put together again from its parts: plain ASCII, one
option per line, written out, without quotes, variables or relative paths. What cannot be taken apart is refused. So every
version of pip reads in our copy what was found in the line, however it would have read the line itself.

Where a line is split into requirement and options, joined or cut at a comment, this follows pip to the letter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from nanogrid.execution.container.hardening import MOUNT

CODE = f"{MOUNT}/code"
"""Where the function's code lies during a build that needs it."""

PLAIN = re.compile(r"[ -~]*")
NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
EXTRAS = rf"\[\s*(?:{NAME}(?:\s*,\s*{NAME})*\s*)?\]"
RELEASE = r"v?(?:[0-9]+!)?[0-9]+(?:\.[0-9]+)*"
SUFFIXES = (
    r"(?:[-_.]?(?:alpha|beta|preview|pre|a|b|c|rc)[-_.]?[0-9]*)?(?:-[0-9]+|[-_.]?(?:post|rev|r)[-_.]?[0-9]*)?"
    r"(?:[-_.]?dev[-_.]?[0-9]*)?"
)
LOCAL = r"(?:\+[a-z0-9]+(?:[-_.][a-z0-9]+)*)?"
CLAUSE = re.compile(
    rf"(?:(?P<exact>===?|!=)\s*{RELEASE}(?:\.\*|{SUFFIXES}{LOCAL})|(?P<range><=|>=|<|>)\s*{RELEASE}{SUFFIXES}"
    rf"|(?P<compatible>~=)\s*v?(?:[0-9]+!)?[0-9]+(?:\.[0-9]+)+{SUFFIXES})",
    re.IGNORECASE,
)
"""One condition on a version, as PEP 440 has it."""
BY_NAME = re.compile(rf"(?P<name>{NAME})\s*(?:(?P<extras>{EXTRAS})\s*)?(?P<versions>[(<>=!~].*)?")
DIRECT = re.compile(rf"(?P<name>{NAME})\s*(?:(?P<extras>{EXTRAS})\s*)?@\s*(?P<target>\S+)")
MARKER_WORD = re.compile(
    r"\s*(?P<word>[()]|===|==|~=|!=|<=|>=|<|>|'[A-Za-z0-9._+*!,-]*'|\"[A-Za-z0-9._+*!,-]*\"|[a-z_]+)"
)
MARKER_NAMES = {
    *("os_name", "sys_platform", "platform_machine", "platform_python_implementation", "platform_release"),
    *("platform_system", "platform_version", "python_version", "python_full_version", "implementation_name"),
    *("implementation_version", "extra", "and", "or", "not", "in"),
}

USER_AND_HOST = (
    r"(?:[A-Za-z0-9._~%-]+(?::[A-Za-z0-9._~%-]*)?@)?[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?"
)
IN_PATH = r"[A-Za-z0-9._~%!&()*+,=:@/-]"
ADDRESS = re.compile(rf"https?://{USER_AND_HOST}(?:/{IN_PATH}*)?(?:\?(?:{IN_PATH}|\?)*)?")
FILE = r"[A-Za-z0-9][A-Za-z0-9._+!-]*"
FILE_ADDRESS = re.compile(
    rf"(?P<before>https?://{USER_AND_HOST}/(?:{IN_PATH}*/)?)(?P<file>{FILE})(?P<query>\?(?:{IN_PATH}|\?)*)?"
    r"(?P<fragment>#[A-Za-z0-9._=&+-]+)?"
)
"""The file's name is what pip goes by, so nothing of it may be encoded."""
PATH = re.compile(r"[A-Za-z0-9._+!/-]+")
HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?")
HASH = re.compile(r"sha(?:256|384|512):[0-9a-fA-F]+")
FORMATS = re.compile(rf":all:|:none:|{NAME}(?:,{NAME})*")
VALUE = re.compile(r"[A-Za-z0-9._+=:,/@%-]+")

WHEEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._]*-[A-Za-z0-9._+!]+(?:-[0-9][A-Za-z0-9._]*)?(?:-[A-Za-z0-9._]+){3}\.whl")
SOURCE_ARCHIVE = re.compile(rf"{FILE}\.(?:zip|tar|tar\.gz|tgz|tar\.bz2|tbz|tar\.xz|txz)")
NEVER_A_NAME = (
    *(".whl", ".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tar.xz", ".txz"),
    *(".tlz", ".tar.lz", ".tar.lzma"),
)
"""What ends so is a file to pip, whatever else it could be."""

FLAGS = ("--pre", "--prefer-binary", "--require-hashes", "--no-index")
INDEX_OPTIONS = {"-i": "--index-url", "--index-url": "--index-url", "--extra-index-url": "--extra-index-url"}
LINKS_OPTIONS = ("-f", "--find-links")
FILE_OPTIONS = {"-r": False, "--requirement": False, "-c": True, "--constraint": True}
"""Option → whether it names constraints."""
FORMAT_OPTIONS = ("--only-binary", "--no-binary")
SET_UP_OPTIONS = ("--global-option", "--config-settings")

ONLY_WHEELS = (
    ", and here only wheels are installed: name a package that comes as a wheel, or have the deployment set "
    "NANOGRID_BUILD_WHEELS_ONLY=false"
)
NOT_UNDERSTOOD = (
    ", which is no requirement that is understood: name a package with its versions, as in name>=1.0, a wheel of the code "
    "or its address, without quotes"
)


class RefusedError(ValueError):
    """A line that is not taken. The text goes on after the line itself."""


@dataclass(frozen=True)
class Include:
    """Another file that a line names, by its path in the code."""

    path: str
    constraints: bool


@dataclass(frozen=True)
class RequirementLine:
    """One line, taken apart.

    `text`: what pip is given for it. `option`: it is no requirement. `alone`: it names nothing of the code. `elsewhere`: it
    names an address. `target`: the address that it installs from, with `file`, the name of what lies there.
    """

    text: str
    option: bool = False
    alone: bool = True
    elsewhere: bool = False
    target: str = ""
    file: str = ""
    includes: Include | None = None


def parse(line: str, code: Path, folder: PurePosixPath, *, wheels_only: bool) -> RequirementLine:
    """Take a logical line apart. `folder`: where in the code its file lies. Raises RefusedError."""
    if "${" in line:
        # pip would put its own environment there, with whatever the deployment has in it.
        raise RefusedError(" with a variable: write the value itself")
    if not PLAIN.fullmatch(line.replace("\t", " ")):
        raise RefusedError(", which is not plain ASCII: write it with letters, digits and signs alone")
    requirement, options = _split(line)
    if "\\" in line or any(quote in options for quote in "\"'"):
        raise RefusedError(" with quotes or a backslash, which versions of pip read differently: write it without")
    if not requirement.strip():
        return _option(options.split(), code, folder, wheels_only=wheels_only)
    found = _requirement(requirement.strip(), code, wheels_only=wheels_only)
    return replace(found, text=" ".join((found.text, *_own_options(options.split(), wheels_only=wheels_only))))


def _split(line: str) -> tuple[str, str]:
    """Requirement and options, as pip tells them apart: options begin with the first word that begins with a dash."""
    words = line.split(" ")
    first = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
    return " ".join(words[:first]), " ".join(words[first:])


# -- requirements


def _requirement(text: str, code: Path, *, wheels_only: bool) -> RequirementLine:
    wanted, semicolon, condition = text.partition(";")
    wanted = wanted.strip()
    marker = f" ; {_marker(condition)}" if semicolon else ""
    if wanted.startswith(("http://", "https://")):
        if semicolon and not condition.startswith(" "):
            raise RefusedError(": put a blank before and after the semicolon behind an address")
        found = _from_address(wanted, wheels_only=wheels_only)
    elif (direct := DIRECT.fullmatch(wanted)) and not _is_file(direct["name"]):
        found = _direct(direct["name"] + _extras(direct["extras"]), direct["target"], code, wheels_only=wheels_only)
    elif (named := BY_NAME.fullmatch(wanted)) and not _is_file(named["name"]) and not _is_file(wanted):
        return RequirementLine(named["name"] + _extras(named["extras"]) + _versions(named["versions"]) + marker)
    else:
        found = _from_path(wanted, code, wheels_only=wheels_only)
    return replace(found, text=found.text + marker)


def _is_file(text: str) -> bool:
    return text.lower().endswith(NEVER_A_NAME)


def _extras(written: str | None) -> str:
    names = re.findall(NAME, written or "")
    return f"[{','.join(names)}]" if names else ""


def _versions(written: str | None) -> str:
    if not written:
        return ""
    inner = written.strip()
    if inner.startswith("(") and inner.endswith(")"):
        inner = inner[1:-1]
    clauses = [clause.strip() for clause in inner.split(",")]
    if not all(CLAUSE.fullmatch(clause) for clause in clauses):
        raise RefusedError(", and its versions are not understood: write them as in name>=1.0,<2")
    return ",".join(re.sub(r"\s+", "", clause) for clause in clauses)


def _marker(written: str) -> str:
    """The words of a condition, one blank between each. Whether they make sense is left to pip: they choose, and do no more."""
    words: list[str] = []
    written = written.rstrip()
    place = 0
    while place < len(written):
        found = MARKER_WORD.match(written, place)
        if found is None or (found["word"][0].isalpha() and found["word"] not in MARKER_NAMES):
            raise RefusedError(", and its condition is not understood: write it as in name ; python_version < '3.10'")
        words.append(found["word"])
        place = found.end()
    if not words:
        raise RefusedError(", and nothing follows the semicolon: leave it out")
    return " ".join(words)


def _direct(name: str, target: str, code: Path, *, wheels_only: bool) -> RequirementLine:
    if target.startswith("file:"):
        found = _from_path(target.removeprefix("file:"), code, wheels_only=wheels_only)
        return replace(found, text=f"{name} @ file://{found.text}")
    found = _from_address(target, wheels_only=wheels_only)
    return replace(found, text=f"{name} @ {found.text}")


def _from_address(address: str, *, wheels_only: bool) -> RequirementLine:
    found = FILE_ADDRESS.fullmatch(address)
    if wheels_only and (found is None or not _is_wheel(found["file"])):
        raise RefusedError(ONLY_WHEELS)
    if found is None or not _is_archive(found["file"]):
        raise RefusedError(": name the address of a wheel or of a source archive, http:// or https://")
    return RequirementLine(address, elsewhere=True, target=address, file=found["file"])


def _from_path(written: str, code: Path, *, wheels_only: bool) -> RequirementLine:
    path, bracket, extras = written.partition("[")
    if bracket and not re.fullmatch(EXTRAS, f"[{extras}"):
        raise RefusedError(NOT_UNDERSTOOD)
    if repository := re.match(r"(git|hg|svn|bzr)\+", path):
        raise RefusedError(
            f" with a {repository[1]} repository, and builds fetch files alone: name a wheel or an archive of it"
        )
    if not PATH.fullmatch(path) or not ("/" in path or path.startswith(".") or _is_file(path)):
        raise RefusedError(NOT_UNDERSTOOD)
    inside = within(path, PurePosixPath())
    place = code / inside
    # A folder can have any name: one that is named like a wheel is a source tree to pip.
    if place.is_dir():
        if wheels_only:
            raise RefusedError(ONLY_WHEELS)
        if not any((place / name).is_file() for name in ("pyproject.toml", "setup.py")):
            raise RefusedError(", which is no source of a package: it has neither pyproject.toml nor setup.py")
    elif not place.is_file():
        raise RefusedError(", which is no file of the code: add it there")
    elif wheels_only and (path.endswith("/") or not _is_wheel(place.name)):
        raise RefusedError(ONLY_WHEELS)
    elif path.endswith("/") or not _is_archive(place.name):
        raise RefusedError(NOT_UNDERSTOOD)
    return RequirementLine(f"{CODE}/{inside}".removesuffix("/.") + _extras(bracket + extras), alone=False)


def _is_wheel(file: str) -> bool:
    """Whether pip takes a file of this name for a wheel: not .WHL and not .tar.whl, which are source archives to it."""
    return WHEEL.fullmatch(file) is not None and not file.lower().endswith(".tar.whl")


def _is_archive(file: str) -> bool:
    return _is_wheel(file) or (SOURCE_ARCHIVE.fullmatch(file) is not None)


def within(written: str, folder: PurePosixPath) -> str:
    """The path in the code that a file in `folder` of it names. Raises RefusedError where it leads out of the code."""
    path = folder / written
    if not PATH.fullmatch(written) or any(part.startswith("-") for part in path.parts):
        raise RefusedError(": name files by letters, digits and ._+!- alone")
    if path.is_absolute() or ".." in path.parts:
        raise RefusedError(f" with {written[:100]!r}, which lies outside of the code: add it there")
    return str(path)


# -- options


def _own_options(words: list[str], *, wheels_only: bool) -> list[str]:
    """Options of one requirement. pip ignores others there, some of them not."""
    found = []
    waiting = iter(words)
    for word in waiting:
        name, equals, value = word.partition("=")
        if name not in ("--hash", *SET_UP_OPTIONS):
            raise RefusedError(f" with {name[:100]!r} behind a requirement, where only --hash can stand: leave it out")
        if name in SET_UP_OPTIONS and wheels_only:
            raise RefusedError(ONLY_WHEELS)
        if not equals:
            value = next(waiting, "")
            if value.startswith("-"):
                value = ""
        if not (HASH if name == "--hash" else VALUE).fullmatch(value):
            raise RefusedError(f" with a value of {name} that is not understood: write it as in --hash=sha256:0a1b")
        found.append(f"{name}={value}")
    return found


def _option(words: list[str], code: Path, folder: PurePosixPath, *, wheels_only: bool) -> RequirementLine:
    name, equals, value = words[0].partition("=")
    if name in FLAGS and words == [name]:
        return RequirementLine(name, option=True)
    if equals and not name.startswith("--"):
        raise RefusedError(": put a blank between an option and its value")
    rest = words[1:] if equals else words[2:]
    value = value if equals else "".join(words[1:2])
    known = {*INDEX_OPTIONS, *LINKS_OPTIONS, "--trusted-host", *FILE_OPTIONS, *FORMAT_OPTIONS}
    if name in ("-e", "--editable"):
        raise RefusedError(": a layer is a copy, so nothing in it can be edited; name a wheel or a folder without -e")
    if name not in known or rest or not value or value.startswith("-"):
        raise RefusedError(
            ": one option per line is understood, by its full name and with one value; these are "
            f"{', '.join(sorted({*known, *FLAGS}))}"
        )
    if name in INDEX_OPTIONS:
        return RequirementLine(f"{INDEX_OPTIONS[name]}={_address(value)}", option=True, elsewhere=True)
    if name in LINKS_OPTIONS:
        return _links(value, code, folder)
    if name == "--trusted-host":
        return RequirementLine(f"{name}={_matching(HOST, value)}", option=True, elsewhere=True)
    if name in FILE_OPTIONS:
        if "://" in value or value.startswith("file:"):
            raise RefusedError(": what lies there is not known before pip reads it; add that file to the code")
        return RequirementLine(
            "", option=True, alone=False, includes=Include(within(value, folder), FILE_OPTIONS[name])
        )
    return _formats(name, value, wheels_only=wheels_only)


def _links(value: str, code: Path, folder: PurePosixPath) -> RequirementLine:
    if value.startswith(("http://", "https://")):
        return RequirementLine(f"--find-links={_address(value)}", option=True, elsewhere=True)
    # Beside the file that names it or, as pip has it, at the top of the code.
    places = [within(value, folder), within(value, PurePosixPath())]
    inside = next((place for place in places if (code / place).exists()), None)
    if inside is None:
        raise RefusedError(", which is no folder of the code: add it there")
    return RequirementLine(f"--find-links={CODE}/{inside}".removesuffix("/."), option=True, alone=False, elsewhere=True)


def _formats(name: str, value: str, *, wheels_only: bool) -> RequirementLine:
    _matching(FORMATS, value)
    if wheels_only and (name != "--only-binary" or value == ":none:"):
        raise RefusedError(ONLY_WHEELS)
    return RequirementLine(f"{name}={value}", option=True)


def _address(value: str) -> str:
    return _matching(ADDRESS, value)


def _matching(pattern: re.Pattern[str], value: str) -> str:
    if not pattern.fullmatch(value):
        raise RefusedError(f" with the value {value[:100]!r}, which is not understood: check it")
    return value
