"""Parses one line of a `requirements.txt` and writes it again for pip.

The rule: a line is parsed completely, and pip gets a line that is assembled from the parts: plain ASCII, one option per
line, written out, without quotes, variables or relative paths. A line that cannot be parsed is refused. So every version of
pip reads the same from the copy, however it would have read the original line.

Splitting a line into requirement and options, joining lines, and removing comments follow pip exactly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from nanogrid.execution.container.hardening import MOUNT

CODE = f"{MOUNT}/code"
"""The folder of the function's code during a build that needs it."""

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
"""One condition on a version, as in PEP 440."""
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
"""pip relies on the file's name, so no character of it may be percent-encoded."""
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
"""A text with one of these endings is a file to pip, never a name."""

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
    ", which is not a supported requirement: name a package with its versions, as in name>=1.0, a wheel of the code or its "
    "address, without quotes"
)


class RefusedError(ValueError):
    """A refused line. The text continues a sentence that quotes the line."""


@dataclass(frozen=True)
class Include:
    """Another requirements file that a line includes, by its path in the code."""

    path: str
    constraints: bool


@dataclass(frozen=True)
class RequirementLine:
    """One parsed line.

    `text`: the line for pip. `option`: it is not a requirement. `alone`: it names no file of the code. `elsewhere`: it names
    an address. `target`: the address that it installs from, with `file`, the file's name at that address.
    """

    text: str
    option: bool = False
    alone: bool = True
    elsewhere: bool = False
    target: str = ""
    file: str = ""
    includes: Include | None = None


def parse(line: str, code: Path, folder: PurePosixPath, *, wheels_only: bool) -> RequirementLine:
    """Parse a logical line. `folder` is the folder of its file in the code. Raises RefusedError."""
    if "${" in line:
        # pip would insert a value of its own environment, which may contain secrets of the deployment.
        raise RefusedError(" with a variable: write the value itself")
    if not PLAIN.fullmatch(line.replace("\t", " ")):
        raise RefusedError(", which is not plain ASCII: use only ASCII letters, digits and signs")
    requirement, options = _split(line)
    if "\\" in line or any(quote in options for quote in "\"'"):
        raise RefusedError(" with quotes or a backslash, which pip versions read differently: write it without")
    if not requirement.strip():
        return _option(options.split(), code, folder, wheels_only=wheels_only)
    found = _requirement(requirement.strip(), code, wheels_only=wheels_only)
    return replace(found, text=" ".join((found.text, *_own_options(options.split(), wheels_only=wheels_only))))


def _split(line: str) -> tuple[str, str]:
    """Split into requirement and options, as pip does: options start at the first word that starts with a dash."""
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
    """The words of a condition, separated by single blanks. pip decides whether they make sense; they can do no harm."""
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
            f" with a {repository[1]} repository, but builds fetch only files: name a wheel or an archive of it"
        )
    if not PATH.fullmatch(path) or not ("/" in path or path.startswith(".") or _is_file(path)):
        raise RefusedError(NOT_UNDERSTOOD)
    inside = within(path, PurePosixPath())
    place = code / inside
    # A folder can have any name: pip treats one that is named like a wheel as a source tree.
    if place.is_dir():
        if wheels_only:
            raise RefusedError(ONLY_WHEELS)
        if not any((place / name).is_file() for name in ("pyproject.toml", "setup.py")):
            raise RefusedError(", which is not the source of a package: it has neither pyproject.toml nor setup.py")
    elif not place.is_file():
        raise RefusedError(", which is not a file of the code: add it there")
    elif wheels_only and (path.endswith("/") or not _is_wheel(place.name)):
        raise RefusedError(ONLY_WHEELS)
    elif path.endswith("/") or not _is_archive(place.name):
        raise RefusedError(NOT_UNDERSTOOD)
    return RequirementLine(f"{CODE}/{inside}".removesuffix("/.") + _extras(bracket + extras), alone=False)


def _is_wheel(file: str) -> bool:
    """Whether pip treats a file of this name as a wheel: not .WHL and not .tar.whl, which it treats as source archives."""
    return WHEEL.fullmatch(file) is not None and not file.lower().endswith(".tar.whl")


def _is_archive(file: str) -> bool:
    return _is_wheel(file) or (SOURCE_ARCHIVE.fullmatch(file) is not None)


def within(written: str, folder: PurePosixPath) -> str:
    """The path, within the code, that a file in `folder` names. Raises RefusedError if it leads out of the code."""
    path = folder / written
    if not PATH.fullmatch(written) or any(part.startswith("-") for part in path.parts):
        raise RefusedError(": use only letters, digits and ._+!- in file names")
    if path.is_absolute() or ".." in path.parts:
        raise RefusedError(f" with {written[:100]!r}, which is outside of the code: add it to the code")
    return str(path)


# -- options


def _own_options(words: list[str], *, wheels_only: bool) -> list[str]:
    """Options of one requirement. pip ignores some others there, but not all."""
    found = []
    waiting = iter(words)
    for word in waiting:
        name, equals, value = word.partition("=")
        if name not in ("--hash", *SET_UP_OPTIONS):
            raise RefusedError(f" with {name[:100]!r} after a requirement, where only --hash is allowed: leave it out")
        if name in SET_UP_OPTIONS and wheels_only:
            raise RefusedError(ONLY_WHEELS)
        if not equals:
            value = next(waiting, "")
            if value.startswith("-"):
                value = ""
        if not (HASH if name == "--hash" else VALUE).fullmatch(value):
            raise RefusedError(f" with an unsupported value of {name}: write it as in --hash=sha256:0a1b")
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
            ": only one option per line is supported, by its full name and with one value; these are "
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
            raise RefusedError(": its content is unknown until pip reads it; add that file to the code")
        return RequirementLine(
            "", option=True, alone=False, includes=Include(within(value, folder), FILE_OPTIONS[name])
        )
    return _formats(name, value, wheels_only=wheels_only)


def _links(value: str, code: Path, folder: PurePosixPath) -> RequirementLine:
    if value.startswith(("http://", "https://")):
        return RequirementLine(f"--find-links={_address(value)}", option=True, elsewhere=True)
    # Next to the file that names it or, as in pip, at the top of the code.
    places = [within(value, folder), within(value, PurePosixPath())]
    inside = next((place for place in places if (code / place).exists()), None)
    if inside is None:
        raise RefusedError(", which is not a folder of the code: add it there")
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
        raise RefusedError(f" with the unsupported value {value[:100]!r}: check it")
    return value
