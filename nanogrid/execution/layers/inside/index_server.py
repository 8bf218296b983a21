"""Serves the deployment's package index on a socket, for a build in another container that has no network and no password.

It queries the index with pip's own code, so that every setting of pip applies: credentials, certificates, proxies. The rule:
a client learns names, hashes and contents of files, and chooses only a package's name and the number of a file.

It uses only parts of pip that are the same since 20.3. It runs in the image's Python (3.9 or newer) and imports nothing of NanoGrid.
"""

from __future__ import annotations

import contextlib
import html
import json
import logging
import os
import re
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

log = logging.getLogger("nanogrid")

HERE = Path("/nanogrid")
GATEWAY = HERE / "gateway"
PAGE = re.compile(r"/simple/([a-z0-9](?:[a-z0-9-]{0,200}[a-z0-9])?)/")
FILE = re.compile(r"/file/([a-z0-9-]{1,202})/([0-9]{1,6})/[A-Za-z0-9._+!-]+")
ADDRESS = re.compile(r"/address/([0-9]{1,6})/[A-Za-z0-9._+!-]+")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]*")
CHUNK_BYTES = 256 * 1024


class Index:
    """The package index as pip sees it. One request at a time: pip's session is not thread-safe."""

    def __init__(self, finder: Any, session: Any, addresses: list[str]) -> None:
        self._finder = finder
        self._session = session
        self._addresses = addresses
        self._found: dict[str, list[Any]] = {}
        self.lock = threading.Lock()

    def page(self, name: str) -> bytes:
        """The page of a package: a link for each file that fits this Python."""
        lines = []
        for number, link in enumerate(self._links(name)):
            checked = f"#{link.hash_name}={link.hash}" if link.hash_name and link.hash else ""
            target = f"/file/{name}/{number}/{link.filename}{checked}"
            more = f' data-requires-python="{html.escape(link.requires_python)}"' if link.requires_python else ""
            if link.yanked_reason is not None:
                more += f' data-yanked="{html.escape(link.yanked_reason)}"'
            lines.append(f'<a href="{html.escape(target)}"{more}>{html.escape(link.filename)}</a>')
        return "\n".join(("<!DOCTYPE html><html><body>", *lines, "</body></html>")).encode()

    def file(self, name: str, number: int) -> Any:
        """The index's response with a file that is listed on its package's page."""
        return self._get(self._links(name)[number].url_without_fragment)

    def address(self, number: int) -> Any:
        """The response for an address in requirements.txt."""
        return self._get(self._addresses[number].partition("#")[0])

    def _links(self, name: str) -> list[Any]:
        if name not in self._found:
            links = (candidate.link for candidate in self._finder.find_all_candidates(name))
            # An index may name files of this container, and pip would open them.
            remote = (link for link in links if link.scheme in ("http", "https"))
            self._found[name] = [link for link in remote if FILE_NAME.fullmatch(link.filename)]
        return self._found[name]

    def _get(self, url: str) -> Any:
        return self._session.get(url, headers={"Accept-Encoding": "identity"}, stream=True)


class IndexServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers on a socket."""

    daemon_threads = True

    def __init__(self, path: str, index: Index) -> None:
        self.index = index
        super().__init__(path, Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log the kind of error that cut a response short, but not its text: an address may contain a password."""
        log.warning("an answer was not finished: %s", sys.exc_info()[0])


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: IndexServer

    def do_GET(self) -> None:  # the name that http.server calls
        """Answer with a page, a file, or 404."""
        with self.server.index.lock, contextlib.suppress(OSError):
            self._answer()

    def log_message(self, *_: object) -> None:
        """Log nothing: pip logs what it fetches."""

    def _answer(self) -> None:
        index = self.server.index
        answer = None
        try:
            if page := PAGE.fullmatch(self.path):
                self._send(index.page(page[1]))
                return
            if file := FILE.fullmatch(self.path):
                answer = index.file(file[1], int(file[2]))
            elif address := ADDRESS.fullmatch(self.path):
                answer = index.address(int(address[1]))
        except IndexError:
            pass
        except Exception as failed:  # noqa: BLE001  # whatever pip raises for an index that fails
            log.warning("%s could not be fetched: %s", self.path[:200], type(failed).__name__)
            self.send_error(502)
            return
        if answer is None:
            self.send_error(404)
        else:
            self._pass_on(answer)

    def _send(self, page: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def _pass_on(self, answer: Any) -> None:
        if answer.status_code != 200:
            self.send_error(answer.status_code if answer.status_code >= 400 else 502)
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        if (length := answer.headers.get("Content-Length", "")).isdigit():
            self.send_header("Content-Length", length)
        self.end_headers()
        while chunk := answer.raw.read(CHUNK_BYTES, decode_content=False):
            self.wfile.write(chunk)


def main() -> None:
    """Serve until killed."""
    from pip._internal.commands import create_command
    from pip._internal.req.req_file import parse_requirements

    logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format="%(levelname)s: %(message)s")
    command: Any = create_command("download")
    with command.main_context():
        options, _ = command.parse_args([])
        command.verbosity = 0
        session = command._build_session(options)
        finder = command._build_package_finder(options, session)
        # These lines are only options: parsing them applies them.
        list(parse_requirements(str(HERE / "sources.txt"), session=session, finder=finder, options=options))
        # From here on nothing can read a file of this container, not even through a redirect.
        del session.adapters["file://"]
        index = Index(finder, session, json.loads((HERE / "addresses.json").read_text()))
        with IndexServer(str(GATEWAY / "socket"), index) as server:
            # From now on, opening this pipe to read no longer blocks.
            os.open(GATEWAY / "ready", os.O_RDWR)
            server.serve_forever()


if __name__ == "__main__":
    main()
