"""The real app, for which Redis is away when it has not answered for 0.25 s: a test of each step need not wait ten seconds.

`celery -A tests.support.hasty worker` differs from `celery -A nanogrid worker` in nothing else.
"""

from __future__ import annotations

from nanogrid.celery import app as app
from nanogrid.connections import result_redis

result_redis.ANSWER_TIMEOUT_S = 0.25
