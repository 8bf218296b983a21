"""Celery's account of a map's parts in Redis, told what it does not know of itself: what it has done already.

The rule: the part that is counted last sends the reduction, and is known by its own id. Celery makes up a new name at each
attempt, so that one which Redis carried out and did not answer, or whose child was killed, would keep the reduction from
everybody. A reduction that is sent twice is run once: its request id is claimed as any other's.
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
"""What Celery leaves in the place of a name when the reduction was sent."""


class MapParts(RedisBackend):
    """A backend that counts parts. What it asks of Redis is asked again until it is answered: an answer that is lost is the
    end of the whole map to Celery.

    All mutable state: `_part`, the id of the part that is being counted. Celery has a backend for each thread.
    """

    _part = ""

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> Any:
        """Count a part, and send the reduction where it was the last."""
        self._part = request.id
        return super().on_chord_part_return(request, state, result, **kwargs)

    @cached_property
    def client(self) -> Any:
        """A client that sends each command again for as long as that may help."""
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
    """Redis' answer; the URL decides whether it is text already."""
    return answer.decode() if isinstance(answer, bytes) else answer
