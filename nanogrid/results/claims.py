"""Effectively once: a run claims its request id in Redis, atomically and with an expiry that it renews.

The rule: only the holder of the claim runs. Everyone else waits for the holder's result, or until the claim is free. SQS
delivers at least once and does not mark redeliveries, so the claim is the only guard against a second run.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from nanogrid.connections.result_redis import connect
from nanogrid.errors import ClaimBusyError
from nanogrid.results.scripts import TAKE
from nanogrid.settings import Settings

log = logging.getLogger(__name__)

# Both compare the token first: a claim that expired and was taken by another holder is left alone.
RENEW = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) else return 0 end"
RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end"


class Claims:
    """Claims of one process. Thread-safe.

    All mutable state: `_held` (tokens by request id), guarded by `_lock`; one thread renews them all.
    """

    def __init__(self, settings: Settings, client: redis.Redis | None = None) -> None:
        self._ttl_s = settings.claim_ttl_s
        self._ttl_ms = int(settings.claim_ttl_s * 1000)
        self._lock = threading.Lock()
        self._held: dict[str, str] = {}
        self._keeper: threading.Thread | None = None
        self._any_held = threading.Event()
        self._redis = client or connect(settings)
        self._renew = self._redis.register_script(RENEW)
        self._release = self._redis.register_script(RELEASE)

    def take(self, request_id: str, token: str) -> bool:
        """Claim a request id, or renew the claim if `token` holds it already. Returns False if another token holds it."""
        return bool(self._redis.eval(TAKE, 1, _key(request_id), token, self._ttl_ms))

    def claim(self, request_id: str, token: str) -> tuple[str, str, int]:
        """What takes a claim within another script: its key, the token, and its life in milliseconds."""
        return _key(request_id), token, self._ttl_ms

    def is_held(self, request_id: str) -> bool:
        """Whether the request id is claimed."""
        return bool(self._redis.exists(_key(request_id)))

    def release(self, request_id: str, token: str) -> None:
        """Release the claim, if `token` still holds it."""
        self._release(keys=[_key(request_id)], args=[token])

    @contextmanager
    def hold(self, request_id: str, token: str) -> Iterator[None]:
        """Renew a taken claim during a `with` block. The claim is *not* released at the end.

        Celery stores the result after the task has returned, and the claim must last until then. It expires by itself, or
        `release` ends it.
        """
        with self._lock:
            self._held[request_id] = token
            if self._keeper is None:
                self._keeper = threading.Thread(target=self._keep, name="claims", daemon=True)
                self._keeper.start()
        self._any_held.set()
        try:
            yield
        finally:
            with self._lock:  # so that no renewal is running: a late one would take a released claim again
                self._held.pop(request_id, None)

    def wait(self, request_id: str, timeout_s: float) -> None:
        """Wait until the claim is free. Raises ClaimBusyError if that takes longer than `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while self.is_held(request_id):
            if time.monotonic() > deadline:
                raise ClaimBusyError(f"request {request_id!r} is still running elsewhere after {timeout_s:g} s")
            time.sleep(0.1)

    def _keep(self) -> None:
        while True:
            self._any_held.wait()
            time.sleep(self._ttl_s / 3)
            with self._lock:
                if not self._held:
                    self._any_held.clear()
                for request_id, token in self._held.items():
                    self._renew_or_warn(request_id, token)

    def _renew_or_warn(self, request_id: str, token: str) -> None:
        try:
            if self._renew(keys=[_key(request_id)], args=[token, self._ttl_ms]):
                return
            if self.take(request_id, token):
                log.warning(
                    "request %s: the claim was gone from Redis and is taken again; a duplicate may have run at the same time",
                    request_id,
                )
            else:
                log.warning("request %s: the claim was lost to another worker; it may run twice", request_id)
        except redis.RedisError as error:
            log.warning("request %s: the claim could not be renewed (%s)", request_id, error)


def _key(request_id: str) -> str:
    return f"nanogrid:claim:{request_id}"
