"""The programs of the differential test, read from `programs/*.txt`.

=== NAME [exec]        begins a program; `exec`: the runner is expected to start a new interpreter for it
--- FILE               begins a file of it; what comes before the first one is main.py
*** FILE               begins a file of the packages that all programs which follow can import
+++ NAME=VALUE         sets a variable of its environment
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).with_name("programs")
IMPORTS = "imports"
SUBJECTS = [IMPORTS, *sorted(path.stem for path in FOLDER.glob("*.txt"))]


@dataclass
class Program:
    """A function's files and environment, and how it is expected to be run: `python` or `exec`."""

    name: str
    how: str
    files: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> tuple[Path, Path | None]:
        """Write code and packages as the cache holds them: read-only. Returns their folders; None if there are no packages."""
        code = _write(folder / "code", self.files)
        return code, _write(folder / "packages", self.packages) if self.packages else None


def _write(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir()
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, errors="surrogateescape")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    return folder


def read(subject: str) -> Iterator[Program]:
    """Yield the programs of one file, in its order, or those that import the standard library."""
    if subject == IMPORTS:
        yield from imports()
        return
    program, files, file = Program("", ""), {}, "main.py"
    for line in (FOLDER / f"{subject}.txt").read_text().splitlines(keepends=True):
        if line.startswith("=== "):
            if program.name:
                yield program
            name, *how = line[4:].split()
            program = Program(name, how[0] if how else "python", packages=program.packages)
            if program.packages:
                program.env["PYTHONPATH"] = "/nanogrid/packages"
            files, file = program.files, "main.py"
        elif line.startswith(("--- ", "*** ")):
            file = line[4:].strip()
            files = program.files if line[0] == "-" else program.packages
            files[file] = ""
        elif line.startswith("+++ "):
            name, _, value = line[4:].strip().partition("=")
            program.env[name] = value
        else:
            files[file] = files.get(file, "") + line
    yield program


MODULES = [
    "abc",
    "aifc",
    "argparse",
    "array",
    "ast",
    "asyncio",
    "base64",
    "bdb",
    "bisect",
    "builtins",
    "bz2",
    "calendar",
    "cmath",
    "cmd",
    "code",
    "codecs",
    "codeop",
    "collections",
    "collections.abc",
    "colorsys",
    "compileall",
    "concurrent.futures",
    "configparser",
    "contextlib",
    "contextvars",
    "copy",
    "copyreg",
    "cProfile",
    "csv",
    "ctypes",
    "curses",
    "dataclasses",
    "datetime",
    "dbm",
    "decimal",
    "difflib",
    "dis",
    "doctest",
    "email",
    "email.message",
    "email.mime.text",
    "encodings.idna",
    "enum",
    "errno",
    "fcntl",
    "filecmp",
    "fileinput",
    "fnmatch",
    "fractions",
    "ftplib",
    "functools",
    "genericpath",
    "getopt",
    "getpass",
    "gettext",
    "glob",
    "graphlib",
    "grp",
    "gzip",
    "hashlib",
    "heapq",
    "hmac",
    "html",
    "html.parser",
    "http",
    "http.client",
    "http.cookies",
    "http.server",
    "imaplib",
    "importlib",
    "importlib.abc",
    "importlib.metadata",
    "importlib.resources",
    "importlib.util",
    "inspect",
    "io",
    "ipaddress",
    "itertools",
    "json",
    "json.tool",
    "keyword",
    "linecache",
    "locale",
    "logging",
    "logging.config",
    "logging.handlers",
    "lzma",
    "mailbox",
    "marshal",
    "math",
    "mimetypes",
    "mmap",
    "modulefinder",
    "multiprocessing",
    "multiprocessing.pool",
    "netrc",
    "ntpath",
    "numbers",
    "opcode",
    "operator",
    "optparse",
    "os",
    "pathlib",
    "pickle",
    "pickletools",
    "pkgutil",
    "platform",
    "plistlib",
    "poplib",
    "posixpath",
    "pprint",
    "profile",
    "pstats",
    "pty",
    "pwd",
    "py_compile",
    "pyclbr",
    "pydoc",
    "pyexpat",
    "queue",
    "quopri",
    "random",
    "re",
    "reprlib",
    "resource",
    "runpy",
    "sched",
    "secrets",
    "select",
    "selectors",
    "shelve",
    "shlex",
    "shutil",
    "signal",
    "smtplib",
    "socket",
    "socketserver",
    "sqlite3",
    "ssl",
    "stat",
    "statistics",
    "string",
    "stringprep",
    "struct",
    "subprocess",
    "symtable",
    "sys",
    "sysconfig",
    "syslog",
    "tabnanny",
    "tarfile",
    "tempfile",
    "termios",
    "textwrap",
    "threading",
    "time",
    "timeit",
    "token",
    "tokenize",
    "trace",
    "traceback",
    "tty",
    "types",
    "typing",
    "unicodedata",
    "unittest",
    "unittest.mock",
    "urllib.error",
    "urllib.parse",
    "urllib.request",
    "urllib.robotparser",
    "uuid",
    "warnings",
    "wave",
    "weakref",
    "webbrowser",
    "wsgiref.simple_server",
    "xml.dom",
    "xml.dom.minidom",
    "xml.etree.ElementTree",
    "xml.sax",
    "xmlrpc.client",
    "xmlrpc.server",
    "zipapp",
    "zipfile",
    "zipimport",
    "zlib",
    "zoneinfo",
]
"""What most programs import, of the standard library. Newer Pythons lack some of them: that is compared too."""

TOGETHER = 5


def imports() -> Iterator[Program]:
    """Yield programs that import a few modules each and print what became visible, in order."""
    for first in range(0, len(MODULES), TOGETHER):
        lines = ["import sys", "seen = set(sys.modules)"]
        for name in MODULES[first : first + TOGETHER]:
            lines += [
                f"try: import {name}",
                "except ImportError as error: print(error)",
                f"else: print({name!r}, sorted(vars(sys.modules[{name!r}])))",
                "print([name for name in sys.modules if name not in seen])",
                "seen.update(sys.modules)",
            ]
        yield Program(f"import-{MODULES[first]}", "python", {"main.py": "\n".join(lines) + "\n"})
