"""Whether this worker can do its work: one check for each part that it needs.

The rule: a report comes within DEADLINE_S, whatever a check hangs on, and no check starts while its last run still hangs.
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
"""How long a successful result counts as current. A failed check runs again each time."""

LONGEST_TEXT = 300
MIB = 1024 * 1024

Check = Callable[[], str]
"""Checks one part and returns what it found, in words. Raises if the part does not work."""


@dataclass(frozen=True)
class CheckResult:
    """The result of a check. `at` is by the monotonic clock."""

    ok: bool
    text: str
    took_ms: float
    at: float

    def to_json(self) -> dict[str, Any]:
        """Return the result as `/healthz` shows it."""
        age_s = round(time.monotonic() - self.at, 1)
        return {"ok": self.ok, "found": self.text, "tookMs": round(self.took_ms, 1), "ageS": age_s}


@dataclass
class _CheckState:
    check: Check
    result: CheckResult | None = None
    began_at: float = 0.0
    running: bool = False
    done: threading.Event = field(default_factory=threading.Event)


class Health:
    """The checks, by name. Thread-safe.

    All mutable state: that of the checks, guarded by `_lock`. A check that hangs keeps one thread, which ends with the process.
    """

    def __init__(
        self, checks: Mapping[str, Check], *, deadline_s: float = DEADLINE_S, fresh_s: float = FRESH_S
    ) -> None:
        self._states = {name: _CheckState(check) for name, check in checks.items()}
        self._deadline_s = deadline_s
        self._fresh_s = fresh_s
        self._lock = threading.Lock()

    def report(self) -> dict[str, CheckResult]:
        """Run the checks that are due and return the result of each."""
        now = time.monotonic()
        waiting = [state for name, state in self._states.items() if self._start(name, state, now)]
        for state in waiting:
            state.done.wait(max(0.0, now + self._deadline_s - time.monotonic()))
        return self.last_results()

    def last_results(self) -> dict[str, CheckResult]:
        """Return the last result of each check without running it. A check that never started is left out."""
        now = time.monotonic()
        with self._lock:
            return {
                name: result
                for name, state in self._states.items()
                if (result := self._current(state, now)) is not None
            }

    def _current(self, state: _CheckState, now: float) -> CheckResult | None:
        """Return the last result, or a failure if the check hangs."""
        since_s = now - state.began_at
        if state.running and (state.result is None or since_s >= self._deadline_s):
            return CheckResult(False, f"no answer for {since_s:.1f} s", since_s * 1000, now)
        return state.result

    def _start(self, name: str, state: _CheckState, now: float) -> bool:
        """Start a check if it is due. Returns whether to wait for its end."""
        with self._lock:
            if state.running:
                return now - state.began_at < self._deadline_s
            if state.result is not None and state.result.ok and now - state.result.at < self._fresh_s:
                return False
            state.running, state.began_at = True, now
            state.done.clear()
        threading.Thread(target=self._run, args=(state,), name=f"health-{name}", daemon=True).start()
        return True

    def _run(self, state: _CheckState) -> None:
        began = time.monotonic()
        try:
            ok, text = True, state.check()
        except Exception as error:  # noqa: BLE001  # any error is a result
            ok, text = False, " ".join(str(error).split())[:LONGEST_TEXT] or type(error).__name__
        now = time.monotonic()
        with self._lock:
            state.result = CheckResult(ok, text, (now - began) * 1000, now)
            state.running = False
            state.done.set()


class Disk:
    """The disk of the data folder, as of the last check."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.free_bytes: int | None = None
        self.total_bytes: int | None = None

    def check(self) -> str:
        """Check that the folder is writable and has room for the largest function."""
        folder: Path = self._settings.data_dir
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OSError(f"{folder} is not writable")
        usage = shutil.disk_usage(folder)
        self.free_bytes, self.total_bytes = usage.free, usage.total
        needed_mb = self._settings.archive_limit_mb + self._settings.unpacked_limit_mb
        if usage.free < needed_mb * MIB:
            raise OSError(
                f"{folder} has {usage.free // MIB} MiB free, but the largest function needs {needed_mb} MiB: free some space"
            )
        return f"{usage.free // MIB} MiB free"


def check_engine(engine: Engine) -> Check:
    """Create a check that the Docker engine answers."""

    def check() -> str:
        return f"engine {engine.version()['Version']}"

    return check


def check_redis(url: str) -> Check:
    """Create a check that a Redis answers. Each run opens a new connection, so that a restart is noticed."""

    def check() -> str:
        with redis.Redis.from_url(
            url, socket_timeout=DEADLINE_S, socket_connect_timeout=DEADLINE_S, retry=Retry(NoBackoff(), 0)
        ) as client:
            client.ping()
        return "answers"

    return check
