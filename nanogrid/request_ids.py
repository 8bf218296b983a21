"""Whose a request id is: which ones a queue's messages may name, where the deployment gave queues a prefix each.

The rule: an id belongs to the queues whose prefix it begins with. Who may send to one queue only can then decide, repeat or
read nothing under an id of another queue.
"""

from __future__ import annotations

from nanogrid.settings import Settings


def prefix_of(queue: str, settings: Settings) -> str:
    """What every request id in a queue begins with. Empty: the deployment requires nothing."""
    return settings.request_id_prefixes.get(queue, "")


def refusal(request_id: str, queue: str, settings: Settings) -> str | None:
    """Why a message of this queue may not name this id, or None where it may."""
    required = prefix_of(queue, settings)
    if required:
        if request_id.startswith(required):
            return None
        return f"{request_id!r} does not begin with {required!r}, which the queue {queue} requires"
    owned = next((prefix for prefix in settings.request_id_prefixes.values() if request_id.startswith(prefix)), None)
    if owned is None:
        return None
    return f"{request_id!r} begins with {owned!r}, and such ids are those of another queue than {queue}"
