"""Wheels on this host's disk, served to build containers by a package index on loopback.

The rule: nothing is downloaded while something is measured, and both sides get the very same wheel.
"""

from __future__ import annotations

import html
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name, parse_wheel_filename

from benchmarks.host import environment


def download(name: str, python_version: str, folder: Path) -> str:
    """Fetch the newest wheel of a package for a Python version with this host's pip. Return its version."""
    folder.mkdir(parents=True, exist_ok=True)
    _pip("download", "--no-deps", "--only-binary=:all:", f"--python-version={python_version}", f"--dest={folder}", name)
    wheel = next(folder.glob(f"{name}-*.whl"))
    return wheel.name.split("-")[1]


def install(name: str, python: Path, python_version: str, folder: Path, site_packages: Path) -> None:
    """Install a downloaded wheel for a bare interpreter, compiled by that interpreter itself."""
    source = ("--no-index", f"--find-links={folder}", "--only-binary=:all:", f"--python-version={python_version}")
    _pip("install", "--no-deps", *source, f"--target={site_packages}", name)
    subprocess.run([str(python), "-m", "compileall", "-q", str(site_packages)], check=True, env=environment())


def fetch(pins: Sequence[str], python_version: str, folder: Path) -> None:
    """Download the wheels of exactly these releases, `NAME==VERSION`, unless they are in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    have = {
        f"{name}=={version}" for name, version, *_ in (parse_wheel_filename(it.name) for it in folder.glob("*.whl"))
    }
    missing = [pin for pin in pins if _canonical(pin) not in have]
    if missing:
        _pip("download", *_choice(python_version), f"--find-links={folder}", f"--dest={folder}", *missing)


def install_into(pins: Sequence[str], python_version: str, folder: Path, target: Path) -> None:
    """`pip install -t` of downloaded wheels, without bytecode."""
    _pip(
        "install",
        "--no-compile",
        "--no-index",
        *_choice(python_version),
        f"--find-links={folder}",
        "-t",
        str(target),
        *pins,
    )


def _choice(python_version: str) -> tuple[str, ...]:
    """Only wheels, for this Python, and only what is named: pip would choose dependencies for its own Python.

    The image's Debian has glibc 2.31, and pip would choose by the host's.
    """
    machine = platform.machine()
    systems = [f"--platform={name}_{machine}" for name in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")]
    return "--no-deps", "--only-binary=:all:", f"--python-version={python_version}", *systems


def _canonical(pin: str) -> str:
    name, _, version = pin.partition("==")
    return f"{canonicalize_name(name)}=={version}"


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"pip {arguments[0]} failed: {done.stderr[-1000:]}")


class _Index(SimpleHTTPRequestHandler):
    """Pages of the simple repository API over a folder of wheels."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name that the base class gave it
        """Log nothing."""

    def do_GET(self) -> None:
        """A page of links for `/simple/NAME/`, a file for anything else."""
        if not self.path.startswith("/simple/"):
            super().do_GET()
            return
        name = self.path.removeprefix("/simple/").strip("/")
        wheels = sorted(
            it for it in Path(self.directory).glob("*.whl") if canonicalize_name(it.name.partition("-")[0]) == name
        )
        links = "".join(f'<a href="/{html.escape(it.name)}">{html.escape(it.name)}</a>\n' for it in wheels)
        page = f"<!DOCTYPE html><html><body>\n{links}</body></html>".encode()
        self.send_response(200 if wheels else 404)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The URL of an index over the wheels in a folder, for the length of a `with` block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Index, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/simple"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
