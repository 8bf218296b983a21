"""A compiler's command line, as far as the compiler cache understands it.

The rule: every argument is either known to have no influence beyond what `Command` names, or the command is refused, and
then the real compiler runs. Options come from the GCC manual, "Invoking GCC". Python >= 3.9, no slow imports.
"""

from __future__ import annotations

from _collections_abc import Iterator

SOURCES = (".c", ".cc", ".cpp", ".cxx", ".c++", ".C", ".cp", ".CPP")
_OBJECTS = (".o", ".obj", ".a", ".so")
_STAGES = {"-c": ".o", "-S": ".s", "-E": ""}

_FLAGS = frozenset(
    [
        "-ansi",
        "-C",
        "-CC",
        "-no-pie",
        "-nodefaultlibs",
        "-nolibc",
        "-nostartfiles",
        "-nostdinc",
        "-nostdinc++",
        "-nostdlib",
        "-P",
        "-pedantic",
        "-pedantic-errors",
        "-pie",
        "-pipe",
        "-pthread",
        "-rdynamic",
        "-s",
        "-shared",
        "-shared-libgcc",
        "-static",
        "-static-libgcc",
        "-static-libstdc++",
        "-static-pie",
        "-undef",
        "-w",
    ]
)
_DEBUG = frozenset(
    [
        "-g",
        "-g0",
        "-g1",
        "-g2",
        "-g3",
        "-ggdb",
        "-ggdb0",
        "-ggdb1",
        "-ggdb2",
        "-ggdb3",
        "-gdwarf",
        "-gdwarf-2",
        "-gdwarf-3",
        "-gdwarf-4",
        "-gdwarf-5",
        "-gz",
    ]
)
# Bare -f options that read or write files of their own, print what changes from call to call, or leave no output.
_REFUSED_F = (
    "auto-profile",
    "branch",
    "callgraph",
    "compare-debug",
    "coverage",
    "deps",
    "diagnostics-format",
    "directives-only",
    "dump",
    "lto-report",
    "mem-report",
    "module",
    "opt-info",
    "pch",
    "plugin",
    "preprocessed",
    "profile",
    "repo",
    "report",
    "save",
    "self",
    "stack-usage",
    "stats",
    "syntax-only",
    "test-coverage",
    "time-report",
    "use-ld",
    "wpa",
    "ltrans",
    "ltoplugin",
)
_F_WITH_VALUE = frozenset(
    [
        "-fabi-version",
        "-falign-functions",
        "-falign-loops",
        "-fcf-protection",
        "-fconstexpr-depth",
        "-fconstexpr-loop-limit",
        "-fconstexpr-ops-limit",
        "-fdebug-prefix-map",
        "-fdiagnostics-color",
        "-fexec-charset",
        "-fexcess-precision",
        "-ffile-prefix-map",
        "-ffp-contract",
        "-finline-limit",
        "-finput-charset",
        "-flto",
        "-fmacro-prefix-map",
        "-fmax-errors",
        "-fmessage-length",
        "-frandom-seed",
        "-fsanitize",
        "-fsanitize-recover",
        "-fstack-protector",
        "-ftemplate-backtrace-limit",
        "-ftemplate-depth",
        "-ftls-model",
        "-fvisibility",
        "-fwide-exec-charset",
    ]
)
_LINKER_FLAGS = frozenset(
    [
        "--as-needed",
        "--no-as-needed",
        "--gc-sections",
        "--no-gc-sections",
        "-Bstatic",
        "-Bdynamic",
        "-Bsymbolic",
        "-Bsymbolic-functions",
        "--start-group",
        "--end-group",
        "-(",
        "-)",
        "--whole-archive",
        "--no-whole-archive",
        "--no-undefined",
        "-s",
        "-S",
        "--strip-all",
        "--strip-debug",
        "-E",
        "--export-dynamic",
        "--disable-new-dtags",
        "--enable-new-dtags",
        "--build-id",
        "-O1",
        "-O2",
        "--relax",
        "--no-relax",
    ]
)
_LINKER_VALUES = ("--hash-style=", "--build-id=", "--exclude-libs=", "-soname=", "--soname=")
_LINKER_FOLDERS = ("-rpath", "--rpath", "-rpath-link", "--rpath-link")

# Options with a value, joined to them or as the next argument. Longest first, because one can begin like another.
_VALUED = ("-idirafter", "-isystem", "-iquote", "-MF", "-MT", "-MQ", "-D", "-I", "-L", "-U", "-l", "-o", "-u", "-z")
_NEXT_VALUED = ("-include", "-imacros", "--param")
_INCLUDE = ("-idirafter", "-isystem", "-iquote", "-I")


class Command:
    """What one command reads and writes. Paths are as they were written, relative to the current folder."""

    def __init__(self) -> None:
        self.sources: list[str] = []
        self.objects: list[str] = []
        self.include_folders: list[str] = []
        self.library_folders: list[str] = []
        self.outputs: list[str] = []
        # The outputs of the assembler or the linker: they replace a file, while the compiler overwrites it.
        self.binaries: list[str] = []
        # Arguments that list the same inputs and compile nothing. Set only if the command itself asks for a list.
        self.listing: list[str] = []


class _RefusedError(Exception):
    """An argument that is not understood."""


def parse(arguments: list[str]) -> Command | None:
    """Parse the arguments after the compiler's name. Returns None if they are not understood, or nothing is worth keeping."""
    reader = _Reader()
    try:
        rest = iter(arguments)
        for argument in rest:
            reader.take(argument, rest)
        return reader.command()
    except _RefusedError:
        return None


def _value(argument: str, option: str, rest: Iterator[str]) -> str:
    if len(argument) > len(option):
        return argument[len(option) :]
    value = next(rest, "")
    if not value:
        raise _RefusedError
    return value


