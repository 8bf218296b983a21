"""The `nanogrid` command.

The rule: at its top, a module here imports only what its help text needs. Docker, boto3, Celery and the local stack are
imported by the command that uses them, so that `nanogrid --help` answers at once.
"""

from __future__ import annotations

from nanogrid.cli.application import main

__all__ = ["main"]
