"""Whether each part of the stack answers, asked in the part's own protocol.

The one rule: an open port proves nothing. A probe is true only when the part did a small piece of its real work.
No probe raises for a part that is not there yet, and none waits for more than about a second.
"""

from __future__ import annotations

import http.client
import json
from pathlib import Path

from nanogrid.metrics.address import published

LOOPBACK = "127.0.0.1"
PATIENCE_S = 1.0


def redis_answers(port: int, pid: int) -> bool:
    """Redis has loaded its data, takes commands, and is the process that was started."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    with redis.Redis(
        host=LOOPBACK,
        port=port,
        socket_timeout=PATIENCE_S,
        socket_connect_timeout=PATIENCE_S,
        retry=Retry(NoBackoff(), 0),  # by itself it tries eleven times
    ) as client:
        try:
            return bool(client.ping()) and client.info("server")["process_id"] == pid
        except redis.RedisError:  # BusyLoadingError among them
            return False


def sqs_answers(port: int) -> bool:
    """SQS lists its queues.

    Asked in plain HTTP, not by boto3: that one would look into the person's AWS profile, which has no say here. The
    signature's scope is what leads the request to SQS, as S3 listens on the same port; nobody checks the signature.
    """
    headers = {
        "X-Amz-Target": "AmazonSQS.ListQueues",
        "Content-Type": "application/x-amz-json-1.0",
        "Authorization": "AWS4-HMAC-SHA256 Credential=local/20000101/us-east-1/sqs/aws4_request, "
        "SignedHeaders=host, Signature=none",
    }
    answer = _ask(port, "POST", "/", "{}", headers)
    return answer is not None and answer.startswith(b"{")


def worker_answers(monitor_url: str) -> bool:
    """A worker answers over remote control. No process id is asked for: this Redis is the stack's own."""
    from kombu.exceptions import OperationalError
    from redis.exceptions import RedisError

    from nanogrid.celery import make_app
    from nanogrid.monitoring.connections import monitor_connection
    from nanogrid.settings import Settings

    # Validating nothing but the place: what else the person has set is the worker's business.
    settings = Settings.model_construct(monitor_url=monitor_url)
    with (
        make_app(settings) as app,
        monitor_connection(settings, max_retries=0, patience_s=PATIENCE_S) as connection,
    ):
        try:
            return bool(app.control.broadcast("ping", connection=connection, reply=True, timeout=PATIENCE_S, limit=1))
        except (OperationalError, RedisError, OSError):
            return False


def worker_stands_still(data_dir: Path) -> bool:
    """Whether a worker of this data folder says that it holds requests and none of its children takes any."""
    answers = (_ask(address.port, "GET", "/status", None, {}) for _, address in published(data_dir))
    return any(json.loads(answer)["worker"]["stalled"] for answer in answers if answer is not None)


def flower_answers(port: int) -> bool:
    """Flower shows its page of workers."""
    return _ask(port, "GET", "/workers", None, {}) is not None


def _ask(port: int, method: str, path: str, body: str | None, headers: dict[str, str]) -> bytes | None:
    """The body of a 200 from a server on loopback, None for anything else."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=PATIENCE_S)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.read() if response.status == http.client.OK else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
