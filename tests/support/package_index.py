"""A package index on loopback (the "simple" pages that pip reads), with packages that a test creates."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import json
import tarfile
import threading
import zipfile
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BACKEND = """
def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    with open(wheel_directory + "/{file}", "wb") as wheel:
        wheel.write({data!r})
    return "{file}"
"""
PYPROJECT = '[build-system]\nrequires = {}\nbuild-backend = "backend"\nbackend-path = ["."]\n'


class PackageIndex:
    """Serves a folder, with a password if one is set, and records the requests.

    What is asked for below /leads-to/ is reported as a file of the client: /leads-to/etc/passwd/NAME.
    """

    def __init__(self, folder: Path, password: str = "", address: str = "127.0.0.1") -> None:
        self._folder = folder
        self.asked: list[str] = []
        handler = functools.partial(_Handler, self.asked, password, directory=str(folder))
        self._server = http.server.ThreadingHTTPServer((address, 0), handler)
        self.port = self._server.server_port
        self.url = f"http://{f'reader:{password}@' if password else ''}{address}:{self.port}/simple/"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def start(self) -> None:
        """Start to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait until it has stopped."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def add_wheel(self, name: str, source: str, version: str = "1.0") -> None:
        """Offer a package of one module `name` with this source."""
        self._add(name, f"{name}-{version}-py3-none-any.whl", wheel(name, source, version))

    def add_sdist(self, name: str, source: str, version: str = "1.0", set_up: str = "", needs: str = "") -> None:
        """Offer the same as a source distribution, which includes its build backend.

        `set_up` is run when it is built. `needs`: another package that must be there for that.
        """
        file = f"{name}-{version}-py3-none-any.whl"
        backend = f"{set_up}\n{BACKEND.format(file=file, data=wheel(name, source, version))}"
        files = {
            "pyproject.toml": PYPROJECT.format(json.dumps([needs] if needs else [])),
            "backend.py": backend,
            "PKG-INFO": _metadata(name, version)["METADATA"],
        }
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for file, text in files.items():
                member = tarfile.TarInfo(f"{name}-{version}/{file}")
                member.size = len(text.encode())
                archive.addfile(member, io.BytesIO(text.encode()))
        self._add(name, f"{name}-{version}.tar.gz", buffer.getvalue())

    def add_link(self, name: str, target: str) -> None:
        """Offer a package whose link points to this address."""
        folder = self._folder / "simple" / name
        folder.mkdir(parents=True)
        (folder / "index.html").write_text(f'<a href="{target}">{name}</a>')

    def downloads(self, name: str) -> int:
        """How often the file of a package was fetched."""
        return sum(path.startswith(f"/simple/{name}/{name}-") for path in self.asked)

    def _add(self, name: str, file: str, data: bytes) -> None:
        folder = self._folder / "simple" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data)
        names = sorted(path.name for path in folder.iterdir() if path.name != "index.html")
        (folder / "index.html").write_text("".join(f'<a href="{name}">{name}</a>' for name in names))


class _Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, asked: list[str], password: str, *args: object, directory: str) -> None:
        self._asked = asked
        self._expected = f"Basic {b64encode(f'reader:{password}'.encode()).decode()}" if password else None
        super().__init__(*args, directory=directory)  # type: ignore[arg-type]  # what the server hands over

    def do_GET(self) -> None:
        if self._expected not in (None, self.headers.get("Authorization")):
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="packages"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self._asked.append(self.path)
        if self.path.startswith("/leads-to/"):
            self.send_response(302)
            self.send_header("Location", f"file:///{self.path.removeprefix('/leads-to/').rpartition('/')[0]}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        super().do_GET()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def package_index(folder: Path, password: str = "", address: str = "127.0.0.1") -> Iterator[PackageIndex]:
    """An index for the length of a `with` block."""
    index = PackageIndex(folder, password, address)
    index.start()
    try:
        yield index
    finally:
        index.stop()


def wheel(name: str, source: str, version: str = "1.0") -> bytes:
    """A wheel with one module."""
    files = {f"{name}.py": source}
    files |= {f"{name}-{version}.dist-info/{file}": text for file, text in _metadata(name, version).items()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        record = []
        for path, text in files.items():
            archive.writestr(path, text)
            digest = urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record.append(f"{path},sha256={digest},{len(text.encode())}\n")
        archive.writestr(f"{name}-{version}.dist-info/RECORD", "".join(record))
    return buffer.getvalue()


def _metadata(name: str, version: str) -> dict[str, str]:
    return {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
