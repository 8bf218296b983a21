"""The real app, for which Redis is away when it has not answered for 0.25 s: a test of each step need not wait ten seconds.

`celery -A tests.support.hasty worker` differs from `celery -A nanogrid worker` in nothing else.
"""

from __future__ import annotations

from nanogrid import claims
from nanogrid.celery import app as app

claims.ANSWER_TIMEOUT_S = 0.25
