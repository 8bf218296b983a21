"""Whether this worker can take work: one check for each part that it cannot do without.

The rule: an answer comes within DEADLINE_S, whatever a check hangs on, and no check is begun while its last one still hangs.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from nanogrid.execution.container.engine import Engine
from nanogrid.settings import Settings

DEADLINE_S = 2.0
FRESH_S = 3.0
"""How long what a check found to be well counts as what is so now. What was wrong is looked at again each time."""

LONGEST_TEXT = 300
MIB = 1024 * 1024

Look = Callable[[], str]
"""Looks at one part: what it found, in words. Raises what is wrong."""


@dataclass(frozen=True)
class Found:
    """What a check found. `at` by the monotonic clock."""

    ok: bool
    found: str
    took_ms: float
    at: float

    def to_json(self) -> dict[str, Any]:
        """As `/healthz` shows it."""
        age_s = round(time.monotonic() - self.at, 1)
        return {"ok": self.ok, "found": self.found, "tookMs": round(self.took_ms, 1), "ageS": age_s}


@dataclass
class _Check:
    look: Look
    found: Found | None = None
    began_at: float = 0.0
    running: bool = False
    done: threading.Event = field(default_factory=threading.Event)


class Health:
    """The checks, by name. Thread-safe.

    All mutable state: that of the checks, guarded by `_lock`. A check that hangs keeps one thread, which dies with the process.
    """

    def __init__(self, looks: Mapping[str, Look], *, deadline_s: float = DEADLINE_S, fresh_s: float = FRESH_S) -> None:
        self._checks = {name: _Check(look) for name, look in looks.items()}
        self._deadline_s = deadline_s
        self._fresh_s = fresh_s
        self._lock = threading.Lock()

    def report(self) -> dict[str, Found]:
        """What each check finds, or found a moment ago."""
        now = time.monotonic()
        waiting = [check for name, check in self._checks.items() if self._begun(name, check, now)]
        for check in waiting:
            check.done.wait(max(0.0, now + self._deadline_s - time.monotonic()))
        return self.known()

    def known(self) -> dict[str, Found]:
        """What each check found last, without looking; nothing of one that was never begun."""
        now = time.monotonic()
        with self._lock:
            return {
                name: found for name, check in self._checks.items() if (found := self._judged(check, now)) is not None
            }

    def _judged(self, check: _Check, now: float) -> Found | None:
        """What is so: a check that hangs found that."""
        since_s = now - check.began_at
        if check.running and (check.found is None or since_s >= self._deadline_s):
            return Found(False, f"no answer for {since_s:.1f} s", since_s * 1000, now)
        return check.found

    def _begun(self, name: str, check: _Check, now: float) -> bool:
        """Begin a check that is due. Whether its end is to be waited for."""
        with self._lock:
            if check.running:
                return now - check.began_at < self._deadline_s
            if check.found is not None and check.found.ok and now - check.found.at < self._fresh_s:
                return False
            check.running, check.began_at = True, now
            check.done.clear()
        threading.Thread(target=self._run, args=(check,), name=f"health-{name}", daemon=True).start()
        return True

    def _run(self, check: _Check) -> None:
        began = time.monotonic()
        try:
            ok, text = True, check.look()
        except Exception as error:  # noqa: BLE001  # whatever it is, it is what was found
            ok, text = False, " ".join(str(error).split())[:LONGEST_TEXT] or type(error).__name__
        now = time.monotonic()
        with self._lock:
            check.found = Found(ok, text, (now - began) * 1000, now)
            check.running = False
            check.done.set()


class Disk:
    """The disk of the data folder, as it was at the last look."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.free_bytes: int | None = None
        self.total_bytes: int | None = None

    def look(self) -> str:
        """Whether the largest function fits, and may be written."""
        folder: Path = self._settings.data_dir
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OSError(f"{folder} cannot be written")
        usage = shutil.disk_usage(folder)
        self.free_bytes, self.total_bytes = usage.free, usage.total
        needed_mb = self._settings.archive_limit_mb + self._settings.unpacked_limit_mb
        if usage.free < needed_mb * MIB:
            raise OSError(
                f"{folder} has {usage.free // MIB} MiB free, and the largest function needs {needed_mb} MiB: free some"
            )
        return f"{usage.free // MIB} MiB free"


def check_engine(engine: Engine) -> Look:
    """Whether the Docker engine answers."""

    def look() -> str:
        return f"engine {engine.version()['Version']}"

    return look


def check_redis(url: str) -> Look:
    """Whether a Redis answers; a connection of its own each time, so that a restart is seen."""

    def look() -> str:
        with redis.Redis.from_url(
            url, socket_timeout=DEADLINE_S, socket_connect_timeout=DEADLINE_S, retry=Retry(NoBackoff(), 0)
        ) as client:
            client.ping()
        return "answers"

    return look
