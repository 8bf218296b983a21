"""Sessions of botocore, from which the clients for S3 and SQS are made.

The rule: the descriptions of the services, megabytes of JSON, are read once per process. A forked child inherits what its
parent has read. Each session looks up credentials on its own.

botocore is imported when a session is made, so that importing this module costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from botocore.session import Session

_loader: Any = None
"""Reads descriptions and keeps them. It has no connection and no lock, so that forked processes may share it."""


def new_session() -> Session:
    """A new session. Threads may share a client, but must not create clients from one session at the same time."""
    import botocore.session

    global _loader
    session = botocore.session.Session()
    if _loader is None:
        _loader = session.get_component("data_loader")  # of two threads that get here, one reads for itself
    else:
        session.register_component("data_loader", _loader)
    return session
