"""A TCP proxy on loopback, in front of a Redis, that lets a test act between two commands, and redirects connections after a failover.

    with RedisProxy(primary.port) as proxy:
        proxy.before(b"STARTED", lambda: client.set(...))   # runs once, before these bytes reach Redis
        proxy.lose(b"STARTED")                              # Redis runs the command, but its answer never arrives
        proxy.at(5, re.compile(b"claim|meta"), act)         # the fifth command from now on that has one of these words
        proxy.lead_to(replica.port)                         # like a changed DNS name: new connections go there

The rule: bytes pass unchanged; the test only decides whether, when and where to.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Plan:
    """What happens to the command that is the `left`-th from now on to match."""

    words: re.Pattern[bytes]
    left: int
    act: Callable[[], None] | None
    """Called before the command reaches Redis. None: the command reaches Redis, and its answer is lost."""


class RedisProxy:
    """The proxy. All mutable state: where it leads, what is planned, and the open sockets, guarded by `_lock`."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._plans: list[Plan] = []
        self._losing: set[socket.socket] = set()
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])

    def __enter__(self) -> RedisProxy:
        threading.Thread(target=self._accept, name="redis-proxy", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()

    @property
    def url(self) -> str:
        """Database 0 behind the proxy."""
        return f"redis://127.0.0.1:{self.port}/0"

    def before(self, words: bytes, act: Callable[[], None]) -> None:
        """Run `act` once, before the next bytes that hold `words` reach Redis."""
        self.at(1, re.compile(re.escape(words)), act)

    def lose(self, words: bytes) -> None:
        """Lose the answer to the next command that holds `words`: Redis runs it, then the connection is closed."""
        self.at(1, re.compile(re.escape(words)), None)

    def at(self, number: int, words: re.Pattern[bytes], act: Callable[[], None] | None) -> Plan:
        """Run `act` before the `number`-th command from now on that matches reaches Redis; None: lose its answer."""
        plan = Plan(words, number, act)
        with self._lock:
            self._plans.append(plan)
        return plan

    def lead_to(self, port: int, *, cut: bool = True) -> None:
        """Connect to this port from now on; `cut`: close open connections."""
        self._target_port = port
        if cut:
            self.cut()

    def cut(self) -> None:
        """Close all open connections."""
        with self._lock:
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                inside, _ = self._listener.accept()
            except OSError:
                return
            try:
                outside = socket.create_connection(("127.0.0.1", self._target_port), 5)
            except OSError:
                inside.close()
                continue
            outside.settimeout(None)
            with self._lock:
                self._sockets |= {inside, outside}
            for source, target, acts in ((inside, outside, True), (outside, inside, False)):
                threading.Thread(target=self._pump, args=(source, target, acts), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, acts: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if source in self._losing:
                    break
                for plan in self._due(data) if acts else ():
                    if plan.act is None:
                        self._losing.add(target)
                    else:
                        plan.act()
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._sockets.discard(source)
            self._losing.discard(source)
        source.close()

    def _due(self, data: bytes) -> list[Plan]:
        """The plans that are due."""
        with self._lock:
            for plan in self._plans:
                plan.left -= bool(plan.words.search(data))
            due = [plan for plan in self._plans if plan.left == 0]
            self._plans = [plan for plan in self._plans if plan.left > 0]
        return due
