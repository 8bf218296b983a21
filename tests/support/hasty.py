"""The real app, which treats Redis as unavailable after 0.25 s without an answer, so that a test of each step need not wait ten seconds.

`celery -A tests.support.hasty worker` differs from `celery -A nanogrid worker` only in that.
"""

from __future__ import annotations

from nanogrid.celery import app as app
from nanogrid.connections import result_redis

result_redis.ANSWER_TIMEOUT_S = 0.25