class _Reader:
    """Reads arguments one by one."""

    def __init__(self) -> None:
        self._found = Command()
        self._stages: list[str] = []
        self._named: list[str] = []
        self._dependencies = False
        self._dependency_file: list[str] = []
        self._listing: list[str] = []

    def take(self, argument: str, rest: Iterator[str]) -> None:
        """Read one argument. `rest` yields the arguments after it."""
        if not argument.startswith("-"):
            self._input(argument)
        elif argument in _STAGES:
            self._stages.append(argument)
            return
        elif argument in ("-MD", "-MMD", "-MP"):
            self._dependencies = self._dependencies or argument != "-MP"
            return
        elif not _is_plain(argument):
            self._with_value(argument, rest)
            return
        self._listing.append(argument)

    def _input(self, argument: str) -> None:
        name = argument.rpartition("/")[2]
        shared = name.partition(".so.")
        if argument.startswith("@"):
            raise _RefusedError
        if name.endswith(SOURCES):
            self._found.sources.append(argument)
        elif name.endswith(_OBJECTS) or (shared[2] and shared[2].replace(".", "").isdigit()):
            self._found.objects.append(argument)
            if ".so" in name:
                self._found.library_folders.append(argument[: -len(name)] or ".")
        else:
            raise _RefusedError

    def _with_value(self, argument: str, rest: Iterator[str]) -> None:
        if argument.startswith("-Wl,"):
            self._found.library_folders += _linker_folders(argument.split(",")[1:])
            self._listing.append(argument)
            return
        if argument in _NEXT_VALUED:
            self._listing += [argument, _value(argument, argument, rest)]
            return
        option = next((option for option in _VALUED if argument.startswith(option)), "")
        if not option:
            raise _RefusedError
        value = _value(argument, option, rest)
        if option == "-o":
            self._named.append(value)
        elif option == "-MF":
            self._dependency_file.append(value)
        elif option not in ("-MT", "-MQ"):
            self._listing += [option, value]
            self._searched(option, value)

    def _searched(self, option: str, value: str) -> None:
        # "=" and "$SYSROOT" stand for a root that this parser does not know; "-l:" names any file; "-I-" is obsolete.
        if value.startswith(("=", "$SYSROOT", ":")) or (option in _INCLUDE and value == "-"):
            raise _RefusedError
        if option in _INCLUDE:
            self._found.include_folders.append(value)
        elif option == "-L":
            self._found.library_folders.append(value)

    def command(self) -> Command:
        """Return the whole command."""
        found = self._found
        stage = self._stages[0] if self._stages else ""
        if len(self._stages) > 1 or len(self._named) > 1 or not (found.sources or (found.objects and not stage)):
            raise _RefusedError
        main = self._main_outputs(stage)
        found.binaries = main if stage in ("", "-c") else []
        found.outputs = main + self._dependency_output(stage)
        if self._dependencies:
            found.listing = [*self._listing, "-E", "-o", "/dev/null"]
        if "-" in found.outputs or len(set(found.outputs)) < len(found.outputs) or set(found.outputs) & self._inputs():
            raise _RefusedError
        return found

    def _inputs(self) -> set[str]:
        return {*self._found.sources, *self._found.objects}

    def _main_outputs(self, stage: str) -> list[str]:
        if stage and self._named and len(self._found.sources) != 1:
            raise _RefusedError
        if self._named:
            return self._named
        if stage == "-E":
            raise _RefusedError
        return [_base(source) + _STAGES[stage] for source in self._found.sources] if stage else ["a.out"]

    def _dependency_output(self, stage: str) -> list[str]:
        if not self._dependencies:
            if self._dependency_file:
                raise _RefusedError
            return []
        if len(self._found.sources) != 1 or len(self._dependency_file) > 1:
            raise _RefusedError
        if self._dependency_file:
            return self._dependency_file
        # If a link names it, versions of GCC differ.
        if stage != "-c":
            raise _RefusedError
        named = self._named[0] if self._named else ""
        return [named[: len(named) - len(named.rpartition("/")[2])] + _base(named or self._found.sources[0]) + ".d"]


def _base(path: str) -> str:
    """Return the name of a file without its folder and its last suffix."""
    name = path.rpartition("/")[2]
    return name.rpartition(".")[0] or name


def _is_plain(argument: str) -> bool:
    """Return whether an option has no value in the next argument, and its effect depends on nothing but itself."""
    if argument in _FLAGS or argument in _DEBUG or argument.startswith(("-std=", "--param=")):
        return True
    kind = argument[:2]
    if kind == "-f":
        name, _, value = argument.partition("=")
        bare = name[2:]
        bare = bare[3:] if bare.startswith("no-") else bare
        return name in _F_WITH_VALUE if value or "=" in argument else not bare.startswith(_REFUSED_F)
    if kind == "-W":
        return not argument.startswith(("-Wl,", "-Wa,", "-Wp,"))
    return kind in ("-O", "-m")


def _linker_folders(words: list[str]) -> list[str]:
    """Return the folders that `-Wl,` makes the linker search. Raises for words that could name any other file."""
    folders = []
    rest = iter(words)
    for word in rest:
        option, joined, value = word.partition("=")
        if option in _LINKER_FOLDERS:
            value = value if joined else next(rest, "")
            if not value:
                raise _RefusedError
            folders += [folder for folder in value.split(":") if folder and not folder.startswith("$")]
        elif word in ("-z", "-soname", "--soname", "-h", "--exclude-libs"):
            if not next(rest, ""):
                raise _RefusedError
        elif word not in _LINKER_FLAGS and not word.startswith(_LINKER_VALUES):
            raise _RefusedError
    return folders
