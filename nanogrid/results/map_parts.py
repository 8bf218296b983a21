"""Celery's count of a map's parts in Redis, made safe to repeat.

The rule: the part that is counted last sends the reduction, and claims that under its own id. Celery invents a new name for
each attempt. If Redis carried out an attempt but the answer was lost, or the child was killed, nobody could send the
reduction any more. A reduction that is sent twice runs once, because its request id is claimed like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from celery.backends.redis import RedisBackend
from redis.backoff import ExponentialBackoff

from nanogrid.connections.result_redis import PatientRetry

Script = Callable[..., Any]
DONE = "done"
"""What Celery stores instead of a name after the reduction is sent."""


class MapParts(RedisBackend):
    """A backend that counts parts. It repeats each command until Redis answers: for Celery, a lost answer ends the whole map.

    All mutable state: `_part`, the id of the part that is being counted. Celery creates a backend for each thread.
    """

    _part = ""

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> Any:
        """Count a part, and send the reduction after the last one."""
        self._part = request.id
        return super().on_chord_part_return(request, state, result, **kwargs)

    @cached_property
    def client(self) -> Any:
        """A client that repeats each command for as long as that can help."""
        return self._create_client(**self.connparams, retry=PatientRetry(ExponentialBackoff(cap=1, base=0.05), -1))

    @cached_property
    def _chord_part_return_script(self) -> Script:
        script = super()._chord_part_return_script

        def count(keys: list[str], args: list[Any], client: Any) -> Any:
            *counted, claimed = script(keys=keys, args=[*args[:-1], self._part], client=client)
            return (*counted, claimed or int(_text(client.get(keys[-1])) == self._part))

        return count

    @cached_property
    def _chord_claim_extend_script(self) -> Script:
        script = super()._chord_claim_extend_script

        def extend(keys: list[str], args: list[Any], client: Any) -> Any:
            return script(keys=keys, args=[self._part, *args[1:]], client=client)

        return extend

    @cached_property
    def _chord_cleanup_script(self) -> Script:
        script = super()._chord_cleanup_script

        def clean_up(keys: list[str], args: list[Any], client: Any) -> Any:
            return script(keys=keys, args=[self._part, *args[1:]], client=client) or _text(client.get(keys[0])) == DONE

        return clean_up


def _text(answer: str | bytes | None) -> str | None:
    """Return Redis' answer as text; the URL decides whether it is decoded already."""
    return answer.decode() if isinstance(answer, bytes) else answer
