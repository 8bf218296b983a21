"""A forward proxy for plain HTTP that lets one host through. It uses only the standard library, so that any image can run it.

forward_proxy.py PORT HOST:PORT
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

ALLOWED = sys.argv[2] if len(sys.argv) > 2 else ""
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Proxy(BaseHTTPRequestHandler):
    """One request, with the whole address in its first line."""

    def do_GET(self) -> None:
        """Forward the request, or refuse it."""
        if urlsplit(self.path).netloc != ALLOWED:
            self.send_error(403)
            return
        try:
            with DIRECT.open(self.path, timeout=10) as answer:
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.headers.get("Content-Type", "application/octet-stream"))
                self.end_headers()
                self.wfile.write(answer.read())
        except urllib.error.HTTPError as refusal:
            self.send_error(refusal.code)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


if __name__ == "__main__":
    ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Proxy).serve_forever()  # inside a container
